package report

import (
	"cmp"
	"slices"
)

// A board has a row for each of a bounded number of keys. When there are more, the rows that
// weigh least give way; who has such a row still may count in it, to no effect.
type board[K comparable, R any] struct {
	rows  map[K]*R
	keys  []K // in the order in which they came
	limit int
	weigh func(*R) uint64
	// retire makes a row small that gives way.
	retire func(*R)
	gone   int // rows that gave way
}

func newBoard[K comparable, R any](limit int, weigh func(*R) uint64, retire func(*R)) *board[K, R] {
	return &board[K, R]{rows: map[K]*R{}, limit: limit, weigh: weigh, retire: retire}
}

// at returns the row of a key, and whether it is a new one.
func (b *board[K, R]) at(k K) (row *R, made bool) {
	if r := b.rows[k]; r != nil {
		return r, false
	}
	if len(b.keys) >= b.limit {
		b.sort()
		for _, k := range b.keys[b.limit/2:] { // half of them, so that it is rarely needed
			b.retire(b.rows[k])
			delete(b.rows, k)
			b.gone++
		}
		b.keys = b.keys[:b.limit/2]
	}
	r := new(R)
	b.rows[k] = r
	b.keys = append(b.keys, k)
	return r, true
}

// sort puts the heaviest first.
func (b *board[K, R]) sort() {
	slices.SortStableFunc(b.keys, func(x, y K) int { return cmp.Compare(b.weigh(b.rows[y]), b.weigh(b.rows[x])) })
}
