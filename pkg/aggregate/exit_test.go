package aggregate

import (
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// settle lets as much time pass as it takes until nothing more is expected of an
// exit.
func (s *story) settle() {
	s.pass(200)
	s.tick()
}

func TestWhatOnlyAnExitHasClosedWasNeverClosed(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.exits(server, 1, "srv")
	s.pass(199)
	s.tick()
	s.finds() // another may follow
	s.pass(1)
	s.tick()
	s.finds("#1 never_closed open warning srv(1) n=1 oldest=60000")
	f := s.found()
	if want := [numVerdicts]int{EOFRead: 1}; f.Evidence.Verdicts != want || !f.Evidence.Exact {
		t.Errorf("got %v, exact %v; want %v, exact", f.Evidence.Verdicts, f.Evidence.Exact, want)
	}
	if h := f.Evidence.History; h == nil || h.PeerClosed != 1 || h.Closed != 0 || h.Held != 0 {
		t.Errorf("got history %+v, want 1 closed by the peer, none closed, none held", h)
	}
	// It is about the past: it is never resolved, nor told again.
	s.step(server, "LA>C", with(orphan|events.Done), shut(3))
	s.destroy(server)
	s.pass(10 * minute)
	s.tick()
	s.finds()
	auditEmpty(t, s.tr)
}

// Whoever ends the run has no 200 ms to wait.
func TestAnExitAtTheEndOfTheRunIsTold(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.exits(server, 1, "srv")
	s.tick()
	s.tr.Finish()
	s.tr.Finish()
	s.finds("#1 never_closed open warning srv(1) n=1 oldest=60000")
}

func TestAnExitSoonAfterThePeerHasClosedIsAWayToClose(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute - 1)
	s.exits(server, 1, "srv")
	s.settle()
	s.finds()
}

func TestACloseIsNoExit(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.closes(server, 1, "srv")
	s.settle()
	s.finds()
}

// close() by the exit resets the connection if there is unread data.
func TestAnExitThatResetsIsAnExit(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.step(server, "CW>C", by(1, "srv"), with(events.HasSocket|events.Done|events.Exiting), shut(3), unread(11))
	s.settle()
	s.finds("#1 never_closed open warning srv(1) n=1 oldest=60000")
	e := s.found().Evidence
	if want := [numVerdicts]int{EOFUnread: 1}; e.Verdicts != want || e.Unread != 10 {
		t.Errorf("got %v, %d bytes unread; want %v, 10", e.Verdicts, e.Unread, want)
	}
}

func TestAnExitIsToldOnceWithAllItsSockets(t *testing.T) {
	s := newStory(t, Filter{})
	for n := range 3 {
		s.leave(nth(n), 1, "srv")
		s.pass(1000)
	}
	s.leave(nth(3), 2, "other")
	s.pass(minute)
	s.exits(nth(1), 1, "srv", unread(3))
	s.pass(150)
	s.tick()
	s.exits(nth(2), 1, "srv")
	s.exits(nth(3), 2, "other")
	s.pass(150)
	s.tick()
	s.exits(nth(0), 1, "srv", unread(1))
	s.pass(50)
	s.tick()
	s.finds("#1 never_closed open warning other(2) n=1 oldest=60150")
	s.pass(149)
	s.tick()
	s.finds()
	s.pass(1)
	s.tick()
	s.finds("#2 never_closed open warning srv(1) n=3 oldest=63300")
	f := s.found()
	if want := [numVerdicts]int{EOFRead: 1, EOFUnread: 2}; f.Evidence.Verdicts != want || f.Evidence.Unread != 2 {
		t.Errorf("got %v, %d bytes unread; want %v, 2", f.Evidence.Verdicts, f.Evidence.Unread, want)
	}
	if e := f.Evidence.Ends; e.Lport != 80 || e.Rport != 0 || e.Raddr.IsUnspecified() {
		t.Errorf("got %+v, want port 80, one peer, several of its ports", e)
	}
}

