package aggregate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// Lives that a socket can have, by kernel.md, section A. In those that begin at a
// listener, accept() comes somewhere before the process does anything.
var lives = []string{
	"C>SS SS>E E>F1 F1>F2 F2>C",
	"C>SS SS>E E>F1 F1>F2 F2>F2 F2>C",
	"C>SS SS>E E>CW CW>LA LA>C",
	"C>SS SS>E E>F1 F1>CG CG>C",
	"C>SS SS>E E>C",
	"C>SS SS>C",
	"C>SS SS>SR SR>E E>CW CW>LA LA>LA LA>C",
	"L>SR SR>E accept E>CW CW>LA LA>C",
	"L>SR SR>E E>CW accept CW>LA LA>C",
	"L>SR SR>E accept E>F1 F1>F1 F1>F2 F2>C",
	"L>SR SR>E accept E>CW CW>C",
	"L>SR SR>E E>CW accept CW>C",
	"L>SR SR>C",
	"C>L L>C",
}

// In the random runs a socket's time is up after half a second.
const soon = 500 * time.Millisecond

// life is one socket of a random run: what really happens to it.
type life struct {
	k       sock
	steps   []string // still to come
	state   events.State
	since   uint64 // in state; 0: since before the run
	had     uint64 // since when somebody could have closed it
	owner   uint32
	holders []uint32 // that have a descriptor, once it is accepted
	unread  uint32   // and stays so: it is not in use
	fd      bool     // it is accepted or connected, and not closed
	dead    bool     // its connection is over, and the descriptor open
}

// event is what the kernel side says of the next step.
func (l *life) event(rng *rand.Rand, now uint64) events.Event {
	ev := events.Event{
		Kind: events.Transition, Ktime: now, Skaddr: l.k.addr, Cookie: l.k.cookie, Netns: 1,
		Lport: 1, Rport: l.k.rport, Unread: l.unread, Fd: -1,
	}
	if l.steps[0] == "accept" {
		ev.Kind = events.Accept
		ev.Proc = events.Proc{Pid: l.owner}
		return ev
	}
	from, to, _ := strings.Cut(l.steps[0], ">")
	ev.Old, ev.New = abbreviations[from], abbreviations[to]
	if l.fd {
		ev.Flags = events.HasSocket
	}
	switch l.steps[0] {
	case "C>SS", "C>L":
		ev.Flags |= events.Owned
		ev.Proc = events.Proc{Pid: l.owner}
	case "E>F1", "CW>LA", "F1>F1", "F2>F2", "LA>LA": // close(), of one or another
		ev.Flags |= events.Owned
		ev.Proc = events.Proc{Pid: l.holders[0]}
		ev.Shutdown = shutdownBoth
		if rng.IntN(3) == 0 {
			ev.Flags |= events.Exiting
		}
	case "E>C":
		ev.Err = 104
	case "CW>C":
		ev.Err = 32
	case "LA>C", "CG>C", "F2>C", "F1>F2", "F1>CG":
		ev.Flags = events.Dead | events.Done
	}
	return ev
}

// advance takes the next step.
func (l *life) advance(ev *events.Event) {
	switch {
	case ev.Kind == events.Accept:
		l.fd, l.had = true, ev.Ktime
	case ev.Old == events.Close:
		l.fd = true
	case ev.Flags&events.Owned != 0:
		l.fd = false
	}
	if ev.Kind == events.Transition && ev.Old != ev.New {
		l.state, l.since, l.had = ev.New, ev.Ktime, ev.Ktime
		l.dead = ev.New == events.Close && l.fd && (ev.Old == events.Established || ev.Old == events.CloseWait)
	}
	l.steps = l.steps[1:]
}

// rows are what a scan finds of it: the iterator over descriptors, then the one
// over sockets.
func (l *life) rows(rng *rand.Rand, now uint64) (rows []events.Event) {
	if l.state == 0 || l.state == events.Close && !l.dead {
		return nil
	}
	ev := events.Event{
		Kind: events.Socket, Ktime: now, Skaddr: l.k.addr, Cookie: l.k.cookie, Netns: 1, Lport: 1, Rport: l.k.rport,
		Old: l.state, New: l.state, Unread: l.unread, Unsent: math.MaxUint64, Fd: -1,
		Quiet: rng.Uint64N(now - l.since + 1), // never more than is true
	}
	if !l.fd {
		return []events.Event{ev}
	}
	ev.Flags = events.HasSocket
	if l.state != events.Close && rng.IntN(2) == 0 {
		rows = append(rows, ev)
	}
	for _, pid := range l.holders {
		ev.Proc, ev.Fd = events.Proc{Pid: pid}, int32(l.k.cookie)
		rows = append(rows, ev)
	}
	return rows
}

