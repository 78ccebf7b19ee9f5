package aggregate

import (
	"math/bits"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

const (
	// The time over which connections are counted. It takes two windows in a row: a
	// burst is over as soon as anybody could look at it.
	churnWindow = uint64(5 * time.Second)

	// Connections that live longer than this, the median of them, are not short-lived:
	// to keep them open instead would save little.
	churnLife = time.Second

	// So many processes and destinations are watched at once. One that is not is again
	// as soon as another has made no connection for a window.
	maxChurns = 1 << 12
)

// churnKey names the connections of one process to one destination.
type churnKey struct {
	proc  uint32
	netns uint32
	rport uint16
	raddr events.Addr
}

// churn counts the connections that a process has opened and that are over: the first
// side has closed.
type churn struct {
	key     churnKey
	from    uint64 // Ktime at which the window began
	n       uint32 // connections in the window
	total   uint64
	lives   [28]uint32 // of the window: by the power of two of microseconds
	high    bool       // the window before was above the limit
	finding uint32
}

// shortLived counts a connection that its process has opened, and that has lived.
func (t *Tracker) shortLived(c *conn, ktime uint64) {
	proc := t.procs.of(&c.past)
	if c.role != Client || c.start == 0 || proc == nobody {
		return
	}
	k := churnKey{proc: proc, netns: c.Netns, rport: c.Rport, raddr: c.Raddr}
	h := t.churnOf[k]
	if h == nil {
		if len(t.churns) >= maxChurns {
			return
		}
		h = t.addChurn(k)
		h.from = ktime
	}
	h.n++
	h.total++
	us := (ktime - min(c.start, ktime)) / uint64(time.Microsecond)
	h.lives[min(bits.Len64(us), len(h.lives)-1)]++
}

// median returns the life that half of the connections of the window did not exceed, by
// the middle of its bucket: exact to a factor of 1.5.
func (h *churn) median() time.Duration {
	rank := h.n / 2
	for k, n := range h.lives {
		if rank < n {
			return time.Duration(3<<k/4) * time.Microsecond
		}
		rank -= n
	}
	return Unknown
}

// tickChurns looks at the windows that are over.
func (t *Tracker) tickChurns() {
	kept := t.churns[:0]
	for _, h := range t.churns {
		if !t.weighChurn(h) {
			kept = append(kept, h)
		}
	}
	clear(t.churns[len(kept):])
	t.churns = kept
}

// weighChurn looks at a window that is over. It reports whether nothing has come in it.
func (t *Tracker) weighChurn(h *churn) (idle bool) {
	took := t.now - min(h.from, t.now)
	if took < churnWindow {
		return false
	}
	k := h.key
	q := t.procs.all[k.proc]
	perSecond := float64(h.n) / time.Duration(took).Seconds()
	limit := float64(t.thresholds.ShortLived)
	if h.finding != noFinding {
		limit /= 2
	}
	median := h.median()
	high := perSecond >= limit && median < churnLife && t.procs.asked(q)
	switch {
	case high && h.finding == noFinding && !h.high:
	case high:
		if h.finding == noFinding {
			h.finding = t.open(subject{kind: ShortLived, proc: k.proc, netns: k.netns, raddr: k.raddr, rport: k.rport})
		}
		f := t.findings[h.finding]
		f.members, f.fresh, f.count, f.severity = 1, true, int(h.n), Warning
		f.evidence.Churn = &ChurnEvidence{
			PerSecond: perSecond, MedianLife: median, Over: time.Duration(took), Connections: h.total,
			Raddr: k.raddr, Rport: k.rport,
		}
	case h.finding != noFinding:
		t.findings[h.finding].members = 0
		h.finding = noFinding
	}
	if h.n == 0 {
		delete(t.churnOf, k)
		q.pins--
		t.procs.release(k.proc)
		return true
	}
	h.from, h.n, h.lives, h.high = t.now, 0, [28]uint32{}, high
	return false
}

func (t *Tracker) addChurn(k churnKey) *churn {
	h := &churn{key: k}
	t.procs.all[k.proc].pins++
	t.churnOf[k] = h
	t.churns = append(t.churns, h)
	return h
}

// ChurnEvidence is what a finding about short-lived connections rests on.
type ChurnEvidence struct {
	Raddr       events.Addr
	Rport       uint16
	PerSecond   float64
	MedianLife  time.Duration
	Over        time.Duration // the time over which these two are
	Connections uint64        // in all, since the process was first seen to open one there
}
