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
	for _, i := range tr.table.byAddr {
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
			switch f := tr.findings[c.finding]; {
			case f == nil:
				t.Errorf("socket %x: has finding %d, which is free", c.Cookie, c.finding)
			case f.kind.aboutLate() && c.suspect != late:
				t.Errorf("socket %x: has finding %d and is in list %d, want it among the late", c.Cookie, c.finding, c.suspect)
			case !f.kind.aboutLate() && (f.kind != FinWait2Stuck || c.state != events.FinWait2):
				t.Errorf("socket %x in %s: is a member of a %s", c.Cookie, c.state, f.kind)
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
	made := auditMinis(t, tr, members)
	auditProcesses(t, tr, owned, held, made)
	auditFindings(t, tr, members)
	auditGroups(t, tr)
}

// auditMinis returns how many minisockets each process has made.
func auditMinis(t *testing.T, tr *Tracker, members map[uint32]int) map[uint32]int {
	t.Helper()
	made := map[uint32]int{}
	settling := map[uint64]bool{}
	for _, w := range tr.ending {
		settling[w.addr] = true
	}
	for addr, i := range tr.minis.byAddr {
		m := tr.minis.at(i)
		if m.addr != addr || m.state != events.TimeWait && m.state != events.FinWait2 {
			t.Errorf("minisocket %x: of address %x, in %s; want %x, in TIME_WAIT or FIN_WAIT2", m.Cookie, m.addr, m.state, addr)
		}
		if m.linked {
			if int(m.proc) >= len(tr.procs.all) || tr.procs.all[m.proc] == nil {
				t.Fatalf("minisocket %x: process number %d is free, want a process", m.Cookie, m.proc)
			}
			made[m.proc]++
		}
		if m.ended != 0 && !settling[addr] {
			t.Errorf("minisocket %x: has ended, and nothing will come back to it", m.Cookie)
		}
		if m.finding != noFinding {
			n := m.finding
			members[n]++
			if tr.findings[n] == nil || tr.findings[n].kind != FinWait2Stuck || m.state != events.FinWait2 {
				t.Errorf("minisocket %x in %s: is stuck, of finding %d; want one in FIN_WAIT2, of a finding", m.Cookie, m.state, n)
			}
		}
	}
	if n := len(tr.minis.byAddr); n+tr.table.len() > tr.max || int(tr.minis.used)-1-len(tr.minis.free) != n {
		t.Errorf("%d minisockets, place for %d, %d handed out and %d of them free", n, tr.max, tr.minis.used-1, len(tr.minis.free))
	}
	for mark, i := range tr.starting {
		m := tr.minis.at(i)
		if m.mark() != mark || m.linked || tr.minis.find(m.addr) != i {
			t.Errorf("waits for socket %x of minisocket number %d: %x, linked %v; want one that is there and not linked", mark, i, m.mark(), m.linked)
		}
	}
	return made
}

// auditGroups checks the ports that are counted, and what else refers to processes.
func auditGroups(t *testing.T, tr *Tracker) {
	t.Helper()
	var live, waiting, orphans, plain = map[uint32]uint32{}, map[uint32]uint32{}, map[uint32]uint32{}, map[uint32]uint32{}
	crowds := [crowdSlots]uint16{}
	for _, i := range tr.table.byAddr {
		live[tr.table.at(i).ports]++
	}
	for _, i := range tr.minis.byAddr {
		m := tr.minis.at(i)
		waiting[m.ports]++
		switch {
		case m.state == events.FinWait2:
			orphans[m.ports]++
		case !m.stamped:
			plain[m.ports]++
		}
		if m.crowd {
			crowds[m.crowdKey().slot()]++
		}
	}
	if crowds != *tr.crowds {
		t.Error("the minisockets without a port group are not those that are counted by slot")
	}
	rates := map[uint32]bool{0: true}
	for _, i := range tr.freeRates {
		rates[i] = true
	}
	free := map[uint32]bool{0: true}
	for _, i := range tr.freeGroups {
		free[i] = true
	}
	for k := range tr.groups {
		i, g := uint32(k), &tr.groups[k]
		if free[i] {
			if i != 0 && (*g != portGroup{} || live[i]+waiting[i] > 0) {
				t.Errorf("port group %d: free, and not empty: %+v", i, g)
			}
			continue
		}
		if g.live != live[i] || g.waiting != waiting[i] || g.orphans != orphans[i] || g.plain != plain[i] || tr.groupOf[g.key] != i {
			t.Errorf("port group %d: %d live, %d waiting, %d orphans, %d plain; want %d, %d, %d, %d",
				i, g.live, g.waiting, g.orphans, g.plain, live[i], waiting[i], orphans[i], plain[i])
		}
		if g.rate != 0 && rates[g.rate] {
			t.Errorf("port group %d: its rate %d is free, or another's", i, g.rate)
		}
		rates[g.rate] = true
		if g.live+g.waiting == 0 && g.finding == noFinding {
			t.Errorf("port group %d: empty, want it free", i)
		}
		if f := g.finding; f != noFinding && (tr.findings[f] == nil || tr.findings[f].group != i) {
			t.Errorf("port group %d: its finding %d is not about it", i, f)
		}
	}
	if n := len(tr.groupOf) + len(free); n != len(tr.groups) {
		t.Errorf("port groups: %d in use, %d free, want %d in all", len(tr.groupOf), len(free), len(tr.groups))
	}
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

func auditProcesses(t *testing.T, tr *Tracker, owned, held, made map[uint32]int) {
	t.Helper()
	about, pins := map[uint32]int{}, map[uint32]int{}
	for _, f := range tr.findings {
		if f != nil {
			about[f.proc]++
		}
	}
	for k := range tr.churnOf {
		pins[k.proc]++
	}
	for _, n := range tr.nets {
		for proc := range n.by {
			pins[proc]++
		}
	}
	contained := map[*container]int{}
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
		if q.timeWait != made[n] {
			t.Errorf("process %d: %d minisockets, want %d", q.pid, q.timeWait, made[n])
		}
		if q.findings != about[n] || q.pins != pins[n] {
			t.Errorf("process %d: %d findings, %d pins; want %d, %d", q.pid, q.findings, q.pins, about[n], pins[n])
		}
		if h := q.history; h.Held != held[n] || h.PeerClosed < uint64(h.Held) || h.PeerClosed > 1<<63 || h.Closed > h.PeerClosed {
			t.Errorf("process %d: %d closed by the peer, %d of these closed, %d held; want %d held, and not more than there were",
				q.pid, h.PeerClosed, h.Closed, h.Held, held[n])
		}
		if exits[n] != (q.exit.count > 0) {
			t.Errorf("process %d: among the exits: %v, with %d sockets; want both alike", q.pid, exits[n], q.exit.count)
		}
		if q.in != nil {
			contained[q.in]++
		}
		if n != nobody && tr.procs.byPid[q.pid] != n && q.idle() {
			t.Errorf("process %d: has lost its PID and everything else, want it forgotten", q.pid)
		}
	}
	if len(tr.procs.containers) != len(contained) {
		t.Errorf("%d containers, want %d: those that processes are in", len(tr.procs.containers), len(contained))
	}
	for id, c := range tr.procs.containers {
		if c.ID != id || c.processes != contained[c] {
			t.Errorf("container %s: has id %s and %d processes, want %d", id, c.ID, c.processes, contained[c])
		}
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
		if got, ok := tr.opened[f.subject]; !ok || got != uint32(n) || tr.procs.all[f.proc] == nil {
			t.Errorf("finding %d: about process number %d, and is number %d there", n, f.proc, got)
		}
		switch {
		case f.kind.aboutLate() || f.kind == FinWait2Stuck:
			if f.members != members[uint32(n)] {
				t.Errorf("finding %d, %s: %d members, want %d", n, f.kind, f.members, members[uint32(n)])
			}
		case f.kind != HalfOpen && (f.members < 0 || f.members > 1):
			t.Errorf("finding %d, %s: %d members, want at most 1", n, f.kind, f.members)
		}
	}
	if got := len(tr.findings) - 1 - len(tr.freeFindings); len(tr.opened) != got {
		t.Errorf("%d open findings, want %d", len(tr.opened), got)
	}
}

// auditEmpty checks that nothing is left of a tracker whose sockets have all gone,
// once it had the time to tell what it had to.
func auditEmpty(t *testing.T, tr *Tracker) {
	t.Helper()
	audit(t, tr)
	if n := len(tr.table.byAddr); n != 0 {
		t.Errorf("%d sockets, want 0", n)
	}
	if n, k := len(tr.minis.byAddr), len(tr.starting); n != 0 || k != 0 {
		t.Errorf("%d minisockets, waits for the sockets of %d; want 0, 0", n, k)
	}
	if n := len(tr.groupOf); n != 0 {
		t.Errorf("%d port groups, want 0", n)
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
		if q != nil && (q.owned != 0 || q.timeWait != 0 || q.history.Held != 0) {
			t.Errorf("process %d: owns %d, made %d minisockets, holds %d; want 0, 0, 0", q.pid, q.owned, q.timeWait, q.history.Held)
		}
	}
	if n := tr.procs.all[nobody].timeWait; n != 0 {
		t.Errorf("nobody made %d minisockets, want 0", n)
	}
	if h := tr.procs.all[nobody].history.Held; h != 0 {
		t.Errorf("nobody holds %d in CLOSE_WAIT, want 0", h)
	}
}