// culprit is who a leak of this socket is to be held against.
func (l *life) culprit() uint32 {
	switch {
	case !l.fd:
		return 0
	case slices.Contains(l.holders, l.owner):
		return l.owner
	}
	return slices.Min(l.holders)
}

type stateOf struct {
	cookie uint64
	state  events.State
}

// truth keeps, for each socket, how long it really was in each state, and checks
// every time that the tracker gives against it.
type truth struct {
	t           *testing.T
	rng         *rand.Rand
	refuse      float64 // of the records, so many find no room
	dwell       map[stateOf]time.Duration
	entered     map[stateOf]uint64
	holders     map[uint64][]uint32
	begun       map[uint64]int // cookie -> connections that really were
	connections map[uint64]int // and that were reported
	open        map[string]Status
}

func (o *truth) takes() bool { return o.rng.Float64() >= o.refuse }

func (o *truth) Transition(r *Transition) bool {
	if want, ok := o.dwell[stateOf{r.Cookie, r.Old}]; r.Dwell != Unknown && (!ok || r.Dwell != want) {
		o.t.Errorf("socket %x was in %s for %v; the tracker says %v", r.Cookie, r.Old, want, r.Dwell)
	}
	return o.takes()
}

func (o *truth) Connection(r *Connection) bool {
	for st := events.State(1); int(st) < events.NumStates; st++ {
		d, ok := r.Spent.In(st)
		want := o.dwell[stateOf{r.Cookie, st}]
		_, entered := o.entered[stateOf{r.Cookie, st}]
		if ok && !entered {
			o.t.Errorf("socket %x never was in %s; the tracker says %v", r.Cookie, st, d)
		}
		if ok && d != Unknown && d != want {
			o.t.Errorf("socket %x was in %s for %v; its connection says %v", r.Cookie, st, want, d)
		}
	}
	o.connections[r.Cookie]++
	return o.takes()
}

func (o *truth) Socket(*Socket) bool { return o.takes() }

func (o *truth) Summary(*Summary) {}

func (o *truth) Finding(r *Finding) bool {
	if !o.takes() {
		return false
	}
	was, known := o.open[r.ID]
	if known != (r.Status != Open) || was == Resolved {
		o.t.Errorf("%s: is %s after %s (told before: %v); want open, then updates, then resolved", r.ID, r.Status, was, known)
	}
	o.open[r.ID] = r.Status
	if r.Status != Resolved && (r.Kind.aboutLate() || r.Kind == NeverClosed) {
		o.leak(r)
	}
	return true
}

func (o *truth) leak(r *Finding) {
	for _, h := range r.Holders {
		if !slices.Contains(o.holders[h.Cookie], h.Pid) {
			o.t.Errorf("%s: process %d holds socket %x; want one of %v", r.ID, h.Pid, h.Cookie, o.holders[h.Cookie])
		}
	}
	sum := 0
	for _, n := range append(r.Evidence.Ended[:], r.Evidence.Verdicts[EOFRead:Dead]...) {
		sum += n
	}
	if r.Count < 1 || sum != r.Count || r.Oldest < soon {
		o.t.Errorf("%s: %d sockets, %d by verdict or end, the oldest for %v; want all of them, for %v at least", r.ID, r.Count, sum, r.Oldest, soon)
	}
	if r.Count != 1 {
		return
	}
	st := events.CloseWait
	if r.Kind == ResetFdLeak {
		st = events.Close
	}
	cookie := uint64(r.Evidence.Ends.Rport)
	since, ok := o.entered[stateOf{cookie, st}]
	age := time.Duration(r.Ktime - since)
	if r.Kind == NeverClosed {
		age = o.dwell[stateOf{cookie, st}]
	}
	if !ok || r.Oldest > age || r.Evidence.Exact && r.Oldest != age {
		o.t.Errorf("%s, %s: socket %x was in %s: %v, for %v; the tracker says %v, exact: %v",
			r.ID, r.Status, cookie, st, ok, age, r.Oldest, r.Evidence.Exact)
	}
}

