package aggregate

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// checkView compares a view of a run that loses nothing with what there is.
func (r *run) checkView(t *testing.T, states *[events.NumStates]int) {
	t.Helper()
	v := r.tr.View(&Query{})
	if v.Census.States != *states {
		t.Errorf("sockets by state in a view: got %v, want %v", v.Census.States, *states)
	}
	dead, orphans, timeWait, sockets, closeWait := 0, 0, 0, 0, 0
	for _, l := range r.alive {
		if l.dead {
			dead++
		}
	}
	for _, m := range r.minis {
		if m.state == events.FinWait2 {
			orphans++
		}
	}
	if v.Dead != dead || v.Orphans != orphans {
		t.Errorf("got %d dead, %d orphaned; want %d, %d", v.Dead, v.Orphans, dead, orphans)
	}
	for i := range v.Processes {
		p := &v.Processes[i]
		sockets, closeWait, dead = sockets+p.Sockets, closeWait+p.CloseWait, dead-p.Dead
		of := r.tr.View(&Query{Scope: p.Scope})
		if of.AllConnections < p.Sockets || len(of.Connections) != min(of.AllConnections, MaxRows) {
			t.Errorf("process %d has %d sockets: got %d connections, and %d of them", p.Pid, p.Sockets, of.AllConnections, len(of.Connections))
		}
	}
	all := 0
	for st, n := range states {
		if events.State(st) != events.TimeWait {
			all += n
		}
	}
	if len(v.Processes) == v.AllProcesses && (closeWait != states[events.CloseWait] || sockets != all-orphans+v.Dead || dead != 0) {
		t.Errorf("all processes have %d sockets, %d of them in CLOSE_WAIT, and %d dead are missing; want %d, %d, 0",
			sockets, closeWait, dead, all-orphans+v.Dead, states[events.CloseWait])
	}
	for i := range v.Destinations {
		timeWait += v.Destinations[i].TimeWait
	}
	if len(v.Destinations) == v.AllDestinations && timeWait != states[events.TimeWait] {
		t.Errorf("all destinations have %d in TIME_WAIT, want %d", timeWait, states[events.TimeWait])
	}
}

// looksAt asks for a view of something: whatever that is, it changes nothing that is told.
func (r *run) looksAt() {
	v := r.tr.View(&Query{Find: []string{"", "1"}[r.rng.IntN(2)]})
	if len(v.Processes) == 0 {
		return
	}
	q := Query{Scope: v.Processes[r.rng.IntN(len(v.Processes))].Scope, Connections: ByAge}
	if cs := r.tr.View(&q).Connections; len(cs) > 0 {
		q.Conn = cs[r.rng.IntN(len(cs))].ID
		r.tr.View(&q)
	}
}

// the row of a process in a view, which has to be there.
func processRow(t *testing.T, v *View, pid uint32) ProcessRow {
	t.Helper()
	i := slices.IndexFunc(v.Processes, func(r ProcessRow) bool { return r.Pid == pid })
	if i < 0 {
		t.Fatalf("got %d processes without %d", len(v.Processes), pid)
	}
	return v.Processes[i]
}

func TestAViewShowsALeakFromItsFirstMomentToItsEnd(t *testing.T) {
	s := newStory(t, Filter{})
	s.tr.Details(&events.Details{Pid: 1, Container: "c0ffee"})
	s.leave(nth(0), 1, "srv")
	s.pass(20_000)
	s.leave(nth(1), 1, "srv")
	s.pass(10_000)
	s.tick()
	got := processRow(t, s.tr.View(&Query{}), 1)
	if got.CloseWait != 2 || got.Oldest != 30*time.Second || !got.Exact || got.Verdict != VerdictNone || got.Container.ID != "c0ffee" {
		t.Errorf("in time: got %+v, want 2 in CLOSE_WAIT, the oldest for 30 s, no verdict", got)
	}

	s.pass(minute)
	s.scan(holds(nth(0), "CW", 1, "srv", 4), holds(nth(1), "CW", 1, "srv", 5, unread(8)))
	s.tick()
	v := s.tr.View(&Query{})
	if got := processRow(t, v, 1); got.Verdict != EOFRead && got.Verdict != EOFUnread {
		t.Errorf("late: got %+v, want a verdict", got)
	}
	if len(v.Findings) != 1 || v.Findings[0].Count != 2 || v.Findings[0].Oldest != 90*time.Second || len(v.Findings[0].Holders) != 2 {
		t.Errorf("got findings %+v, want one about 2 sockets, the oldest for 90 s", v.Findings)
	}

	s.closes(nth(0), 1, "srv")
	s.pass(1000)
	s.tick()
	v = s.tr.View(&Query{})
	if got := processRow(t, v, 1); got.CloseWait != 1 || got.Oldest != 71*time.Second {
		t.Errorf("one is closed: got %+v, want 1 in CLOSE_WAIT for 71 s", got)
	}
	s.closes(nth(1), 1, "srv")
	s.tick()
	if v = s.tr.View(&Query{}); len(v.Findings) != 0 || v.Census.States[events.CloseWait] != 0 {
		t.Errorf("all are closed: got findings %+v, states %v; want none, and nothing in CLOSE_WAIT", v.Findings, v.Census.States)
	}
}

