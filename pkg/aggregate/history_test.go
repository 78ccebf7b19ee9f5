package aggregate

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// process returns what the tracker knows of the process that has this PID now.
func (s *story) process(pid uint32) *process {
	s.t.Helper()
	n, ok := s.tr.procs.byPid[pid]
	if !ok {
		s.t.Fatalf("process %d: not known, want it known", pid)
	}
	return s.tr.procs.all[n]
}

func (s *story) checkHistory(pid uint32, peerClosed, closed uint64, held int) {
	s.t.Helper()
	h := s.process(pid).history
	if h.PeerClosed != peerClosed || h.Closed != closed || h.Held != held {
		s.t.Errorf("process %d: got %d closed by the peer, %d of these closed, %d held; want %d, %d, %d",
			pid, h.PeerClosed, h.Closed, h.Held, peerClosed, closed, held)
	}
}

func TestAProcessIsToldWhatItDidWithWhatItsPeersClosed(t *testing.T) {
	s := newStory(t, Filter{})
	for n := range 3 {
		s.leave(nth(n), 1, "srv")
	}
	s.checkHistory(1, 3, 0, 3)
	s.pass(100)
	s.closes(nth(0), 1, "srv")
	s.checkHistory(1, 3, 1, 2)
	if got := s.process(1).history.FinToClose(0.5); !near(got, 100*time.Millisecond) {
		t.Errorf("the time from FIN to close(): got %v, want 100ms within 3.2%%", got)
	}
	// A reset takes it from the process: that is not closing it.
	s.step(nth(1), "CW>C", with(events.HasSocket|events.Done), failed(32))
	s.checkHistory(1, 3, 1, 1)
	// Nor is an exit.
	s.exits(nth(2), 1, "srv")
	s.checkHistory(1, 3, 1, 0)
	// And what the process closes first is another story.
	s.step(nth(3), "L>SR")
	s.step(nth(3), "SR>E")
	s.accept(nth(3), 1, "srv")
	s.step(nth(3), "E>F1", by(1, "srv"), shut(3))
	s.checkHistory(1, 3, 1, 0)
}

// close() with unread data, or with SO_LINGER 0, makes CW>C: it is a close() too.
func TestACloseThatResetsIsAClose(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(100)
	s.step(server, "CW>C", by(1, "srv"), with(events.HasSocket|events.Done), shut(3), unread(11))
	s.checkHistory(1, 1, 1, 0)
}

func TestTheHistoryOfASocketFollowsItsOwner(t *testing.T) {
	for _, tt := range []struct {
		name  string
		story func(*story)
		first [3]uint64 // of process 1: peer closed first, closed, held
		then  [3]uint64 // of process 2
	}{
		{
			"accepted after the FIN by another than the listener's owner", func(s *story) {
				s.step(listen, "C>L", by(1, "srv"))
				s.wait(server)
				s.accept(server, 2, "worker")
			},
			[3]uint64{0, 0, 0}, [3]uint64{1, 0, 1},
		},
		{
			"inherited, and held by the child only", func(s *story) {
				s.leave(server, 1, "srv")
				s.pass(minute)
				s.scan(holds(server, "CW", 2, "child", 4))
			},
			[3]uint64{0, 0, 0}, [3]uint64{1, 0, 1},
		},
		{
			"closed by the child", func(s *story) {
				s.leave(server, 1, "srv")
				s.closes(server, 2, "child")
			},
			[3]uint64{0, 0, 0}, [3]uint64{1, 1, 0},
		},
		{
			"closed by its owner", func(s *story) {
				s.leave(server, 1, "srv")
				s.closes(server, 1, "srv")
				s.accept(nth(1), 2, "other") // nothing
				s.leave(nth(2), 2, "other")
			},
			[3]uint64{1, 1, 0}, [3]uint64{1, 0, 1},
		},
		{
			"passed on after its owner shut it down: that it left CLOSE_WAIT was the owner's doing", func(s *story) {
				s.leave(server, 1, "srv")
				s.closes(server, 1, "srv")
				s.step(server, "LA>LA", by(2, "child"), shut(3), with(events.HasSocket|events.Done))
				s.step(server, "LA>C", with(orphan|events.Done), shut(3))
				s.destroy(server)
				s.leave(nth(2), 2, "child")
			},
			[3]uint64{1, 1, 0}, [3]uint64{1, 0, 1},
		},
		{
			"destroyed while both had sockets in CLOSE_WAIT, the end missed", func(s *story) {
				s.leave(server, 1, "srv")
				s.leave(nth(1), 2, "other")
				s.destroy(server)
			},
			[3]uint64{1, 0, 0}, [3]uint64{1, 0, 1},
		},
	} {
		s := newStory(t, Filter{})
		s.details(events.Details{Pid: 1})
		s.details(events.Details{Pid: 2})
		tt.story(s)
		for n, want := range [][3]uint64{tt.first, tt.then} {
			h := s.process(uint32(n + 1)).history
			if got := [3]uint64{h.PeerClosed, h.Closed, uint64(h.Held)}; got != want {
				t.Errorf("%s: process %d: got closed by the peer, closed, held %v; want %v", tt.name, n+1, got, want)
			}
		}
		audit(t, s.tr)
	}
}