// Whatever is lost, and whatever comes twice: no time is ever false, no connection
// is told twice, no process is accused of what it does not hold, and the books add
// up. Of what is not lost, every leak is found.
func TestNothingFalseIsSaidWhateverIsLost(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 7))
		r := &run{
			rng: rng, lose: rng.Float64() * 0.5, repeat: rng.Float64() * 0.2, complete: rng.Float64(), limit: 40, now: 1e9,
			truth: &truth{
				t: t, rng: rng, refuse: rng.Float64() * 0.3,
				dwell: map[stateOf]time.Duration{}, entered: map[stateOf]uint64{}, holders: map[uint64][]uint32{},
				begun: map[uint64]int{}, connections: map[uint64]int{}, open: map[string]Status{},
			},
		}
		if seed%3 == 0 {
			r.lose, r.complete, r.limit = 0, 1, 100
		}
		r.do(t, 2000)
		if t.Failed() {
			t.Fatalf("seed %d: see above", seed)
		}
	}
}

// run is one random run.
type run struct {
	rng                    *rand.Rand
	lose, repeat, complete float64
	limit                  int
	truth                  *truth
	tr                     *Tracker
	alive                  []*life
	now, fed, cookie       uint64
}

func (r *run) do(t *testing.T, steps int) {
	r.tr = NewTracker(r.truth, &Filter{}, r.limit, thresholds(soon))
	r.tr.Tick(1)
	r.tr.Scanned(events.Scan{Complete: true, Every: true})
	for range steps {
		r.now += r.rng.Uint64N(uint64(50 * time.Millisecond))
		switch n := r.rng.IntN(100); {
		case n < 25:
			r.birth()
		case n < 35:
			r.tr.Tick(r.now)
		case n < 37:
			r.details()
		case n < 40:
			r.scan(t)
		}
		r.step()
		if t.Failed() {
			return
		}
	}
	audit(t, r.tr)

	c := r.tr.Counts()
	if sum := c.Delivered + c.Duplicates + c.TableFull; sum != r.fed {
		t.Errorf("%d transitions came, %d are accounted for: %+v", r.fed, sum, c)
	}
	if c.Tracked > r.limit {
		t.Errorf("tracks %d sockets, limit %d", c.Tracked, r.limit)
	}
	for k, n := range r.truth.connections {
		if n > r.truth.begun[k] {
			t.Errorf("socket %x had %d connections, the tracker told %d", k, r.truth.begun[k], n)
		}
	}
	r.truth.refuse = 0
	for pid := range uint32(10) {
		r.tr.Details(&events.Details{Pid: pid, Gone: true})
	}
	goneAll(r.tr, 1000, r.now)
	auditEmpty(t, r.tr)
	if len(r.tr.held)+len(r.tr.listeners) != 0 {
		t.Errorf("after everything was destroyed: holds %d back, knows %d listeners; want 0, 0", len(r.tr.held), len(r.tr.listeners))
	}
	for id, status := range r.truth.open {
		if status != Resolved && !strings.HasPrefix(id, NeverClosed.String()) {
			t.Errorf("after everything was destroyed: %s is %s, want it resolved", id, status)
		}
	}
}

func (r *run) birth() {
	if len(r.alive) >= 50 {
		return
	}
	// Addresses are few, and only one living socket has one.
	addr := r.rng.Uint64N(60) + 1
	if slices.ContainsFunc(r.alive, func(l *life) bool { return l.k.addr == addr }) {
		return
	}
	r.cookie++
	l := &life{
		k:     sock{addr: addr, cookie: r.cookie, lport: 1, rport: uint16(r.cookie)},
		steps: strings.Fields(lives[r.rng.IntN(len(lives))]),
		owner: 1 + r.rng.Uint32N(5), unread: r.rng.Uint32N(3),
	}
	// Inherited by a child, or left to it.
	l.holders = [][]uint32{{l.owner}, {l.owner}, {l.owner, 7}, {7, l.owner}, {7}, {9, 7}}[r.rng.IntN(6)]
	r.truth.holders[r.cookie] = l.holders
	r.alive = append(r.alive, l)
}

