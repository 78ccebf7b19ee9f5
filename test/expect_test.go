package livetest

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// An expect is what the stream must show of one socket.
type expect struct {
	who  string // for messages
	sock *sock

	// path is the states it goes through, short; alternatives stand between
	// bars. X is the end of a minisocket, which follows TW (TIME_WAIT) unsaid:
	// the kernel's own, or that which settle brings about.
	path string
	// conn has the verdict on each connection: role, closer, end, close_call;
	// alternatives stand between bars.
	conn []string
	// timeWaitEnd is that of a path with TW, "killed" unless set.
	timeWaitEnd string
	// The payload of the last connection.
	sent, received uint64
	// existed says that the socket was there before the tracer; acceptedNow,
	// that it was accepted since.
	existed, acceptedNow bool
	// nobodys says that it was a minisocket before the tracer: nothing tells what
	// it was before that.
	nobodys bool
	// firstLocal is the local end of the first of two connections.
	firstLocal netip.AddrPort

	// acceptedAt is the transition from which the accepting process must be
	// named: 2, the first after SYN_RECV -> ESTABLISHED, unless set.
	acceptedAt int
	// by, if set, is the process that closes as the last holder, in transition
	// number byAt; heldBy may be named before it, because it holds a descriptor.
	by     *agent
	byAt   int
	heldBy *agent
}

// wholePath is the path with what TW leaves unsaid.
func wholePath(path string) string { return strings.ReplaceAll(path, "TW", "TW X") }

// printedPath is the path as the stream shows it.
func printedPath(path string) string { return strings.ReplaceAll(wholePath(path), "X", "C") }

// lives says whether there may be a minisocket in the end.
func (e *expect) lives() bool { return strings.Contains(wholePath(e.path), "X") }

// transitions is how many will come at least, the end of a minisocket aside.
func (e *expect) transitions() int {
	least := math.MaxInt
	for _, p := range strings.Split(wholePath(e.path), "|") {
		least = min(least, len(strings.Fields(strings.TrimSuffix(p, "X")))-1)
	}
	return least
}

// id is the cookie in hex. That of a connection which was never accepted is
// found by its ports.
func (e *expect) id(records []record) string {
	s := e.sock
	// Where a cookie has to be asked for, no record may be later than that.
	if s.cookie != 0 && (givesCookies() || slices.ContainsFunc(records, func(r record) bool { return r.of(s.id()) })) {
		return s.id()
	}
	for _, r := range records {
		if r.isTransition() && r.Cookie != nil && r.Lport != nil && r.Rport != nil && r.OldState == "LISTEN" &&
			*r.Lport == s.local.Port() && *r.Rport == s.remote.Port() && (s.cookie == 0 || isNameless(*r.Cookie)) {
			return *r.Cookie
		}
	}
	return "not seen"
}

// checkAll compares a run with all that is expected of it.
func checkAll(s *scene, run traced, wants []expect) {
	s.t.Helper()
	expected := map[string]bool{}
	for i := range wants {
		id := wants[i].id(run.records)
		expected[id] = true
		wants[i].check(s, run.records, id)
	}
	for _, r := range run.records {
		if !slices.Contains([]string{"transition", "connection", "socket"}, r.Type) {
			continue
		}
		if r.Netns != s.ns.inode {
			s.t.Errorf("%s record of netns %d, want only %d", r.Type, r.Netns, s.ns.inode)
		}
		if id := orNull(r.Cookie); r.isTransition() && !expected[id] {
			expected[id] = true
			checkListener(s, transitionsOf(run.records, id), id)
		}
	}
	if s.t.Failed() {
		for _, r := range run.records {
			s.t.Log(r.summary())
		}
	}
}

// summary is a record in short, for the log of a failed test.
func (r *record) summary() string {
	ends := fmt.Sprintf("%s %s:%s %s:%s %s", orNull(r.Cookie), orNull(r.Laddr), orNull(r.Lport), orNull(r.Raddr), orNull(r.Rport), r.owner())
	switch r.Type {
	case "transition":
		return fmt.Sprintf("%s %s -> %s %s dwell %s %s", r.Time.Format("05.000000"), short(r.OldState), short(r.NewState), ends,
			orNull(r.DwellMs), r.Source)
	case "connection":
		return fmt.Sprintf("%s connection %s %s %s %s %s %s", r.Time.Format("05.000000"), ends,
			orNull(r.Role), orNull(r.Closer), orNull(r.End), orNull(r.CloseCall), orNull(r.TimeWaitEnd))
	}
	return fmt.Sprint(r.fields)
}

