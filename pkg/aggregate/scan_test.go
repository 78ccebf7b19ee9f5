package aggregate

import (
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

func TestEachDescriptorIsListedOnce(t *testing.T) {
	for _, tt := range []struct {
		name string
		fds  [][2]int // PID and descriptor, in the order of the scan
		want string
	}{
		{"duplicated by dup()", [][2]int{{1, 4}, {1, 7}}, "1/4:5 1/7:5"},
		// Threads that do not share their descriptors with the leader are walked
		// one by one.
		{"seen once for each thread", [][2]int{{1, 4}, {1, 7}, {1, 4}, {1, 7}}, "1/4:5 1/7:5"},
		// The scan goes by thread ID, and a child's may lie between two threads'.
		{"seen again after those of a child", [][2]int{{1, 4}, {2, 4}, {1, 4}}, "1/4:5 2/4:5"},
	} {
		rows := func() (rows []look) {
			for _, fd := range tt.fds {
				rows = append(rows, holds(server, "CW", uint32(fd[0]), "srv", int32(fd[1]), quiet(minute)))
			}
			return rows
		}()
		s := newStory(t, Filter{})
		s.leave(server, 1, "srv")
		s.pass(minute)
		s.scan(rows...)
		if got := s.lines(" eof_read "); len(got) != 1 || !strings.HasSuffix(got[0], " eof_read "+tt.want) {
			t.Errorf("%s: got %q, want holders %s", tt.name, got, tt.want)
		}

		first := &story{t: t, ms: 100_000}
		first.tr = NewTracker(first, &Filter{}, 10, thresholds(time.Minute))
		first.scan(rows...)
		want := "age=60000 " + strings.ReplaceAll(tt.want, ":5", "") + " eof_read"
		if got := first.lines(" socket "); len(got) != 1 || !strings.HasSuffix(got[0], want) {
			t.Errorf("%s: the socket record: got %q, want %s at its end", tt.name, got, want)
		}
	}
}

// The iterator over all sockets shows those again that a process holds.
func TestASocketThatIsFoundTwiceIsCountedOnce(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 1, "srv", 4), bare(server, "CW"))
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=60000 eof_read 1/4:5")
	if got := s.found().Evidence.NoDescriptor; got != 0 {
		t.Errorf("without descriptor: got %d, want 0", got)
	}
}

// What a scan does not find may have gone while it was under way: what is known of
// it stands until more is known.
func TestASocketThatTwoCompleteScansDoNotFindIsGone(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	row := holds(server, "CW", 1, "srv", 4)
	s.scan(row)
	s.said = nil

	for range 5 { // not every namespace could be entered
		s.pass(2000)
		s.scanned(false)
	}
	s.pass(2000)
	s.scan()
	s.pass(2000)
	s.scan(row) // there it is again: two in a row it takes
	s.pass(2000)
	s.scan()
	s.tells()
	if got := s.tr.Counts().Tracked; got != 1 {
		t.Fatalf("tracks %d sockets, want 1", got)
	}

	s.pass(2000)
	s.scan()
	s.tells(
		"5 srv(1,accept) connection role=server life=? closer=remote end= call= E=0 SR=0 CW=? gap",
		"#1 close_wait_leak resolved warning srv(1) n=0 oldest=?",
	)
	if c := s.tr.Counts(); c.Tracked != 0 || c.Missed != 1 {
		t.Errorf("got %+v, want 0 tracked, 1 missed", c)
	}
	s.checkHistory(1, 1, 0, 0)
}

func TestALateSocketThatNoScanEverFindsIsGoneToo(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan()
	if got := s.tr.Counts().Tracked; got != 1 {
		t.Errorf("after one scan: tracks %d sockets, want 1", got)
	}
	s.pass(2000)
	s.scan()
	if got := s.tr.Counts().Tracked; got != 0 {
		t.Errorf("after two: tracks %d sockets, want 0", got)
	}
	s.finds()
}

