package aggregate

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// tracked says which of the first n sockets have a place.
func (s *story) tracked(n int) (in []int) {
	for k := range n {
		if s.tr.table.find(nth(k).addr) != 0 {
			in = append(in, k)
		}
	}
	return in
}

func (s *story) keeps(t *testing.T, n int, want ...int) {
	t.Helper()
	if got := s.tracked(n); !slices.Equal(got, want) {
		t.Errorf("got places for %d, want them for %d", got, want)
	}
	audit(t, s.tr)
}

func TestANewSocketTakesThePlaceOfTheOneThatHasBeenIdleLongest(t *testing.T) {
	s := newStory(t, Filter{})
	s.tr.max = 3
	for k := range 3 {
		s.steps(nth(k), "C>SS SS>E", by(2, "cli"))
		s.pass(2000)
	}
	s.step(nth(0), "E>F1", by(2, "cli"), shut(3)) // number 1 is now the one
	s.pass(2000)
	s.said = nil
	s.steps(nth(3), "C>SS SS>E", by(3, "new"))
	s.keeps(t, 4, 0, 2, 3)
	s.pass(2000)
	s.steps(nth(4), "C>SS SS>E", by(3, "new"))
	s.keeps(t, 5, 0, 3, 4)
	if got := s.lines("connection"); len(got) != 0 {
		t.Errorf("got %q, want no connection made up", got)
	}

	// What becomes of it is that of a socket of which something was missed. It was not.
	s.pass(2000)
	s.said = nil
	s.step(nth(1), "E>C", failed(104))
	s.tells(
		"501 - E>C ? gap",
		"501 - connection role= life=? closer= end=reset_received call= E=? gap",
	)
	if c := s.tr.Counts(); c.Evicted != 3 || c.TableFull != 0 || c.Missed != 0 || c.Delivered != 12 || c.Tracked != 3 {
		t.Errorf("got %+v, want 3 evicted, none without a place, none missed, 12 delivered, 3 tracked", c)
	}
}

func TestASocketThatIsInUseKeepsItsPlace(t *testing.T) {
	s := newStory(t, Filter{})
	s.tr.max = 2
	s.steps(nth(0), "C>SS SS>E", by(2, "cli"))
	s.steps(nth(1), "C>SS SS>E", by(2, "cli"))
	s.pass(500)
	s.steps(nth(2), "C>SS SS>E", by(2, "cli"))
	s.keeps(t, 3, 0, 1)
	if c := s.tr.Counts(); c.Evicted != 0 || c.TableFull != 2 {
		t.Errorf("got %+v, want 2 transitions without a place, none evicted", c)
	}
}

// What must not be forgotten: who listens, what may be a leak, what a finding is about.
func TestWhatIsLookedForKeepsItsPlaceHoweverIdle(t *testing.T) {
	silent := func(ev *events.Event) {
		ev.Quiet = uint64(3 * time.Hour)
		ev.Raddr = events.Addr{10: 0xff, 11: 0xff, 12: 10}
	}
	s := newStory(t, Filter{})
	s.pass(4 * 3600_000)
	s.step(nth(0), "C>L", by(1, "srv"))
	s.open(nth(1)) // and its peer closes
	s.step(nth(1), "E>CW", with(events.HasSocket|events.Done))
	s.open(nth(2)) // is reset
	s.step(nth(2), "E>C", failed(104), with(events.HasSocket))
	s.open(nth(3)) // shut down, and the peer does not close
	s.steps(nth(3), "E>F1", by(1, "srv"), shut(2), with(events.HasSocket))
	s.step(nth(3), "F1>F2", with(events.HasSocket))
	s.steps(nth(4), "C>SS SS>E", by(1, "srv"), silent)
	s.steps(nth(5), "C>SS SS>E", by(1, "srv"))
	s.pass(3 * 3600_000)
	s.row(nth(3), "F2", 1, "srv", 6, func(ev *events.Event) { ev.Quiet = uint64(time.Hour) })
	s.row(nth(4), "E", 1, "srv", 7, silent)
	s.row(nth(1), "CW", 1, "srv", 4, unsent(3600e3))
	s.tick()
	s.tr.Scanned(events.Scan{Complete: true, Every: true})
	s.tick()
	kinds := map[Kind]bool{}
	for _, f := range s.tr.findings {
		if f != nil {
			kinds[f.kind] = true
		}
	}
	if !kinds[HalfOpen] || !kinds[FinWait2Stuck] || !kinds[CloseWaitLeak] {
		t.Fatalf("got findings of %v, want a half_open, a fin_wait2_stuck and a close_wait_leak", kinds)
	}
	s.tr.max = 6
	s.steps(nth(6), "C>SS SS>E", by(3, "new"))
	s.keeps(t, 7, 0, 1, 2, 3, 4, 6)
	s.pass(2000)
	s.steps(nth(7), "C>SS SS>E", by(3, "new"))
	s.keeps(t, 8, 0, 1, 2, 3, 4, 7)
	s.pass(500) // all the others must be kept, and this one is not idle
	s.steps(nth(8), "C>SS SS>E", by(3, "new"))
	s.keeps(t, 9, 0, 1, 2, 3, 4, 7)
	if c := s.tr.Counts(); c.Evicted != 2 || c.TableFull != 2 {
		t.Errorf("got %+v, want 2 evicted, 2 transitions without a place", c)
	}
}

