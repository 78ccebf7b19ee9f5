package aggregate

import (
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// open tells of a server's connection that process 1 accepts.
func (s *story) open(k sock) {
	s.t.Helper()
	s.step(k, "L>SR", from(listen.cookie))
	s.step(k, "SR>E")
	s.accept(k, 1, "srv")
}

// The transitions after which a connection is over and its
// descriptor still open: ss does not show it.
func TestAConnectionThatIsOverWithItsDescriptorOpenIsALeak(t *testing.T) {
	const (
		held = events.HasSocket
		done = events.Done
	)
	fin := func(s *story) { s.step(server, "E>CW", with(held|done), shut(1)) }
	for _, tt := range []struct {
		name string
		end  func(*story)
		want End
	}{
		{"reset", func(s *story) { s.step(server, "E>C", with(held), failed(104)) }, EndResetReceived},
		{"reset while a read() of its process runs", func(s *story) { s.step(server, "E>C", by(1, "srv"), with(held), failed(104)) }, EndResetReceived},
		{"reset in CLOSE_WAIT", func(s *story) { fin(s); s.step(server, "CW>C", with(held|done), shut(1), failed(32)) }, EndResetReceived},
		{"reset after shutdown()", func(s *story) {
			s.step(server, "E>F1", by(1, "srv"), with(held), shut(2))
			s.step(server, "F1>C", with(held), shut(2), failed(104))
		}, EndResetReceived},
		{"timed out", func(s *story) { s.step(server, "E>C", with(held), failed(110)) }, EndTimeout},
		{"keepalive timed out in CLOSE_WAIT", func(s *story) { fin(s); s.step(server, "CW>C", with(held|done), shut(1), failed(110)) }, EndTimeout},
		{"ss -K", func(s *story) { s.step(server, "E>C", by(6, "ss"), with(held), shut(3), failed(103)) }, EndAborted},
		{"both closed, the peer first, with shutdown() here", func(s *story) {
			fin(s)
			s.step(server, "CW>LA", by(1, "srv"), with(held|done), shut(3))
			s.step(server, "LA>C", with(held|done), shut(3))
		}, EndFin},
		{"both closed, with shutdown() here first", func(s *story) {
			s.step(server, "E>F1", by(1, "srv"), with(held), shut(2))
			s.step(server, "F1>F2", with(held), shut(2))
			s.step(server, "F2>C", with(held|done), shut(3))
		}, EndFin},
		{"the same, the peer's FIN processed in a read()", func(s *story) {
			s.step(server, "E>F1", by(1, "srv"), with(held), shut(2))
			s.step(server, "F1>F2", with(held), shut(2))
			s.step(server, "F2>C", by(1, "srv"), with(held|done), shut(3))
		}, EndFin},
		{"both closed at once, with shutdown() here", func(s *story) {
			s.step(server, "E>F1", by(1, "srv"), with(held), shut(2))
			s.step(server, "F1>CG", with(held|done), shut(3))
			s.step(server, "CG>C", with(held|done), shut(3))
		}, EndFin},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStory(t, Filter{})
			s.open(server)
			tt.end(s)
			row := holds(server, "C", 1, "srv", 4)
			s.pass(minute - 1)
			s.scan(row)
			s.finds()
			s.pass(1)
			s.tick()
			if got := s.tr.WantScan(); got != WantSuspects {
				t.Errorf("after a minute: wants scan %d, want %d", got, WantSuspects)
			}
			s.scan(row)
			s.finds("#1 reset_fd_leak open warning srv(1) n=1 oldest=60000 1/4:5")
			want := [numEnds]int{}
			want[tt.want] = 1
			if e := s.found().Evidence; e.Ended != want || !e.Exact {
				t.Errorf("got ended %v, exact %v; want one %s, exact", e.Ended, e.Exact, tt.want)
			}
			s.destroy(server) // this is all that close() does now
			s.tick()
			s.finds("#1 reset_fd_leak resolved warning srv(1) n=0 oldest=?")
			audit(t, s.tr)
		})
	}
}

