package aggregate

import (
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// TCP_TIMEWAIT_LEN (include/net/tcp.h).
const timeWaitLen = 60 * time.Second

// An end that a timer shows may be followed within microseconds by news that it was
// none, or of what it was. So it is believed only after this time.
const endSettled = uint64(20 * time.Millisecond)

// A minisocket whose end has not come so long after its time is up has ended, and
// that was missed. The timer wheel is up to five seconds late (HZ=100).
const endMissed = uint64(15 * time.Second)

// minisocket is what is left of a connection in TIME_WAIT, or in FIN_WAIT2 without a
// process: the kernel's inet_timewait_sock. It takes the connection's story over, so
// that the socket's address, whatever comes of it, is free for another. It holds no
// pointers.
type minisocket struct {
	ends
	past            // its state is TimeWait or FinWait2
	since    uint64 // Ktime at which state was entered; 0: not seen
	begun    uint64 // Ktime at which it was first heard of
	expires  uint64 // Ktime at which its timer ends it
	ended    uint64 // Ktime at which it did, as it seems; 0: it is there
	sent     uint64
	received uint64
	ports    uint32 // the portGroup that counts it; or inCrowd
	finding  uint32 // that it is a member of
	scan     uint16 // the last scan that found it: minisockets do not live to see so many that this comes round
	missing  uint8  // complete scans of all in a row that have not found it
	tie      tie
	endedIn  events.State
	why      events.Why
	payload  bool // sent and received are known
	stamped  bool
}

// tie says what is known of the connection of a minisocket.
type tie uint8

const (
	awaited tie = iota // its socket has still to tell
	existed            // likewise; but it was there before tracing started
	linked             // its story is settled: it is a connection's, or nobody's
	silent             // likewise; but its connection may have been told of already, so nothing more is
)

func (m *minisocket) settled() bool { return m.tie >= linked }

// SeesMinisockets says that Minisocket events come. Those from timers are less sure: an
// end may turn out to be none, or a new SYN's doing; and a FIN that ends FIN_WAIT2 may
// come without one, so that Looks has to be asked for.
func (t *Tracker) SeesMinisockets(fromTimers bool) { t.seesMinis, t.fromTimers = true, fromTimers }

// minisFull reports whether there are as many minisockets as there may be. They may take
// half: however many there are, sockets must not want for a place.
func (t *Tracker) minisFull() bool { return t.minis.len() >= max(t.max/2, 1) }

// mayBeUnseen reports whether there may be a minisocket that is new at ktime and that t
// does not know.
func (t *Tracker) mayBeUnseen(ktime uint64) bool {
	return !t.seesMinis || t.refused != 0 && ktime < t.refused+second
}

// is reports whether an event is of minisocket i. One that had no cookie is given one by
// whoever asks for it, ss for example.
func (t *Tracker) is(i uint32, ev *events.Event) bool {
	m := t.minis.at(i)
	if m.Cookie == ev.Cookie && m.Cookie != 0 {
		return true
	}
	same := (m.Cookie == 0 || ev.Cookie == 0) && m.Netns == ev.Netns && m.Lport == ev.Lport && m.Rport == ev.Rport &&
		m.Laddr == ev.Laddr && m.Raddr == ev.Raddr
	if same && m.Cookie != ev.Cookie && m.Cookie == 0 {
		was := m.mark()
		m.Cookie = ev.Cookie
		if t.starting[was] == i {
			delete(t.starting, was)
			t.starting[m.mark()] = i
		}
	}
	return same
}

// minisocket takes a Minisocket event.
func (t *Tracker) minisocket(ev *events.Event) {
	i := t.minis.find(ev.Skaddr)
	if i != 0 && !t.is(i, ev) {
		// The address is another's: the end was missed, or is not settled yet.
		t.endMini(i)
		i = 0
	}
	switch {
	case i == 0 && ev.New == events.Close: // it was filtered, or there was no place for it
	case i == 0:
		if i = t.addMini(ev); i != 0 {
			t.expectSocket(i, ev)
		}
	case ev.New == events.Close:
		m := t.minis.at(i)
		first := m.ended == 0
		m.ended, m.endedIn, m.why = ev.Ktime, ev.Old, ev.Why
		m.expires = ev.Ktime + uint64(ev.Left)
		switch {
		case m.settled() && (!t.fromTimers || ev.Why != events.WhyUnknown && ev.Why != events.WhyOther):
			t.endMini(i)
		case first:
			t.ending = t.wait(t.ending, waiter{ev.Skaddr, ev.Ktime}, t.hasMini)
		}
	default:
		m := t.minis.at(i)
		if !m.settled() && m.since == 0 && ev.Ktime <= m.begun && ev.Why != events.WhyAgain {
			m.since, m.missed = ev.Ktime, false // a scan was ahead of the news
		}
		m.ended = 0 // its timer was only set anew
		m.expires = ev.Ktime + uint64(ev.Left)
		if ev.New == events.TimeWait {
			t.finArrived(i)
		}
	}
}

// expectSocket waits for the last word of the socket that minisocket i comes from.
func (t *Tracker) expectSocket(i uint32, ev *events.Event) {
	t.starting[t.minis.at(i).mark()] = i
	t.strays = t.wait(t.strays, waiter{ev.Skaddr, ev.Ktime}, t.hasMini)
}

// addMini returns 0 if there is no place.
func (t *Tracker) addMini(ev *events.Event) uint32 {
	if t.minisFull() || !t.makeRoom(ev.Ktime, ev.Cookie) {
		t.counts.NoPlace++
		t.refused = ev.Ktime
		return 0
	}
	i := t.minis.add(ev.Skaddr)
	*t.minis.at(i) = minisocket{
		ends:    endsOf(ev),
		past:    past{state: ev.New},
		since:   ev.Ktime,
		begun:   ev.Ktime,
		expires: ev.Ktime + uint64(ev.Left),
		stamped: ev.Stamped,
	}
	if ev.Why == events.WhyAgain {
		m := t.minis.at(i)
		m.since, m.missed = 0, true
	}
	if ev.New == events.FinWait2 {
		t.lookAt[0] = t.wait(t.lookAt[0], waiter{ev.Skaddr, ev.Ktime}, t.hasMini)
	}
	return i
}

// finArrived notes that the peer has closed too: when, its timer tells, which is set
// anew by each FIN (tcp_timewait_state_process).
func (t *Tracker) finArrived(i uint32) {
	m := t.minis.at(i)
	if m.state != events.FinWait2 {
		return
	}
	if m.tie == existed {
		t.adopt(i)
	}
	ktime := m.expires - min(uint64(timeWaitLen), m.expires)
	dwell := Unknown
	if m.since != 0 {
		// The timer counts in jiffies: this may be one too early.
		ktime = max(ktime, m.since)
		if m.settled() {
			dwell = time.Duration(ktime - m.since)
		}
	}
	t.unstick(m)
	m.state, m.since = events.TimeWait, ktime
	t.portWaits(m)
	if m.settled() {
		m.spend(events.FinWait2, dwell)
		t.miniTransition(m, ktime, events.FinWait2, events.TimeWait, dwell)
	}
}

// miniTransition makes the record of a step that the tracepoint does not show.
func (t *Tracker) miniTransition(m *minisocket, ktime uint64, old, next events.State, dwell time.Duration) {
	if m.verdict != yes || m.tie == silent {
		return
	}
	t.dwells.add(old, dwell)
	t.procs.write(&t.tr.Ends, &m.ends, &m.past)
	t.tr.Ktime, t.tr.Old, t.tr.New, t.tr.Dwell = ktime, old, next, dwell
	t.tr.Mini, t.tr.Gap, t.tr.Unprinted, t.tr.Container = true, m.gap, uint32(m.unprinted), t.container(&m.past)
	m.gap = false
	if !t.out.Transition(&t.tr) {
		m.shed()
	}
}

// successor returns the minisocket that has taken over from c, 0 if there is none.
func (t *Tracker) successor(c *conn, ev *events.Event) uint32 {
	if ev.New != events.Close || ev.Old != events.FinWait2 && ev.Old != events.Closing {
		return 0
	}
	return t.starting[c.mark()]
}

// handOver gives the story of a connection that is not over to its minisocket. ev is
// the socket's last transition; if that was missed, no more than a time.
func (t *Tracker) handOver(i, to uint32, ev *events.Event) {
	c, m := t.table.at(i), t.minis.at(to)
	delete(t.starting, c.mark())
	c.handed = ev.Kind != events.Transition
	from, since := c.state, uint64(0)
	if c.exact {
		since = c.since
	}
	if from != events.FinWait2 && (from != events.Closing || m.state != events.TimeWait) {
		// More was missed than that.
		c.spend(from, Unknown)
		since = 0
		if c.call == CallShutdown {
			c.call = CallUnknown
		}
	}
	if c.verdict == undecided {
		t.settle(i)
	}
	// The kernel gives the minisocket the socket's ends.
	st := m.state
	m.past, m.tie = c.past, linked
	m.state = st
	if c.call == CallShutdown && ev.Flags&events.Linger != 0 {
		m.call = CallUnknown // close() itself waits, and sets SOCK_DEAD only later
	}
	if ev.Kind == events.Transition {
		m.payload, m.sent, m.received = true, ev.Sent, payload(ev)
	}
	t.procs.keep(m.owner)
	t.procs.all[t.procs.of(&m.past)].timeWait++
	t.keepPort(c, m)

	if m.state == events.FinWait2 {
		m.since = since
		return
	}
	dwell := Unknown
	if since != 0 && m.since != 0 {
		m.since = max(m.since, since)
		dwell = time.Duration(m.since - since)
	}
	m.spend(from, dwell)
	t.miniTransition(m, max(m.since, m.begun), from, events.TimeWait, dwell)
}

// endMini ends the story of a minisocket, and of its connection with it. Its end was
// missed if m.ended is 0.
func (t *Tracker) endMini(i uint32) {
	m := t.minis.at(i)
	ended := m.ended != 0
	t.adopt(i)
	if ended && m.endedIn == events.TimeWait {
		t.finArrived(i)
	}
	dwell := Unknown
	ktime := m.ended
	if ended {
		if m.since != 0 {
			dwell = time.Duration(max(m.ended, m.since) - m.since)
		}
		t.miniTransition(m, ktime, m.state, events.Close, dwell)
	} else {
		ktime, m.missed = t.now, true
		t.counts.MissedMinis++
	}
	if m.verdict == yes && m.tie != silent {
		t.net(m.Netns).closed++
		t.over(&m.ends, &m.past, ktime, ended)
		t.spent.add(m.state, dwell)
		t.cn.Payload, t.cn.Sent, t.cn.Received = m.payload, m.sent, m.received
		switch {
		case ended:
			t.cn.End, t.cn.TimeWaitEnd = m.how()
		case m.state == events.TimeWait:
			t.cn.End = EndFin
		}
		t.counts.Ended[t.cn.End]++
		t.out.Connection(&t.cn)
	}
	t.dropMini(i)
}

// how says what has ended the connection, and its time in TIME_WAIT.
func (m *minisocket) how() (End, TimeWaitEnd) {
	inTime := m.expires > m.ended
	if m.state == events.TimeWait {
		switch {
		case m.why == events.WhyConnect || m.why == events.WhySyn:
			return EndFin, Reused
		case m.why == events.WhyReset || m.why == events.WhyKilled || inTime && m.why == events.WhyOther:
			return EndFin, Killed
		case inTime:
			return EndFin, TimeWaitEndUnknown
		}
		return EndFin, Expired
	}
	end := EndUnknown
	switch {
	case m.why == events.WhyReset:
		end = EndResetSent
	case m.why == events.WhyKilled:
		end = EndAborted
	case m.why == events.WhyConnect || m.why == events.WhySyn:
	case !inTime:
		end = EndTimeout
	case m.why == events.WhyOther:
		end = EndResetReceived
	}
	return end, TimeWaitEndUnknown
}

func (t *Tracker) dropMini(i uint32) {
	m := t.minis.at(i)
	if t.starting[m.mark()] == i {
		delete(t.starting, m.mark())
	}
	t.freePort(m)
	t.unstick(m)
	t.procs.all[t.procs.of(&m.past)].timeWait--
	t.procs.give(m.owner)
	t.minis.remove(i)
}

// adopt makes do with a minisocket whose connection is not known. If it was there
// before tracing started, that is all there is to know. If not, its connection has been
// told of as one that ended in FIN_WAIT2, or will be.
func (t *Tracker) adopt(i uint32) {
	m := t.minis.at(i)
	if m.settled() {
		return
	}
	if t.starting[m.mark()] == i {
		delete(t.starting, m.mark())
	}
	m.since = 0
	if m.tie == existed {
		m.tie = linked
	} else {
		m.tie = silent
	}
	if m.state == events.FinWait2 {
		m.closer = CloserLocal
	}
	m.verdict = no
	if !t.filter.ByProcess() {
		m.verdict = t.filter.byEnds(&m.ends, false)
	}
	t.procs.all[nobody].timeWait++
	t.keepPort(nil, m)
}

// strayAfter is when a minisocket whose socket has not been heard of is looked into:
// the news comes with it, as a rule.
const strayAfter = uint64(100 * time.Millisecond)

// findStrays looks for the connections of minisockets that should have come from one so
// long ago: the socket's last transition was missed.
func (t *Tracker) findStrays(ktime, after uint64) {
	if ktime < t.nextStrays {
		return
	}
	var strays []uint32
	t.strays = t.expireMinis(t.strays, ktime, after, func(w waiter, i uint32, m *minisocket) {
		if !m.settled() && m.begun <= w.ktime {
			strays = append(strays, i)
		}
	})
	// With a full table, most have no connection here.
	if len(strays) > 0 && !t.full() {
		t.nextStrays = ktime + second // it is a walk through all there is
		for i, c := range t.table.all() {
			if c.state == events.Close {
				continue
			}
			to := t.starting[c.mark()]
			if to == 0 || ktime < t.minis.at(to).begun+after {
				continue
			}
			t.miss(c)
			t.handOver(i, to, &events.Event{Ktime: t.minis.at(to).begun})
			t.enter(i, events.Close)
		}
	}
	for _, i := range strays {
		t.adopt(i)
	}
}

// hasSocket reports whether the socket that is waited with is there. Another may have its
// address by now: it has begun later.
func (t *Tracker) hasSocket(w waiter) bool {
	i := t.table.find(w.addr)
	return i != 0 && t.table.at(i).start <= w.ktime
}

func (t *Tracker) hasMini(w waiter) bool {
	i := t.minis.find(w.addr)
	return i != 0 && t.minis.at(i).begun <= w.ktime
}

// expireMinis is expire for minisockets. Another one may have the address by now: it
// has begun later.
func (t *Tracker) expireMinis(ws []waiter, ktime, after uint64, f func(waiter, uint32, *minisocket)) []waiter {
	n := 0
	for ; n < len(ws) && ktime >= ws[n].ktime+after; n++ {
		if i := t.minis.find(ws[n].addr); i != 0 {
			f(ws[n], i, t.minis.at(i))
		}
	}
	return rest(ws, n)
}

// settleEnds believes the ends that nothing has contradicted.
func (t *Tracker) settleEnds(ktime uint64) {
	t.again = t.again[:0]
	t.ending = t.expireMinis(t.ending, ktime, endSettled, func(w waiter, i uint32, m *minisocket) {
		switch {
		case m.ended == 0:
		case ktime >= m.ended+endSettled:
			t.endMini(i)
		default: // it has begun anew and ended again
			t.again = append(t.again, waiter{w.addr, m.ended})
		}
	})
	t.ending = append(t.ending, t.again...)
}

// tickMinis lets time pass for minisockets.
func (t *Tracker) tickMinis(ktime uint64) {
	t.settleEnds(ktime)
	t.findStrays(ktime, strayAfter)
	t.tickOrphans(ktime)

	t.looks = t.looks[:0]
	for k, after := range lookAfter {
		t.lookAt[k] = t.expireMinis(t.lookAt[k], ktime, uint64(after), func(w waiter, _ uint32, m *minisocket) {
			if m.state != events.FinWait2 || m.ended != 0 || m.begun > w.ktime {
				return
			}
			if t.fromTimers {
				t.looks = append(t.looks, events.Look{Skaddr: w.addr, Cookie: m.Cookie})
			}
			if k+1 < len(lookAfter) {
				t.lookAt[k+1] = t.wait(t.lookAt[k+1], w, t.hasMini)
			}
			if k == orphanAfter {
				t.orphans = t.wait(t.orphans, w, t.hasMini)
			}
		})
	}
}

// When a minisocket in FIN_WAIT2 is looked at. Most leave it at once; and after some
// seconds, one bucket of the timer wheel (HZ=100), news of that does not fail to come.
var lookAfter = [...]time.Duration{
	20 * time.Millisecond, 100 * time.Millisecond, 400 * time.Millisecond, 1600 * time.Millisecond, 6400 * time.Millisecond,
}

// Those that have been looked at so often are waited with: so the many that leave
// FIN_WAIT2 at once never get there.
const orphanAfter = 2

// InFinWait2 returns all minisockets that may, whenever they are looked at next. It is good
// until the next Tick.
func (t *Tracker) InFinWait2() []events.Look {
	t.looks = t.looks[:0]
	if !t.fromTimers {
		return t.looks
	}
	for _, ws := range t.lookAt {
		for _, w := range ws {
			if i := t.minis.find(w.addr); i != 0 && t.minis.at(i).state == events.FinWait2 {
				t.looks = append(t.looks, events.Look{Skaddr: w.addr, Cookie: t.minis.at(i).Cookie})
			}
		}
	}
	return t.looks
}

// Looks returns the minisockets that may have gone from FIN_WAIT2 to TIME_WAIT. It is
// good until the next Tick.
func (t *Tracker) Looks() []events.Look { return t.looks }
