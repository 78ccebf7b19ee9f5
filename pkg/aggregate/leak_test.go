package aggregate

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// In these stories a socket's time is up after a minute.
const minute = 60_000

func TestALeakIsFoundWhenItsTimeIsUpAndNotBefore(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute - 1)
	s.tick()
	if got := s.tr.WantScan(); got != WantNothing {
		t.Errorf("a millisecond before its time is up: wants scan %d, want none", got)
	}
	s.scan(holds(server, "CW", 1, "srv", 4)) // made for another socket's sake
	s.finds()

	s.pass(1)
	s.tick()
	if first, second := s.tr.WantScan(), s.tr.WantScan(); first != WantSuspects || second != WantNothing {
		t.Errorf("when its time is up: wants scans %d, %d; want %d, %d", first, second, WantSuspects, WantNothing)
	}
	s.finds() // nothing is said without the proof
	s.scan(holds(server, "CW", 1, "srv", 4))
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=60000 eof_read 1/4:5")
	if f := s.found(); !f.Evidence.Exact {
		t.Error("the age of a socket whose FIN was seen: got a lower bound, want it exact")
	}

	// As long as it is there, it is looked at again.
	s.pass(1999)
	s.tick()
	if got := s.tr.WantScan(); got != WantNothing {
		t.Errorf("1.999 s after a scan: wants scan %d, want none", got)
	}
	s.pass(1)
	s.tick()
	if got := s.tr.WantScan(); got != WantSuspects {
		t.Errorf("2 s after a scan: wants scan %d, want %d", got, WantSuspects)
	}
}

func TestASocketThatIsClosedInTimeIsNoLeak(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute - 1)
	s.closes(server, 1, "srv")
	s.scan()
	s.pass(minute - 1)
	s.tick()
	if got := s.tr.WantScan(); got != WantNothing {
		t.Errorf("wants scan %d, want none", got)
	}
	s.finds()
	// What is missed comes to light by looking at all, from time to time.
	s.pass(1)
	s.tick()
	if got := s.tr.WantScan(); got != WantOwners {
		t.Errorf("a minute after the last scan of all: wants scan %d, want %d", got, WantOwners)
	}
}

// rcv_nxt - copied_seq counts the FIN as a byte.
func TestTheVerdictIsWhatTheProcessHasRead(t *testing.T) {
	for _, tt := range []struct {
		name   string
		unread uint32
		want   Verdict
		bytes  uint64
	}{
		{"everything, the FIN included", 0, EOFRead, 0},
		{"everything but the FIN", 1, EOFUnread, 0},
		{"not the last ten bytes", 11, EOFUnread, 10},
		{"nothing of four gigabytes", 1<<32 - 1, EOFUnread, 1<<32 - 2},
	} {
		s := newStory(t, Filter{})
		s.leave(server, 1, "srv")
		s.pass(minute)
		s.scan(holds(server, "CW", 1, "srv", 4, unread(tt.unread)))
		f := s.found()
		want := [numVerdicts]int{}
		want[tt.want] = 1
		if e := f.Evidence; e.Verdict != tt.want || e.Verdicts != want || e.Unread != tt.bytes {
			t.Errorf("%s: got %s, %v, %d bytes unread; want %s, %v, %d", tt.name, e.Verdict, e.Verdicts, e.Unread, tt.want, want, tt.bytes)
		}
		if f.Kind != CloseWaitLeak {
			t.Errorf("%s: got kind %s, want close_wait_leak", tt.name, f.Kind)
		}
	}
}

// wait puts a connection into the accept queue of listen, and lets its peer close.
func (s *story) wait(k sock) {
	s.t.Helper()
	s.step(k, "L>SR", from(listen.cookie))
	s.step(k, "SR>E")
	s.step(k, "E>CW", with(events.Done), shut(1), unread(1))
}