// checkListener takes a socket that no expectation names: it has to be a
// listener of one of the scene's agents.
func checkListener(s *scene, transitions []record, id string) {
	s.t.Helper()
	if p := path(transitions); p != "C L" && p != "C L C" {
		s.t.Errorf("socket %s went %q, want no such socket", id, p)
		return
	}
	for _, r := range transitions {
		if r.Raddr != nil || r.Rport != nil || r.Lport == nil {
			s.t.Errorf("listener %s: lport %s, raddr %s, rport %s; want only lport", id, orNull(r.Lport), orNull(r.Raddr), orNull(r.Rport))
		}
		known := slices.ContainsFunc(s.agents, func(a *agent) bool {
			return r.Pid != nil && *r.Pid == a.pid && *r.Comm == a.name && (*r.OwnerSource == "listen" ||
				r.NewState == "CLOSE" && *r.OwnerSource == "close")
		})
		if !known {
			s.t.Errorf("listener %s: %s -> %s by %s, want one of the agents, as listen", id, r.OldState, r.NewState, r.owner())
		}
	}
}

func (e *expect) check(s *scene, records []record, id string) {
	t := s.t
	t.Helper()
	transitions := transitionsOf(records, id)
	got := path(transitions)
	wants := strings.Split(wholePath(e.path), "|")
	went := slices.IndexFunc(wants, func(want string) bool { return strings.ReplaceAll(want, "X", "C") == got })
	if went < 0 {
		t.Errorf("%s (%s): path %q, want %q", e.who, id, got, printedPath(e.path))
		return
	}
	states := strings.Fields(wants[went])
	ended := 0
	for i := range transitions {
		r := &transitions[i]
		where := fmt.Sprintf("%s (%s): %s -> %s", e.who, id, r.OldState, r.NewState)
		e.checkEnds(t, where, r, ended)
		if r.NewState == "CLOSE" {
			ended++
		}
		e.checkOwner(t, where, r, i)
		source := "tracepoint"
		switch {
		case states[i+1] == "X" && states[i] == "F2" && e.sock.overLoopback():
			// If its FIN was acknowledged within close(), the socket itself waits.
			source = "timewait|tracepoint"
		case states[i+1] == "X", states[i+1] == "TW":
			source = "timewait"
		}
		if !slices.Contains(strings.Split(source, "|"), r.Source) {
			t.Errorf("%s: source %q, want %q", where, r.Source, source)
		}
	}
	e.checkTimes(t, id, transitions)
	e.checkConnections(s, id, transitions, connectionsOf(records, id))
}

// checkEnds compares the addresses and ports with those of the socket's
// connection of that number.
func (e *expect) checkEnds(t *testing.T, where string, r *record, connection int) {
	t.Helper()
	local := e.sock.local
	if connection == 0 && e.firstLocal.IsValid() {
		local = e.firstLocal
	}
	family := "ipv4"
	if e.sock.remote.Addr().Is6() {
		family = "ipv6"
	}
	if r.Family != family {
		t.Errorf("%s: family %q, want %q", where, r.Family, family)
	}
	if raddr, rport := orNull(r.Raddr), orNull(r.Rport); raddr != e.sock.remote.Addr().String() || rport != fmt.Sprint(e.sock.remote.Port()) {
		t.Errorf("%s: raddr %s rport %s, want %v", where, raddr, rport, e.sock.remote)
	}
	// A connect that failed leaves no address behind to compare with.
	if !local.IsValid() {
		return
	}
	if got := orNull(r.Laddr); got != local.Addr().String() {
		t.Errorf("%s: laddr %s, want %v", where, got, local.Addr())
	}
	lport := fmt.Sprint(local.Port())
	if r.NewState == "SYN_SENT" && !e.sock.bound {
		lport = "null" // SYN_SENT is announced before the kernel chooses the port
	}
	if got := orNull(r.Lport); got != lport {
		t.Errorf("%s: lport %s, want %s", where, got, lport)
	}
}

// An owner is one process that a record may name, and the sources by which it
// may be known.
type owner struct {
	a       *agent
	sources string
}

func (o owner) is(r *record) bool {
	return r.Pid != nil && *r.Pid == o.a.pid && *r.Comm == o.a.name && slices.Contains(strings.Split(o.sources, "|"), *r.OwnerSource)
}

func (o owner) String() string { return fmt.Sprintf("%d/%q/%s", o.a.pid, o.a.name, o.sources) }