func TestGrowthIsWhatCameInTheLastHalfMinute(t *testing.T) {
	s := newStory(t, Filter{})
	for i := range 10 {
		s.leave(nth(i), 1, "srv")
		s.pass(5000)
		s.tick()
		s.tr.View(&Query{})
	}
	// One each five seconds.
	if got := processRow(t, s.tr.View(&Query{}), 1); !got.Measured || got.PerMinute < 11.9 || got.PerMinute > 12.1 {
		t.Errorf("got %v a minute, measured: %v; want 12", got.PerMinute, got.Measured)
	}
}

func TestAConnectionIsTheSameInTimeWait(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.closesFirst(client)
	s.tick()
	q := &Query{Scope: processRow(t, s.tr.View(&Query{}), 2).Scope}
	rows := s.tr.View(q).Connections
	if len(rows) != 1 || rows[0].State != events.FinWait2 {
		t.Fatalf("got connections %+v, want one, in FIN_WAIT2", rows)
	}
	q.Conn = rows[0].ID
	s.pass(40)
	s.handsOver(client, "F2>C", "TW", with(orphan|events.Done))
	s.destroy(client)
	s.pass(2000)
	s.tick()
	c := s.tr.View(q).Conn
	if c == nil || c.State != events.TimeWait || !c.Mini || c.Role != Client || c.Owner.Pid != 2 || c.Start == 0 {
		t.Fatalf("got %+v, want the client's, in TIME_WAIT", c)
	}
	if c.Age < 2*time.Second || c.Age > 2001*time.Millisecond || !c.Exact {
		t.Errorf("got %v in TIME_WAIT, want 2 s", c.Age)
	}
	for st, want := range map[events.State]time.Duration{
		events.SynSent: time.Millisecond, events.Established: 10 * time.Millisecond, events.FinWait1: 250 * time.Microsecond,
	} {
		if got, ok := c.Times.In(st); !ok || got != want {
			t.Errorf("got %v in %s, want %v", got, st, want)
		}
	}
}

func TestWhoHoldsWhatIsLookedAtIsLookedFor(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(client, "C>SS SS>E", by(2, "cli"))
	s.scan() // of all: nothing else wants one
	s.tick()
	q := &Query{Scope: processRow(t, s.tr.View(&Query{}), 2).Scope}
	if got := s.tr.WantScan(); got != WantNothing {
		t.Fatalf("before a connection is looked at: wants scan %d, want none", got)
	}
	q.Conn = s.tr.View(q).Connections[0].ID
	if c := s.tr.View(q).Conn; c == nil || c.HeldAt != 0 || len(c.Holders) != 0 {
		t.Errorf("before a scan: got %+v, want holders that are not known", c)
	}
	if got := s.tr.WantScan(); got != WantOwners {
		t.Errorf("wants scan %d, want %d", got, WantOwners)
	}
	s.scan(holds(client, "E", 2, "cli", 7), holds(client, "E", 3, "heir", 7))
	c := s.tr.View(q).Conn
	want := []Holder{{2, events.MakeComm("cli"), 7}, {3, events.MakeComm("heir"), 7}}
	if c.HeldAt == 0 || !slices.Equal(c.Holders, want) {
		t.Errorf("got holders %v, want %v", c.Holders, want)
	}
	s.tr.View(q)
	if got := s.tr.WantScan(); got != WantNothing {
		t.Errorf("at once: wants scan %d, want none", got)
	}
	s.pass(6000)
	s.tick()
	s.tr.View(q)
	if got := s.tr.WantScan(); got != WantOwners {
		t.Errorf("6 s later: wants scan %d, want %d", got, WantOwners)
	}
	s.tr.View(&Query{})
	if s.tr.View(q).Conn.HeldAt != 0 {
		t.Error("looked at again: got holders from before")
	}
}

func TestADestinationHasThePortsThatAreLeft(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.tr.Network(&events.Network{Netns: 1, PortLow: 40000, PortHigh: 40009})
	one := client
	for i := range 3 {
		one.addr, one.cookie, one.lport = client.addr+uint64(i), client.cookie+uint64(i), client.lport+uint16(i)
		if i < 2 {
			s.waits(one)
		} else {
			s.steps(one, "C>SS SS>E", by(2, "cli"))
		}
	}
	s.tick()
	got := s.tr.View(&Query{}).Destinations
	if len(got) != 1 || got[0].TimeWait != 2 || got[0].Live != 1 || got[0].Ports != 10 || got[0].Left != 7 || got[0].Port != client.rport || got[0].Ours {
		t.Fatalf("got %+v, want one with 2 in TIME_WAIT, 1 live, 7 of 10 ports left", got)
	}
	if n := s.tr.View(&Query{Scope: got[0].Scope}).AllConnections; n != 3 {
		t.Errorf("got %d connections to it, want 3", n)
	}
}

