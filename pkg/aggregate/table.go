package aggregate

// table holds the entries of one kind and finds them by the address that the kernel
// has them at. It grows by chunks, so that growing never copies, and its memory is
// that of the most that were alive at once. An entry holds no pointers, so that a
// table of a million is invisible to the garbage collector.
type table[T any] struct {
	byAddr map[uint64]uint32
	chunks []*[chunkLen]T
	used   uint32 // entries ever handed out; number 0 never is
	free   []uint32
	max    int
}

const chunkLen = 1024

func newTable[T any](limit int) table[T] {
	return table[T]{byAddr: map[uint64]uint32{}, used: 1, max: limit}
}

func (t *table[T]) at(i uint32) *T { return &t.chunks[i/chunkLen][i%chunkLen] }

// find returns 0 if there is no such entry.
func (t *table[T]) find(addr uint64) uint32 { return t.byAddr[addr] }

// add returns 0 if the table is full. The entry is zero.
func (t *table[T]) add(addr uint64) uint32 {
	if len(t.byAddr) >= t.max {
		return 0
	}
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

func (t *table[T]) remove(addr uint64, i uint32) {
	delete(t.byAddr, addr)
	var none T
	*t.at(i) = none
	t.free = append(t.free, i)
}