func TestASocketThatNobodyAcceptsAccusesWhoHoldsItsListener(t *testing.T) {
	queued := bare(server, "CW", unaccepted, unread(11))
	for _, tt := range []struct {
		name      string
		rows      []look
		want      string // the process
		listeners []string
	}{
		{
			"its owner", []look{holds(listen, "L", 1, "srv", 3), queued},
			"srv(1)", []string{"1/3:1"},
		},
		{
			"its owner, whoever has it too", []look{holds(listen, "L", 7, "worker", 3), holds(listen, "L", 1, "srv", 3), queued},
			"srv(1)", []string{"1/3:1", "7/3:1"},
		},
		{
			"the first of those that its owner has left it to",
			[]look{holds(listen, "L", 8, "worker", 3), holds(listen, "L", 7, "worker", 3), queued},
			"worker(7)", []string{"7/3:1", "8/3:1"},
		},
		{"nobody who can be seen", []look{bare(listen, "L"), queued}, "(0)", nil},
		{"nobody, if the scan did not find it", []look{queued}, "(0)", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStory(t, Filter{})
			s.step(listen, "C>L", by(1, "srv"))
			s.wait(server)
			s.pass(minute)
			s.scan(tt.rows...)
			s.finds("#1 close_wait_leak open warning " + tt.want + " n=1 oldest=60000 not_accepted")
			e := &s.found().Evidence
			var got []string
			for _, h := range e.Listeners {
				got = append(got, fmt.Sprintf("%d/%d:%x", h.Pid, h.Fd, h.Cookie))
			}
			if !slices.Equal(got, tt.listeners) {
				t.Errorf("listeners: got %v, want %v", got, tt.listeners)
			}
			// It has no descriptor because it is not accepted; that is no news.
			if e.Unread != 10 || e.NoDescriptor != 0 {
				t.Errorf("got %d bytes unread, %d without descriptor; want 10, 0", e.Unread, e.NoDescriptor)
			}
		})
	}
}

// Where the kernel gives no cookies, a socket has one from when somebody asks for it, as ss
// does of all that it lists.
func TestAListenerMayGetItsCookieLater(t *testing.T) {
	s := newStory(t, Filter{})
	before := listen
	before.cookie = 0
	s.step(before, "C>L", by(1, "srv"))
	s.step(server, "L>SR", from(listen.addr))
	s.step(server, "SR>E")
	s.step(server, "E>CW", with(events.Done), shut(1), unread(1))
	s.pass(minute)
	rows := []look{holds(listen, "L", 1, "srv", 3), bare(server, "CW", unaccepted, unread(11))}
	s.scan(rows...)
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=60000 not_accepted")
	if got := s.found().Evidence.Listeners; len(got) != 1 || got[0].Cookie != listen.cookie {
		t.Errorf("listeners: got %v, want the cookie %x", got, listen.cookie)
	}
	s.said = nil
	s.wait(nth(1)) // which names it by the cookie
	s.pass(minute)
	s.scan(append(rows, bare(nth(1), "CW", unaccepted, unread(1)))...)
	s.finds("#1 close_wait_leak update warning srv(1) n=2 oldest=120000 not_accepted")
}

// A listener that is closed takes its queue with it, unless net.ipv4.tcp_migrate_req
// hands it to another listener; and one that was there before may not be known.
func TestASocketWhoseListenerIsNotKnownAccusesNobody(t *testing.T) {
	for name, before := range map[string]func(*story){
		"closed": func(s *story) {
			s.step(listen, "C>L", by(1, "srv"))
			s.wait(server)
			s.step(listen, "L>C", by(1, "srv"), shut(3))
			s.destroy(listen)
		},
		"never seen": func(s *story) { s.wait(server) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory(t, Filter{})
			before(s)
			s.pass(minute)
			s.scan(bare(server, "CW", unaccepted, unread(1)))
			s.finds("#1 close_wait_leak open warning (0) n=1 oldest=60000 not_accepted")
		})
	}
}

func TestAHalfClosedSocketThatSendsIsInUse(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 1, "srv", 4, unsent(10_000)))
	s.pass(minute - 10_001)
	s.scan(holds(server, "CW", 1, "srv", 4, unsent(minute-1)))
	s.finds()
	// Idle from then on.
	s.pass(1)
	s.scan(holds(server, "CW", 1, "srv", 4, unsent(minute)))
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=110000 eof_read 1/4:5")
}