func TestASocketWithoutAnEndedConnectionIsNoLeak(t *testing.T) {
	const held = events.HasSocket
	for _, tt := range []struct {
		name string
		end  func(*story)
	}{
		{"connect(AF_UNSPEC)", func(s *story) { s.open(server); s.step(server, "E>C", by(1, "srv"), with(held)) }},
		{"connect(AF_UNSPEC) in CLOSE_WAIT", func(s *story) { s.leave(server, 1, "srv"); s.step(server, "CW>C", by(1, "srv"), with(held)) }},
		{"refused", func(s *story) { s.step(server, "C>SS", by(1, "srv")); s.step(server, "SS>C", with(held), failed(111)) }},
		{"connect() timed out", func(s *story) { s.step(server, "C>SS", by(1, "srv")); s.step(server, "SS>C", with(held), failed(110)) }},
		{"no local port left", func(s *story) { s.step(server, "C>SS", by(1, "srv")); s.step(server, "SS>C", by(1, "srv"), with(held)) }},
		{"reset in a simultaneous open", func(s *story) {
			s.step(server, "C>SS", by(1, "srv"))
			s.step(server, "SS>SR", with(held))
			s.step(server, "SR>C", with(held), failed(104))
		}},
		{"listen() undone", func(s *story) { s.step(server, "C>L", by(1, "srv")); s.step(server, "L>C", by(1, "srv"), with(held)) }},
		{"reset, and then destroyed", func(s *story) { s.open(server); s.step(server, "E>C", with(held), failed(104)); s.destroy(server) }},
		// Events after which the descriptor is closed, though the kernel says so
		// only later.
		{"close() with unread data", func(s *story) { s.open(server); s.step(server, "E>C", by(1, "srv"), with(held), shut(3), unread(5)) }},
		{"an orphan's end", func(s *story) {
			s.open(server)
			s.step(server, "E>F1", by(1, "srv"), with(held), shut(3))
			s.step(server, "F1>F2", with(orphan))
			s.step(server, "F2>C", with(orphan))
		}},
		{"an orphan that the peer resets", func(s *story) {
			s.open(server)
			s.step(server, "E>F1", by(1, "srv"), with(held), shut(3))
			s.step(server, "F1>C", with(orphan), failed(104))
		}},
		{"reset before it was accepted", func(s *story) {
			s.step(server, "L>SR", from(listen.cookie))
			s.step(server, "SR>E")
			s.step(server, "E>C", failed(104))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStory(t, Filter{})
			tt.end(s)
			s.pass(minute)
			s.tick()
			if got := s.tr.WantScan(); got == WantSuspects {
				t.Error("wants to know who holds it, want nothing")
			}
			s.scan(holds(server, "C", 1, "srv", 4))
			s.pass(minute)
			s.scan(holds(server, "C", 1, "srv", 4))
			s.finds()
		})
	}
}

// accept() hands it out all the same.
func TestAConnectionThatIsResetInTheAcceptQueueCountsFromAcceptOn(t *testing.T) {
	s := newStory(t, Filter{})
	s.step(listen, "C>L", by(1, "srv"))
	s.step(server, "L>SR", from(listen.cookie))
	s.step(server, "SR>E")
	s.step(server, "E>C", failed(104))
	s.pass(10 * minute) // in the queue
	s.accept(server, 1, "srv")
	row := holds(server, "C", 1, "srv", 4)
	s.pass(minute - 1)
	s.scan(row)
	s.finds()
	s.pass(1)
	s.scan(row)
	s.finds("#1 reset_fd_leak open warning srv(1) n=1 oldest=60000 1/4:5")
	if got, want := s.found().Evidence.Ended, [numEnds]int{EndResetReceived: 1}; got != want {
		t.Errorf("got ended %v, want %v: the reset was seen", got, want)
	}
	s.checkHistory(1, 0, 0, 0)
}