func TestOneSocketOfWhichTransitionsAreMissedLeavesItsHistoryInOrder(t *testing.T) {
	for _, steps := range []string{"CW>LA LA>C", "LA>C", "CW>C", "L>SR SR>E E>CW", "C>SS SS>E", "F1>F2", "E>CW"} {
		s := newStory(t, Filter{})
		s.leave(server, 1, "srv")
		s.pass(100)
		s.steps(server, steps, with(events.HasSocket|events.Done))
		audit(t, s.tr)
		s.destroy(server)
		audit(t, s.tr)
		if held := s.process(1).history.Held; held != 0 {
			t.Errorf("%s, and destroyed: process 1 holds %d, want 0", steps, held)
		}
	}
}

// near reports whether got is within half a bucket of want, which is cut to
// microseconds.
func near(got, want time.Duration) bool {
	want = want.Truncate(time.Microsecond)
	return (got - want).Abs() <= time.Duration(0.032*float64(want))
}

func TestQuantilesAreThoseOfASortedListToThreePercent(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 5))
	for _, tt := range []struct {
		name string
		n    int
		draw func() time.Duration
	}{
		{"one", 1, func() time.Duration { return 1234567 * time.Microsecond }},
		{"two far apart", 2, func() time.Duration { return time.Duration(1+rng.IntN(2)*1_000_000) * time.Millisecond }},
		{"a few", 7, func() time.Duration { return time.Duration(rng.Int64N(int64(time.Second))) }},
		{"all the same", 1000, func() time.Duration { return time.Hour }},
		{"nothing but zeros", 50, func() time.Duration { return 0 }},
		{"microseconds", 1000, func() time.Duration { return time.Duration(rng.Int64N(64_000)) }},
		{"evenly up to a minute", 10_000, func() time.Duration { return time.Duration(rng.Int64N(int64(time.Minute))) }},
		{"over nine decades", 10_000, func() time.Duration { return time.Microsecond << rng.IntN(40) }},
		{"mostly short, some for a month", 10_000, func() time.Duration {
			if rng.IntN(50) == 0 {
				return 30 * 24 * time.Hour
			}
			return time.Duration(rng.Int64N(int64(time.Millisecond)))
		}},
	} {
		var h History
		var all []time.Duration
		for range tt.n {
			d := tt.draw()
			h.closed(d)
			all = append(all, d)
		}
		slices.Sort(all)
		for _, q := range []float64{0, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1} {
			// Between two neighbours, either is the quantile.
			k := min(int(q*float64(tt.n)), tt.n-1)
			low, high := all[max(k-1, 0)], all[k]
			if got := h.FinToClose(q); !near(got, low) && !near(got, high) {
				t.Errorf("%s, %g: got %v, want %v or %v within 3.2%%", tt.name, q, got, low, high)
			}
		}
		if h.Closed != uint64(tt.n) {
			t.Errorf("%s: got %d closed, want %d", tt.name, h.Closed, tt.n)
		}
	}
}

func TestATimeThatIsNotKnownIsInNoQuantile(t *testing.T) {
	var h History
	h.closed(Unknown)
	if got := h.FinToClose(0.5); got != Unknown || h.Closed != 1 {
		t.Errorf("got %v of %d, want unknown of 1", got, h.Closed)
	}
	h.closed(time.Second)
	h.closed(Unknown)
	if got := h.FinToClose(0.5); !near(got, time.Second) || h.Closed != 3 {
		t.Errorf("got %v of %d, want 1s of 3", got, h.Closed)
	}
}

func TestATimeBeyondTheLastBucketIsCountedAsThat(t *testing.T) {
	var h History
	h.closed(1<<63 - 1) // 292 years
	if got := h.FinToClose(0.5); got < 182*24*time.Hour {
		t.Errorf("got %v, want half a year at the least", got)
	}
}
