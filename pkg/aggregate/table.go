package aggregate

import "iter"

// table holds the entries of one kind by number, and finds them by a key: sockets by the
// address that the kernel has them at. Nothing in it is ever copied to grow, neither the
// entries nor the index: that is a hash table with as many buckets as there are entries, of
// which one is split in two for each entry that is made (linear hashing, Litwin 1980). So no
// event has to wait for more than a chunk. Its memory is that of the most entries that
// were in use at once. They hold no pointers: a table of a million is invisible to the
// garbage collector.
type table[K comparable, T any] struct {
	hash   func(K) uint32
	chunks []*chunk[K, T]
	used   uint32 // entries ever made, and buckets; number 0 is never in use
	mask   uint32 // of the bits of a hash that name a bucket, if that has been split off already
	free   uint32 // the first of the entries that are not in use; 0: none
	n      int
}

const chunkLen = 1024

type chunk[K comparable, T any] struct {
	key   [chunkLen]K      // zero: not in use
	next  [chunkLen]uint32 // the next entry in its bucket; or of those that are not in use
	first [chunkLen]uint32 // entry of a bucket
	entry [chunkLen]T
}

func newTable[K comparable, T any](hash func(K) uint32) table[K, T] {
	return table[K, T]{hash: hash, chunks: []*chunk[K, T]{new(chunk[K, T])}, used: 1}
}

// hashAddr is for addresses that the kernel gives out (Knuth's multiplicative hashing).
func hashAddr(addr uint64) uint32 { return uint32(addr * 0x9e37_79b9_7f4a_7c15 >> 32) }

func (t *table[K, T]) at(i uint32) *T         { return &t.chunks[i/chunkLen].entry[i%chunkLen] }
func (t *table[K, T]) key(i uint32) *K        { return &t.chunks[i/chunkLen].key[i%chunkLen] }
func (t *table[K, T]) next(i uint32) *uint32  { return &t.chunks[i/chunkLen].next[i%chunkLen] }
func (t *table[K, T]) first(b uint32) *uint32 { return &t.chunks[b/chunkLen].first[b%chunkLen] }

// bucket returns the number of the bucket for a key.
func (t *table[K, T]) bucket(key K) uint32 {
	b := t.hash(key) & t.mask
	if b >= t.used {
		b &= t.mask >> 1
	}
	return b
}

// find returns 0 if there is no such entry.
func (t *table[K, T]) find(key K) uint32 {
	b := t.hash(key) // bucket, in line
	if b &= t.mask; b >= t.used {
		b &= t.mask >> 1
	}
	i := *t.first(b)
	for i != 0 && *t.key(i) != key {
		i = *t.next(i)
	}
	return i
}

func (t *table[K, T]) len() int { return t.n }

// add returns the number of a new entry, which is zero. There must be none with this
// key, which is not zero.
func (t *table[K, T]) add(key K) uint32 {
	i := t.free
	if i != 0 {
		t.free = *t.next(i)
	} else {
		i = t.used
		t.grow()
	}
	*t.key(i) = key
	t.link(i, t.bucket(key))
	t.n++
	return i
}

func (t *table[K, T]) link(i, bucket uint32) {
	first := t.first(bucket)
	*t.next(i), *first = *first, i
}

// grow makes one more entry, and one more bucket.
func (t *table[K, T]) grow() {
	if int(t.used/chunkLen) == len(t.chunks) {
		t.chunks = append(t.chunks, new(chunk[K, T]))
	}
	if t.used > t.mask {
		t.mask = t.mask<<1 | 1
	}
	from := t.used & (t.mask >> 1)
	t.used++
	i := *t.first(from)
	*t.first(from) = 0
	for i != 0 {
		next := *t.next(i)
		t.link(i, t.bucket(*t.key(i)))
		i = next
	}
}

func (t *table[K, T]) remove(i uint32) {
	link := t.first(t.bucket(*t.key(i)))
	for *link != i {
		link = t.next(*link)
	}
	*link = *t.next(i)
	var (
		none T
		no   K
	)
	*t.at(i), *t.key(i) = none, no
	*t.next(i), t.free = t.free, i
	t.n--
}

// all goes through the entries by number: a replay finds them in the same order. The
// one that it is at may be removed.
func (t *table[K, T]) all() iter.Seq2[uint32, *T] {
	return func(yield func(uint32, *T) bool) {
		var no K
		for i := uint32(1); i < t.used; i++ {
			if *t.key(i) != no && !yield(i, t.at(i)) {
				return
			}
		}
	}
}
