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

// Lives that a socket can have. In those that begin at a
// listener, accept() comes somewhere before the process does anything. "!" is
// shutdown(SHUT_WR) instead of close(); "+" names the state of the minisocket that takes
// over (section B).
var lives = []string{
	"C>SS SS>E E>F1 F1>F2 F2>C+F2",
	"C>SS SS>E E>F1 F1>F2 F2>C+F2",
	"C>SS SS>E E>F1 F1>F2 F2>C+TW",
	"C>SS SS>E E>F1! F1>F2 F2>C+TW",
	"C>SS SS>E E>F1! F1>F2 F2>F2 F2>C+F2",
	"C>SS SS>E E>F1 F1>CG CG>C+TW",
	"L>SR SR>E accept E>F1 F1>F2 F2>C+F2",
	"L>SR SR>E accept E>F1! F1>F2 F2>C+TW",
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
	step, mini, _ := strings.Cut(l.steps[0], "+")
	step, shutdown := strings.CutSuffix(step, "!")
	from, to, _ := strings.Cut(step, ">")
	ev.Old, ev.New = abbreviations[from], abbreviations[to]
	if l.fd {
		ev.Flags = events.HasSocket
	}
	switch step {
	case "C>SS", "C>L":
		ev.Flags |= events.Owned
		ev.Proc = events.Proc{Pid: l.owner}
	case "E>F1", "CW>LA", "F1>F1", "F2>F2", "LA>LA": // close(), of one or another
		ev.Flags |= events.Owned
		ev.Proc = events.Proc{Pid: l.holders[0]}
		ev.Shutdown = shutdownBoth
		if shutdown {
			ev.Shutdown = shutdownSend
		} else if rng.IntN(3) == 0 {
			ev.Flags |= events.Exiting
		}
	case "E>C":
		ev.Err = 104
	case "CW>C":
		ev.Err = 32
	case "LA>C", "CG>C", "F2>C", "F1>F2", "F1>CG":
		if !l.fd {
			ev.Flags = events.Dead
		}
		if step != "F1>F2" && mini != "F2" {
			ev.Flags |= events.Done
		}
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
	case ev.Flags&events.Owned != 0 && ev.Shutdown == shutdownSend:
		l.owner = ev.Proc.Pid
	case ev.Flags&events.Owned != 0:
		l.fd = false
	}
	if ev.Kind == events.Transition && ev.Old != ev.New {
		l.state, l.since, l.had = ev.New, ev.Ktime, ev.Ktime
		l.dead = ev.New == events.Close && l.fd && (ev.Old == events.Established || ev.Old == events.CloseWait || ev.Old == events.FinWait2)
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

// sk_shutdown after shutdown(SHUT_WR).
const shutdownSend = 2

// kin is one minisocket of a random run: what really happens to it.
type kin struct {
	k       sock
	state   events.State
	armed   uint64 // when its timer was set last
	expires uint64
	due     uint64 // when the timer, which is late, ends it
	closer  uint32 // the process that closed
	secret  bool   // it went into TIME_WAIT, and no event has shown that
}

// event is what the kernel side says of it now.
func (m *kin) event(now uint64, old, next events.State, why events.Why) events.Event {
	return events.Event{
		Kind: events.Minisocket, Ktime: now, Skaddr: m.k.addr, Cookie: m.k.cookie, Netns: 1, Lport: 1, Rport: m.k.rport,
		Old: old, New: next, Why: why, Left: time.Duration(m.expires) - time.Duration(now), Fd: -1,
	}
}

// arm sets its timer, which is up to two seconds late (250 Hz).
func (m *kin) arm(rng *rand.Rand, now uint64, left time.Duration) {
	m.armed, m.expires = now, now+uint64(left)
	m.due = m.expires + rng.Uint64N(uint64(2*time.Second))
}

// over is how a connection that had a minisocket has ended.
type over struct {
	end   End
	ended []TimeWaitEnd // the truth, and what may be said if something was lost
}

// change is one step that a connection took, as TCP sees it.
type change struct {
	cookie    uint64
	old, next events.State
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

	summary Summary // the last
	ended   [numEnds]uint64

	exact bool                      // nothing is lost, and minisockets are seen
	real  map[change]bool           // what really happened
	told  map[change]int            // and what was told
	over  map[uint64]over           // of connections that had a minisocket
	done  map[uint64]bool           // connections that are over
	also  map[stateOf]time.Duration // what looks like the time where the minisocket's beginning was lost
}

func (o *truth) takes() bool { return o.rng.Float64() >= o.refuse }

func (o *truth) Transition(r *Transition) bool {
	if r.Dwell != Unknown && !o.lasted(stateOf{r.Cookie, r.Old}, r.Dwell) {
		o.t.Errorf("socket %x was in %s for %v; the tracker says %v", r.Cookie, r.Old, o.dwell[stateOf{r.Cookie, r.Old}], r.Dwell)
	}
	step := change{r.Cookie, r.Old, r.New}
	if o.told[step]++; o.exact && (!o.real[step] || r.Old != r.New && o.told[step] > 1 || r.Gap) {
		o.t.Errorf("socket %x: %s -> %s is told %d times, with a gap: %v; it happened: %v", r.Cookie, r.Old, r.New, o.told[step], r.Gap, o.real[step])
	}
	if o.exact && r.Mini && r.Dwell == Unknown {
		o.t.Errorf("socket %x: %s -> %s has no time", r.Cookie, r.Old, r.New)
	}
	return o.takes()
}

func (o *truth) Connection(r *Connection) bool {
	for st := events.State(1); int(st) < events.NumStates; st++ {
		d, ok := r.Spent.In(st)
		_, entered := o.entered[stateOf{r.Cookie, st}]
		if ok && !entered {
			o.t.Errorf("socket %x never was in %s; the tracker says %v", r.Cookie, st, d)
		}
		if ok && d != Unknown && !o.lasted(stateOf{r.Cookie, st}, d) {
			o.t.Errorf("socket %x was in %s for %v; its connection says %v", r.Cookie, st, o.dwell[stateOf{r.Cookie, st}], d)
		}
	}
	if want, ok := o.over[r.Cookie]; ok {
		if r.End != EndUnknown && r.End != want.end || o.exact && r.End != want.end {
			o.t.Errorf("socket %x ended by %q; its connection says %q", r.Cookie, want.end, r.End)
		}
		if r.TimeWaitEnd != TimeWaitEndUnknown && !slices.Contains(want.ended, r.TimeWaitEnd) || o.exact && r.TimeWaitEnd != want.ended[0] {
			o.t.Errorf("socket %x: TIME_WAIT ended by %q; its connection says %q", r.Cookie, want.ended, r.TimeWaitEnd)
		}
	}
	if o.exact && (!r.Ended || r.Gap || !o.done[r.Cookie]) {
		o.t.Errorf("socket %x: its connection says that the end was seen: %v, with a gap: %v; it is over: %v", r.Cookie, r.Ended, r.Gap, o.done[r.Cookie])
	}
	o.connections[r.Cookie]++
	o.ended[r.End]++
	return o.takes()
}

// lasted reports whether a socket was in a state for so long.
func (o *truth) lasted(s stateOf, d time.Duration) bool {
	if want, ok := o.dwell[s]; ok && d == want {
		return true
	}
	want, ok := o.also[s]
	return ok && d == want
}

// leaves notes that a connection goes from one state into another.
func (o *truth) leaves(cookie uint64, old, next events.State, since, now uint64) {
	if since != 0 {
		o.dwell[stateOf{cookie, old}] = time.Duration(now - since)
	}
	o.real[change{cookie, old, next}] = true
	if next == events.Close {
		o.done[cookie] = true
		if _, gone := o.entered[stateOf{cookie, next}]; gone {
			return // the socket; and now its minisocket
		}
	}
	o.entered[stateOf{cookie, next}] = now
}

func (o *truth) Socket(*Socket) bool { return o.takes() }

func (o *truth) Summary(r *Summary) { o.summary = *r }

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
				real: map[change]bool{}, told: map[change]int{}, over: map[uint64]over{}, done: map[uint64]bool{}, also: map[stateOf]time.Duration{},
			},
		}
		r.sees, r.look = seed%4 > 0, seed%4 == 1
		if seed%3 == 0 {
			r.lose, r.complete, r.limit = 0, 1, 2000
			r.truth.exact = r.sees
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
	minis                  []*kin
	sees, look             bool // minisockets; and a FIN may make no event
	now, fed, cookie       uint64
}

