package aggregate

import (
	"cmp"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// While sockets are late, the descriptors are looked through again after this
// time: a process may have passed one on, or begun to use it.
const lookAgainAfter = uint64(2 * time.Second)

// The same where all that is left are dead sockets whose descriptor no scan finds:
// it may be in flight, or the news of their destruction was lost.
const lookForLostAfter = uint64(30 * time.Second)

// Every socket is looked at after this time, whatever is late: who has it may have
// changed, what was missed comes to light, and who is silent shows in no other way.
const lookAtAllAfter = time.Minute

// Verdict says what a process has failed to do with a socket that its peer has
// closed.
type Verdict uint8

// The verdicts. EOFRead: it has consumed everything, the FIN included
// (copied_seq has passed it). EOFUnread: it never read that far. NotAccepted: it
// is still in the accept queue. Dead: the connection is over, reset for example,
// and the descriptor is still open.
const (
	VerdictNone Verdict = iota
	EOFRead
	EOFUnread
	NotAccepted
	Dead

	numVerdicts
)

var verdictNames = [numVerdicts]string{"", "eof_read", "eof_unread", "not_accepted", "reset_fd_leak"}

func (v Verdict) String() string { return verdictNames[v] }

// A suspect is a conn that somebody should close: in CLOSE_WAIT, or dead with its
// descriptor open. It is young until it has been so for closeWaitAfter, and then
// late. Each conn is in one list, that of its kind: suspects in the order in which they
// became it, oldest first, the others as they have been idle. The lists
// live in the conns, so they are as large as the table and no larger.
type list struct {
	head, tail uint32
	n          int
}

const (
	notSuspect = iota
	young
	late

	numLists
)

func (t *Tracker) list(which uint8) *list { return &t.lists[which] }

// enlist puts a conn that is in no list at the end of one.
func (t *Tracker) enlist(i uint32, which uint8) {
	c, l := t.table.at(i), t.list(which)
	c.suspect, c.prev, c.next = which, l.tail, 0
	if l.tail != 0 {
		t.table.at(l.tail).next = i
	} else {
		l.head = i
	}
	l.tail = i
	l.n++
}

func (t *Tracker) delist(i uint32) {
	c := t.table.at(i)
	l := t.list(c.suspect)
	if c.prev != 0 {
		t.table.at(c.prev).next = c.next
	} else {
		l.head = c.next
	}
	if c.next != 0 {
		t.table.at(c.next).prev = c.prev
	} else {
		l.tail = c.prev
	}
	l.n--
}

// move puts a conn at the end of a list, which may be the one that it is in.
func (t *Tracker) move(i uint32, which uint8) {
	t.delist(i)
	t.enlist(i, which)
}

// clearSuspect takes back a suspicion: the socket is closed, or in another state.
func (t *Tracker) clearSuspect(i uint32) {
	c := t.table.at(i)
	if c.suspect == notSuspect {
		return
	}
	if c.finding != noFinding {
		f := t.findings[c.finding]
		ktime, _ := c.entered()
		f.peakAge = max(f.peakAge, t.now-min(ktime, t.now))
	}
	t.move(i, notSuspect)
	t.join(i, noFinding)
}

// becomeSuspect begins, or begins anew, the time that a process has.
func (t *Tracker) becomeSuspect(i uint32) {
	t.clearSuspect(i)
	t.move(i, young)
}

// entered returns when c came into its state; or, if exact is false, a time that
// is not earlier than that.
func (c *conn) entered() (ktime uint64, exact bool) { return c.since, c.exact }

// died reports whether the connection has ended here while its process has the
// socket open. Not so if it is the process that ends it: by close(), or by
// connect(AF_UNSPEC), after which the socket is as good as new.
func died(ev *events.Event) bool {
	if ev.New != events.Close || ev.Flags&(events.HasSocket|events.Dead) != events.HasSocket {
		return false
	}
	switch ev.Old {
	case events.Listen, events.SynSent, events.SynRecv, events.Close:
		return false // never was one
	case events.LastAck, events.Closing:
		return true
	}
	byItself := ev.Flags&events.Owned != 0 && ev.Err == 0
	return !byItself || ev.Old == events.FinWait2 && ev.Flags&events.Done != 0
}

// expireSuspects moves those whose time is up.
func (t *Tracker) expireSuspects() {
	if !t.scanDone {
		return // not sorted yet
	}
	for i := t.list(young).head; i != 0; i = t.list(young).head {
		if ktime, _ := t.table.at(i).entered(); t.now < ktime+t.closeWaitAfter {
			return
		}
		t.move(i, late)
		t.wantJudge = true
	}
}

// sortList puts those that a scan has found where they belong: some had been
// there long before.
func (t *Tracker) sortList(which uint8) {
	var found []uint32
	for i := t.list(which).head; i != 0; i = t.list(which).head {
		t.delist(i)
		found = append(found, i)
	}
	slices.SortStableFunc(found, func(a, b uint32) int {
		x, _ := t.table.at(a).entered()
		y, _ := t.table.at(b).entered()
		return cmp.Compare(x, y)
	})
	for _, i := range found {
		t.enlist(i, which)
	}
}

// examine takes over the evidence of a row.
func (c *conn) examine(ev *events.Event) {
	c.kernel = ev.Kernel
	c.accepted = ev.Flags&(events.HasSocket|events.Dead) != 0
	if ev.New != events.CloseWait {
		return
	}
	if ev.Queued > 0 || c.examined && ev.Unread > 0 && ev.Unread != c.unread {
		c.active = ev.Ktime // it has sent what the peer has still to take; or it is reading
	} else {
		c.active = max(c.active, ev.Ktime-min(ev.Unsent, ev.Ktime))
	}
	c.examined, c.unread, c.sent = true, ev.Unread, ev.Sent
}

// verdictOf judges one socket by what the last scan has found.
func (t *Tracker) verdictOf(c *conn) Verdict {
	ktime, _ := c.entered()
	if t.now < ktime+t.closeWaitAfter {
		return VerdictNone
	}
	switch {
	case c.kernel && (c.accepted || !t.queuesForAProcess(c)):
		return VerdictNone
	case c.state == events.Close:
		return Dead
	case c.state != events.CloseWait, t.now < c.active+t.closeWaitAfter:
		return VerdictNone // half-closed, and in use
	case !c.accepted:
		return NotAccepted
	case c.unread == 0:
		return EOFRead
	}
	return EOFUnread
}

// queuesForAProcess reports whether c is in the accept queue of a listener that a
// process has a descriptor of. What an MPTCP listener has not handed out yet looks
// like a socket of the kernel's own.
func (t *Tracker) queuesForAProcess(c *conn) bool {
	l := t.listenerOf(c)
	return l != nil && l.scan == t.scan && l.holder != 0
}

// UnseenIn returns the network namespaces of late sockets in CLOSE_WAIT that the
// scan under way has not found a descriptor of: whether they are there at all must
// be looked up elsewhere.
func (t *Tracker) UnseenIn() map[uint32]bool {
	var in map[uint32]bool
	for i := t.list(late).head; i != 0; i = t.table.at(i).next {
		if c := t.table.at(i); c.scan != t.scan && c.state == events.CloseWait {
			if in == nil {
				in = map[uint32]bool{}
			}
			in[c.Netns] = true
		}
	}
	return in
}

// hold notes a descriptor that the scan under way has found.
func (t *Tracker) hold(i uint32, h Holder) {
	c := t.table.at(i)
	t.holders = append(t.holders, held{Holder: h, next: c.holder})
	c.holder = uint32(len(t.holders) - 1)
}

// held is a Holder in the list of its socket's; number 0 ends it.
type held struct {
	Holder
	next uint32
}

// holdersOf returns the descriptors that the scan under way has found of c, each
// once, by PID and number: threads that do not share their leader's descriptors are
// walked one by one, and what they share among them is found again. The slice is
// good until the next call.
func (t *Tracker) holdersOf(c *conn) []Holder {
	t.holderBuf = t.holderBuf[:0]
	if c.scan == t.scan {
		for k := c.holder; k != 0; k = t.holders[k].next {
			t.holderBuf = append(t.holderBuf, t.holders[k].Holder)
		}
		slices.SortFunc(t.holderBuf, func(a, b Holder) int {
			return cmp.Or(cmp.Compare(a.Pid, b.Pid), cmp.Compare(a.Fd, b.Fd))
		})
		t.holderBuf = slices.Compact(t.holderBuf)
	}
	return t.holderBuf
}

// culprit returns the process that c is to be held against: its owner, if that
// still has a descriptor of it; else whoever has one, the first by PID if several
// do; nobody if no process is seen to.
func (t *Tracker) culprit(c *conn) uint32 {
	hs := t.holdersOf(c)
	if len(hs) == 0 {
		return nobody
	}
	owner := t.procs.names[c.owner].pid
	for k := range hs {
		if hs[k].Pid == owner {
			return t.procs.get(hs[k].Pid, &hs[k].Comm)
		}
	}
	return t.procs.get(hs[0].Pid, &hs[0].Comm)
}

// listenerOf returns the listener in whose queue c is, nil if that is not known.
func (t *Tracker) listenerOf(c *conn) *conn {
	if l := t.listeners[c.listener]; l != 0 {
		return t.table.at(l)
	}
	return nil
}