// A scan shows that a socket without transitions is in use; and, at the start, for how long
// each has been idle.
func TestAScanShowsWhoIsIdle(t *testing.T) {
	s := &story{t: t, ms: 1e6}
	s.tr = NewTracker(s, &Filter{}, 3, thresholds(time.Minute))
	s.tick()
	for k, idle := range []float64{5000, 50_000, 20_000} {
		s.row(nth(k), "E", 1, "srv", int32(k+3), quiet(idle))
	}
	s.pass(5)
	s.tick()
	s.tr.Scanned(events.Scan{Complete: true, Every: true})
	s.steps(nth(3), "C>SS SS>E", by(3, "new"))
	s.keeps(t, 4, 0, 2, 3) // 1 was idle longest; 2 is next
	s.pass(100_000)
	s.row(nth(2), "E", 1, "srv", 5, quiet(10))
	s.row(nth(0), "E", 1, "srv", 3, quiet(105_000))
	s.tick()
	s.tr.Scanned(events.Scan{Complete: true, Every: true})
	s.steps(nth(4), "C>SS SS>E", by(3, "new"))
	s.keeps(t, 5, 2, 3, 4)
}

// A minisocket takes the place of an idle socket, but not of the one whose story it goes on
// with.
func TestATimeWaitTakesThePlaceOfAnIdleSocket(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.closesFirst(nth(0))
	s.pass(2000)
	s.steps(nth(1), "C>SS SS>E", by(2, "cli"))
	s.pass(2000)
	s.tr.max = 2
	s.said = nil
	s.handsOver(nth(0), "F2>C", "TW", with(orphan|events.Done))
	s.destroy(nth(0))
	s.keeps(t, 2)
	s.pass(timeWait)
	s.ends(mini(nth(0)), "TW", 0, events.WhyOther)
	s.settles()
	got := s.lines("connection")
	if len(got) != 1 || !strings.Contains(got[0], "role=client") || strings.Contains(got[0], "gap") {
		t.Errorf("got %q, want one connection, with its role and no gap", got)
	}
	if c := s.tr.Counts(); c.Evicted != 1 || c.NoPlace != 0 || c.Missed != 0 {
		t.Errorf("got %+v, want 1 evicted, none without a place, none missed", c)
	}
}

// What was held for a filter is counted as not printed when its socket is forgotten.
func TestWhatWasHeldForAForgottenSocketIsCounted(t *testing.T) {
	s := newStory(t, Filter{Pids: []uint32{7}})
	s.tr.max = 1
	s.steps(nth(0), "L>SR SR>E")
	s.pass(2000)
	s.steps(nth(1), "L>SR SR>E")
	if c := s.tr.Counts(); c.Shed != 2 || c.Evicted != 1 || s.tr.heldNow != 2 || len(s.tr.held) != 1 {
		t.Errorf("got %+v, and %d of %d sockets held; want 2 shed, 1 evicted, 2 of 1 held", c, s.tr.heldNow, len(s.tr.held))
	}
}

// Against a model: whoever is forgotten has been idle longest, to a second.
func TestForgettingIsInTheOrderOfTheLastSign(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s := newStory(t, Filter{})
		s.tr.max = 10 + rng.IntN(200)
		last := map[int]float64{} // of those that have a place
		evicted := uint64(0)
		for k := 0; k < 2000; k++ {
			s.pass(rng.ExpFloat64() * 300)
			s.steps(nth(k), "C>SS SS>E", by(2, "cli"))
			if n := s.tr.Counts().Evicted; n != evicted {
				evicted = n
				for was, at := range last {
					if s.tr.table.find(nth(was).addr) != 0 {
						continue
					}
					delete(last, was)
					for other, sign := range last {
						if int(sign/1000) < int(at/1000) {
							t.Fatalf("seed %d: socket %d, whose last sign was at %.0f, was forgotten, and %d was not, at %.0f", seed, was, at, other, sign)
						}
					}
				}
			}
			if s.tr.table.find(nth(k).addr) != 0 {
				last[k] = s.ms
			}
			for other := range last {
				if rng.IntN(100) == 0 {
					s.step(nth(other), "E>E", with(events.HasSocket)) // whatever it is, it is a sign of life
					last[other] = s.ms
				}
			}
			s.said = nil
		}
		if len(last) != s.tr.table.len() || evicted == 0 {
			t.Errorf("seed %d: %d sockets, want %d; %d evicted, want some", seed, s.tr.table.len(), len(last), evicted)
		}
		audit(t, s.tr)
	}
}

