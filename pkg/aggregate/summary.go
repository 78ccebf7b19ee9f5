package aggregate

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// Summary is what there is in one network namespace.
type Summary struct {
	Ktime     uint64
	Interval  time.Duration // since the last one
	Netns     uint32
	States    [events.NumStates]int // sockets; Close is not one
	Dead      int                   // connections that are over, and their descriptor open
	Requests  bool                  // States[SynRecv] has the connections that are being accepted too
	Minis     bool                  // States has the minisockets too
	Whole     bool                  // States has the sockets from before the start that no process holds too
	Opened    uint64                // connections, in the interval
	Closed    uint64
	Processes []ProcessSummary // at most 20: by CloseWait, then by TimeWait
}

// ProcessSummary is what one process has in one network namespace.
type ProcessSummary struct {
	Pid       uint32
	Comm      events.Comm
	CloseWait int
	TimeWait  int           // of connections that it closed first
	Oldest    time.Duration // in CLOSE_WAIT; Unknown if there is none
	Exact     bool          // Oldest is not a lower bound
	Entered   uint64        // CLOSE_WAIT, in the interval, wherever
	Closed    uint64        // of those in CLOSE_WAIT, likewise
}

const maxSummaryProcesses = 20

// Summarize makes a Summary record of every network namespace that has sockets, by
// inode number. It looks at all of them.
func (t *Tracker) Summarize() {
	type member struct{ netns, proc uint32 }
	sums, procs := map[uint32]*Summary{}, map[member]*ProcessSummary{}
	sum := func(netns uint32) *Summary {
		s := sums[netns]
		if s == nil {
			s = &Summary{Ktime: t.now, Interval: time.Duration(t.now - min(t.summarized, t.now)), Netns: netns}
			sums[netns] = s
		}
		return s
	}
	in := func(netns, proc uint32) *ProcessSummary {
		p := procs[member{netns, proc}]
		if p == nil {
			p = &ProcessSummary{Oldest: Unknown}
			procs[member{netns, proc}] = p
		}
		return p
	}
	for _, c := range t.table.all() {
		switch {
		case c.verdict != yes:
		case c.state == events.Close:
			if c.suspect != notSuspect {
				sum(c.Netns).Dead++
			}
		default:
			sum(c.Netns).States[c.state]++
			if proc := t.procs.of(&c.past); c.state == events.CloseWait && proc != nobody {
				p := in(c.Netns, proc)
				p.CloseWait++
				ktime, exact := c.entered()
				if age := time.Duration(t.now - min(ktime, t.now)); age > p.Oldest {
					p.Oldest, p.Exact = age, exact
				}
			}
		}
	}
	for _, m := range t.minis.all() {
		if m.verdict != yes || m.ended != 0 {
			continue
		}
		sum(m.Netns).States[m.state]++
		if proc := t.procs.of(&m.past); proc != nobody && m.state == events.TimeWait {
			in(m.Netns, proc).TimeWait++
		}
	}
	// Only a scan of all there is shows what is no socket yet; and what is none any
	// more, where minisockets are not traced.
	fresh := t.scannedAll != 0 && t.scannedAll >= t.summarized
	for inode, n := range t.nets {
		if fresh && n.walked {
			for st, k := range n.minis {
				if k > 0 {
					sum(inode).States[st] += k
				}
			}
		}
		if n.opened > 0 || n.closed > 0 || sums[inode] != nil {
			s := sum(inode)
			s.Opened, s.Closed = n.opened, n.closed
			n.opened, n.closed = 0, 0
		}
	}

	of := map[uint32][]ProcessSummary{}
	for k, p := range procs {
		q := t.procs.all[k.proc]
		p.Pid, p.Comm = q.pid, q.comm
		h := &q.history
		p.Entered, p.Closed = h.PeerClosed-min(q.lastEntered, h.PeerClosed), h.Closed-min(q.lastClosed, h.Closed)
		of[k.netns] = append(of[k.netns], *p)
	}
	for _, q := range t.procs.all {
		if q != nil {
			q.lastEntered, q.lastClosed = q.history.PeerClosed, q.history.Closed
		}
	}
	t.summarized = t.now
	for _, inode := range slices.Sorted(maps.Keys(sums)) {
		s := sums[inode]
		s.Requests = fresh && t.net(inode).walked
		s.Whole = t.net(inode).whole
		s.Minis = t.seesMinis || s.Requests
		ps := of[inode]
		slices.SortFunc(ps, func(a, b ProcessSummary) int {
			return cmp.Or(cmp.Compare(b.CloseWait, a.CloseWait), cmp.Compare(b.TimeWait, a.TimeWait), cmp.Compare(a.Pid, b.Pid))
		})
		s.Processes = ps[:min(len(ps), maxSummaryProcesses)]
		t.out.Summary(s)
	}
}
