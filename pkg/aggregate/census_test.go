package aggregate

import (
	"maps"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// It goes from an open finding to one that is over, and to one that never is open; with two
// processes of one name, one in a container.
func TestACensusCountsWhatIsOpenNowAndTheBooksWhatEverWas(t *testing.T) {
	s := newStory(t, Filter{})
	srv := events.MakeComm("srv")
	counts := func(when string, closeWait map[Program]Waits, leaks int, leaked, neverClosed, fin uint64) {
		t.Helper()
		got, books := s.tr.Census(), s.tr.Counts()
		if !maps.Equal(got.CloseWait, closeWait) {
			t.Errorf("%s: got in CLOSE_WAIT %v, want %v", when, got.CloseWait, closeWait)
		}
		open := [numKinds][numSeverities]int{CloseWaitLeak: {Warning: leaks}}
		if got.Findings != open {
			t.Errorf("%s: got findings open %v, want %v", when, got.Findings, open)
		}
		ever := [numKinds]uint64{CloseWaitLeak: leaked, NeverClosed: neverClosed}
		if books.Findings != ever {
			t.Errorf("%s: got findings ever %v, want %v", when, books.Findings, ever)
		}
		if want := [numEnds]uint64{EndFin: fin}; books.Ended != want {
			t.Errorf("%s: got connections %v, want %v", when, books.Ended, want)
		}
	}
	ends := func(k sock) {
		s.step(k, "LA>C", with(orphan|events.Done), shut(3))
		s.destroy(k)
		s.tick()
	}
	s.tr.Details(&events.Details{Pid: 2, Container: "c0ffee"})
	s.leave(nth(0), 1, "srv")
	s.pass(2000)
	s.leave(nth(1), 2, "srv")
	s.leave(nth(2), 3, "srv")
	s.pass(1000)
	s.tick()
	counts("in time", map[Program]Waits{{srv, ""}: {2, 3 * time.Second}, {srv, "c0ffee"}: {1, time.Second}}, 0, 0, 0, 0)

	s.pass(minute - 1000)
	s.scan(holds(nth(0), "CW", 1, "srv", 4), holds(nth(1), "CW", 2, "srv", 4), holds(nth(2), "CW", 3, "srv", 4))
	s.tick()
	counts("late", map[Program]Waits{{srv, ""}: {2, 62 * time.Second}, {srv, "c0ffee"}: {1, time.Minute}}, 3, 3, 0, 0)

	s.refu = true
	s.closes(nth(0), 1, "srv")
	s.tick()
	counts("one has closed, and nobody is told", map[Program]Waits{{srv, ""}: {1, time.Minute}, {srv, "c0ffee"}: {1, time.Minute}}, 2, 3, 0, 0)
	s.refu = false
	ends(nth(0))
	s.exits(nth(1), 2, "srv")
	s.settle()
	counts("one has exited", map[Program]Waits{{srv, ""}: {1, time.Minute + 200*time.Millisecond}}, 1, 3, 1, 1)
	ends(nth(1))
	s.closes(nth(2), 3, "srv")
	ends(nth(2))
	counts("all are gone", map[Program]Waits{}, 0, 3, 1, 3)
}

// Who listens is to accept it, as the finding about it says.
func TestACensusCountsAnAcceptQueueForItsListener(t *testing.T) {
	s := newStory(t, Filter{})
	s.tr.Details(&events.Details{Pid: 1, Container: "c0ffee"})
	s.step(listen, "C>L", by(1, "srv"))
	s.wait(server)
	want := map[Program]Waits{{events.MakeComm("srv"), "c0ffee"}: {Sockets: 1}}
	if got := s.tr.Census().CloseWait; !maps.Equal(got, want) {
		t.Errorf("got in CLOSE_WAIT %v, want %v", got, want)
	}
}

// What nothing has told of was counted by the last scan.
func TestACensusHasWhatIsNoSocketYet(t *testing.T) {
	s := newStory(t, Filter{})
	s.step(listen, "C>L", by(1, "srv"))
	request := s.event(server, events.Socket)
	request.Mini, request.Old, request.New = true, events.SynRecv, events.SynRecv
	s.tr.Observe(&request)
	s.tr.Scanned(events.Scan{Complete: true, Every: true, All: true, Walked: []uint32{1}})
	want := [events.NumStates]int{events.Listen: 1, events.SynRecv: 1}
	if got := s.tr.Census().States; got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// Of a socket from before the start, its age is a lower bound: the time since its last segment.
func TestACensusKnowsTheOldest(t *testing.T) {
	s := &story{t: t, ms: 1000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	s.scan(holds(server, "CW", 1, "srv", 4, quiet(400)))
	s.pass(2000)
	s.leave(nth(1), 1, "srv")
	s.tick()
	want := map[Program]Waits{{Comm: events.MakeComm("srv")}: {2, 2400 * time.Millisecond}}
	if got := s.tr.Census().CloseWait; !maps.Equal(got, want) {
		t.Errorf("got in CLOSE_WAIT %v, want %v", got, want)
	}
}

// Of ten ports, to the destination that has most: what is in TIME_WAIT has one too.
func TestACensusHasTheShareOfThePortsThatAreTaken(t *testing.T) {
	s := newMiniStory(t, Filter{})
	want := func(when string, ports float64) {
		t.Helper()
		s.tick()
		if got := s.tr.Census().Ports; got != ports {
			t.Errorf("%s: got %v of the ports, want %v", when, got, ports)
		}
	}
	to := func(n int, raddr string) sock {
		k := nth(n)
		return sock{addr: k.addr, cookie: k.cookie, lport: 40000 + uint16(n), rport: 443, raddr: raddr}
	}
	want("no connection", 0)
	s.step(to(0, "10.0.0.7"), "C>SS", by(2, "cli"))
	want("it is not known how many there are", -1)
	s.tr.Network(&events.Network{Netns: 1, PortLow: 40000, PortHigh: 40009})
	want("one connection", 0.1)
	s.step(to(1, "10.0.0.8"), "C>SS", by(2, "cli"))
	s.step(to(2, "10.0.0.8"), "C>SS", by(2, "cli"))
	s.step(to(2, "10.0.0.8"), "SS>E")
	want("two to another destination", 0.2)
	s.waits(to(3, "10.0.0.8"))
	want("and one in TIME_WAIT", 0.3)
	s.leave(nth(4), 1, "srv")
	want("a server takes none", 0.3)
}

// It is made once a second where metrics are served.
func BenchmarkCensus(b *testing.B) {
	const sockets = 100_000
	tr, _ := leakers(b, sockets)
	b.ReportAllocs()
	for b.Loop() {
		if got := tr.Census().States[events.CloseWait]; got != sockets {
			b.Fatalf("got %d in CLOSE_WAIT, want %d", got, sockets)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/sockets, "ns/socket")
}