// It was cut off, not left behind.
func TestASocketInUseThatAnExitClosesIsNoLeak(t *testing.T) {
	for _, tt := range []struct {
		name  string
		story func(*story)
		want  int
	}{
		{"has sent since the FIN", func(s *story) {
			s.leave(server, 1, "srv", sent(100))
			s.pass(minute)
			s.exits(server, 1, "srv", sent(101))
		}, 0},
		{"has sent only before", func(s *story) {
			s.leave(server, 1, "srv", sent(100))
			s.pass(minute)
			s.exits(server, 1, "srv", sent(100))
		}, 1},
		{"has sent less than a minute ago, a scan says", func(s *story) {
			s.leave(server, 1, "srv", sent(100))
			s.pass(minute / 2)
			s.scan(holds(server, "CW", 1, "srv", 4, sent(200), unsent(1000)))
			s.pass(minute / 2)
			s.exits(server, 1, "srv", sent(200))
		}, 0},
		{"has sent more than a minute ago, a scan says", func(s *story) {
			s.leave(server, 1, "srv", sent(100))
			s.pass(minute / 2)
			s.scan(holds(server, "CW", 1, "srv", 4, sent(200), unsent(1000)))
			s.pass(minute - 1000)
			s.exits(server, 1, "srv", sent(200))
		}, 1},
		{"was being read less than a minute ago, a scan says", func(s *story) {
			s.leave(server, 1, "srv")
			s.pass(minute / 4)
			s.scan(holds(server, "CW", 1, "srv", 4, unread(1001)))
			s.pass(minute / 4)
			s.scan(holds(server, "CW", 1, "srv", 4, unread(501)))
			s.pass(minute / 2)
			s.exits(server, 1, "srv", unread(501))
		}, 0},
	} {
		s := newStory(t, Filter{})
		tt.story(s)
		s.said = nil
		s.settle()
		if got := s.lines(" never_closed "); len(got) != tt.want {
			t.Errorf("%s: got %q, want %d", tt.name, got, tt.want)
		}
	}
}

// A listener that is closed resets what waits in its queue: that happens after it,
// in the same exit, and shows only that nobody had accepted it.
func TestWhatNobodyHadAcceptedAtAnExitWasNeverClosed(t *testing.T) {
	story := func(opts ...func(*events.Event)) *story {
		s := newStory(t, Filter{})
		s.step(listen, "C>L", by(1, "srv"))
		s.wait(nth(0))
		s.step(nth(1), "L>SR", from(listen.cookie)) // its peer has not closed
		s.step(nth(1), "SR>E")
		s.pass(minute - 1000)
		s.wait(nth(2)) // late
		s.pass(1000)
		s.step(listen, "L>C", append([]func(*events.Event){by(1, "srv"), with(events.HasSocket), shut(3)}, opts...)...)
		s.step(nth(0), "CW>C", with(events.Done), shut(1), unread(5))
		s.step(nth(1), "E>C")
		s.step(nth(2), "CW>C", with(events.Done), shut(1), unread(5))
		for n := range 3 {
			s.destroy(nth(n))
		}
		s.destroy(listen)
		s.settle()
		return s
	}
	s := story(with(events.Exiting))
	s.finds("#1 never_closed open warning srv(1) n=1 oldest=60000")
	e := s.found().Evidence
	if want := [numVerdicts]int{NotAccepted: 1}; e.Verdicts != want || e.Unread != 4 {
		t.Errorf("got %v, %d bytes unread; want %v, 4", e.Verdicts, e.Unread, want)
	}
	auditEmpty(t, s.tr)

	story().finds() // the process has closed its listener and lives on
}

// The leak and the exit are two stories: one is over, the other is about the past.
func TestALeakThatEndsWithTheProcessIsResolvedAndNeverClosed(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 1, "srv", 4))
	s.said = nil
	s.exits(server, 1, "srv")
	s.tick()
	s.finds("#1 close_wait_leak resolved warning srv(1) n=0 oldest=?")
	s.settle()
	s.finds("#2 never_closed open warning srv(1) n=1 oldest=60000")
}

