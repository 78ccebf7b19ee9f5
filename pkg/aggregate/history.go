package aggregate

import (
	"math/bits"
	"time"
)

// History is what a process did, in this run, with the connections that its peers
// closed first.
type History struct {
	PeerClosed uint64 // connections that the peer closed first
	Closed     uint64 // of these, the process closed
	Held       int    // of these, the process still has
	times      *histogram
}

// FinToClose returns the time from the peer's FIN to the process's close() that
// the fraction q of the closes did not exceed, to about 3%; Unknown if there
// were none.
func (h *History) FinToClose(q float64) time.Duration {
	if h.times == nil {
		return Unknown
	}
	return h.times.quantile(q)
}

func (h *History) closed(after time.Duration) {
	h.Closed++
	if after == Unknown {
		return
	}
	if h.times == nil {
		h.times = new(histogram)
	}
	h.times.add(after)
}

// A histogram counts durations in buckets of which each is about 6% wide:
// sixteen for every power of two microseconds, up to half a year.
type histogram struct {
	counts [44 * 16]uint32
	n      uint64
}

func (h *histogram) add(d time.Duration) {
	us := uint64(d / time.Microsecond)
	i := us
	if us >= 16 {
		exp := bits.Len64(us) - 5
		i = uint64(exp+1)*16 + us>>exp&15
	}
	h.counts[min(i, uint64(len(h.counts)-1))]++
	h.n++
}

func (h *histogram) quantile(q float64) time.Duration {
	rank := min(uint64(q*float64(h.n)), h.n-1)
	for i := range uint64(len(h.counts)) {
		n := uint64(h.counts[i])
		if rank >= n {
			rank -= n
			continue
		}
		if i < 16 {
			return time.Duration(i) * time.Microsecond
		}
		low, width := (i&15+16)<<(i/16-1), uint64(1)<<(i/16-1)
		return time.Duration(low+width/2) * time.Microsecond
	}
	return Unknown
}
