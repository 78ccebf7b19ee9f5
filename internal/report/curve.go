package report

import (
	"math"
	"math/bits"
)

const (
	curveSlots = 256
	curveStep  = 10_000_000 // ns, of a curve's first slots
)

// A curve is a number that changes with time, in a fixed number of slots, which get twice as
// wide whenever time outgrows them. The zero value is ready for use.
type curve struct {
	start, step int64 // ns
	n           int   // slots in use
	last, most  []int32
}

// set gives the number from time t on. A t that comes late counts as now.
func (c *curve) set(t int64, level int) {
	value := int32(min(level, math.MaxInt32))
	if c.last == nil {
		c.start, c.step = t, curveStep
		c.last, c.most = make([]int32, curveSlots), make([]int32, curveSlots)
	}
	for (t-c.start)/curveSlots >= c.step { // the product may overflow
		c.coarsen()
	}
	i := max(int((t-c.start)/c.step), c.n-1, 0)
	for ; c.n <= i; c.n++ {
		if c.n > 0 {
			c.last[c.n] = c.last[c.n-1]
		}
		c.most[c.n] = c.last[c.n]
	}
	c.last[i] = value
	c.most[i] = max(c.most[i], value)
}

func (c *curve) coarsen() {
	for i := 0; i < c.n; i += 2 {
		j := min(i+1, c.n-1)
		c.last[i/2], c.most[i/2] = c.last[j], max(c.most[i], c.most[j])
	}
	c.n = (c.n + 1) / 2
	c.step *= 2
}

// A histogram counts times by their magnitude: bucket 0 has what is below 2 µs, bucket i what
// is from 2^i µs on.
type histogram struct {
	Counts [44]uint64 // the last has all from 2^43 µs, 102 days, on
	Max    float64    // ms
}

func (h *histogram) add(ms float64) {
	us := ms * 1000
	if !(us >= 0 && us < math.MaxInt64) { // a NaN too
		return
	}
	h.Counts[min(max(bits.Len64(uint64(us))-1, 0), len(h.Counts)-1)]++
	h.Max = max(h.Max, ms)
}

// quantile is the upper end of the bucket that has it, in ms, or the most that was seen if that
// is less; false if there is none.
func (h *histogram) quantile(q float64) (ms float64, ok bool) {
	var all, sum uint64
	for _, n := range h.Counts {
		all += n
	}
	for i, n := range h.Counts {
		if sum += n; n > 0 && float64(sum) >= q*float64(all) {
			return min(math.Ldexp(1, i+1)/1000, h.Max), true
		}
	}
	return 0, false
}

func (h *histogram) merge(from *histogram) {
	for i, n := range from.Counts {
		h.Counts[i] += n
	}
	h.Max = max(h.Max, from.Max)
}

// states are the kernel's, in the order in which a connection can go through them.
var states = [...]string{
	"LISTEN", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "CLOSING", "TIME_WAIT", "CLOSE_WAIT", "LAST_ACK", "CLOSE",
}

// dwells has a histogram for each state.
type dwells map[string]*histogram

func newDwells() dwells {
	d := dwells{}
	for _, s := range states {
		d[s] = &histogram{}
	}
	return d
}

// add counts a time that is known, in a state that there is.
func (d dwells) add(state string, ms *float64) {
	if h := d[state]; h != nil && ms != nil {
		h.add(*ms)
	}
}