// The peer takes nothing: its window is zero, or it is slow. The process has to
// wait, however long.
func TestAHalfClosedSocketWithDataThatThePeerHasNotTakenIsInUse(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	for range 10 {
		s.scan(holds(server, "CW", 1, "srv", 4, queued(1)))
		s.pass(minute)
	}
	s.scan(holds(server, "CW", 1, "srv", 4, queued(1)))
	s.pass(minute - 1)
	s.scan(holds(server, "CW", 1, "srv", 4))
	s.finds()
	s.pass(1)
	s.scan(holds(server, "CW", 1, "srv", 4))
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=720000 eof_read 1/4:5")
}

func TestAHalfClosedSocketThatIsStillReadIsInUse(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute / 2)
	s.scan(holds(server, "CW", 1, "srv", 4, unread(2001)))
	s.pass(minute / 2)
	s.scan(holds(server, "CW", 1, "srv", 4, unread(1001)))
	s.pass(2000)
	s.scan(holds(server, "CW", 1, "srv", 4, unread(501)))
	for range 29 {
		s.pass(2000)
		s.scan(holds(server, "CW", 1, "srv", 4, unread(501)))
	}
	s.finds()
	s.pass(2000)
	s.scan(holds(server, "CW", 1, "srv", 4, unread(501)))
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=122000 eof_unread 1/4:5")
}

func TestALeakThatIsUsedAgainIsResolved(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 1, "srv", 4, unread(1001)))
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=60000 eof_unread 1/4:5")
	s.pass(2000)
	s.scan(holds(server, "CW", 1, "srv", 4, unread(501)))
	s.finds("#1 close_wait_leak resolved warning srv(1) n=0 oldest=?")
}

func TestAProcessHasOneFindingHoweverManySockets(t *testing.T) {
	s := newStory(t, Filter{})
	rows := []look{}
	for n, pid := range []uint32{1, 2, 1, 1} {
		s.leave(nth(n), pid, "srv")
		rows = append(rows, holds(nth(n), "CW", pid, "srv", int32(n+4)))
		s.pass(1)
	}
	s.pass(minute)
	s.scan(rows...)
	s.finds(
		"#1 close_wait_leak open warning srv(1) n=3 oldest=60004 eof_read 1/4:500 1/6:502 1/7:503",
		"#2 close_wait_leak open warning srv(2) n=1 oldest=60003 eof_read 2/5:501",
	)
	f := s.findings[0].Evidence.Ends
	if want := (CommonEnds{Lport: 80, Raddr: s.event(server, 0).Raddr}); f != want {
		t.Errorf("what its sockets have in common: got %+v, want %+v: the remote ports differ", f, want)
	}
	if got, want := s.findings[1].Evidence.Ends.Rport, nth(1).rport; got != want {
		t.Errorf("the remote port of the only one: got %d, want %d", got, want)
	}
}

func TestTheVerdictOfAFindingIsThatOfMostOfItsSockets(t *testing.T) {
	s := newStory(t, Filter{})
	s.step(listen, "C>L", by(1, "srv"))
	for n := range 5 {
		s.leave(nth(n), 1, "srv")
	}
	s.wait(nth(5))
	s.pass(minute)
	s.scan(
		holds(listen, "L", 1, "srv", 3),
		holds(nth(0), "CW", 1, "srv", 4),
		holds(nth(1), "CW", 1, "srv", 5, unread(3)),
		holds(nth(2), "CW", 1, "srv", 6, unread(4)),
		holds(nth(3), "CW", 1, "srv", 7, unread(1)),
		holds(nth(4), "CW", 1, "srv", 8),
		bare(nth(5), "CW", unaccepted, unread(101)),
	)
	s.finds("#1 close_wait_leak open warning srv(1) n=6 oldest=60000 eof_unread 1/4:500 1/5:501 1/6:502 1/7:503 1/8:504")
	f := s.found()
	want := [numVerdicts]int{EOFRead: 2, EOFUnread: 3, NotAccepted: 1}
	if f.Evidence.Verdicts != want || f.Evidence.Unread != 2+3+100 {
		t.Errorf("got %v, %d bytes unread; want %v, 105", f.Evidence.Verdicts, f.Evidence.Unread, want)
	}
	for _, part := range []string{"srv[1]", "6 connections", "(2)", "(3)", "(1)", "1m0s"} {
		if !strings.Contains(f.Message, part) {
			t.Errorf("message: got %q, want %q in it", f.Message, part)
		}
	}
}

