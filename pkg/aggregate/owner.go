package aggregate

import (
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// attribute learns the owner from a transition. Only what happened in process
// context says anything: all other transitions run on top of a bystander.
func (t *Tracker) attribute(i uint32, ev *events.Event, letsGo bool) {
	c := t.table.at(i)
	if ev.Flags&events.HasSocket != 0 && c.source == SourceListener {
		// Accepted, and not by a way that announces itself. Its listener may
		// be shared by many processes.
		t.setOwner(i, 0, SourceNone)
		t.accepted(i)
	}
	if ev.Flags&events.Owned != 0 && ev.Flags&events.KThread == 0 {
		switch {
		case ev.Old == events.Close && ev.New == events.SynSent:
			t.own(i, &ev.Proc, SourceConnect)
		case ev.New == events.Listen:
			t.own(i, &ev.Proc, SourceListen)
		case letsGo:
			t.own(i, &ev.Proc, SourceClose)
		case ev.New != events.Close:
			// Packets that came while the process was in a system call on this
			// socket are processed at the end of the call (release_sock).
			t.own(i, &ev.Proc, SourceFd)
		}
	}
	if c.source == SourceNone && !c.sought && ev.Flags&(events.HasSocket|events.Dead) == events.HasSocket {
		c.sought = true
		t.ownerless = t.wait(t.ownerless, waiter{ev.Skaddr, ev.Ktime}, t.hasSocket)
	}
}

// queue ties a socket that nobody has accepted to its listener l.
func (t *Tracker) queue(i, l uint32) {
	c, lc := t.table.at(i), t.table.at(l)
	t.procs.keep(lc.owner)
	t.setOwner(i, lc.owner, lc.childSource())
	if c.listener = lc.Cookie; c.listener == 0 {
		c.listener = *t.table.key(l) // they cannot be mistaken for each other
	}
	lc.named = true
	t.listeners[c.listener] = l // it may have been given its cookie since it began to listen
	c.byQueue = lc.byProcess
	// listen() on an unbound socket is announced before it has a port.
	if lc.Lport == 0 {
		lc.Lport = c.Lport
		t.decide(l)
	}
}

// accepted unties it again: whoever listens, somebody else may have it now.
func (t *Tracker) accepted(i uint32) {
	c := t.table.at(i)
	if c.byQueue && !c.byProcess && c.verdict == yes {
		c.verdict = undecided
	}
	c.byQueue = false
}

// childSource is how the owner of a child of listener c, which is that of c until somebody
// accepts it, is known.
func (c *conn) childSource() Source {
	if c.owner == 0 {
		return SourceNone
	}
	return SourceListener
}

// setOwner gives the socket to a process, by a name that was taken for it: all that is
// counted by process moves with it.
func (t *Tracker) setOwner(i, name uint32, src Source) {
	c := t.table.at(i)
	had, before := c.owner, t.procs.of(&c.past)
	c.owner, c.source = name, src
	if after := t.procs.of(&c.past); after != before {
		was, is := t.procs.all[before], t.procs.all[after]
		was.owned--
		is.owned++
		if c.state == events.CloseWait {
			was.history.PeerClosed--
			was.history.Held--
			is.history.PeerClosed++
			is.history.Held++
		}
	}
	t.procs.give(had)
}

// container returns that of the owner; of one in an accept queue, which belongs to
// nobody yet, that of its listener's.
func (t *Tracker) container(p *past) events.Container {
	return t.procs.container(t.procs.names[p.owner].proc)
}

// own notes that p holds the socket. Who connected, listened, accepted or
// closed replaces an owner; who merely holds it only fills a gap, since a
// socket may have many holders.
func (t *Tracker) own(i uint32, p *events.Proc, src Source) {
	c := t.table.at(i)
	if p.Pid == 0 {
		t.procs.hide(p.Hidden)
		if src != SourceFd && c.source == SourceListener {
			t.setOwner(i, 0, SourceNone)
		}
		return
	}
	if t.procs.match(p.Pid, &p.Comm) {
		c.byProcess = true
	}
	switch c.source {
	case SourceNone, SourceListener:
	default:
		if src == SourceFd || src == SourceClose && t.procs.names[c.owner].pid == p.Pid {
			return
		}
	}
	t.setOwner(i, t.procs.take(p.Pid, &p.Comm), src)
}

// row takes one socket, or one descriptor of one, that a scan found.
func (t *Tracker) row(ev *events.Event) {
	if t.scanFrom == 0 {
		t.scanFrom = ev.Ktime
	}
	if ev.Fd >= 0 && ev.Proc.Pid != 0 {
		t.countFd(&ev.Proc, ev.Thread)
	}
	if ev.Mini {
		t.mini(ev)
		return
	}
	if ev.Fresh {
		return // it has no story yet
	}
	i := t.table.find(ev.Skaddr)
	if i == 0 {
		// After the first scan a socket that is not known is one whose events
		// are still to be read, or were missed.
		if t.scanDone && !ev.Taken {
			t.meet(ev)
			return
		}
		if t.full() {
			t.counts.NoPlace++
			return
		}
		i = t.table.add(ev.Skaddr)
		t.enlist(i, notSuspect)
		t.found(i, ev)
	}
	c := t.table.at(i)
	if ev.Cookie != 0 && c.Cookie != 0 && ev.Cookie != c.Cookie {
		return
	}
	if c.Cookie == 0 && ev.Cookie != 0 { // somebody has asked for it since
		c.Cookie = ev.Cookie
		if c.state == events.Listen {
			t.listens(i, ev)
		}
	}
	t.catchUp(i, ev)
	if c.suspect != notSuspect && ev.New != c.state {
		return // what is known of it is of another state; nothing is proven by that
	}
	if c.scan != t.scan {
		c.scan, c.holder, c.unseen = t.scan, 0, 0
		t.sees(i, ev)
	}
	if ev.Fd >= 0 {
		t.own(i, &ev.Proc, SourceFd)
		// Nobody asks who holds a healthy one, but for the records of the first scan, and who looks at it.
		if ev.Proc.Pid != 0 && (!t.scanDone || c.suspect != notSuspect || c.state == events.Listen || c.halfOpen == t.scan || i == t.viewer.at) {
			t.hold(i, Holder{Pid: ev.Proc.Pid, Comm: ev.Proc.Comm, Fd: ev.Fd})
		}
	}
	if ev.New == c.state {
		c.examine(ev)
	}
	t.decide(i)
}

// As many newcomers are kept for reconcile; the others have to wait for another scan.
const maxNewcomers = 1 << 14

// meet keeps a socket that nothing has told of. Of several rows, the first may have a
// holder.
func (t *Tracker) meet(ev *events.Event) {
	if t.newcomer[ev.Skaddr] || len(t.newcomers) >= maxNewcomers || ev.New == events.Close {
		return
	}
	e := endsOf(ev)
	if t.filter.byEnds(&e, ev.New == events.Listen) != no {
		t.newcomer[ev.Skaddr] = true
		t.newcomers = append(t.newcomers, *ev)
	}
}

// What the jiffies at both ends of a time may differ from it.
const ticks = 20 * time.Millisecond

// mini takes what only stands in for a socket. A request_sock is not tracked: it makes
// no transitions, and belongs to nobody.
func (t *Tracker) mini(ev *events.Event) {
	e := endsOf(ev)
	if t.filter.byEnds(&e, false) == no {
		return // no more is heard of it: the kernel side turns it away
	}
	match := !t.filter.ByProcess()
	switch {
	case ev.New != events.SynRecv && t.seesMinis:
		t.foundMini(ev)
	case match:
		t.net(ev.Netns).counting[ev.New]++
	}
	if t.scanDone || !match {
		return
	}
	s := Socket{Ktime: ev.Ktime, State: ev.New, Age: Unknown, Mini: true, Expires: ev.Left}
	t.procs.write(&s.Ends, &e, &past{})
	// Each FIN that is repeated begins the time anew (tcp_timewait_state_process).
	if age := timeWaitLen - s.Expires - ticks; ev.New == events.TimeWait && age > 0 {
		s.Age = age
	}
	t.out.Socket(&s)
}

// foundMini takes a minisocket that a scan has found.
func (t *Tracker) foundMini(ev *events.Event) {
	i := t.minis.find(ev.Skaddr)
	if i != 0 && !t.is(i, ev) {
		return // its news is on its way
	}
	if i == 0 {
		if i = t.addMini(ev); i == 0 {
			return
		}
		m := t.minis.at(i)
		m.since, m.missed = 0, t.scanDone
		if !t.scanDone {
			m.tie = existed
		}
		if t.scanDone || ev.New != events.TimeWait || ev.Left > timeWaitLen-time.Second {
			t.expectSocket(i, ev)
		} else {
			t.adopt(i) // it is old: had its beginning been traced, that would have been read before
		}
	}
	m := t.minis.at(i)
	m.scan, m.missing = uint16(t.scan), 0
	m.expires = ev.Ktime + uint64(ev.Left)
	if ev.New == events.TimeWait {
		t.finArrived(i)
	}
}

// catchUp notices that a socket is in another state than the events have said.
func (t *Tracker) catchUp(i uint32, ev *events.Event) {
	c := t.table.at(i)
	switch {
	case !t.scanDone || ev.New == c.state || c.state == events.Listen || c.state == events.Close:
		return
	case ev.New == c.lastOld, ev.Ktime < c.since+duplicateWithin:
		// The row was made while the socket changed. Or the event is on its way: two
		// CPUs hand over not quite in order.
		return
	case ev.New == events.Close:
		t.missEnd(i, ev.Ktime)
	default:
		t.miss(c)
		c.spend(c.state, Unknown)
	}
	t.enter(i, ev.New)
	c.foundIn(ev.New)
	c.sighted(ev)
	if ev.New == events.CloseWait || ev.New == events.Close {
		t.becomeSuspect(i)
		t.unsorted = true
	}
}

// found starts the story of a socket that was there before.
func (t *Tracker) found(i uint32, ev *events.Event) {
	c := t.table.at(i)
	c.begin(ev)
	c.learn(ev)
	c.foundIn(ev.New)
	c.sighted(ev)
	c.queued = ev.Flags&(events.HasSocket|events.Dead) == 0
	c.state = events.Close // for the moment
	t.enter(i, ev.New)
	if ev.New == events.CloseWait || ev.New == events.Close {
		t.becomeSuspect(i)
	}
	if ev.New == events.Listen {
		t.listens(i, ev)
	}
	if ev.New != events.Close {
		t.takePort(c)
	}
}

// sighted notes that a row has found c in its state.
func (c *conn) sighted(ev *events.Event) {
	c.asOf, c.since, c.exact = ev.Ktime, ev.Ktime-min(ev.Quiet, ev.Ktime), false
}

// ownQueued gives the sockets that the first scan found in an accept queue to
// their listener's owner. Only the address ties them to it; where several
// listeners share it (SO_REUSEPORT), nothing tells which.
func (t *Tracker) ownQueued() {
	type place struct {
		netns uint32
		lport uint16
		laddr events.Addr
	}
	at := map[place][]uint32{}
	for _, i := range t.listeners {
		if c := t.table.at(i); c.state == events.Listen {
			p := place{c.Netns, c.Lport, c.Laddr}
			at[p] = append(at[p], i)
		}
	}
	for i, c := range t.table.all() {
		if !c.queued || c.source != SourceNone {
			continue
		}
		// The kernel prefers a listener on the very address to one on all of its
		// family, and that to a dual-stack one.
		ls := at[place{c.Netns, c.Lport, c.Laddr}]
		if len(ls) == 0 && c.Laddr.Is4() {
			ls = at[place{c.Netns, c.Lport, events.Addr{10: 0xff, 11: 0xff}}]
		}
		if len(ls) == 0 {
			ls = at[place{c.Netns, c.Lport, events.Addr{}}]
		}
		for n, l := range ls {
			if n > 0 && t.table.at(l).owner != t.table.at(ls[0]).owner {
				ls = nil
				break
			}
		}
		if len(ls) > 0 {
			t.queue(i, ls[0])
		}
	}
}
