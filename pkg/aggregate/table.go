package aggregate

import "iter"

// table holds the entries of one kind and finds them by the address that the kernel
// has them at. It grows by chunks, so that growing never copies, and its memory is
// that of the most that were alive at once. An entry holds no pointers, so that a
// table of a million is invisible to the garbage collector.
type table[T any, P entry[T]] struct {
	byAddr map[uint64]uint32
	chunks []*[chunkLen]T
	used   uint32 // entries ever handed out; number 0 never is
	free   []uint32
}

// entry is a *T that knows its address, which is 0 when it is not in use.
type entry[T any] interface {
	*T
	address() uint64
}

const chunkLen = 1024

func newTable[T any, P entry[T]]() table[T, P] {
	return table[T, P]{byAddr: map[uint64]uint32{}, used: 1}
}

func (t *table[T, P]) at(i uint32) P { return &t.chunks[i/chunkLen][i%chunkLen] }

// find returns 0 if there is no such entry.
func (t *table[T, P]) find(addr uint64) uint32 { return t.byAddr[addr] }

func (t *table[T, P]) len() int { return len(t.byAddr) }

// add returns the number of a new entry. It is for the caller to give it its address.
func (t *table[T, P]) add(addr uint64) uint32 {
	i := t.used
	if k := len(t.free); k > 0 {
		i, t.free = t.free[k-1], t.free[:k-1]
	} else {
		t.used++
		if int(i/chunkLen) == len(t.chunks) {
			t.chunks = append(t.chunks, new([chunkLen]T))
		}
	}
	t.byAddr[addr] = i
	return i
}

func (t *table[T, P]) remove(i uint32) {
	delete(t.byAddr, t.at(i).address())
	var none T
	*t.at(i) = none
	t.free = append(t.free, i)
}

// all goes through the entries by number: a replay finds them in the same order. The
// one that it is at may be removed.
func (t *table[T, P]) all() iter.Seq2[uint32, P] {
	return func(yield func(uint32, P) bool) {
		for i := uint32(1); i < t.used; i++ {
			if e := t.at(i); e.address() != 0 && !yield(i, e) {
				return
			}
		}
	}
}