// Whether it is there at all must be looked up by other means than descriptors.
func TestTheNamespacesOfLateSocketsThatAreNotFoundAreWanted(t *testing.T) {
	s := newStory(t, Filter{})
	blue, dead := nth(1), nth(2)
	blue.netns, dead.netns = 4026, 4027
	s.leave(server, 1, "srv")
	s.leave(blue, 1, "srv")
	s.leave(dead, 1, "srv")
	s.step(dead, "CW>C", with(events.HasSocket|events.Done), failed(32)) // in no namespace's tables any more
	if got := s.tr.UnseenIn(); len(got) != 0 {
		t.Errorf("before anything is late: got %v, want none", got)
	}
	s.pass(minute)
	s.tick()
	holds(server, "CW", 1, "srv", 4)(s)
	if got := s.tr.UnseenIn(); len(got) != 1 || !got[4026] {
		t.Errorf("got %v, want namespace 4026 only", got)
	}
	bare(blue, "CW")(s)
	if got := s.tr.UnseenIn(); len(got) != 0 {
		t.Errorf("once it is found: got %v, want none", got)
	}
}

func TestSocketsThatWereThereBeforeAreJudgedByTheFirstScan(t *testing.T) {
	s := &story{t: t, ms: 500_000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	s.tick()
	s.scan(
		holds(nth(0), "CW", 1, "srv", 4, quiet(minute)),
		holds(nth(1), "CW", 1, "srv", 5, quiet(minute-1000)),
		holds(nth(2), "CW", 1, "srv", 6, quiet(2*minute), unread(5)),
		holds(nth(3), "CW", 1, "srv", 7), // its age is not known
		holds(nth(4), "CW", 1, "srv", 8, quiet(3*minute), unsent(1000)),
	)
	s.finds("#1 close_wait_leak open warning srv(1) n=2 oldest=120000 eof_read 1/6:502 1/4:500")
	if f := s.found(); f.Evidence.Exact || !strings.Contains(f.Message, "at least") {
		t.Errorf("got %+v, want an age that is a lower bound", f)
	}

	// The others, when their time is up.
	s.pass(1000)
	s.tick()
	if got := s.tr.WantScan(); got != WantSuspects {
		t.Errorf("a second later: wants scan %d, want %d", got, WantSuspects)
	}
	at := func(since float64) {
		s.scan(
			holds(nth(0), "CW", 1, "srv", 4), holds(nth(1), "CW", 1, "srv", 5), holds(nth(2), "CW", 1, "srv", 6, unread(5)),
			holds(nth(3), "CW", 1, "srv", 7), holds(nth(4), "CW", 1, "srv", 8, unsent(since)),
		)
	}
	at(2000)
	s.finds() // three are not twice two
	s.pass(minute - 3000)
	at(minute - 1000)
	s.finds()
	s.pass(1000)
	at(minute)
	s.finds("#1 close_wait_leak update warning srv(1) n=4 oldest=239000 eof_read 1/8:504 1/6:502 1/4:500 1/5:501")
	s.pass(1000)
	at(minute + 1000)
	s.finds()
	for range 2 * 4 * 60 { // until the age has doubled again
		s.pass(500)
		at(2 * minute)
	}
	s.finds("#1 close_wait_leak update warning srv(1) n=5 oldest=478000 eof_read 1/8:504 1/6:502 1/4:500 1/5:501 1/7:503")
}

// The kernel tells nothing but the address that ties them to their listener.
func TestSocketsThatWaitedBeforeAreTheirListeners(t *testing.T) {
	other := listen
	other.addr, other.cookie = 0x11, 0x2
	queued := bare(server, "CW", unaccepted, unread(1), quiet(minute))
	for _, tt := range []struct {
		name string
		rows []look
		want string
	}{
		{"one listener", []look{holds(listen, "L", 1, "srv", 3), queued}, "srv(1)"},
		{"two that share the port, of one process", []look{holds(listen, "L", 1, "srv", 3), holds(other, "L", 1, "srv", 4), queued}, "srv(1)"},
		{"two that share the port, of two processes", []look{holds(listen, "L", 1, "srv", 3), holds(other, "L", 2, "srv", 4), queued}, "(0)"},
		{"none", []look{queued}, "(0)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &story{t: t, ms: 500_000}
			s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
			s.tick()
			s.scan(tt.rows...)
			s.finds("#1 close_wait_leak open warning " + tt.want + " n=1 oldest=60000 not_accepted")
		})
	}
}

