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
			notSuspect: {}, young: {}, late: {},
		}
	)
	auditTable(t, &tr.table)
	auditTable(t, &tr.minis)
	auditNames(t, tr)
	for i, c := range tr.table.all() {
		proc := tr.procs.of(&c.past)
		owned[proc]++
		if c.state == events.CloseWait {
			held[proc]++
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
		in[c.suspect][i] = true
		if c.suspect != notSuspect {
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
	for i, m := range tr.minis.all() {
		addr := *tr.minis.key(i)
		if m.state != events.TimeWait && m.state != events.FinWait2 {
			t.Errorf("minisocket %x: in %s; want it in TIME_WAIT or FIN_WAIT2", m.Cookie, m.state)
		}
		if m.settled() {
			made[tr.procs.of(&m.past)]++
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
	if n, k := tr.minis.len(), tr.table.len(); n+k > tr.max {
		t.Errorf("%d minisockets and %d sockets, place for %d", n, k, tr.max)
	}
	for mark, i := range tr.starting {
		m := tr.minis.at(i)
		if m.mark() != mark || m.settled() || tr.minis.find(*tr.minis.key(i)) != i {
			t.Errorf("waits for socket %x of minisocket number %d: %x, linked %v; want one that is there and not linked", mark, i, m.mark(), m.settled())
		}
	}
	return made
}

// auditGroups checks the ports that are counted, and what else refers to processes.
func auditGroups(t *testing.T, tr *Tracker) {
	t.Helper()
	var live, waiting, orphans, plain = map[uint32]uint32{}, map[uint32]uint32{}, map[uint32]uint32{}, map[uint32]uint32{}
	crowds := [crowdSlots]uint16{}
	for _, c := range tr.table.all() {
		live[c.ports]++
	}
	for _, m := range tr.minis.all() {
		waiting[m.ports]++
		switch {
		case m.state == events.FinWait2:
			orphans[m.ports]++
		case !m.stamped:
			plain[m.ports]++
		}
		if m.ports == inCrowd {
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
	auditTable(t, &tr.groups)
	groups := map[uint32]bool{0: true, inCrowd: true}
	for i, g := range tr.groups.all() {
		groups[i] = true
		if g.live != live[i] || g.waiting != waiting[i] || g.orphans != orphans[i] || g.plain != plain[i] {
			t.Errorf("port group %d: %d live, %d waiting, %d orphans, %d plain; want %d, %d, %d, %d",
				i, g.live, g.waiting, g.orphans, g.plain, live[i], waiting[i], orphans[i], plain[i])
		}
		if g.rate != 0 && rates[g.rate] {
			t.Errorf("port group %d: its rate %d is free, or another's", i, g.rate)
		}
		rates[g.rate] = true
		if g.live+g.waiting == 0 && g.finding == noFinding && i != tr.group {
			t.Errorf("port group %d: empty, want it free", i)
		}
		if f := g.finding; f != noFinding && (tr.findings[f] == nil || tr.findings[f].group != i) {
			t.Errorf("port group %d: its finding %d is not about it", i, f)
		}
	}
	for _, in := range []map[uint32]uint32{live, waiting} {
		for i := range in {
			if !groups[i] {
				t.Errorf("port group %d: has %d, %d, and there is no such group", i, live[i], waiting[i])
			}
		}
	}
}

// auditTable checks that all entries are found by their keys, and that each is either
// in use or free.
func auditTable[K comparable, T any](t *testing.T, tb *table[K, T]) {
	t.Helper()
	n := 0
	for i := range tb.all() {
		if n++; tb.find(*tb.key(i)) != i {
			t.Errorf("entry %d of %v: by its key number %d is found", i, *tb.key(i), tb.find(*tb.key(i)))
		}
	}
	free := 0
	for i := tb.free; i != 0 && free <= int(tb.used); i = *tb.next(i) {
		var no K
		if free++; *tb.key(i) != no {
			t.Errorf("entry %d: free, and in use by %v", i, *tb.key(i))
		}
	}
	if n != tb.len() || n+free != int(tb.used)-1 {
		t.Errorf("table: %d of %d entries in use, %d free; it says %d", n, tb.used-1, free, tb.len())
	}
}

// auditNames checks who is named as an owner.
func auditNames(t *testing.T, tr *Tracker) {
	t.Helper()
	p := &tr.procs
	sockets, named := map[uint32]int{}, map[uint32]int{}
	note := func(owner uint32) {
		if owner == 0 {
			return
		}
		if p.names[owner].sockets == 0 || p.all[p.names[owner].proc] == nil {
			t.Fatalf("name number %d is free or its process's number is, want a name", owner)
		}
		sockets[owner]++
		named[p.names[owner].proc]++
	}
	for _, c := range tr.table.all() {
		note(c.owner)
	}
	for _, m := range tr.minis.all() {
		note(m.owner)
	}
	free := map[uint32]bool{0: true}
	for _, i := range p.freeNames {
		free[i] = true
	}
	for k := range p.names {
		i, c := uint32(k), &p.names[k]
		switch {
		case free[i] && *c != name{}:
			t.Errorf("name %d: free, and not empty: %+v", i, c)
		case free[i]:
		case c.sockets != sockets[i] || p.nameOf[c.called] != i || c.sockets == 0 && p.all[c.proc].name != i:
			t.Errorf("name %d, %s: of %d sockets, want %d; and number %d is found by it", i, c.comm.Bytes(), c.sockets, sockets[i], p.nameOf[c.called])
		}
	}
	if len(p.nameOf)+len(free) != len(p.names) {
		t.Errorf("%d names, %d of them free; %d are found by what they are", len(p.names), len(free), len(p.nameOf))
	}
	for n, q := range p.all {
		if q != nil && q.named != named[uint32(n)] {
			t.Errorf("process %d: owner of %d, want %d", q.pid, q.named, named[uint32(n)])
		}
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
	if n := tr.table.len(); n != 0 {
		t.Errorf("%d sockets, want 0", n)
	}
	if n, k := tr.minis.len(), len(tr.starting); n != 0 || k != 0 {
		t.Errorf("%d minisockets, waits for the sockets of %d; want 0, 0", n, k)
	}
	if n := tr.groups.len(); n != 0 {
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
