package aggregate

import (
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// A repeated opening transition within this time is the kernel side's duplicate
// (see set_state_nested); after it, a new connection whose predecessor's end was
// missed.
const duplicateWithin = uint64(10 * time.Millisecond)

// A process that uses a socket which nothing has told about is looked for after
// this time. Most often its accept() is just about to return.
const seekAfter = uint64(100 * time.Millisecond)

// A socket that waits in the accept queue longer than this is given to its
// listener's owner, as far as a filter by process is concerned.
const acceptWait = uint64(time.Second)

// Counts are the tracker's part of the books.
type Counts struct {
	Delivered   uint64 // transitions observed, duplicates not counted
	Duplicates  uint64 // transitions that the kernel side sent twice
	TableFull   uint64 // transitions of sockets that the table has no place for
	Missed      uint64 // transitions that must have happened and never came, at the least
	NoPlace     uint64 // rows of the first scan, likewise
	Shed        uint64 // transitions that a filter had not decided about, beyond what is held
	Tracked     int    // sockets in the table
	Hidden      int    // processes that our PID namespace does not show
	MissedMinis uint64 // minisockets whose end never came

	Ended    [numEnds]uint64  // connections that are over, by how they ended
	Findings [numKinds]uint64 // that were told, each once
}

// A Tracker follows every socket through its states. It belongs to one
// goroutine.
type Tracker struct {
	out    Output
	filter *Filter
	procs  processes
	table  table[conn, *conn]
	minis  table[minisocket, *minisocket]
	max    int // of both together
	counts Counts

	listeners map[uint64]uint32 // identity -> listening conn
	held      map[uint32][]Transition
	waiting   []waiter // in an accept queue, and a filter waits for them; oldest first
	ownerless []waiter // in use by a process that nothing has told about; oldest first

	scanned    []waiter // what the first scan found, in its order
	scanDone   bool
	settled    uint64 // when the first scan was over: what is unknown since was missed; 0: not yet
	now        uint64 // the last Tick
	wantOwners bool   // only a scan can tell who has a socket
	wantJudge  bool   // a socket is late

	nets       map[uint32]*network
	groups     []portGroup // number 0 is none
	groupOf    map[portKey]uint32
	freeGroups []uint32
	rates      []rate // likewise
	freeRates  []uint32
	crowds     *[crowdSlots]uint16 // minisockets that have no group, by slot
	churns     []*churn
	churnOf    map[churnKey]*churn
	orphans    []waiter        // minisockets in FIN_WAIT2, oldest first
	stuck      []uint32        // conns in FIN_WAIT2 that are members of a finding
	halfClosed []uint32        // those that the scan under way has found to be
	silent     []uint32        // established, likewise
	newcomers  []events.Event  // sockets that a scan has found and that nothing has told of
	newcomer   map[uint64]bool // those of them that are still there
	scanFrom   uint64          // Ktime of the first row of the scan under way; 0: none yet
	scannedAll uint64          // when the last scan of all sockets in all network namespaces was over
	summarized uint64          // when the last summary was made, or tracing began
	urgent     bool            // a finding cannot wait for the next Tick

	thresholds     events.Thresholds
	closeWaitAfter uint64 // of thresholds
	suspects       [2]suspects
	scan           uint32 // number of the scan under way, or of the next
	holders        []held // that it has found
	holderBuf      []Holder
	judged         uint64 // when the last one was over
	every          uint64 // when the last one that looked for every socket was
	inSight        int    // late suspects that are not lost without trace
	unsorted       bool   // suspects are not in order
	findings       []*finding
	opened         map[subject]uint32
	openOf         [numKinds]int // findings, by kind
	freeFindings   []uint32
	serial         uint64
	exits          []uint32 // processes that have exited with sockets in CLOSE_WAIT
	pids           []uint32

	seesMinis  bool
	fromTimers bool                     // not sure, see SeesMinisockets
	starting   map[mark]uint32          // minisocket whose socket has not said CLOSE yet
	strays     []waiter                 // minisockets that may have no socket, oldest first
	ending     []waiter                 // minisockets that seem to have ended, oldest first
	again      []waiter                 // reused
	lookAt     [len(lookAfter)][]waiter // minisockets in FIN_WAIT2, oldest first
	looks      []events.Look

	spent Spent // reused, as the next two: one record is under way at a time
	tr    Transition
	cn    Connection
}

// A waiter is a connection or a minisocket that something is done about later, if it
// is still there: its address and its start name it.
type waiter struct {
	addr, ktime uint64
}

// NewTracker returns a tracker that follows at most maxSockets sockets at once
// and gives the records of those that filter lets through to out, and findings by th.
func NewTracker(out Output, filter *Filter, maxSockets int, th events.Thresholds) *Tracker {
	t := &Tracker{
		out:       out,
		filter:    filter,
		procs:     newProcesses(filter),
		table:     newTable[conn, *conn](),
		minis:     newTable[minisocket, *minisocket](),
		max:       maxSockets,
		listeners: map[uint64]uint32{},
		held:      map[uint32][]Transition{},
		starting:  map[mark]uint32{},
		scan:      1,
		holders:   make([]held, 1),
		findings:  make([]*finding, 1),
		opened:    map[subject]uint32{},
		nets:      map[uint32]*network{},
		groups:    make([]portGroup, 1),
		groupOf:   map[portKey]uint32{},
		rates:     make([]rate, 1),
		crowds:    new([crowdSlots]uint16),
		churnOf:   map[churnKey]*churn{},
		newcomer:  map[uint64]bool{},
	}
	t.SetThresholds(th)
	return t
}

// SetThresholds changes what is a finding. It must be called before the first event.
func (t *Tracker) SetThresholds(th events.Thresholds) {
	t.thresholds, t.closeWaitAfter = th, uint64(th.CloseWaitAfter)
}

// Counts returns the books as they stand.
func (t *Tracker) Counts() Counts {
	c := t.counts
	c.Tracked = t.table.len() + t.minis.len()
	c.Hidden = len(t.procs.hidden)
	return c
}

// full reports whether there is no place for another socket or minisocket.
func (t *Tracker) full() bool { return t.table.len()+t.minis.len() >= t.max }

// Want says what the tracker needs to see.
type Want uint8

// The wants. WantSuspects: sockets that somebody should have closed, and who holds
// them. WantOwners: who holds which socket, whatever its state.
const (
	WantNothing Want = iota
	WantSuspects
	WantOwners
)

// WantScan says, once, which scan is wanted now.
func (t *Tracker) WantScan() Want {
	w, after := WantNothing, lookAgainAfter
	if t.inSight == 0 {
		after = lookForLostAfter
	}
	switch {
	case t.wantOwners, t.scanDone && t.now >= t.every+t.lookAtAll():
		w = WantOwners
	case t.wantJudge || t.list(late).n > 0 && t.now >= t.judged+after:
		w = WantSuspects
	}
	t.wantOwners, t.wantJudge = false, false
	return w
}

// lookAtAll is the time after which every socket is looked at.
func (t *Tracker) lookAtAll() uint64 {
	shortest := min(t.thresholds.FinWait2After, t.thresholds.HalfOpenAfter, lookAtAllAfter)
	return uint64(max(shortest, 2*time.Second))
}

// Observe takes the next event. It does not keep ev.
func (t *Tracker) Observe(ev *events.Event) {
	switch ev.Kind {
	case events.Transition:
		t.transition(ev)
	case events.Destroy:
		t.destroy(ev)
	case events.Accept:
		if i := t.lookup(ev); i != 0 {
			t.own(i, &ev.Proc, SourceAccept)
			t.accepted(i)
			t.decide(i)
			switch c := t.table.at(i); c.state {
			case events.Close:
				// Reset in the accept queue; accept() hands it out all the same.
				c.since = ev.Ktime
				t.becomeSuspect(i)
			case events.CloseWait:
				c.active = ev.Ktime // whoever has it now, has it only since now
			}
		}
	case events.Socket:
		t.row(ev)
	case events.Minisocket:
		t.minisocket(ev)
	case events.Fork:
		t.procs.forked(&ev.Parent, &ev.Proc, !t.scanDone)
	}
	if t.urgent {
		t.now = max(t.now, ev.Ktime)
		t.report(maxWalks)
	}
}

// lookup finds the conn of an event's socket. A cookie that differs says that
// the address has been given to another socket, and the end of the first missed.
func (t *Tracker) lookup(ev *events.Event) uint32 {
	i := t.table.find(ev.Skaddr)
	if i == 0 {
		return 0
	}
	if c := t.table.at(i); c.Cookie != 0 && ev.Cookie != 0 && c.Cookie != ev.Cookie {
		t.vanish(i, ev.Ktime)
		return 0
	}
	return i
}

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
	t.attribute(i, ev)

	// A transition into the same state ends nothing (close() after
	// shutdown(SHUT_WR) makes one); the time is counted when the state is left.
	dwell := Unknown
	successor := t.successor(c, ev)
	if ev.Old != ev.New {
		if c.since != 0 && (!t.mayBeUnseen() || !mayBeHandedOver(ev)) {
			dwell = time.Duration(max(ev.Ktime, c.since) - c.since)
		}
		if !opening(ev) && successor == 0 {
			c.spent.add(ev.Old, dwell)
		}
		if ev.Old == events.CloseWait {
			t.leaveCloseWait(i, ev, dwell)
		}
		t.clearSuspect(i)
	}
	c.closer = firstFin(c.closer, ev.Old, ev.New)
	noteCall(c, ev)
	switch {
	case successor != 0:
		t.handOver(i, successor, ev)
	case ev.Old == events.Established && ev.New != events.Established:
		t.shortLived(c, ev.Ktime)
	}
	if ev.Old != ev.New {
		c.since = ev.Ktime
	}
	c.lastOld, c.lastKtime = ev.Old, ev.Ktime
	t.enter(i, ev.New)
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

	t.decide(i)
	if successor == 0 {
		t.tr = Transition{Ends: c.Ends, Ktime: ev.Ktime, Old: ev.Old, New: ev.New, Dwell: dwell, Gap: c.gap}
		c.gap = false
		t.print(i)
		if ev.New == events.Close && ev.Old != events.Close && ev.Old != events.Listen {
			t.finish(i, ev, true)
		}
		if !t.mayBeUnseen() && endsInTimeWait(ev) {
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
	t.clearSuspect(i)
	h := &t.procs.all[c.proc].history
	switch c.state {
	case events.CloseWait:
		h.Held--
	case events.FinWait2:
		t.join(i, noFinding)
	}
	if st == events.Close {
		t.givePort(c)
	}
	if c.state = st; st == events.CloseWait {
		h.PeerClosed++
		h.Held++
	}
}

// leaveCloseWait notes how a socket leaves CLOSE_WAIT, if it is its process that
// lets go of it.
func (t *Tracker) leaveCloseWait(i uint32, ev *events.Event, dwell time.Duration) {
	c := t.table.at(i)
	switch {
	case lettingGo(ev) && ev.Flags&events.Exiting != 0:
		t.neverClosed(i, ev, c.proc)
	case lettingGo(ev):
		t.procs.all[c.proc].history.closed(dwell)
	case ev.New == events.Close && ev.Flags&(events.Owned|events.HasSocket|events.Dead) == 0 && ev.Err == 0:
		// inet_child_forget(): its listener was closed; and if that was because
		// the process exits, so was this.
		if l := t.listenerOf(c); l != nil && l.state == events.Close && l.call == CallExit {
			t.neverClosed(i, ev, l.proc)
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
		again := ev.Old == c.lastOld && ev.New == c.state && ev.Old != ev.New
		if again && (!opens || ev.Ktime-c.lastKtime < duplicateWithin) {
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
			c.since = 0
			if !stale {
				c.spent.add(c.state, Unknown)
				t.miss(c)
			}
			c.foundIn(ev.Old)
			t.enter(i, ev.Old)
			return i, true
		default:
			return i, true
		}
	}
	if t.full() {
		t.counts.TableFull++
		return 0, false
	}
	i = t.table.add(ev.Skaddr)
	c := t.table.at(i)
	c.begin(ev)
	c.state = events.Close // for the moment
	t.enter(i, ev.Old)
	c.foundIn(ev.Old)
	switch {
	case opens:
		t.begun(i, ev)
	case t.settled != 0 && ev.Ktime > t.settled:
		c.learn(ev)
		if t.filter.byEnds(&c.Ends, ev.Old == events.Listen) != no {
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
		if l := t.listeners[ev.Listener]; l != 0 && c.Owner.Source == SourceNone {
			t.queue(i, l)
		}
		if t.filter.ByProcess() {
			t.waiting = append(t.waiting, waiter{ev.Skaddr, ev.Ktime})
		}
	}
}

// listens notes a listener by what its children may name it by.
func (t *Tracker) listens(i uint32, ev *events.Event) {
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
func noteCall(c *conn, ev *events.Event) {
	switch {
	case lettingGo(ev) && ev.Flags&events.Exiting != 0:
		c.call = CallExit
	case lettingGo(ev) && ev.Flags&events.KThread != 0:
		// The last reference was dropped in the kernel, by a descriptor in
		// flight or a delayed fput(): nobody called close() here.
		c.call = CallUnknown
	case lettingGo(ev) && (ev.Old == ev.New || ev.New == events.Close):
		c.call = CallClose
	case lettingGo(ev):
		c.call = CallShutdown // at the least
	case ev.Flags&events.Dead != 0 && c.call == CallShutdown:
		c.call = CallClose
	}
}

// finish reports a connection whose last state has ended; ended is false if its
// end was missed, and ev then only says when that was noticed.
func (t *Tracker) finish(i uint32, ev *events.Event, ended bool) {
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
	t.cn = Connection{
		Ends: c.Ends, Ktime: ev.Ktime, Start: c.start,
		Role: c.role, Closer: c.closer, CloseCall: c.call,
		Spent: &c.spent, Ended: ended, Gap: c.missed, Unprinted: c.unprinted, Container: t.container(c),
	}
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
		c.unprinted++
	}
}

// payload returns the bytes of payload that were received.
func payload(ev *events.Event) uint64 {
	// tcp_rcv_nxt_update() counts the FIN as a byte.
	if ev.Flags&events.Done != 0 && ev.Received > 0 {
		return ev.Received - 1
	}
	return ev.Received
}

// destroy takes the socket out of the table: its address may be used again.
func (t *Tracker) destroy(ev *events.Event) {
	if len(t.newcomer) > 0 {
		delete(t.newcomer, ev.Skaddr)
	}
	i := t.lookup(ev)
	if i == 0 {
		return
	}
	if c := t.table.at(i); c.state != events.Close {
		t.vanish(i, ev.Ktime)
		return
	}
	t.drop(i)
}

// vanish takes a socket whose end was missed out of the table.
func (t *Tracker) vanish(i uint32, ktime uint64) {
	if t.table.at(i).state != events.Close {
		t.missEnd(i, ktime)
	}
	t.drop(i)
}

// missEnd reports a connection whose end was missed.
func (t *Tracker) missEnd(i uint32, ktime uint64) {
	c := t.table.at(i)
	t.miss(c)
	ev := events.Event{Ktime: ktime}
	if to := t.starting[c.mark()]; to != 0 {
		t.handOver(i, to, &ev)
		return
	}
	c.spent.add(c.state, Unknown)
	t.finish(i, &ev, false)
}

func (t *Tracker) drop(i uint32) {
	c := t.table.at(i)
	for _, id := range [...]uint64{c.Cookie, c.skaddr} { // it may have been given a cookie since
		if t.listeners[id] == i {
			delete(t.listeners, id)
		}
	}
	delete(t.held, i)
	t.enter(i, events.Close)
	t.clearSuspect(i)
	t.setOwner(i, Owner{})
	t.table.remove(i)
}