// A child that inherited the descriptor and is killed: it never called close().
func TestAnExitIsThatOfWhoHeldItLast(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.exits(server, 7, "child")
	s.settle()
	s.finds("#1 never_closed open warning child(7) n=1 oldest=60000")
}

func TestASocketThatWasThereBeforeAndThatAnExitClosesHasALowerBoundOfAge(t *testing.T) {
	s := &story{t: t, ms: 500_000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	s.tick()
	s.scan(holds(server, "CW", 1, "srv", 4, quiet(minute/2), sent(100)))
	s.pass(minute / 2)
	s.exits(server, 1, "srv", sent(100))
	s.settle()
	s.finds("#1 never_closed open warning srv(1) n=1 oldest=60000")
	if s.found().Evidence.Exact {
		t.Error("got an exact age, want a lower bound")
	}
}

// That the peer had closed comes to light only now; since when, nobody knows.
func TestAnExitIsNoLeakIfNobodyKnowsSinceWhenThePeerHadClosed(t *testing.T) {
	for _, tt := range []struct {
		name  string
		story func(*story)
	}{
		{"the transition into CLOSE_WAIT was missed", func(s *story) {
			s.open(server)
			s.pass(100 * minute)
			s.exits(server, 1, "srv")
		}},
		{"so were all others", func(s *story) {
			s.pass(100 * minute)
			s.exits(server, 1, "srv")
		}},
		{"missed by one that was there before, and quiet", func(s *story) {
			s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
			s.pass(100 * minute)
			s.scan(holds(server, "E", 1, "srv", 4, quiet(90*minute)))
			s.pass(minute)
			s.exits(server, 1, "srv")
		}},
		{"it exits while the first scan is under way", func(s *story) {
			s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
			s.pass(100 * minute)
			s.tick()
			s.exits(server, 1, "srv")
			s.scan()
		}},
	} {
		s := newStory(t, Filter{})
		tt.story(s)
		s.said = nil
		s.settle()
		if got := s.lines("#"); len(got) != 0 {
			t.Errorf("%s: got %q, want nothing", tt.name, got)
		}
	}
}

// Closed by a kworker, or by a process that our PID namespace does not show.
func TestAnExitOfNobodyIsNotTold(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 0, "")
	s.pass(minute)
	s.exits(server, 0, "")
	s.settle()
	s.finds()
}

func TestAFilterTellsOnlyItsOwnExits(t *testing.T) {
	s := newStory(t, pids(2))
	s.leave(nth(1), 1, "srv")
	s.leave(nth(2), 2, "srv")
	s.pass(minute)
	s.exits(nth(1), 1, "srv")
	s.exits(nth(2), 2, "srv")
	s.settle()
	s.finds("#1 never_closed open warning srv(2) n=1 oldest=60000")
}

func TestAnExitForWhichTheOutputHasNoRoomIsToldLater(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.exits(server, 1, "srv")
	s.refu = true
	s.settle()
	s.settle()
	s.refu = false
	s.tick()
	s.tick()
	s.finds("#1 never_closed open warning srv(1) n=1 oldest=60000")
}

// A PID is given away as soon as its process has been waited for.
func TestAnExitIsThatOfTheOldProcessWhoeverHasItsPidNow(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.exits(server, 1, "srv")
	s.step(server, "LA>C", with(orphan|events.Done), shut(3))
	s.destroy(server)
	s.fork(9, 1, "newcomer")
	s.leave(nth(1), 1, "newcomer")
	s.settle()
	s.finds("#1 never_closed open warning srv(1) n=1 oldest=60000")
	if h := s.found().Evidence.History; h.PeerClosed != 1 || h.Held != 0 {
		t.Errorf("got %+v, want the history of the old process", h)
	}
	s.checkHistory(1, 1, 0, 1)
	audit(t, s.tr)
}