// owners are those that transition number i may name; with none, it may also
// name nobody.
func (e *expect) owners(i int, newState string) (may []owner, none bool) {
	acceptedAt := e.acceptedAt
	if acceptedAt == 0 {
		acceptedAt = 2
	}
	var first owner
	switch {
	case e.nobodys:
		return nil, true
	case e.by != nil && i >= e.byAt:
		return []owner{{e.by, "close"}}, false
	case e.existed && e.acceptedNow:
		first = owner{e.sock.maker, "accept|close"}
	case e.existed:
		first = owner{e.sock.maker, "fd|close"}
	case e.sock.listener != nil && (e.sock.fd < 0 || i < acceptedAt):
		// Between the child's birth and the accept there is an instant in which
		// nobody is known. A record that a filter held back until the accept knows
		// more than one that was printed at once.
		may = []owner{{e.sock.listener.maker, "listener"}}
		if e.sock.fd < 0 {
			return may, false
		}
		return append(may, owner{e.sock.maker, "accept"}), true
	case e.sock.listener != nil:
		first = owner{e.sock.maker, "accept|close"}
	case slices.Contains([]string{"SYN_SENT", "SYN_RECV", "ESTABLISHED"}, newState):
		first = owner{e.sock.maker, "connect"}
	default:
		first = owner{e.sock.maker, "connect|close"}
	}
	may = []owner{first}
	if e.heldBy != nil {
		may = append(may, owner{e.heldBy, "fd"})
	}
	return may, false
}

func (e *expect) checkOwner(t *testing.T, where string, r *record, i int) {
	t.Helper()
	may, none := e.owners(i, r.NewState)
	if none && r.Pid == nil || slices.ContainsFunc(may, func(o owner) bool { return o.is(r) }) {
		return
	}
	t.Errorf("%s: owner %s, want %v", where, r.owner(), may)
}

// resolution is that of durations, which are in microseconds and cut, not
// rounded: a sum of them can be short by more than one.
const resolution = 2 * time.Microsecond

func ms(v float64) time.Duration { return time.Duration(math.Round(v * float64(time.Millisecond))) }

func near(a, b, tolerance time.Duration) bool { return (a - b).Abs() <= tolerance }

// checkTimes checks that time does not run backwards, and that each dwell is
// the time between the records that begin and end it.
func (e *expect) checkTimes(t *testing.T, id string, transitions []record) {
	t.Helper()
	var entered time.Time // into the current state; zero if that was not seen
	for i, r := range transitions {
		where := fmt.Sprintf("%s (%s): %s -> %s", e.who, id, r.OldState, r.NewState)
		if i > 0 && r.Time.Before(transitions[i-1].Time) {
			t.Errorf("%s: at %v, before the transition that precedes it, at %v", where, r.Time, transitions[i-1].Time)
		}
		want := r.Time.Sub(entered)
		switch {
		case r.OldState == r.NewState:
			// The departure that follows carries the whole dwell.
			if r.DwellMs != nil {
				t.Errorf("%s: dwell_ms %v, want null", where, *r.DwellMs)
			}
			continue
		case r.OldState == "CLOSE":
			// A socket is born closed, which is no transition.
			if r.DwellMs != nil && (entered.IsZero() || !near(ms(*r.DwellMs), want, resolution)) {
				t.Errorf("%s: dwell_ms %v, want null", where, *r.DwellMs)
			}
		case entered.IsZero():
			if r.DwellMs != nil {
				t.Errorf("%s: dwell_ms %v, want null", where, *r.DwellMs)
			}
		case r.DwellMs == nil:
			t.Errorf("%s: dwell_ms null, want %v", where, want)
		case !near(ms(*r.DwellMs), want, resolution):
			t.Errorf("%s: dwell_ms %v, want %v", where, *r.DwellMs, want)
		}
		entered = r.Time
	}
}