// What waits for news must not outgrow the table, however fast sockets come and go.
func TestWhatWaitsIsBoundedByTheTable(t *testing.T) {
	const most = 8
	s := newMiniStory(t, Filter{Pids: []uint32{7}})
	s.tr.max = most
	for k := range 1000 {
		// Nobody accepts it, and it is in use by a process that nothing has told about.
		s.step(nth(k), "L>SR")
		s.step(nth(k), "SR>E", with(events.HasSocket))
		m := mini(nth(k))
		s.begins(m, "F2", 60_000)
		s.ends(m, "F2", 1000, events.WhyUnknown)
		s.step(nth(k), "E>C", failed(104))
		s.destroy(nth(k))
		m.cookie = 0xdead // its address is another's
		s.ends(m, "TW", 0, events.WhyOther)
	}
	for name, ws := range map[string][]waiter{
		"waiting": s.tr.waiting, "ownerless": s.tr.ownerless, "strays": s.tr.strays, "ending": s.tr.ending,
		"orphans": s.tr.orphans, "to be looked at": s.tr.lookAt[0],
	} {
		if name != "orphans" && len(ws) == 0 {
			t.Errorf("%s: got none, want the test to make some", name)
		}
		if len(ws) > waitersPerSocket*most+1 {
			t.Errorf("%s: got %d, want at most %d", name, len(ws), waitersPerSocket*most)
		}
	}
	if n := len(s.tr.starting) + len(s.tr.listeners) + len(s.tr.held); n > 3*most {
		t.Errorf("%d minisockets without their sockets, %d listeners, held for %d; want at most %d of each",
			len(s.tr.starting), len(s.tr.listeners), len(s.tr.held), most)
	}
	audit(t, s.tr)
}

// Undecided records are larger than sockets: all together have a bound of their own.
func TestWhatIsHeldBackHasABound(t *testing.T) {
	s := newStory(t, Filter{Pids: []uint32{7}})
	s.tr.heldNow = maxHeldNow - 1
	s.steps(nth(0), "L>SR SR>E")
	if c := s.tr.Counts(); c.Shed != 1 || len(s.tr.held[s.tr.table.find(nth(0).addr)]) != 1 {
		t.Errorf("got %+v, want 1 held and 1 shed", c)
	}
}

// A rush leaves no memory behind.
func TestAListOfWaitersShrinks(t *testing.T) {
	ws := make([]waiter, 100_000)
	if got := rest(ws, len(ws)-10); len(got) != 10 || cap(got) > 1000 {
		t.Errorf("got %d with place for %d, want 10 with place for not many more", len(got), cap(got))
	}
}

// Of the busiest socket something has come within the last jiffy: the kernel says 0.
func TestABusySocketKeepsItsPlace(t *testing.T) {
	s := newStory(t, Filter{})
	s.tr.max = 2
	s.steps(nth(0), "C>SS SS>E", by(2, "cli")) // busy all the time
	s.pass(2000)
	s.steps(nth(1), "C>SS SS>E", by(2, "cli")) // hears nothing more
	s.pass(600_000)
	s.scan(holds(nth(0), "E", 2, "cli", 3, quiet(0)), holds(nth(1), "E", 2, "cli", 4, quiet(600_000)))
	s.pass(100)
	s.steps(nth(2), "C>SS SS>E", by(3, "new"))
	s.keeps(t, 3, 0, 2)
}

// Minisockets come last in the first scan, and do not push out what it has found before, which is in no order yet.
func TestTheFirstScanForgetsNothingThatItHasFound(t *testing.T) {
	s := &story{t: t, ms: 1e6}
	s.tr = NewTracker(s, &Filter{}, 8, thresholds(time.Minute))
	s.tr.SeesMinisockets(false)
	s.tick()
	for k := range 6 {
		s.row(nth(k), "E", 1, "srv", int32(k+3), quiet(5000))
	}
	for k := range 4 {
		s.mini(mini(nth(100+k)), events.TimeWait, 30*time.Second)
	}
	s.tick()
	s.tr.Scanned(events.Scan{Complete: true, Every: true, All: true, Walked: []uint32{1}})
	if n, c := len(s.lines("socket E")), s.tr.Counts(); n != 6 || c.NoPlace != 2 {
		t.Errorf("%d sockets were told of, %d had no place, want 6 and 2", n, c.NoPlace)
	}
}

// A socket whose beginning nobody saw takes a place as any other does; where it finds none, that is said.
func TestASocketThatALaterScanFindsTakesThePlaceOfAnIdleOne(t *testing.T) {
	for _, idle := range []float64{5000, 10} {
		s := newStory(t, Filter{})
		s.tr.max = 1
		s.steps(nth(0), "C>SS SS>E", by(2, "cli"))
		s.pass(idle)
		for k := range 2 {
			s.row(nth(k), "E", 2, "cli", int32(3+k), quiet(600_000))
		}
		s.tick()
		s.tr.Scanned(events.Scan{Complete: true, Every: true, All: true, Walked: []uint32{1}})
		evicted, noPlace := uint64(1), uint64(0)
		if idle < 1000 {
			evicted, noPlace = 0, 1
		}
		if c := s.tr.Counts(); c.Evicted != evicted || c.NoPlace != noPlace {
			t.Errorf("idle for %v ms: got %d evicted and %d without a place, want %d and %d", idle, c.Evicted, c.NoPlace, evicted, noPlace)
		}
	}
}