// step lets one of the living do something.
func (r *run) step() {
	if len(r.alive) == 0 {
		return
	}
	n := r.rng.IntN(len(r.alive))
	l := r.alive[n]
	if len(l.steps) == 0 {
		r.alive = slices.Delete(r.alive, n, n+1)
		if r.rng.Float64() >= r.lose {
			r.tr.Observe(&events.Event{Kind: events.Destroy, Ktime: r.now, Skaddr: l.k.addr, Cookie: l.k.cookie})
		}
		return
	}
	ev := l.event(r.rng, r.now)
	if ev.Kind == events.Transition {
		o := r.truth
		if l.state == 0 && ev.New != events.Listen {
			o.begun[l.k.cookie]++
		}
		// Time before the beginning is no time, and a transition into the
		// same state ends none.
		if ev.Old != ev.New {
			if l.since != 0 {
				o.dwell[stateOf{l.k.cookie, ev.Old}] = time.Duration(r.now - l.since)
			}
			o.entered[stateOf{l.k.cookie, ev.New}] = r.now
		}
	}
	l.advance(&ev)
	if r.rng.Float64() < r.lose {
		return
	}
	for range 1 + r.rng.IntN(2)*int(r.repeat+r.rng.Float64()) {
		r.tr.Observe(&ev)
		if ev.Kind == events.Transition {
			r.fed++
		}
	}
}

func (r *run) details() {
	r.tr.Details(&events.Details{
		Pid: r.rng.Uint32N(10), OpenFiles: r.rng.Uint32N(50), FileLimit: r.rng.Uint64N(60),
		Container: []string{"", "a", "b"}[r.rng.IntN(3)],
	})
}

// scan finds, if it is complete, all that live. The iterator over descriptors
// shows whoever has one; the others are looked up afterwards.
func (r *run) scan(t *testing.T) {
	complete := r.rng.Float64() < r.complete
	for _, l := range r.alive {
		if !complete && r.rng.IntN(3) == 0 {
			continue
		}
		for _, row := range l.rows(r.rng, r.now) {
			r.tr.Observe(&row)
		}
	}
	r.tr.Tick(r.now)
	r.tr.Scanned(events.Scan{Complete: complete, Every: true})
	if r.rng.IntN(2) == 0 {
		r.details()
	}
	if r.lose == 0 {
		r.compare(t)
	}
	r.tr.Tick(r.now)
	audit(t, r.tr)
}

