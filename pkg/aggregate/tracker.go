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
	NoPlace     uint64 // rows of the first scan, and minisockets, likewise
	Evicted     uint64 // sockets that were forgotten to make room for others
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
	table  table[uint64, conn]
	minis  table[uint64, minisocket]
	max    int // of both together
	counts Counts
	dwells Dwells

	listeners map[uint64]uint32 // identity -> listening conn
	held      map[uint32][]Transition
	heldNow   int      // of all of them
	waiting   []waiter // in an accept queue, and a filter waits for them; oldest first
	ownerless []waiter // in use by a process that nothing has told about; oldest first

	scanDone   bool
	settled    uint64 // when the first scan was over: what is unknown since was missed; 0: not yet
	now        uint64 // the last Tick
	wantOwners bool   // only a scan can tell who has a socket
	wantJudge  bool   // a socket is late

	nets       map[uint32]*network
	lastNet    *network // that was asked for
	groups     table[portKey, portGroup]
	group      uint32 // that was asked for last; it is kept until the next Tick
	rates      []rate // likewise
	freeRates  []uint32
	crowds     *[crowdSlots]uint16 // minisockets that have no group, by slot
	churns     []*churn
	churnOf    map[churnKey]*churn
	orphans    []waiter        // minisockets in FIN_WAIT2, oldest first
	stuck      []uint32        // conns in FIN_WAIT2 that are members of a finding
	halfClosed []uint32        // those that the scan under way has found to be
	silent     []waiter        // established, likewise; since when they are
	newcomers  []events.Event  // sockets that a scan has found and that nothing has told of
	newcomer   map[uint64]bool // those of them that are still there
	scanFrom   uint64          // Ktime of the first row of the scan under way; 0: none yet
	scannedAll uint64          // when the last scan of all sockets in all network namespaces was over
	summarized uint64          // when the last summary was made, or tracing began
	urgent     bool            // a finding cannot wait for the next Tick

	thresholds     events.Thresholds
	closeWaitAfter uint64 // of thresholds
	lists          [numLists]list
	scan           uint32 // number of the scan under way, or of the next
	holders        []held // that it has found
	holderBuf      []Holder
	judged         uint64 // when the last one was over
	every          uint64 // when the last one that looked for every socket was
	everyScan      uint32 // its number
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
	refused    uint64                   // Ktime at which one had no place; 0: all had
	strays     []waiter                 // minisockets that may have no socket, oldest first
	nextStrays uint64                   // when their sockets may be looked for again
	ending     []waiter                 // minisockets that seem to have ended, oldest first
	again      []waiter                 // reused
	lookAt     [len(lookAfter)][]waiter // minisockets in FIN_WAIT2, oldest first
	looks      []events.Look

	viewer viewer

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
		table:     newTable[uint64, conn](hashAddr),
		minis:     newTable[uint64, minisocket](hashAddr),
		max:       maxSockets,
		listeners: map[uint64]uint32{},
		held:      map[uint32][]Transition{},
		starting:  map[mark]uint32{},
		scan:      1,
		holders:   make([]held, 1),
		findings:  make([]*finding, 1),
		opened:    map[subject]uint32{},
		nets:      map[uint32]*network{},
		groups:    newTable[portKey, portGroup](portKey.hash),
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
			t.alive(i, t.table.at(i), t.table.at(i).since, ev.Ktime)
			t.own(i, &ev.Proc, SourceAccept)
			t.accepted(i)
			t.decide(i)
			switch c := t.table.at(i); c.state {
			case events.Close:
				// Reset in the accept queue; accept() hands it out all the same.
				c.since, c.exact = ev.Ktime, true
				t.becomeSuspect(i)
			case events.CloseWait:
				c.active = ev.Ktime // whoever has it now, has it only since now
			}
		} else if t.scanDone && t.filter.ByProcess() && t.procs.match(ev.Proc.Pid, &ev.Proc.Comm) {
			// It has got hold of the listener in a way that nothing tells of, so that
			// the kernel side may turn away what comes of it until a scan has found it.
			t.wantOwners = true
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
	ev := events.Event{Ktime: ktime, Old: c.state}
	if to := t.starting[c.mark()]; to != 0 {
		t.handOver(i, to, &ev)
		return
	}
	t.finish(i, &ev, false, Unknown)
}

func (t *Tracker) drop(i uint32) {
	c := t.table.at(i)
	if c.named {
		for _, id := range [...]uint64{c.Cookie, *t.table.key(i)} { // it may have been given a cookie since
			if t.listeners[id] == i {
				delete(t.listeners, id)
			}
		}
	}
	t.letGo(i)
	t.enter(i, events.Close)
	t.clearSuspect(i)
	t.delist(i)
	t.setOwner(i, 0, SourceNone)
	t.table.remove(i)
}
