package aggregate

import (
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

func opening(ev *events.Event) bool {
	switch ev.Old {
	case events.Close:
		return ev.New == events.SynSent || ev.New == events.Listen
	case events.Listen:
		return ev.New == events.SynRecv
	}
	return false
}

func (t *Tracker) transition(ev *events.Event) {
	i, ok := t.place(ev)
	if !ok {
		return
	}
	t.counts.Delivered++
	c := t.table.at(i)
	c.learn(ev)
	if ev.New == events.SynSent {
		t.takePort(c)
	}
	letsGo := lettingGo(ev)
	t.attribute(i, ev, letsGo)

	// A transition into the same state ends nothing (close() after
	// shutdown(SHUT_WR) makes one); the time is counted when the state is left.
	dwell := Unknown
	successor := t.successor(c, ev)
	if ev.Old != ev.New {
		if c.exact && (!t.mayBeUnseen(ev.Ktime) || !mayBeHandedOver(ev)) {
			dwell = time.Duration(max(ev.Ktime, c.since) - c.since)
		}
		if !opening(ev) && successor == 0 && ev.New != events.Close {
			c.spend(ev.Old, dwell)
		}
		if ev.Old == events.CloseWait {
			t.leaveCloseWait(i, ev, letsGo, dwell)
		}
		if c.suspect != notSuspect {
			t.clearSuspect(i)
		}
	}
	c.closer = firstFin(c.closer, ev.Old, ev.New)
	c.noteCall(ev, letsGo)
	switch {
	case successor != 0:
		t.handOver(i, successor, ev)
	case ev.Old == events.Established && ev.New != events.Established:
		t.shortLived(c, ev.Ktime)
	}
	if ev.Old != ev.New {
		c.since, c.exact = ev.Ktime, true
	}
	c.lastOld = ev.Old
	if c.state != ev.New {
		t.enter(i, ev.New)
	}
	switch {
	case ev.Old == ev.New:
	case ev.New == events.CloseWait:
		c.unread, c.sent = ev.Unread, ev.Sent
		t.becomeSuspect(i)
	case ev.New == events.Close:
		c.end = endOf(ev) // for later, too: accept() may still hand it out
		if t.seesMinis && orphanTimedOut(ev, dwell) {
			c.end = EndTimeout
		}
		if died(ev) {
			t.becomeSuspect(i)
		}
	}

	if c.verdict != yes {
		t.decide(i)
	}
	if successor == 0 {
		t.tells(i, c, ev, dwell)
		if ev.New == events.Close && ev.Old != events.Close && ev.Old != events.Listen {
			t.finish(i, ev, true, dwell)
		}
		if !t.mayBeUnseen(ev.Ktime) && endsInTimeWait(ev) {
			t.skipTimeWait(c)
		}
	}
	// A filter by ends works in the kernel too: no more will come of this one.
	// Listeners are kept for their children's sake.
	if c.excluded && c.state != events.Listen {
		t.drop(i)
	}
}

// enter puts the socket into a state. One that it was in already is not entered
// anew.
func (t *Tracker) enter(i uint32, st events.State) {
	c := t.table.at(i)
	if c.state == st {
		return
	}
	if c.suspect != notSuspect {
		t.clearSuspect(i)
	}
	switch c.state {
	case events.CloseWait:
		t.history(c).Held--
	case events.FinWait2:
		t.join(i, noFinding)
	}
	if st == events.Close {
		t.givePort(c)
	}
	if c.state = st; st == events.CloseWait {
		h := t.history(c)
		h.PeerClosed++
		h.Held++
	}
}

func (t *Tracker) history(c *conn) *History { return &t.procs.all[t.procs.of(&c.past)].history }

// leaveCloseWait notes how a socket leaves CLOSE_WAIT, if it is its process that
// lets go of it.
func (t *Tracker) leaveCloseWait(i uint32, ev *events.Event, letsGo bool, dwell time.Duration) {
	c := t.table.at(i)
	switch {
	case letsGo && ev.Flags&events.Exiting != 0:
		t.neverClosed(i, ev, t.procs.of(&c.past))
	case letsGo:
		t.history(c).closed(dwell)
	case ev.New == events.Close && ev.Flags&(events.Owned|events.HasSocket|events.Dead) == 0 && ev.Err == 0:
		// inet_child_forget(): its listener was closed; and if that was because
		// the process exits, so was this.
		if l := t.listenerOf(c); l != nil && l.state == events.Close && l.call == CallExit {
			t.neverClosed(i, ev, t.procs.of(&l.past))
		}
	}
}

// place finds the conn that a transition belongs to, or makes it, in the state
// that the transition leaves. It returns false if there is nothing to do.
func (t *Tracker) place(ev *events.Event) (uint32, bool) {
	opens := opening(ev)
	i := t.lookup(ev)
	if i != 0 {
		c := t.table.at(i)
		t.alive(i, c, c.since, ev.Ktime)
		again := ev.Old == c.lastOld && ev.New == c.state
		if again && (!opens || ev.Ktime-c.since < duplicateWithin) {
			t.counts.Duplicates++
			return 0, false
		}
		if c.handed && ev.New == events.Close && c.state == events.Close {
			// It was given up too early: this is what was missed.
			t.counts.Missed--
			t.counts.Delivered++
			return 0, false
		}
		// Events come in the order in which they were submitted, on two CPUs not
		// quite in the order of time: one from before the moment at which the
		// first scan found the socket may come after that.
		stale := ev.Ktime <= c.asOf
		switch {
		case opens && ev.Old == events.Listen && !stale:
			// A child is always a new socket.
			t.vanish(i, ev.Ktime)
		case opens:
			if c.state != events.Close && !stale {
				t.missEnd(i, ev.Ktime)
			}
			t.enter(i, ev.Old)
			t.clearSuspect(i)
			t.givePort(c)
			c.begin(ev)
			t.begun(i, ev)
			return i, true
		case c.state != ev.Old:
			t.clearSuspect(i)
			c.since, c.exact = ev.Ktime, false
			if !stale {
				c.spend(c.state, Unknown)
				if !ev.Taken {
					t.miss(c)
				}
			}
			c.foundIn(ev.Old)
			t.enter(i, ev.Old)
			return i, true
		default:
			return i, true
		}
	}
	if !t.makeRoom(ev.Ktime, 0) {
		t.counts.TableFull++
		return 0, false
	}
	i = t.table.add(ev.Skaddr)
	t.enlist(i, notSuspect)
	c := t.table.at(i)
	c.begin(ev)
	c.since = ev.Ktime
	c.state = events.Close // for the moment
	t.enter(i, ev.Old)
	c.foundIn(ev.Old)
	switch {
	case opens:
		t.begun(i, ev)
	case ev.Taken:
		// What came before was turned away, not lost.
	case t.overflowed():
		c.gap, c.missed = true, true // it may have been here, and what it did is counted
	case t.settled != 0 && ev.Ktime > t.settled:
		c.learn(ev)
		if t.filter.byEnds(&c.ends, ev.Old == events.Listen) != no {
			t.miss(c)
		}
	}
	return i, true
}

// begun notes what the first transition of a connection tells.
func (t *Tracker) begun(i uint32, ev *events.Event) {
	c := t.table.at(i)
	c.start = ev.Ktime
	c.startErr = ev.Err
	switch {
	case ev.New == events.SynSent:
		c.role = Client
	case ev.New == events.Listen:
		t.listens(i, ev)
	case ev.Old == events.Listen:
		c.role = Server
		c.listener = ev.Listener
		switch l := t.listeners[ev.Listener]; {
		case l == 0:
		case !t.table.at(l).mayHave(ev):
			c.listener = 0
		case c.source == SourceNone:
			t.queue(i, l)
		}
		if t.filter.ByProcess() {
			t.waiting = t.wait(t.waiting, waiter{ev.Skaddr, ev.Ktime}, t.hasSocket)
		}
	}
}

// mayHave reports whether the child that is announced can be one of listener l. An address names
// another if the listener that it named has ended, and both that and what has its memory now were lost.
// The port proves nothing: TPROXY and BPF (sk_lookup) hand a listener what was sent to others.
func (l *conn) mayHave(ev *events.Event) bool {
	return l.state == events.Listen && l.Netns == ev.Netns
}

// listens notes a listener by what its children may name it by.
func (t *Tracker) listens(i uint32, ev *events.Event) {
	t.table.at(i).named = true
	t.listeners[ev.Skaddr] = i
	if ev.Cookie != 0 {
		t.listeners[ev.Cookie] = i
	}
}

// miss marks a connection of which a transition never came.
func (t *Tracker) miss(c *conn) {
	t.counts.Missed++
	c.gap, c.missed = true, true
}

// noteCall keeps how the process let go. close() and shutdown() look alike until
// SOCK_DEAD, which only close() sets, shows in a later transition.
func (c *conn) noteCall(ev *events.Event, letsGo bool) {
	switch {
	case !letsGo:
		if ev.Flags&events.Dead != 0 && c.call == CallShutdown {
			c.call = CallClose
		}
	case ev.Flags&events.Exiting != 0:
		c.call = CallExit
	case ev.Flags&events.KThread != 0:
		// The last reference was dropped in the kernel, by a descriptor in
		// flight or a delayed fput(): nobody called close() here.
		c.call = CallUnknown
	case ev.Old == ev.New || ev.New == events.Close:
		c.call = CallClose
	default:
		c.call = CallShutdown // at the least
	}
}

// finish reports a connection whose last state, ev.Old, has ended after so long; ended is
// false if its end was missed, and ev then only says when that was noticed.
func (t *Tracker) finish(i uint32, ev *events.Event, ended bool, dwell time.Duration) {
	c := t.table.at(i)
	if c.state == events.Listen {
		return
	}
	if c.verdict == undecided {
		t.settle(i)
	}
	if c.verdict != yes {
		return
	}
	t.net(c.Netns).closed++
	t.over(&c.ends, &c.past, ev.Ktime, ended)
	t.spent.add(ev.Old, dwell)
	if c.call == CallShutdown && (!ended || ev.Flags&events.Linger != 0) {
		// What would tell it from close() was missed; or close() itself waits,
		// and sets SOCK_DEAD only later.
		t.cn.CloseCall = CallUnknown
	}
	if ended {
		if c.startErr == 0 || c.startErr != ev.Err {
			t.cn.End = c.end
		}
		t.cn.Payload, t.cn.Sent, t.cn.Received = true, ev.Sent, payload(ev)
	}
	t.counts.Ended[t.cn.End]++
	if !t.out.Connection(&t.cn) {
		c.shed()
	}
}

// over begins the record of a connection that is over.
func (t *Tracker) over(e *ends, p *past, ktime uint64, ended bool) {
	p.spentIn(&t.spent)
	t.cn = Connection{
		Ktime: ktime, Start: p.start, Role: p.role, Closer: p.closer, CloseCall: p.call,
		Spent: &t.spent, Ended: ended, Gap: p.missed, Unprinted: uint32(p.unprinted), Container: t.container(p),
	}
	t.procs.write(&t.cn.Ends, e, p)
}

// payload returns the bytes of payload that were received.
func payload(ev *events.Event) uint64 {
	// tcp_rcv_nxt_update() counts the FIN as a byte.
	if ev.Flags&events.Done != 0 && ev.Received > 0 {
		return ev.Received - 1
	}
	return ev.Received
}