// The event was lost; the scan tells all the same.
func TestARowInCloseWaitThatNoEventToldIsBelieved(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(server, "L>SR SR>E", from(listen.cookie))
	s.accept(server, 1, "srv")
	s.said = nil
	s.pass(100_000)
	s.scan(holds(server, "CW", 1, "srv", 4, quiet(70_000)))
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=70000 eof_read 1/4:5")
	if s.found().Evidence.Exact {
		t.Error("its age: got an exact one, want a lower bound")
	}
	if got := s.tr.Counts().Missed; got != 1 {
		t.Errorf("missed %d, want 1", got)
	}
	s.checkHistory(1, 1, 0, 1)
	s.pass(1)
	s.closes(server, 1, "srv")
	s.pass(1)
	s.step(server, "LA>C", with(orphan|events.Done), shut(3))
	s.tells(
		"5 srv(1,accept) CW>LA ? gap",
		"5 srv(1,accept) LA>C 1",
		"5 srv(1,accept) connection role=server life=100004 closer=remote end=fin call=close E=? SR=1 CW=? LA=1 gap",
	)
	// How long it took is not known, but that it was closed is.
	s.checkHistory(1, 1, 1, 0)
	if got := s.process(1).history.FinToClose(0.5); got != Unknown {
		t.Errorf("the time from FIN to close(): got %v, want it unknown", got)
	}
}

func TestARowThatIsDeadAndThatNoEventToldIsBelieved(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(server, "L>SR SR>E", from(listen.cookie))
	s.accept(server, 1, "srv")
	s.said = nil
	s.pass(100_000)
	s.scan(holds(server, "C", 1, "srv", 4, quiet(70_000)))
	s.tells(
		"5 srv(1,accept) connection role=server life=? closer= end= call= E=? SR=1 gap",
		"#1 reset_fd_leak open warning srv(1) n=1 oldest=70000 1/4:5",
	)
	if e := s.found().Evidence; e.Ended != [numEnds]int{EndUnknown: 1} || e.Exact {
		t.Errorf("got ended %v, exact %v; want one of unknown end, a lower bound", e.Ended, e.Exact)
	}
}

// shutdown() with its event lost. A scan for owners shows sockets in every state.
func TestASocketThatARowShowsInAnotherStateIsNoLeak(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(holds(server, "LA", 1, "srv", 4))
	s.finds()
}

// Two CPUs hand over not quite in the order of time: the event may be on its way.
func TestARowThatComesShortlyBeforeItsEventIsNoGap(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(server, "L>SR SR>E", from(listen.cookie))
	s.accept(server, 1, "srv")
	s.pass(5)
	holds(server, "CW", 1, "srv", 4, quiet(4))(s)
	s.said = nil
	s.step(server, "E>CW", with(events.HasSocket|events.Done))
	s.tells("5 srv(1,accept) E>CW 6")
	if got := s.tr.Counts().Missed; got != 0 {
		t.Errorf("missed %d, want 0", got)
	}
}

// What an unknown socket that a later scan finds has done will be told by events
// that are still to be read.
func TestALaterScanBringsInNoNewSockets(t *testing.T) {
	s := newStory(t, Filter{})
	s.pass(100_000)
	s.scan(holds(server, "CW", 1, "srv", 4, quiet(70_000)))
	s.tells()
	if got := s.tr.Counts().Tracked; got != 0 {
		t.Errorf("tracks %d sockets, want 0", got)
	}
}

// Suspects wait in the order in which they were told of, and this one is told late.
func TestASocketWhoseEventWasMissedDoesNotWaitForYoungerOnes(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(server, "L>SR SR>E", from(listen.cookie))
	s.accept(server, 1, "srv")
	s.pass(100_000)
	s.leave(nth(1), 1, "srv")
	s.pass(1000)
	s.said = nil
	s.scan(holds(server, "CW", 1, "srv", 4, quiet(70_000)), holds(nth(1), "CW", 1, "srv", 5))
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=70000 eof_read 1/4:5")
}