// fork() leaves the descriptor with both.
func TestAnInheritedSocketIsItsOwnersAsLongAsThatHoldsIt(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 10, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 9, "child", 4), holds(server, "CW", 10, "srv", 4))
	s.finds("#1 close_wait_leak open warning srv(10) n=1 oldest=60000 eof_read 9/4:5 10/4:5")
}

func TestASocketThatOnlyTheChildHoldsIsTheChilds(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 10, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 12, "child", 4), holds(server, "CW", 11, "child", 4))
	s.finds("#1 close_wait_leak open warning child(11) n=1 oldest=60000 eof_read 11/4:5 12/4:5")
	s.checkHistory(10, 0, 0, 0)
	s.checkHistory(11, 1, 0, 1)
	s.closes(server, 11, "child")
	s.tells("5 child(11,fd) CW>LA 60000")
}

func TestSixteenHoldersAreListedThoseOfTheOldestSocketsFirst(t *testing.T) {
	s := newStory(t, Filter{})
	var rows []look
	for n := range 20 {
		s.leave(nth(n), 1, "srv")
		rows = append([]look{holds(nth(n), "CW", 1, "srv", int32(n))}, rows...) // in any order
		s.pass(1)
	}
	s.pass(minute)
	s.scan(rows...)
	f := s.found()
	if len(f.Holders) != 16 || f.Count != 20 {
		t.Fatalf("got %d holders, count %d; want 16, 20", len(f.Holders), f.Count)
	}
	for n, h := range f.Holders {
		if h.Cookie != nth(n).cookie {
			t.Errorf("holder %d: got socket %x, want %x", n, h.Cookie, nth(n).cookie)
		}
	}
}

// A descriptor in flight over a Unix socket, one registered with io_uring.
func TestASocketWithoutADescriptorAccusesNobody(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(bare(server, "CW"))
	s.finds("#1 close_wait_leak open warning (0) n=1 oldest=60000 eof_read")
	f := s.found()
	if f.Evidence.NoDescriptor != 1 {
		t.Errorf("without descriptor: got %d, want 1", f.Evidence.NoDescriptor)
	}
	if !strings.Contains(f.Message, "no visible process") {
		t.Errorf("message: got %q, want it to say that no visible process has it", f.Message)
	}
}

// NFS, SMC, the subflows of MPTCP: there is nobody who could call close().
func TestASocketOfTheKernelIsNoLeak(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 0, "")
	s.pass(minute)
	s.scan(bare(server, "CW", kernels))
	s.finds()
}

func TestAFilterByProcessTellsOnlyItsOwnLeaks(t *testing.T) {
	s := newStory(t, pids(2))
	s.leave(nth(1), 1, "srv")
	s.leave(nth(2), 2, "srv")
	s.pass(minute)
	s.scan(holds(nth(1), "CW", 1, "srv", 4), holds(nth(2), "CW", 2, "srv", 4))
	s.finds("#1 close_wait_leak open warning srv(2) n=1 oldest=60000 eof_read 2/4:502")
	// One that it is passed later is its from then on.
	s.pass(2000)
	s.scan(holds(nth(1), "CW", 2, "srv", 5), holds(nth(2), "CW", 2, "srv", 4))
	s.finds("#1 close_wait_leak update warning srv(2) n=2 oldest=62000 eof_read 2/5:501 2/4:502")
}

func TestAFilterByPortTellsOnlyTheLeaksOfThatPort(t *testing.T) {
	s := newStory(t, Filter{Lports: []uint16{81}})
	other := nth(2)
	other.lport = 81
	s.leave(nth(1), 1, "srv")
	s.leave(other, 1, "srv")
	s.pass(minute)
	s.scan(holds(nth(1), "CW", 1, "srv", 4), holds(other, "CW", 1, "srv", 5))
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=60000 eof_read 1/5:502")
}