// checkConnections compares the records of the connections with the verdicts
// and with the transitions.
func (e *expect) checkConnections(s *scene, id string, transitions, got []record) {
	t := s.t
	t.Helper()
	if len(got) != len(e.conn) {
		t.Errorf("%s (%s): %d connection records, want %d", e.who, id, len(got), len(e.conn))
		return
	}
	for i := range got {
		r := &got[i]
		where := fmt.Sprintf("%s (%s): connection", e.who, id)
		verdict := strings.Fields(e.conn[i])
		for j, field := range []struct {
			name string
			got  *string
		}{{"role", r.Role}, {"closer", r.Closer}, {"end", r.End}, {"close_call", r.CloseCall}} {
			if field.name == "end" && verdict[j] == "aborted" && s.outlasted {
				verdict[j] = "timeout" // nobody could end the minisocket
			}
			if !slices.Contains(strings.Split(verdict[j], "|"), orNull(field.got)) {
				t.Errorf("%s: %s %s, want %s", where, field.name, orNull(field.got), verdict[j])
			}
		}
		e.checkEnds(t, where, r, i)
		mine := e.connection(transitions, i)
		last := &mine[len(mine)-1]
		e.checkOwner(t, where, r, slices.IndexFunc(transitions, func(r record) bool { return r.Time.Equal(last.Time) }))
		e.checkSpent(t, where, r, mine)
		timeWaitEnd := "null"
		if last.OldState == "TIME_WAIT" {
			timeWaitEnd = cmp.Or(e.timeWaitEnd, "killed")
			if e.timeWaitEnd == "" && s.outlasted {
				timeWaitEnd = "expired"
			}
		}
		if orNull(r.TimeWaitEnd) != timeWaitEnd {
			t.Errorf("%s: time_wait_end %s, want %s", where, orNull(r.TimeWaitEnd), timeWaitEnd)
		}
	}
	if len(got) > 0 {
		e.checkBytes(t, id, &got[len(got)-1])
	}
}

// connection is the transitions of one of the connections that a socket had.
func (e *expect) connection(transitions []record, number int) []record {
	begin := 0
	for i, r := range transitions {
		if r.NewState != "CLOSE" {
			continue
		}
		if number == 0 {
			return transitions[begin : i+1]
		}
		number, begin = number-1, i+1
	}
	return transitions[begin:]
}

func (e *expect) checkBytes(t *testing.T, id string, r *record) {
	t.Helper()
	sent, received := fmt.Sprint(e.sent), fmt.Sprint(e.received)
	if e.nobodys {
		sent, received = "null", "null"
	}
	if orNull(r.SentBytes) != sent || orNull(r.ReceivedBytes) != received {
		t.Errorf("%s (%s): sent_bytes %s received_bytes %s, want %s and %s",
			e.who, id, orNull(r.SentBytes), orNull(r.ReceivedBytes), sent, received)
	}
}

// checkSpent compares start, duration_ms and states_ms with the transitions.
func (e *expect) checkSpent(t *testing.T, where string, r *record, transitions []record) {
	t.Helper()
	first, last := transitions[0], transitions[len(transitions)-1]
	checkStates(t, where, r.StatesMs, transitions)
	if e.existed {
		if r.Start != nil || r.DurationMs != nil {
			t.Errorf("%s: start %s, duration_ms %s, want both null: it began before the tracer", where, orNull(r.Start), orNull(r.DurationMs))
		}
		return
	}
	if r.Start == nil || r.DurationMs == nil {
		t.Errorf("%s: start %s, duration_ms %s, want neither null", where, orNull(r.Start), orNull(r.DurationMs))
		return
	}
	if !r.Start.Equal(first.Time) {
		t.Errorf("%s: start %v, want that of the first transition, %v", where, r.Start, first.Time)
	}
	if want := last.Time.Sub(first.Time); !near(ms(*r.DurationMs), want, resolution) {
		t.Errorf("%s: duration_ms %v, want %v", where, *r.DurationMs, want)
	}
}

// checkStates compares the time in each state with the dwells, of which null
// makes the sum unknown.
func checkStates(t *testing.T, where string, got map[string]*float64, transitions []record) {
	t.Helper()
	want := map[string]time.Duration{}
	const unknown = -time.Hour
	for _, r := range transitions[1:] {
		switch {
		case r.OldState == r.NewState:
		case r.DwellMs == nil:
			want[r.OldState] = unknown
		default:
			want[r.OldState] += ms(*r.DwellMs)
		}
	}
	for state, d := range want {
		spent, ok := got[state]
		if !ok || (spent == nil) != (d < 0) || spent != nil && !near(ms(*spent), d, resolution) {
			t.Errorf("%s: states_ms has %s for %s, want %v", where, orNull(spent), state, max(d, -1))
		}
	}
	for state, spent := range got {
		// The state in which it was found has no known beginning.
		if _, ok := want[state]; !ok && (spent != nil || state != transitions[0].OldState) {
			t.Errorf("%s: states_ms has %s for %s, where it never was", where, orNull(spent), state)
		}
	}
}