// When a socket was last heard of says nothing of when it came into a state that its own process
// brings about; that it has been in it since it was found does.
func TestAnAgeIsOfTheState(t *testing.T) {
	s := &story{t: t, ms: 1000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	s.scan(bare(nth(0), "LA", quiet(400)), bare(nth(1), "F1", quiet(400)), bare(nth(2), "E", quiet(400)), bare(nth(3), "F2"))
	s.pass(2000)
	s.tick()
	want := map[uint16]time.Duration{40000: 2 * time.Second, 40001: 2 * time.Second, 40002: 2400 * time.Millisecond, 40003: 2 * time.Second}
	rows := s.tr.View(&Query{Scope: s.tr.View(&Query{}).Processes[0].Scope}).Connections
	for _, r := range rows {
		if r.Age != want[r.Rport] || r.Exact {
			t.Errorf("in %s: got %v, exact: %v; want at least %v", r.State, r.Age, r.Exact, want[r.Rport])
		}
	}
	if len(rows) != len(want) {
		t.Errorf("got %d connections, want %d", len(rows), len(want))
	}
}

// In a replay, and where a view takes long, there may be an hour between two.
func TestGrowthOfLongAgoIsNotThatOfNow(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(nth(0), 1, "srv")
	s.tick()
	s.tr.View(&Query{})
	for i := 1; i <= 60; i++ {
		s.leave(nth(i), 1, "srv")
	}
	s.pass(3600e3)
	s.tick()
	if got := processRow(t, s.tr.View(&Query{}), 1); got.Measured {
		t.Errorf("60 came an hour ago: got %v a minute now, want that it is not known", got.PerMinute)
	}
}

// What the filter, or the length of the list, keeps out of it is open all the same.
func TestTheFindingThatIsShownIsThereWhateverTheListHas(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(nth(0), 1, "srv")
	s.pass(minute)
	s.scan(holds(nth(0), "CW", 1, "srv", 4))
	id := s.tr.View(&Query{}).Findings[0].ID
	v := s.tr.View(&Query{Find: "other", Finding: id})
	if len(v.Findings) != 0 || v.Finding == nil || v.Finding.ID != id || v.Finding.Count != 1 {
		t.Errorf("got findings %+v, and %+v; want none in the list, and that of srv", v.Findings, v.Finding)
	}
	s.closes(nth(0), 1, "srv")
	s.tick()
	if v := s.tr.View(&Query{Finding: id}); v.Finding != nil {
		t.Errorf("it is over: got %+v", v.Finding)
	}
}

// What cannot be known where not all is traced is not made up; nor are others' connections counted.
func TestPortsThatOthersMayHaveAreNotSaidToBeLeft(t *testing.T) {
	to := func(n int) sock {
		k := client
		k.addr, k.cookie, k.lport = client.addr+uint64(n), client.cookie+uint64(n), client.lport+uint16(n)
		return k
	}
	for _, tt := range []struct {
		name        string
		filter      Filter
		live, ports int
	}{
		{"all", Filter{}, 2, 10},
		{"by name: all are traced, and one is asked for", Filter{Comms: []events.Comm{events.MakeComm("cli")}}, 1, 10},
		{"by PID: the kernel side turns others away", pids(2), 1, 0},
		{"by our port: likewise", Filter{Lports: []uint16{40000, 40001, 40002}}, 2, 0},
	} {
		s := newMiniStory(t, tt.filter)
		s.tr.Network(&events.Network{Netns: 1, PortLow: 40000, PortHigh: 40009})
		s.waits(to(0))
		s.steps(to(1), "C>SS SS>E", by(2, "cli"))
		s.steps(to(2), "C>SS SS>E", by(3, "other"))
		s.tick()
		got := s.tr.View(&Query{}).Destinations
		if len(got) != 1 || got[0].TimeWait != 1 || got[0].Live != tt.live || got[0].Ports != tt.ports {
			t.Errorf("%s: got %+v, want 1 in TIME_WAIT, %d live, of %d ports", tt.name, got, tt.live, tt.ports)
			continue
		}
		if n := s.tr.View(&Query{Scope: got[0].Scope}).AllConnections; n != tt.live+1 {
			t.Errorf("%s: got %d connections to it, want %d", tt.name, n, tt.live+1)
		}
	}
}

// Without TIME_WAIT, nobody knows which ports are in it.
func TestPortsInATimeWaitThatIsNotTracedAreNotLeft(t *testing.T) {
	s := newStory(t, Filter{})
	s.tr.Network(&events.Network{Netns: 1, PortLow: 40000, PortHigh: 40009})
	for n := range 4 {
		k := client
		k.addr, k.cookie, k.lport = client.addr+uint64(n), client.cookie+uint64(n), client.lport+uint16(n)
		s.steps(k, "C>SS SS>E", by(2, "cli"))
	}
	s.tick()
	v := s.tr.View(&Query{})
	if v.Traced || len(v.Destinations) != 1 || v.Destinations[0].Live != 4 || v.Destinations[0].Ports != 0 {
		t.Errorf("traced: %v, got %+v; want 4 live, and nothing about ports", v.Traced, v.Destinations)
	}
}

func TestAFilterFindsWhatIsTypedWhateverItsCase(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(nth(0), 1, "ÄPFEL-Web")
	s.tick()
	for find, want := range map[string]int{"äpfel-web[1]": 1, "web": 1, "öpfel": 0} {
		if v := s.tr.View(&Query{Find: find}); len(v.Processes) != want {
			t.Errorf("%q finds %d processes, want %d", find, len(v.Processes), want)
		}
	}
}

// An MPTCP listener has the kernel's own sockets in its queue; the list says of them what the finding says.
func TestTheVerdictOfAConnectionIsThatOfItsFinding(t *testing.T) {
	s := newStory(t, Filter{})
	s.step(listen, "C>L", by(1, "srv"))
	s.wait(server)
	s.pass(minute)
	s.scan(holds(listen, "L", 1, "srv", 3), bare(server, "CW", unaccepted, kernels))
	v := s.tr.View(&Query{})
	row := processRow(t, v, 1)
	if row.Verdict != NotAccepted {
		t.Fatalf("got %+v, want not_accepted", row)
	}
	for _, c := range s.tr.View(&Query{Scope: row.Scope}).Connections {
		if want := map[events.State]Verdict{events.CloseWait: NotAccepted}[c.State]; c.Verdict != want {
			t.Errorf("in %s: got verdict %q, want %q", c.State, c.Verdict, want)
		}
	}
}

// The first by whatever order, and not the first that came.
func TestALongListHasItsFirstRows(t *testing.T) {
	s := newStory(t, Filter{})
	const n = 3 * MaxRows
	s.tr.max = 2 * n
	for i := range n {
		s.leave(nth(i), 1, "srv")
		s.pass(1)
	}
	s.tick()
	for _, tt := range []struct {
		find string
		all  int
	}{
		{"", n},
		{"srv[1]", n},
		{"SRV", 0}, // a query is in lower case
		{"close_wait", n},
		{"established", 0},
	} {
		v := s.tr.View(&Query{Scope: processRow(t, s.tr.View(&Query{}), 1).Scope, Connections: ByAge, FindIn: tt.find})
		if v.AllConnections != tt.all || len(v.Connections) != min(tt.all, MaxRows) {
			t.Errorf("%q: got %d rows of %d, want %d of %d", tt.find, len(v.Connections), v.AllConnections, min(tt.all, MaxRows), tt.all)
		}
		for i, r := range v.Connections {
			if want := time.Duration(n-i) * time.Millisecond; r.Age != want {
				t.Fatalf("%q: row %d has been there for %v, want %v", tt.find, i, r.Age, want)
			}
		}
	}
}

func TestProcessesAreInTheOrderThatIsAskedFor(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(nth(0), 1, "old")
	s.pass(1000)
	s.leave(nth(1), 2, "many")
	s.leave(nth(2), 2, "many")
	for i := range 3 {
		s.steps(nth(3+i), "C>SS SS>E", by(3, "busy"))
	}
	s.tick()
	for _, tt := range []struct {
		order Order
		want  string
	}{
		{ByCloseWait, "[2 1 3]"}, {ByOldest, "[1 2 3]"}, {BySockets, "[3 2 1]"},
	} {
		var got []uint32
		for _, r := range s.tr.View(&Query{Processes: tt.order}).Processes {
			got = append(got, r.Pid)
		}
		if fmt.Sprint(got) != tt.want {
			t.Errorf("by %s: got processes %v, want %s", tt.order, got, tt.want)
		}
	}
}

// It is made twice a second where somebody looks.
func BenchmarkView(b *testing.B) {
	const sockets = 100_000
	tr, _ := leakers(b, sockets)
	q := &Query{}
	b.ReportAllocs()
	for b.Loop() {
		if got := tr.View(q).Census.States[events.CloseWait]; got != sockets {
			b.Fatalf("got %d in CLOSE_WAIT, want %d", got, sockets)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/sockets, "ns/socket")
}