func (r *run) do(t *testing.T, steps int) {
	r.tr = NewTracker(r.truth, &Filter{}, r.limit, thresholds(soon))
	if r.sees {
		r.tr.SeesMinisockets(r.look)
	}
	r.tr.Tick(1)
	r.tr.Scanned(events.Scan{Complete: true, Every: true})
	for range steps {
		r.pass(r.rng.Uint64N(uint64(50 * time.Millisecond)))
		if r.rng.IntN(100) == 0 {
			r.pass(r.rng.Uint64N(uint64(20 * time.Second)))
		}
		r.befall()
		switch n := r.rng.IntN(100); {
		case n < 25:
			r.birth()
		case n < 35:
			r.tick()
		case n < 37:
			r.details()
		case n < 40:
			r.scan(t)
		case n < 45:
			r.looksAt()
		}
		r.step()
		if t.Failed() {
			return
		}
	}
	r.pass(uint64(time.Second))
	r.tick()
	audit(t, r.tr)

	c := r.tr.Counts()
	if sum := c.Delivered + c.Duplicates + c.TableFull; sum != r.fed {
		t.Errorf("%d transitions came, %d are accounted for: %+v", r.fed, sum, c)
	}
	if r.tr.table.len()+r.tr.minis.len() > r.limit {
		t.Errorf("tracks %d sockets and %d minisockets, limit %d", r.tr.table.len(), r.tr.minis.len(), r.limit)
	}
	if n := len(r.tr.starting) + len(r.tr.strays) + len(r.tr.ending); n != 0 {
		t.Errorf("a second after the last event: %d minisockets wait for their sockets, %d are looked at for that, %d ends are to be settled; want none",
			len(r.tr.starting), len(r.tr.strays), len(r.tr.ending))
	}
	if r.truth.exact {
		r.everything(t, c)
	}
	for k, n := range r.truth.connections {
		if n > r.truth.begun[k] {
			t.Errorf("socket %x had %d connections, the tracker told %d", k, r.truth.begun[k], n)
		}
	}
	r.truth.refuse, r.truth.exact = 0, false
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

// everything checks that a run that loses nothing tells all that there is to tell.
func (r *run) everything(t *testing.T, c Counts) {
	t.Helper()
	for k := range r.truth.done {
		if n := r.truth.connections[k]; n != r.truth.begun[k] {
			t.Errorf("socket %x had %d connections, the tracker told %d", k, r.truth.begun[k], n)
		}
	}
	for step := range r.truth.real {
		if r.truth.told[step] == 0 {
			t.Errorf("socket %x: %s -> %s was not told", step.cookie, step.old, step.next)
		}
	}
	if r.tr.minis.len() != len(r.minis) || c.Missed != 0 || c.MissedMinis != 0 || c.NoPlace != 0 {
		t.Errorf("there are %d minisockets, the tracker has %d: %+v", len(r.minis), r.tr.minis.len(), c)
	}
}

// pass lets time pass: timers go off when they are due.
func (r *run) pass(d uint64) {
	then := r.now + d
	for {
		next := -1
		for n, m := range r.minis {
			if m.due <= then && (next < 0 || m.due < r.minis[next].due) {
				next = n
			}
		}
		if next < 0 {
			break
		}
		r.now = r.minis[next].due
		r.end(next, events.WhyOther)
	}
	r.now = then
}

// tick does what the agent does then: it looks at minisockets.
func (r *run) tick() {
	r.tr.Tick(r.now)
	for _, look := range r.tr.Looks() {
		for _, m := range r.minis {
			if m.k.addr == look.Skaddr && m.k.cookie == look.Cookie && m.state == events.TimeWait {
				m.secret = !r.tell(m.event(r.now, 0, m.state, events.WhyAgain))
			}
		}
	}
}

// tell has the tracker observe what happens in one go. Unless it is lost: then all of it
// is.
func (r *run) tell(evs ...events.Event) bool {
	if !r.sees || r.rng.Float64() < r.lose {
		return false
	}
	for k := range evs {
		for range 1 + r.rng.IntN(2)*int(r.repeat+r.rng.Float64()) {
			r.tr.Observe(&evs[k])
		}
	}
	return true
}

// hand makes the minisocket that takes over from l.
func (r *run) hand(l *life, state events.State) {
	m := &kin{k: l.k, state: state, closer: l.holders[0]}
	for taken := true; taken; {
		m.k.addr = 1 + r.rng.Uint64N(400)
		taken = slices.ContainsFunc(r.minis, func(o *kin) bool { return o.k.addr == m.k.addr })
	}
	m.arm(r.rng, r.now, time.Duration(1+r.rng.Uint64N(uint64(time.Minute))))
	if state == events.TimeWait {
		m.arm(r.rng, r.now, timeWaitLen)
	}
	r.minis = append(r.minis, m)
	if !r.tell(m.event(r.now, 0, state, 0)) && l.since != 0 {
		// Nothing shows that the socket's state has not ended with it.
		r.truth.also[stateOf{l.k.cookie, l.state}] = time.Duration(r.now - l.since)
	}
}

// befall lets something happen to one of the minisockets.
func (r *run) befall() {
	if len(r.minis) == 0 {
		return
	}
	n := r.rng.IntN(len(r.minis))
	m := r.minis[n]
	was := m.state
	switch what := r.rng.IntN(100); {
	case what < 20 && was == events.FinWait2: // the FIN
		r.truth.leaves(m.k.cookie, was, events.TimeWait, r.truth.entered[stateOf{m.k.cookie, was}], r.now)
		m.state = events.TimeWait
		r.rearm(m, was)
	case what < 25 && was == events.TimeWait && !m.secret: // and again
		r.rearm(m, was)
	case what < 27:
		r.end(n, events.WhyConnect)
	case what < 29 && was == events.TimeWait:
		r.end(n, events.WhySyn)
	case what < 31:
		r.end(n, events.WhyKilled)
	case what < 33: // a reset came
		r.end(n, events.WhyOther)
	case what < 35 && was == events.FinWait2: // data
		r.end(n, events.WhyReset)
	}
}

// rearm sets the timer anew. Timers that stay in their bucket of the wheel do so in
// silence.
func (r *run) rearm(m *kin, was events.State) {
	before, end := m.armed, m.event(r.now, was, events.Close, events.WhyOther)
	m.arm(r.rng, r.now, timeWaitLen)
	begin := m.event(r.now, 0, m.state, events.WhyAgain)
	shown := false
	switch {
	case !r.look:
		shown = r.tell(begin)
	case r.now-before >= uint64(time.Second) || r.rng.IntN(2) == 0:
		shown = r.tell(end, begin)
	}
	m.secret = !shown && (m.secret || was == events.FinWait2)
}

// end ends a minisocket.
func (r *run) end(n int, why events.Why) {
	m := r.minis[n]
	r.minis = slices.Delete(r.minis, n, n+1)
	early := m.expires > r.now
	r.truth.leaves(m.k.cookie, m.state, events.Close, r.truth.entered[stateOf{m.k.cookie, m.state}], r.now)
	o := over{end: EndFin}
	switch why {
	case events.WhyConnect:
		o.ended = []TimeWaitEnd{Reused}
	case events.WhySyn:
		o.ended = []TimeWaitEnd{Reused, Killed}
		if !early {
			o.ended[1] = Expired
		}
	case events.WhyKilled, events.WhyReset:
		o.ended = []TimeWaitEnd{Killed}
	default:
		o.ended = []TimeWaitEnd{Expired}
		if early {
			o.ended[0] = Killed
		}
	}
	if m.state == events.FinWait2 {
		o.ended = []TimeWaitEnd{TimeWaitEndUnknown}
		switch {
		case why == events.WhyReset:
			o.end = EndResetSent
		case why == events.WhyKilled:
			o.end = EndAborted
		case why == events.WhyOther && early:
			o.end = EndResetReceived
		case why == events.WhyOther:
			o.end = EndTimeout
		default:
			o.end = EndUnknown // nothing tells
		}
	}
	r.truth.over[m.k.cookie] = o
	if why == events.WhySyn && r.look { // of a timer, what it was is only known afterwards
		end := m.event(r.now, m.state, events.Close, events.WhyOther)
		r.tell(end)
		end.Why = why
		r.tell(end)
		return
	}
	r.tell(m.event(r.now, m.state, events.Close, why))
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
	_, heir, inherited := strings.Cut(l.steps[0], "+")
	if ev.Kind == events.Transition {
		o := r.truth
		if l.state == 0 && ev.New != events.Listen {
			o.begun[l.k.cookie]++
		}
		// Time before the beginning is no time, and a transition into the
		// same state ends none.
		switch {
		case inherited:
			next := abbreviations[heir]
			if next != ev.Old {
				o.leaves(l.k.cookie, ev.Old, next, l.since, r.now)
			}
			o.entered[stateOf{l.k.cookie, events.Close}] = r.now // the socket
			r.hand(l, next)
		case ev.Old != ev.New:
			o.leaves(l.k.cookie, ev.Old, ev.New, l.since, r.now)
		default:
			o.real[change{l.k.cookie, ev.Old, ev.New}] = true
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
	r.tr.Container(&events.Container{ID: []string{"", "a", "b"}[r.rng.IntN(3)], Name: "c", Pod: "p", Namespace: "n"})
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
	for _, m := range r.minis {
		if complete || r.rng.IntN(3) > 0 {
			ev := m.event(r.now, m.state, m.state, 0)
			ev.Kind, ev.Mini, ev.Left = events.Socket, true, max(ev.Left, 0)
			r.tr.Observe(&ev)
			m.secret = false
		}
	}
	r.tick()
	scan := events.Scan{Complete: complete, Every: true, All: r.rng.IntN(2) == 0}
	if complete {
		scan.Walked = []uint32{1}
	}
	r.tr.Scanned(scan)
	if r.rng.IntN(2) == 0 {
		r.details()
	}
	if r.lose == 0 {
		r.compare(t)
	}
	if r.truth.exact {
		r.count(t)
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

// count checks the summary of a run that loses nothing against what there is.
func (r *run) count(t *testing.T) {
	t.Helper()
	var states [events.NumStates]int
	made := map[uint32]int{}
	for _, l := range r.alive {
		if l.state != 0 && l.state != events.Close {
			states[l.state]++
		}
	}
	for _, m := range r.minis {
		if states[m.state]++; m.state == events.TimeWait {
			made[m.closer]++
		}
	}
	r.truth.summary = Summary{}
	r.tr.Summarize()
	got := r.truth.summary
	if got.States != states {
		t.Errorf("sockets by state: got %v, want %v", got.States, states)
	}
	if got := r.tr.Counts().Ended; got != r.truth.ended {
		t.Errorf("connections by how they ended: got %v, want %v", got, r.truth.ended)
	}
	if got := r.tr.Census().States; got != states {
		t.Errorf("sockets by state in a census: got %v, want %v", got, states)
	}
	r.checkView(t, &states)
	for _, p := range got.Processes {
		if p.TimeWait != made[p.Pid] {
			t.Errorf("process %d: got %d in TIME_WAIT, want %d", p.Pid, p.TimeWait, made[p.Pid])
		}
		delete(made, p.Pid)
	}
	if len(made) > 0 {
		t.Errorf("got nothing of processes with these in TIME_WAIT: %v", made)
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
				Kind: events.Kind(rng.IntN(7)), Ktime: rng.Uint64N(1 << 40), Skaddr: 1 + rng.Uint64N(30), Cookie: rng.Uint64N(10),
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
				tr.Scanned(events.Scan{Complete: rng.IntN(2) == 0, Every: rng.IntN(2) == 0, All: rng.IntN(2) == 0, Walked: []uint32{rng.Uint32N(2)}})
				audit(t, tr)
			case 1, 2, 3:
				tr.Tick(ev.Ktime)
			case 4:
				tr.Details(&events.Details{
					Pid: rng.Uint32N(4), OpenFiles: rng.Uint32N(30), FileLimit: rng.Uint64() >> rng.IntN(65),
					Container: []string{"", "a", "b"}[rng.IntN(3)],
				})
				tr.Container(&events.Container{ID: []string{"", "a", "b"}[rng.IntN(3)], Name: "c", Pod: "p", Namespace: "n"})
			case 5:
				tr.WantScan()
				tr.Wanted()
				tr.Watched()
				tr.UnseenIn()
				tr.Looks()
				tr.WantNetworks(rng.IntN(2) == 0)
			case 6:
				tr.Network(&events.Network{
					Netns: rng.Uint32N(2), PortLow: 1, PortHigh: uint16(rng.IntN(4)), ReusePolicy: uint8(rng.IntN(3)),
					Timestamps: uint8(rng.IntN(2)), TimeWaitSkipped: rng.Uint64N(3),
				})
			case 7:
				tr.Summarize()
				tr.Census()
			}
			if t.Failed() {
				t.Fatalf("seed %d: see above", seed)
			}
		}
		audit(t, tr)
		c := tr.Counts()
		if sum := c.Delivered + c.Duplicates + c.TableFull; sum != transitions || tr.table.len()+tr.minis.len() > 20 {
			t.Errorf("%d transitions came: %+v", transitions, c)
		}
		out.refuse = 0
		goneAll(tr, 31, 1<<41)
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
	// Their addresses are others' now.
	for i := range tr.minis.all() {
		addr := *tr.minis.key(i)
		tr.Observe(&events.Event{
			Kind: events.Minisocket, Ktime: ktime, Skaddr: addr, Cookie: math.MaxUint64, Old: events.TimeWait, New: events.Close,
		})
	}
	tr.Network(&events.Network{Netns: 0, PortLow: 1, PortHigh: 2})
	tr.Network(&events.Network{Netns: 1, PortLow: 1, PortHigh: 2})
	// Churn and overflow are over when nothing has come for a while.
	for range 4 {
		ktime += uint64(2 * time.Minute)
		tr.Tick(ktime)
		for _, n := range tr.WantNetworks(false) {
			tr.Network(&events.Network{Netns: n, PortLow: 1, PortHigh: 2})
		}
		tr.Scanned(events.Scan{Complete: true, Every: true, All: true, Walked: []uint32{0, 1}})
		for pid := range uint32(10) {
			tr.Details(&events.Details{Pid: pid, Gone: true})
		}
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
