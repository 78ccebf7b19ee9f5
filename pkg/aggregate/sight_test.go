package aggregate

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// What is not where it was, and what only looks as if it were nobody's.

// A descriptor in flight over a Unix socket is nobody's for a moment.
func TestASocketOnItsWayFromOneToAnotherStaysWhereItIsForOneScan(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 1, "srv", 4))
	s.said = nil
	s.pass(2000)
	s.scan(bare(server, "CW"))
	s.finds()
	s.pass(2000)
	s.scan(holds(server, "CW", 1, "srv", 5))
	s.finds()
	for range 2 {
		s.pass(2000)
		s.scan(bare(server, "CW"))
	}
	s.finds(
		"#1 close_wait_leak resolved warning srv(1) n=0 oldest=?",
		"#2 close_wait_leak open warning (0) n=1 oldest=68000 eof_read")
}

// Nothing but its descriptor shows a dead socket: where that is in flight, it is
// looked for, but not as often.
func TestADeadSocketOutOfSightIsLookedForFromTimeToTime(t *testing.T) {
	s := newStory(t, Filter{})
	s.open(server)
	s.step(server, "E>C", with(events.HasSocket), failed(104))
	s.pass(minute)
	for range unseenScans {
		s.scan()
		s.pass(2000)
	}
	s.tr.WantScan()
	s.pass(27_999)
	s.tick()
	if got := s.tr.WantScan(); got != WantNothing {
		t.Errorf("29.999 s after the last scan: wants scan %d, want none", got)
	}
	s.pass(1)
	s.tick()
	if got := s.tr.WantScan(); got != WantSuspects {
		t.Errorf("30 s after the last scan: wants scan %d, want %d", got, WantSuspects)
	}
}

// An MPTCP listener hands out sockets that the kernel has made as its own.
func TestASocketOfTheKernelsInAProcessesQueueIsTheProcesses(t *testing.T) {
	for _, tt := range []struct {
		name     string
		listener look
		want     []string
	}{
		{"a process listens", holds(listen, "L", 1, "srv", 3), []string{"#1 close_wait_leak open warning srv(1) n=1 oldest=60000 not_accepted"}},
		{"the kernel listens", bare(listen, "L"), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStory(t, Filter{})
			s.step(listen, "C>L", by(1, "srv"))
			s.wait(server)
			s.pass(minute)
			s.scan(tt.listener, bare(server, "CW", unaccepted, kernels))
			s.finds(tt.want...)
		})
	}
}

// Socket activation: who serves has the listener from somebody else.
func TestAFilterByProcessHasTheQueueOfAListenerThatItWasPassed(t *testing.T) {
	s := newStory(t, Filter{Comms: []events.Comm{events.MakeComm("worker")}})
	s.step(listen, "C>L", by(1, "systemd"))
	s.wait(server)
	s.pass(minute)
	s.scan(holds(listen, "L", 7, "worker", 3), bare(server, "CW", unaccepted))
	s.finds("#1 close_wait_leak open warning worker(7) n=1 oldest=60000 not_accepted")
}

// What the last scan found in use was cut off by the exit, however long ago that
// scan was.
func TestAnExitCutsOffWhatTheLastScanFoundInUse(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 1, "srv", 4, unsent(10)))
	s.pass(2 * minute)
	s.exits(server, 1, "srv")
	s.settle()
	s.finds()
}

func TestAQueuedSocketIsTiedToTheListenerOnItsVeryAddress(t *testing.T) {
	addr := func(a string) func(*events.Event) {
		return func(ev *events.Event) { ev.Laddr = netip.MustParseAddr(a).As16() }
	}
	for _, tt := range []struct {
		name, one, other string // addresses that processes 1 and 2 listen on
		want             string
	}{
		{"on one address each", "10.0.0.1", "10.0.0.2", "srv(1,listener)"},
		{"an address before all", "10.0.0.1", "0.0.0.0", "srv(1,listener)"},
		{"all of IPv4 before both families", "0.0.0.0", "::", "srv(1,listener)"},
		{"both families", "10.0.0.3", "::", "other(2,listener)"},
		{"nothing that fits", "10.0.0.3", "10.0.0.2", "-"},
		{"the same for both", "0.0.0.0", "0.0.0.0", "-"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &story{t: t, ms: 1000}
			s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
			second := listen
			second.addr, second.cookie = 0x11, 0x2
			holds(listen, "L", 1, "srv", 3, addr(tt.one))(s)
			holds(second, "L", 2, "other", 3, addr(tt.other))(s)
			bare(server, "CW", unaccepted)(s) // of 10.0.0.1
			s.scan()
			if got := s.lines(fmt.Sprintf("5 %s socket CW", tt.want)); len(got) != 1 {
				t.Errorf("got %q, want the queued socket to be of %s", s.said, tt.want)
			}
		})
	}
}

// The parent may be forgotten in the very moment in which it forks.
func TestAForkThatMakesTheTrackerForgetTheParentInheritsItsContainer(t *testing.T) {
	s := newStory(t, Filter{})
	s.details(events.Details{Pid: 1, Container: "c0ffee"})
	for pid := uint32(100); len(s.tr.procs.byPid) < s.tr.procs.sweepAt; pid++ {
		s.details(events.Details{Pid: pid})
	}
	s.fork(1, 50, "child")
	if got := s.process(50).container().ID; got != "c0ffee" {
		t.Errorf("the child's container: got %q, want its parent's, c0ffee", got)
	}
	audit(t, s.tr)
}

// mini is what stands in for a socket.
func (s *story) mini(k sock, state events.State, expires time.Duration) {
	ev := s.event(k, events.Socket)
	ev.Old, ev.New, ev.Mini, ev.Left = state, state, true, expires
	s.tr.Observe(&ev)
}

func TestWhatStandsInForASocketIsListedAndNotTracked(t *testing.T) {
	s := &story{t: t, ms: 1000}
	s.tr = NewTracker(s, &Filter{Lports: []uint16{80}}, 1000, thresholds(time.Minute))
	s.mini(sock{addr: 1, lport: 80, rport: 1}, events.SynRecv, 0)
	s.mini(sock{addr: 2, cookie: 0x22, lport: 80, rport: 2}, events.TimeWait, 45*time.Second)
	s.mini(sock{addr: 3, cookie: 0x33, lport: 80, rport: 3}, events.FinWait2, 45*time.Second)
	s.mini(sock{addr: 4, lport: 80, rport: 4}, events.TimeWait, 60*time.Second) // it has just begun
	s.mini(sock{addr: 5, lport: 81, rport: 5}, events.TimeWait, 45*time.Second) // another port
	s.tells(
		"0 - socket SR age=?",
		"22 - socket TW age=14980", // at least: its jiffies may be one less
		"33 - socket F2 age=?",
		"0 - socket TW age=?")
	s.tr.Scanned(events.Scan{Complete: true, Every: true})
	s.mini(sock{addr: 6, lport: 80, rport: 6}, events.TimeWait, 45*time.Second) // after the first scan
	s.tells()
	if n := s.tr.Counts().Tracked; n != 0 {
		t.Errorf("tracks %d sockets, want none", n)
	}
}

// A filter by process asks who has it; nobody has.
func TestWhatStandsInForASocketIsNoProcesses(t *testing.T) {
	s := &story{t: t, ms: 1000}
	f := pids(1)
	s.tr = NewTracker(s, &f, 1000, thresholds(time.Minute))
	s.mini(sock{addr: 2, lport: 80, rport: 2}, events.TimeWait, 45*time.Second)
	s.tells()
}