// compare checks the findings of a run that loses nothing against what there is.
func (r *run) compare(t *testing.T) {
	type about struct {
		kind Kind
		pid  uint32
	}
	want, got := map[about]int{}, map[about]int{}
	for _, l := range r.alive {
		if l.state == 0 || r.now-l.had < uint64(soon) {
			continue
		}
		switch {
		case l.state == events.CloseWait:
			want[about{CloseWaitLeak, l.culprit()}]++
		case l.dead:
			want[about{ResetFdLeak, l.culprit()}]++
		}
	}
	for _, f := range r.tr.findings {
		if f != nil && f.kind.aboutLate() && f.members > 0 {
			got[about{f.kind, r.tr.procs.all[f.proc].pid}] += f.count
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("leaks by kind and process: got %v, want %v", got, want)
	}
}

// Events that no kernel would send, in any order.
func TestNoEventBreaksTheTracker(t *testing.T) {
	minis := []events.State{events.FinWait2, events.TimeWait}[:2:2]
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 11))
		f := Filter{}
		if seed%2 == 0 {
			f = Filter{Pids: []uint32{1, 2}, Follow: true, Lports: []uint16{1, 2}, Family: 4}
		}
		out := &moody{rng: rng, refuse: rng.Float64() * 0.5}
		tr := NewTracker(out, &f, 20, thresholds(time.Minute))
		if seed%3 > 0 {
			tr.SeesMinisockets(seed%3 == 1)
		}
		var transitions uint64
		for range 3000 {
			ev := events.Event{
				Kind: events.Kind(rng.IntN(7)), Ktime: rng.Uint64N(1 << 40), Skaddr: rng.Uint64N(30), Cookie: rng.Uint64N(10),
				Netns: rng.Uint32N(2), Flags: events.Flags(rng.Uint32()), Old: events.State(rng.IntN(12) + 1),
				New: events.State(rng.IntN(12) + 1), Lport: uint16(rng.IntN(4)), Rport: uint16(rng.IntN(4)),
				Shutdown: uint8(rng.IntN(4)), Err: rng.Uint32N(120), Listener: rng.Uint64N(10), Fd: int32(rng.IntN(5)) - 1,
				Proc: events.Proc{Pid: rng.Uint32N(4), Hidden: rng.Uint32N(3)}, Parent: events.Proc{Pid: rng.Uint32N(4)},
				Unread: rng.Uint32() >> rng.IntN(33), Sent: rng.Uint64() >> rng.IntN(65), Quiet: rng.Uint64() >> rng.IntN(65),
				Unsent: rng.Uint64() >> rng.IntN(65), Queued: rng.Uint32N(2), Kernel: rng.IntN(9) == 0,
				Mini: rng.IntN(3) == 0, Left: time.Duration(rng.Uint64() >> rng.IntN(65)), Why: events.Why(rng.IntN(7)), Stamped: rng.IntN(2) == 0,
				Guarded: rng.IntN(2) == 0,
			}
			switch ev.Kind {
			case events.Transition:
				transitions++
			case events.Minisocket: // Decode lets no other states through
				ev.Old, ev.New = minis[rng.IntN(2)], append(minis, events.Close)[rng.IntN(3)]
			case events.Socket:
				if ev.Mini {
					ev.New = append(minis, events.SynRecv)[rng.IntN(3)]
				}
			}
			tr.Observe(&ev)
			switch rng.IntN(100) {
			case 0:
				tr.Scanned(events.Scan{Complete: rng.IntN(2) == 0, Every: rng.IntN(2) == 0, All: rng.IntN(2) == 0})
				audit(t, tr)
			case 1, 2, 3:
				tr.Tick(ev.Ktime)
			case 4:
				tr.Details(&events.Details{
					Pid: rng.Uint32N(4), OpenFiles: rng.Uint32N(30), FileLimit: rng.Uint64() >> rng.IntN(65),
					Container: []string{"", "a", "b"}[rng.IntN(3)],
				})
			case 5:
				tr.WantScan()
				tr.Wanted()
				tr.Watched()
				tr.UnseenIn()
				tr.Looks()
				tr.WantNetworks()
			case 6:
				tr.Network(&events.Network{
					Netns: rng.Uint32N(2), PortLow: 1, PortHigh: uint16(rng.IntN(4)), ReusePolicy: uint8(rng.IntN(3)),
					Timestamps: uint8(rng.IntN(2)), TimeWaitSkipped: rng.Uint64N(3),
				})
			case 7:
				tr.Summarize()
			}
			if t.Failed() {
				t.Fatalf("seed %d: see above", seed)
			}
		}
		audit(t, tr)
		c := tr.Counts()
		if sum := c.Delivered + c.Duplicates + c.TableFull; sum != transitions || len(tr.table.byAddr) > 20 || len(tr.minis.byAddr) > 20 {
			t.Errorf("%d transitions came: %+v", transitions, c)
		}
		out.refuse = 0
		goneAll(tr, 30, 1<<41)
		auditEmpty(t, tr)
		if t.Failed() {
			t.Fatalf("seed %d: see above", seed)
		}
	}
}

// goneAll ends whatever has one of so many addresses, and lets the tracker tell of it.
func goneAll(tr *Tracker, addrs, ktime uint64) {
	for addr := range addrs {
		tr.Observe(&events.Event{Kind: events.Destroy, Ktime: ktime, Skaddr: addr})
	}
	// No events say that these are gone, or say it twice.
	for addr, i := range tr.minis.byAddr {
		m := tr.minis.at(i)
		tr.Observe(&events.Event{
			Kind: events.Minisocket, Ktime: ktime, Skaddr: addr, Cookie: m.Cookie, Old: m.state, New: events.Close, Why: events.WhyKilled,
		})
	}
	tr.Network(&events.Network{Netns: 0, PortLow: 1, PortHigh: 2})
	tr.Network(&events.Network{Netns: 1, PortLow: 1, PortHigh: 2})
	// Churn and overflow are over when nothing has come for a while.
	for range 4 {
		ktime += uint64(2 * time.Minute)
		tr.Tick(ktime)
		for _, n := range tr.WantNetworks() {
			tr.Network(&events.Network{Netns: n, PortLow: 1, PortHigh: 2})
		}
		tr.Scanned(events.Scan{Complete: true, Every: true, All: true})
		tr.Tick(ktime + 1)
	}
}

// moody is an Output that has no room now and then.
type moody struct {
	rng    *rand.Rand
	refuse float64
}

func (o *moody) takes() bool                 { return o.rng.Float64() >= o.refuse }
func (o *moody) Transition(*Transition) bool { return o.takes() }
func (o *moody) Connection(*Connection) bool { return o.takes() }
func (o *moody) Socket(*Socket) bool         { return o.takes() }
func (o *moody) Finding(*Finding) bool       { return o.takes() }
func (o *moody) Summary(*Summary)            {}