func TestADeadSocketThatIsConnectedAgainIsNoLeak(t *testing.T) {
	s := newStory(t, Filter{})
	s.step(client, "C>SS", by(2, "cli"))
	s.step(client, "SS>E", with(events.HasSocket))
	s.step(client, "E>C", with(events.HasSocket), failed(104))
	s.pass(minute)
	s.scan(holds(client, "C", 2, "cli", 4))
	s.finds("#1 reset_fd_leak open warning cli(2) n=1 oldest=60000 2/4:c")
	s.pass(1000)
	s.step(client, "C>SS", by(2, "cli"), with(events.HasSocket))
	s.tick()
	s.finds("#1 reset_fd_leak resolved warning cli(2) n=0 oldest=?")
	s.step(client, "SS>E", with(events.HasSocket))
	s.pass(10 * minute)
	s.scan(holds(client, "E", 2, "cli", 4))
	s.finds()
}

// One in CLOSE_WAIT that is reset has a minute more: only now a call on it fails.
func TestALeakThatIsResetBecomesAnotherLeak(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 1, "srv", 4))
	s.step(server, "CW>C", with(events.HasSocket|events.Done), shut(1), failed(32))
	s.tick()
	s.pass(minute)
	s.scan(holds(server, "C", 1, "srv", 4))
	s.finds(
		"#1 close_wait_leak open warning srv(1) n=1 oldest=60000 eof_read 1/4:5",
		"#1 close_wait_leak resolved warning srv(1) n=0 oldest=?",
		"#2 reset_fd_leak open warning srv(1) n=1 oldest=60000 1/4:5",
	)
}

func TestDeadSocketsThatWereThereBeforeAreFoundByTheFirstScan(t *testing.T) {
	s := &story{t: t, ms: 500_000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	s.tick()
	s.scan(
		holds(nth(0), "C", 1, "srv", 4, quiet(2*minute)),
		holds(nth(1), "C", 1, "srv", 5, quiet(minute-1)),
	)
	s.tells(
		"500 srv(1,fd) socket C age=120000 1/4 reset_fd_leak",
		"501 srv(1,fd) socket C age=59999 1/5",
		"#1 reset_fd_leak open warning srv(1) n=1 oldest=120000 1/4:500",
	)
	if e := s.found().Evidence; e.Exact || e.Ended != [numEnds]int{EndUnknown: 1} {
		t.Errorf("got exact %v, ended %v; want a lower bound, one of unknown end", e.Exact, e.Ended)
	}
	if !strings.Contains(s.found().Message, "at least") {
		t.Errorf("message: got %q, want it to say that the age is a lower bound", s.found().Message)
	}
}

// Its descriptor may be in flight. What is certain is that it has not been destroyed.
func TestADeadSocketThatNoScanFindsIsSuspectedAgainWhenOneDoes(t *testing.T) {
	s := newStory(t, Filter{})
	s.open(server)
	s.step(server, "E>C", with(events.HasSocket), failed(104))
	s.said = nil
	s.pass(minute)
	s.scan()
	s.pass(2000)
	s.scan()
	s.tells()
	if c := s.tr.Counts(); c.Tracked != 1 || c.Missed != 0 {
		t.Errorf("got %+v, want 1 tracked, 0 missed", c)
	}
	s.pass(2000)
	s.scan(holds(server, "C", 9, "receiver", 4))
	s.finds("#1 reset_fd_leak open warning receiver(9) n=1 oldest=64000 9/4:5")
}

// Who inherited it is who can close it.
func TestADeadSocketIsWhosoeverHoldsIt(t *testing.T) {
	s := newStory(t, Filter{})
	s.open(server)
	s.step(server, "E>C", with(events.HasSocket), failed(104))
	s.pass(minute)
	s.scan(holds(server, "C", 9, "child", 4))
	s.finds("#1 reset_fd_leak open warning child(9) n=1 oldest=60000 9/4:5")
}
