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
