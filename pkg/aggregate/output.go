package aggregate

import (
	"maps"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// Records that a filter has not decided about are held per socket. A server's
// child needs two until it is accepted; more than this many are shed.
const maxHeld = 16

// So many are held at once, of all sockets together: they take more memory than a socket.
const maxHeldNow = 1 << 16

// decide applies the filter to what is known of the socket now, and when that
// has become enough, prints what was held or lets go of it.
func (t *Tracker) decide(i uint32) {
	if !t.table.at(i).unnamed() {
		t.judge(i)
	}
}

func (t *Tracker) judge(i uint32) {
	c := t.table.at(i)
	switch {
	case c.verdict == yes:
		return
	case c.verdict == no && !c.byProcess:
		return // for good, or until a process that matches gets hold of it
	}
	c.verdict = t.filter.byEnds(&c.ends, c.state == events.Listen || c.lastOld == events.Listen && c.state == events.Close)
	c.excluded = c.verdict == no
	if c.verdict == yes && t.filter.ByProcess() && !c.byProcess {
		switch c.source {
		case SourceNone, SourceListener:
			c.verdict = undecided
		default:
			c.verdict = no
		}
	}
	t.opens(c)
	t.release(i)
}

// opens counts a connection whose beginning was seen, once it is known to match.
func (t *Tracker) opens(c *conn) {
	if c.verdict == yes && c.start != 0 && c.role != RoleUnknown {
		t.net(c.Netns).opened++
	}
}

// settle decides for a socket that has ended: one that nobody has accepted is its
// listener's, and what is not known now counts as not matching.
func (t *Tracker) settle(i uint32) {
	c := t.table.at(i)
	t.judge(i)
	t.yield(i)
	if c.verdict == undecided {
		c.verdict = no
		t.release(i)
	}
}

// yield lets a filter by process have a socket for its listener's sake.
func (t *Tracker) yield(i uint32) {
	c := t.table.at(i)
	if c.verdict == undecided && c.byQueue && t.filter.byEnds(&c.ends, false) == yes {
		c.verdict = yes
		t.opens(c)
		t.release(i)
	}
}

// release prints or forgets what was held for a socket, once that is decided.
func (t *Tracker) release(i uint32) {
	c := t.table.at(i)
	if c.verdict == undecided {
		return
	}
	held := t.letGo(i)
	if c.verdict != yes {
		return
	}
	for k := range held {
		tr := &held[k]
		// Who it is only became known while it was held.
		if tr.Owner.Source == SourceNone || tr.Owner.Source == SourceListener {
			tr.Owner = t.procs.owner(&c.past)
		}
		tr.Cookie = c.Cookie
		if tr.Old == events.Listen && tr.New == events.SynRecv {
			tr.Laddr, tr.Raddr, tr.Rport = c.Laddr, c.Raddr, c.Rport
		}
		t.emit(c, tr)
	}
}

// letGo returns what was held for a socket, which is held no longer.
func (t *Tracker) letGo(i uint32) []Transition {
	if len(t.held) == 0 {
		return nil
	}
	held := t.held[i]
	t.heldNow -= len(held)
	delete(t.held, i)
	return held
}

// tells makes the record of a transition, and sends it on its way.
func (t *Tracker) tells(i uint32, c *conn, ev *events.Event, dwell time.Duration) {
	if c.verdict == no {
		c.gap = false
		return
	}
	t.procs.write(&t.tr.Ends, &c.ends, &c.past)
	t.tr.Ktime, t.tr.Old, t.tr.New, t.tr.Dwell = ev.Ktime, ev.Old, ev.New, dwell
	t.tr.Mini, t.tr.Gap = false, c.gap
	c.gap = false
	switch c.verdict {
	case yes:
		t.emit(c, &t.tr)
	case undecided:
		if len(t.held[i]) < maxHeld && t.heldNow < maxHeldNow {
			t.held[i] = append(t.held[i], t.tr)
			t.heldNow++
		} else {
			c.shed()
			t.counts.Shed++
		}
	}
}

func (t *Tracker) emit(c *conn, tr *Transition) {
	t.dwells.add(tr.Old, tr.Dwell)
	tr.Unprinted = uint32(c.unprinted)
	tr.Container = t.container(&c.past)
	if !t.out.Transition(tr) {
		c.shed()
	}
}

// Tick lets time pass for what waits: ktime is the kernel's clock now.
func (t *Tracker) Tick(ktime uint64) {
	t.now = ktime
	t.waiting = t.expire(t.waiting, ktime, acceptWait, func(i uint32, _ *conn) { t.yield(i) })
	t.ownerless = t.expire(t.ownerless, ktime, seekAfter, func(_ uint32, c *conn) {
		if c.sought && c.source == SourceNone {
			t.wantOwners = true
		}
	})
	t.tickMinis(ktime)
	t.tickPorts()
	t.tickChurns()
	t.expireSuspects()
	t.report(maxWalks)
}

// expire calls f for the waiters that have waited for as long as after, if their
// socket is still in the table, and returns the others.
func (t *Tracker) expire(ws []waiter, ktime, after uint64, f func(uint32, *conn)) []waiter {
	n := 0
	for ; n < len(ws) && ktime >= ws[n].ktime+after; n++ {
		i := t.table.find(ws[n].addr)
		// Another socket may have the address by now. It began later.
		if i != 0 && t.table.at(i).start <= ws[n].ktime {
			f(i, t.table.at(i))
		}
	}
	return rest(ws, n)
}

// Scanned ends a scan. After the first, a Socket record is made for each socket
// that it found. If that is complete, a socket that is unknown from now (the last
// Tick) on is one whose beginning was missed; before, it may have gone while the
// scan was under way.
func (t *Tracker) Scanned(s events.Scan) {
	first := !t.scanDone
	if first {
		t.firstScan()
		t.summarized = t.now
		if s.Complete {
			t.settled = t.now
		}
	}
	if t.unsorted {
		t.unsorted = false
		t.sortList(young)
		t.expireSuspects()
		t.sortList(late)
	}
	if s.Every {
		t.every, t.everyScan = t.now, t.scan
		t.countFds()
		t.findStuck()
		t.findHalfOpen()
		t.expireLostMinis()
		t.forgetNetworks()
	}
	if s.All {
		t.reconcile(&s)
	}
	t.findLeaks(s.Complete)
	t.keepHolders()
	t.judged = t.now
	t.newcomers = t.newcomers[:0]
	clear(t.newcomer)
	t.scanFrom = 0
	t.scan++
	t.holders = t.holders[:1]
	if first {
		t.holders = make([]held, 1) // it had those of all sockets
	}
}

func (t *Tracker) firstScan() {
	t.ownQueued()
	for i, c := range t.table.all() {
		if c.asOf == 0 {
			continue // it has a story since
		}
		t.decide(i)
		t.yield(i)
		if c.verdict == yes {
			t.emitSocket(i)
		}
		if c.excluded && c.state != events.Listen {
			t.drop(i)
		}
	}
	t.scanDone, t.unsorted = true, true
	if t.table.len() > t.max/2 {
		t.sortList(notSuspect) // it may come to that
	}
	for i, m := range t.minis.all() {
		if m.tie == existed {
			t.adopt(i) // what is known of it by now is all
		}
	}
	starting := make(map[mark]uint32, len(t.starting)) // the one that had all of them does not shrink
	maps.Copy(starting, t.starting)
	t.starting = starting
	for _, inode := range slices.Sorted(maps.Keys(t.nets)) {
		t.weighAll(t.nets[inode]) // it was looked up before the scan
	}
}

func (t *Tracker) emitSocket(i uint32) {
	c := t.table.at(i)
	s := Socket{
		Ktime: c.asOf, State: c.state, Age: Unknown, Holders: t.holdersOf(c), Unread: c.unread,
		Verdict: t.verdictOf(c), Container: t.container(&c.past),
	}
	t.procs.write(&s.Ends, &c.ends, &c.past)
	if dated(c.state) && c.since < c.asOf {
		s.Age = time.Duration(c.asOf - c.since)
	}
	if !t.out.Socket(&s) {
		c.shed()
	}
}

// dated reports whether the last segment with an ACK came in this state: it brought the socket
// there, or came later. In the other states nothing says so.
func dated(st events.State) bool {
	switch st {
	case events.Established, events.CloseWait, events.FinWait2, events.Closing, events.Close:
		return true
	}
	return false
}
