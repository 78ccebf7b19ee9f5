package aggregate

import (
	"testing"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// audit checks that everything that the tracker counts by process, by finding and
// by list is what a walk over its sockets finds.
func audit(t *testing.T, tr *Tracker) {
	t.Helper()
	var (
		owned   = map[uint32]int{} // by process
		held    = map[uint32]int{}
		members = map[uint32]int{}           // by finding
		in      = map[uint8]map[uint32]bool{ // by list
			young: {}, late: {},
		}
	)
	for _, i := range tr.table.bySk {
		c := tr.table.at(i)
		if int(c.proc) >= len(tr.procs.all) || tr.procs.all[c.proc] == nil {
			t.Fatalf("socket %x: process number %d is free, want a process", c.Cookie, c.proc)
		}
		owned[c.proc]++
		if c.state == events.CloseWait {
			held[c.proc]++
		}
		if c.finding != noFinding {
			members[c.finding]++
			if c.suspect != late {
				t.Errorf("socket %x: has finding %d and is in list %d, want it among the late", c.Cookie, c.finding, c.suspect)
			}
		}
		if c.suspect != notSuspect {
			in[c.suspect][i] = true
			if c.state != events.CloseWait && c.state != events.Close {
				t.Errorf("socket %x: a suspect in %s, want it in CLOSE_WAIT or CLOSE", c.Cookie, c.state)
			}
		}
	}
	for which, want := range in {
		auditList(t, tr, which, want)
	}
	auditProcesses(t, tr, owned, held)
	auditFindings(t, tr, members)
}

func auditList(t *testing.T, tr *Tracker, which uint8, want map[uint32]bool) {
	t.Helper()
	l := tr.list(which)
	n, last := 0, uint32(0)
	for i := l.head; i != 0; i = tr.table.at(i).next {
		c := tr.table.at(i)
		if !want[i] || c.prev != last {
			t.Fatalf("list %d: socket %x: in state %s, after number %d; want a suspect of this list, after number %d", which, c.Cookie, c.state, c.prev, last)
		}
		last = i
		if n++; n > len(want) {
			t.Fatalf("list %d: longer than the %d sockets in it", which, len(want))
		}
	}
	if n != len(want) || l.n != n || l.tail != last {
		t.Errorf("list %d: a walk finds %d, and number %d last; the list says %d, and %d; want the %d sockets in it", which, n, last, l.n, l.tail, len(want))
	}
}

func auditProcesses(t *testing.T, tr *Tracker, owned, held map[uint32]int) {
	t.Helper()
	contained := 0
	free := map[uint32]bool{}
	for _, n := range tr.procs.free {
		free[n] = true
	}
	exits := map[uint32]bool{}
	for _, n := range tr.exits {
		if exits[n] {
			t.Errorf("process number %d: twice among the exits, want it once", n)
		}
		exits[n] = true
	}
	for k, q := range tr.procs.all {
		n := uint32(k)
		if q == nil != free[n] {
			t.Errorf("process number %d: free: %v, on the free list: %v; want both alike", n, q == nil, free[n])
		}
		if q == nil {
			continue
		}
		// Nobody is no process; nothing asks how many sockets it owns.
		if n != nobody && q.owned != owned[n] {
			t.Errorf("process %d: owns %d, want %d", q.pid, q.owned, owned[n])
		}
		if h := q.history; h.Held != held[n] || h.PeerClosed < uint64(h.Held) || h.PeerClosed > 1<<63 || h.Closed > h.PeerClosed {
			t.Errorf("process %d: %d closed by the peer, %d of these closed, %d held; want %d held, and not more than there were",
				q.pid, h.PeerClosed, h.Closed, h.Held, held[n])
		}
		if exits[n] != (q.exit.count > 0) {
			t.Errorf("process %d: among the exits: %v, with %d sockets; want both alike", q.pid, exits[n], q.exit.count)
		}
		if q.details.Container != "" {
			contained++
		}
		if n != nobody && tr.procs.byPid[q.pid] != n && q.idle() {
			t.Errorf("process %d: has lost its PID and everything else, want it forgotten", q.pid)
		}
		for kind, f := range q.open {
			if f != noFinding && (tr.findings[f] == nil || tr.findings[f].proc != n || tr.findings[f].kind != Kind(kind)) {
				t.Errorf("process %d: its %s is number %d, which is not about it", q.pid, Kind(kind), f)
			}
		}
	}
	if tr.procs.contained != contained {
		t.Errorf("in containers: %d processes, want %d", tr.procs.contained, contained)
	}
	for pid, n := range tr.procs.byPid {
		if q := tr.procs.all[n]; q == nil || q.pid != pid {
			t.Errorf("process %d: has number %d, which is not its", pid, n)
		}
	}
}

func auditFindings(t *testing.T, tr *Tracker, members map[uint32]int) {
	t.Helper()
	for n, f := range tr.findings {
		if f == nil {
			if members[uint32(n)] > 0 {
				t.Errorf("finding %d: free, and %d sockets are members; want 0", n, members[uint32(n)])
			}
			continue
		}
		if q := tr.procs.all[f.proc]; q == nil || q.open[f.kind] != uint32(n) {
			t.Errorf("finding %d: about process number %d, which does not have it", n, f.proc)
		}
		if f.kind == FdLimit && (f.members < 0 || f.members > 1) || f.kind != FdLimit && f.members != members[uint32(n)] {
			t.Errorf("finding %d, %s: %d members, want %d", n, f.kind, f.members, members[uint32(n)])
		}
	}
}

// auditEmpty checks that nothing is left of a tracker whose sockets have all gone,
// once it had the time to tell what it had to.
func auditEmpty(t *testing.T, tr *Tracker) {
	t.Helper()
	audit(t, tr)
	if n := len(tr.table.bySk); n != 0 {
		t.Errorf("%d sockets, want 0", n)
	}
	for _, f := range tr.findings {
		if f != nil {
			t.Errorf("an open %s with %d members, want none", f.kind, f.members)
		}
	}
	if len(tr.exits) != 0 {
		t.Errorf("%d exits to tell of, want 0", len(tr.exits))
	}
	for _, q := range tr.procs.all[1:] {
		if q != nil && (q.owned != 0 || q.history.Held != 0) {
			t.Errorf("process %d: owns %d, holds %d; want 0, 0", q.pid, q.owned, q.history.Held)
		}
	}
	if h := tr.procs.all[nobody].history.Held; h != 0 {
		t.Errorf("nobody holds %d in CLOSE_WAIT, want 0", h)
	}
}
