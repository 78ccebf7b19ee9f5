package aggregate

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// What is made of a minisocket whose news, or whose socket's, does not come, comes in
// another order, or finds no place.

// The kernel skips a program that it runs already: whole entries into TIME_WAIT are
// lost so. The socket's destruction tells.
func TestASocketWhoseLastTransitionIsMissedIsHandedOverWhenItIsDestroyed(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.closesFirst(client)
	s.begins(mini(client), "F2", timeWait)
	s.pass(0.125)
	s.destroy(client)
	s.tells()
	s.pass(500)
	s.begins(mini(client), "TW", timeWait)
	s.tells("c cli(2,connect) F2>TW 500.125 mini gap")
	s.pass(timeWait)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	s.tells(
		"c cli(2,connect) TW>C 60000 mini",
		"c cli(2,connect) connection role=client life=60511.375 closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=500.125 TW=60000 expired gap",
	)
	s.checkNoMinis()
	if got := s.tr.Counts().Missed; got != 1 {
		t.Errorf("missed %d, want 1", got)
	}
}

// Its destruction is not told either.
func TestASocketWhoseLastTransitionIsMissedIsLookedFor(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.closesFirst(client)
	s.pass(40)
	s.begins(mini(client), "TW", timeWait)
	for range 10 {
		s.pass(20)
		s.tick()
	}
	s.tells("c cli(2,connect) F2>TW 40 mini gap")
	s.destroy(client) // it was only late
	s.pass(timeWait - 200)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	s.tells(
		"c cli(2,connect) TW>C 60000 mini",
		"c cli(2,connect) connection role=client life=60051.25 closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=40 TW=60000 expired gap",
	)
	s.checkNoMinis()
}

// Most FINs come a moment after FIN_WAIT2 has begun: before it is looked for.
func TestASocketWhoseLastTransitionIsMissedIsLookedForThoughAFinComes(t *testing.T) {
	for _, after := range []float64{1, 50, 99} {
		s := newMiniStory(t, Filter{})
		s.closesFirst(client)
		s.begins(mini(client), "F2", timeWait)
		s.pass(after)
		s.begins(mini(client), "TW", timeWait)
		for range 50 {
			s.pass(20)
			s.tick()
		}
		s.tells(fmt.Sprintf("c cli(2,connect) F2>TW %v mini gap", after))
		if n := len(s.tr.starting); n != 0 {
			t.Errorf("the FIN %v ms after: a second later still waits for %d sockets, want 0", after, n)
		}
		if got := s.process(2).timeWait; got != 1 {
			t.Errorf("the FIN %v ms after: process 2 has made %d TIME_WAITs, want 1", after, got)
		}
	}
}

// FIN_WAIT1 -> FIN_WAIT2 is missed with it: how long either took, nobody knows.
func TestATimeThatIncludesAMissedTransitionIsNotTold(t *testing.T) {
	for _, state := range []string{"F2", "TW"} {
		for _, destroyed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, destroyed %v", state, destroyed), func(t *testing.T) {
				s := newMiniStory(t, Filter{})
				var spent Spent
				var call CloseCall
				var wrong []string
				s.tr.out = take{
					transition: func(r *Transition) {
						if (r.Old == events.FinWait1 || r.Old == events.FinWait2) && r.Dwell != Unknown {
							wrong = append(wrong, fmt.Sprintf("%s for %v", r.Old, r.Dwell))
						}
					},
					connection: func(r *Connection) { spent, call = *r.Spent, r.CloseCall },
				}
				s.step(client, "C>SS", by(2, "cli"))
				s.step(client, "SS>E", with(events.HasSocket))
				s.pass(10)
				s.step(client, "E>F1", by(2, "cli"), with(events.HasSocket), shut(3))
				s.pass(30)
				s.begins(mini(client), state, timeWait)
				if destroyed {
					s.destroy(client)
				}
				for range 10 {
					s.pass(20)
					s.tick()
				}
				if state == "F2" {
					s.pass(5000)
					s.begins(mini(client), "TW", timeWait)
				}
				s.pass(timeWait)
				s.ends(mini(client), "TW", 0, events.WhyOther)
				s.settles()
				if len(wrong) > 0 {
					t.Errorf("got %q, want no time in these states: when FIN_WAIT2 began was missed", wrong)
				}
				if d, ok := spent.In(events.FinWait1); !ok || d != Unknown {
					t.Errorf("in FIN_WAIT1: got %v, %v; want it unknown", d, ok)
				}
				if d, ok := spent.In(events.FinWait2); ok && d != Unknown {
					t.Errorf("in FIN_WAIT2: got %v, want it unknown", d)
				}
				if d, ok := spent.In(events.Established); !ok || d != 10*time.Millisecond {
					t.Errorf("in ESTABLISHED: got %v, %v; want 10ms", d, ok)
				}
				// What tells close() from shutdown() comes with what was missed; and a
				// FIN_WAIT2 minisocket takes over from orphans only.
				if call == CallShutdown {
					t.Errorf("closed by %s, want that it is not known, or close", call)
				}
			})
		}
	}
}

// Where its beginning is lost, the socket's own end is all that there is: what comes of
// the minisocket after that is no second connection.
func TestAConnectionWhoseMinisocketsBeginningIsLostIsToldOnce(t *testing.T) {
	for _, tt := range []struct {
		name  string
		later func(*story)
	}{
		{"its end", func(s *story) {
			s.pass(timeWait)
			s.ends(mini(client), "F2", 0, events.WhyOther)
		}},
		{"its end by a connect()", func(s *story) {
			s.pass(2000)
			s.ends(mini(client), "TW", timeWait-2000, events.WhyConnect)
		}},
		{"the FIN", func(s *story) {
			s.pass(500)
			s.begins(mini(client), "TW", timeWait)
			s.pass(timeWait)
			s.tick()
			s.ends(mini(client), "TW", 0, events.WhyOther)
		}},
		{"the FIN, as timers show it", func(s *story) {
			s.pass(5000)
			s.ends(mini(client), "F2", timeWait-5000, events.WhyOther)
			s.begins(mini(client), "TW", timeWait)
			s.pass(timeWait)
			s.tick()
			s.ends(mini(client), "TW", 0, events.WhyOther)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newMiniStory(t, Filter{})
			s.closesFirst(client)
			s.pass(40)
			s.step(client, "F2>C", with(orphan), shut(3))
			s.destroy(client)
			if n := len(s.lines("connection")); n != 1 {
				t.Fatalf("got %q, want the connection's end", s.said)
			}
			tt.later(s)
			s.settles()
			s.pass(1000)
			s.tick()
			if got := s.lines("connection"); len(got) != 1 {
				t.Errorf("got %q, want one connection", got)
			}
			s.checkNoMinis()
		})
	}
}

// A minisocket of which nothing else is known: whether its first news is its beginning
// cannot be told from the last FIN's repetition.
func TestATimeWaitThatMayHaveBegunEarlierHasNoTime(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.begins(mini(client), "TW", timeWait)
	for range 10 {
		s.pass(20)
		s.tick()
	}
	s.pass(timeWait - 200)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	for _, l := range s.lines("TW>C") {
		if !strings.HasPrefix(l, "c - TW>C ? mini") {
			t.Errorf("got %q, want an unknown time", l)
		}
	}
	for _, l := range s.lines("connection") {
		if !strings.Contains(l, " life=? ") || !strings.Contains(l, " TW=? ") {
			t.Errorf("got %q, want unknown times", l)
		}
	}
	s.checkNoMinis()
}

// Likewise: FIN_WAIT2 was there before its minisocket.
func TestAnOrphanOfWhichNothingElseIsKnownHasNoTime(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.begins(mini(client), "F2", timeWait)
	for range 10 {
		s.pass(20)
		s.tick()
	}
	s.begins(mini(client), "TW", timeWait)
	for _, l := range s.lines("F2>TW") {
		if !strings.HasPrefix(l, "c - F2>TW ? mini") {
			t.Errorf("got %q, want an unknown time", l)
		}
	}
	s.pass(timeWait)
	s.tick()
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	for _, l := range s.lines("connection") {
		if !strings.Contains(l, " life=? ") || strings.Contains(l, " F2=") && !strings.Contains(l, " F2=? ") {
			t.Errorf("got %q, want unknown times", l)
		}
	}
	s.checkNoMinis()
}

// Two CPUs hand over not quite in the order of time. And behind a full ring, the news
// of the socket comes when it is looked for already.
func TestTheSocketsLastTransitionMayComeLate(t *testing.T) {
	for _, tt := range []struct {
		name string
		late float64
		gap  string
	}{
		{"at once", 0, ""},
		{"while it is waited for", 90, ""},
		{"when it has been looked for", 200, " gap"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newMiniStory(t, Filter{})
			s.closesFirst(client)
			s.pass(40)
			s.begins(mini(client), "TW", timeWait)
			last := s.event(client, events.Transition)
			last.Old, last.New, last.Flags, last.Shutdown = events.FinWait2, events.Close, orphan|events.Done, 3
			s.pass(tt.late)
			s.tick()
			s.tr.Observe(&last)
			s.destroy(client)
			s.tells("c cli(2,connect) F2>TW 40 mini" + tt.gap)
			s.pass(timeWait - tt.late)
			s.ends(mini(client), "TW", 0, events.WhyOther)
			s.settles()
			if got := s.lines("connection"); len(got) != 1 || !strings.Contains(got[0], " F2=40 TW=60000 expired") {
				t.Errorf("got %q, want one connection, with F2=40 and TW=60000", got)
			}
			if n := s.tr.Counts().Missed; tt.gap == "" && n != 0 {
				t.Errorf("missed %d, want 0", n)
			}
			s.checkNoMinis()
		})
	}
}

// On another CPU: data for an orphan that is a microsecond old.
func TestAnEndThatComesBeforeTheSocketsIsTheOneEndThatThereIs(t *testing.T) {
	for _, why := range []events.Why{events.WhyReset, events.WhyKilled, events.WhyOther} {
		s := newMiniStory(t, Filter{})
		s.closesFirst(client)
		s.pass(40)
		s.begins(mini(client), "F2", timeWait)
		s.ends(mini(client), "F2", timeWait, why)
		s.step(client, "F2>C", with(orphan), shut(3))
		s.destroy(client)
		s.settles()
		s.pass(1000)
		s.tick()
		if n, c := len(s.lines("F2>C")), len(s.lines("connection")); n != 1 || c != 1 {
			t.Errorf("why %d: got %q, want FIN_WAIT2 -> CLOSE and the connection once", why, s.said)
		}
		if got := s.lines("connection role=client "); len(got) != 1 || !strings.Contains(got[0], " F2=40") {
			t.Errorf("why %d: got %q, want the client's connection with F2=40", why, got)
		}
		s.checkNoMinis()
	}
}

// A minisocket whose end never comes does not stay for ever. Its timer is up to five
// seconds late (100 Hz), and as long as it may be there, nothing is said.
func TestAMinisocketWhoseEndIsMissedGoesWhenItsTimeIsLongUp(t *testing.T) {
	for _, state := range []string{"TW", "F2"} {
		s := newMiniStory(t, Filter{})
		s.orphaned(client)
		want := "c cli(2,connect) connection role=client life=? closer=local end= call=close E=10 SS=1 F1=0.25 F2=? gap"
		if state == "TW" {
			s.pass(99.875)
			s.begins(mini(client), "TW", timeWait)
			want = "c cli(2,connect) connection role=client life=? closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=100 TW=? gap"
			s.said = nil
		}
		wait := func(seconds int) {
			for range seconds {
				s.pass(1000)
				s.tick()
				if s.tr.WantScan() != WantNothing {
					s.scan()
				}
			}
			s.said = slices.DeleteFunc(s.said, func(l string) bool { return l[0] == '#' }) // the peer does not close
		}
		wait(65)
		s.tells()
		wait(150)
		s.tells(want)
		s.checkNoMinis()
		if c := s.tr.Counts(); c.MissedMinis != 1 || c.Tracked != 0 {
			t.Errorf("%s: minutes later: got %+v, want one missed minisocket, nothing tracked", state, c)
		}
		s.ends(mini(client), state, -155_000, events.WhyOther) // it was only very late
		s.settles()
		s.tells()
	}
}

// One that is prolonged time and again is there all the while.
func TestAMinisocketThatIsProlongedIsNotTakenForMissed(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.waits(client)
	for range 5 {
		for range 50 {
			s.pass(1000)
			s.tick()
		}
		s.begins(mini(client), "TW", timeWait)
	}
	s.tells()
	s.pass(timeWait)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	if got := s.lines("TW=310000.125 expired"); len(got) != 1 {
		t.Errorf("got %q, want 310 s in TIME_WAIT", s.said)
	}
}

func TestWhatComesTwiceIsToldOnce(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.closesFirst(client)
	s.pass(40)
	for range 2 {
		s.begins(mini(client), "TW", timeWait)
	}
	s.pass(0.125)
	for range 2 {
		s.step(client, "F2>C", with(orphan|events.Done), shut(3))
	}
	s.destroy(client)
	s.tells("c cli(2,connect) F2>TW 40 mini")
	s.pass(timeWait - 0.125)
	for range 2 {
		s.ends(mini(client), "TW", 0, events.WhyOther)
	}
	s.settles()
	if len(s.said) != 2 {
		t.Errorf("got %q, want a transition and a connection", s.said)
	}
	s.checkNoMinis()
	if c := s.tr.Counts(); c.Duplicates != 1 || c.Missed != 0 {
		t.Errorf("got %+v, want 1 duplicate, 0 missed", c)
	}
}

// The news that its timer was only set anew is lost, and then it does end.
func TestAMinisocketThatEndsAgainBeforeItsEndIsSettledIsForgotten(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.orphaned(client)
	s.pass(5000)
	s.ends(mini(client), "F2", 55_000, events.WhyOther)
	s.pass(10)
	s.ends(mini(client), "TW", timeWait-10, events.WhyOther)
	for range 50 {
		s.pass(20)
		s.tick()
	}
	if n := len(s.lines("connection")); n != 1 {
		t.Errorf("got %q, want one connection", s.said)
	}
	s.checkNoMinis()
}

// A minisocket that has no place: where FIN_WAIT2 goes on unseen, its time is not known,
// and its socket's end is told once.
func TestAMinisocketWithoutAPlaceMakesNoFalseTime(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.waits(nth(1))
	s.closesFirst(client)
	s.pass(40)
	s.tr.max = s.tr.Counts().Tracked
	s.handsOver(client, "F2>C", "F2", with(orphan))
	s.destroy(client)
	s.tells(
		"c cli(2,connect) F2>C ?",
		"c cli(2,connect) connection role=client life=51.375 closer=local end= call=close E=10 SS=1 F1=0.25 F2=?",
	)
	if got := s.tr.Counts().NoPlace; got != 1 {
		t.Errorf("%d without a place, want 1", got)
	}
	// The other goes, and this one's FIN comes: there is a place now.
	s.pass(timeWait)
	s.ends(mini(nth(1)), "TW", 0, events.WhyOther)
	s.settles()
	s.said = nil
	s.begins(mini(client), "TW", timeWait)
	s.pass(timeWait)
	s.tick()
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	if got := s.lines("connection"); len(got) != 0 {
		t.Errorf("got %q, want nothing: the connection has been told", got)
	}
	s.checkNoMinis()
}

// The sockets have no place, their minisockets do: these are there, and count. What has
// been told of their connections, nobody knows any more.
func TestAMinisocketWhoseSocketHadNoPlaceIsKept(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.tr.max = 1
	s.step(listen, "C>L", by(1, "srv"))
	s.closesFirst(client)
	s.tr.max = 2
	s.handsOver(client, "F2>C", "TW", with(orphan|events.Done))
	s.destroy(client)
	if c := s.tr.Counts(); c.TableFull != 5 || c.Tracked != 2 {
		t.Errorf("got %+v, want 5 transitions without a place, 2 tracked", c)
	}
	for range 10 {
		s.pass(20)
		s.tick()
	}
	s.tells()
	s.pass(timeWait)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	for _, l := range s.said {
		if !strings.HasPrefix(l, "c - connection role= life=? ") && !strings.HasPrefix(l, "c - TW>C ") {
			t.Errorf("got %q, want at most TIME_WAIT's end, and a connection without owner, role and beginning", l)
		}
	}
	s.checkNoMinis()
}

// The inventory tells of them, and their story begins there.
func TestMinisocketsThatWereThereBeforeAreTracked(t *testing.T) {
	s := &story{t: t, ms: 100_000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	s.tr.SeesMinisockets(true)
	s.tick()
	s.mini(mini(client), events.TimeWait, 45*time.Second)
	s.mini(mini(server), events.FinWait2, 30*time.Second)
	s.scan()
	s.tells(
		"c - socket TW age=14980",
		"5 - socket F2 age=?",
	)
	s.pass(20)
	s.tick()
	if looks := s.tr.Looks(); len(looks) != 1 || looks[0].Cookie != server.cookie {
		t.Errorf("looks at %+v, want the one in FIN_WAIT2", looks)
	}
	s.pass(980)
	s.begins(mini(server), "TW", timeWait)
	s.tells("5 - F2>TW ? mini")
	s.pass(45_000 - 1000)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	s.tells(
		"c - TW>C ? mini",
		"c - connection role= life=? closer= end=fin call= TW=? expired",
	)
	s.pass(timeWait - 44_020)
	s.ends(mini(server), "TW", 0, events.WhyOther)
	s.settles()
	if got := s.said; len(got) != 2 || got[0] != "5 - TW>C 60000 mini" ||
		!strings.HasPrefix(got[1], "5 - connection role= life=? ") || !strings.HasSuffix(got[1], " end=fin call= F2=? TW=60000 expired") {
		t.Errorf("got %q, want the time in TIME_WAIT, and what was before it unknown", got)
	}
	s.checkNoMinis()
	if c := s.tr.Counts(); c.Missed != 0 || c.MissedMinis != 0 {
		t.Errorf("got %+v, want nothing missed", c)
	}
}

func TestFiltersChooseAmongMinisocketsThatWereThereBefore(t *testing.T) {
	for _, tt := range []struct {
		f    Filter
		want int // a socket, a transition and a connection
	}{
		{Filter{}, 3},
		{Filter{Lports: []uint16{40000}}, 3},
		{Filter{Lports: []uint16{80}}, 0},
		{pids(2), 0}, // nobody has it
	} {
		s := &story{t: t, ms: 100_000}
		s.tr = NewTracker(s, &tt.f, 1000, thresholds(time.Minute))
		s.tr.SeesMinisockets(false)
		s.tick()
		s.mini(mini(client), events.TimeWait, 45*time.Second)
		s.scan()
		s.pass(45_000)
		s.ends(mini(client), "TW", 0, events.WhyOther)
		s.settles()
		if len(s.said) != tt.want {
			t.Errorf("filter %+v: got %q, want %d records", tt.f, s.said, tt.want)
		}
		s.checkNoMinis()
	}
}

// A socket may have no cookie until somebody asks for it: ss -a asks for all of them.
func TestAMinisocketMayGetItsCookieLater(t *testing.T) {
	s := &story{t: t, ms: 100_000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	s.tr.SeesMinisockets(false)
	s.tick()
	nameless := mini(client)
	nameless.cookie = 0
	s.mini(nameless, events.TimeWait, 45*time.Second)
	s.scan()
	s.said = nil
	s.pass(45_000)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	s.tells(
		"c - TW>C ? mini",
		"c - connection role= life=? closer= end=fin call= TW=? expired",
	)
	if got := s.tr.Counts().MissedMinis; got != 0 {
		t.Errorf("missed the ends of %d minisockets, want 0", got)
	}
	s.checkNoMinis()
}

// Where the kernel gives no cookies, their ends tell which socket a minisocket follows. Two
// peers on the same port may be in that moment at once, on two CPUs.
func TestMinisocketsWithoutCookiesFollowTheSocketWithTheirEnds(t *testing.T) {
	for n := 6; n < 256; n++ {
		s := newMiniStory(t, Filter{})
		one := sock{addr: 0xc0, lport: 80, rport: 40000, raddr: "10.0.0.5"}
		two := sock{addr: 0xd0, lport: 80, rport: 40000, raddr: fmt.Sprintf("10.0.0.%d", n)}
		s.closesFirst(one)
		s.closesFirst(two)
		s.begins(mini(one), "TW", timeWait)
		s.begins(mini(two), "TW", timeWait)
		s.step(one, "F2>C", shut(3), with(orphan|events.Done))
		s.step(two, "F2>C", shut(3), with(orphan|events.Done))
		if got := s.lines("F2>TW"); len(got) != 2 || len(s.lines("F2>C")) != 0 {
			t.Errorf("%s and %s: got %q, want two that enter TIME_WAIT", one.raddr, two.raddr, s.said)
		}
		audit(t, s.tr)
	}
}

// The row is from after the minisocket's beginning, and comes before its events.
func TestARowThatComesBeforeTheMinisocketsEventsMakesNoFalseTime(t *testing.T) {
	for _, first := range []bool{true, false} {
		t.Run(fmt.Sprintf("of the first scan %v", first), func(t *testing.T) {
			s := newMiniStory(t, Filter{})
			if first {
				s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
				s.tr.SeesMinisockets(false)
				s.tick()
			}
			s.closesFirst(client)
			s.pass(40)
			begin := s.event(mini(client), events.Minisocket)
			begin.New, begin.Left = events.TimeWait, time.Minute
			s.pass(0.125)
			last := s.event(client, events.Transition)
			last.Old, last.New, last.Flags, last.Shutdown = events.FinWait2, events.Close, orphan|events.Done, 3
			s.pass(0.125)
			s.mini(mini(client), events.TimeWait, 59_999_750*time.Microsecond)
			s.tr.Observe(&begin)
			s.tr.Observe(&last)
			s.destroy(client)
			if first {
				s.scan()
			}
			s.pass(timeWait - 0.25)
			s.ends(mini(client), "TW", 0, events.WhyOther)
			s.settles()
			if got := s.lines("F2>C"); len(got) != 0 {
				t.Errorf("got %q, want no false CLOSE", got)
			}
			if got := s.lines("connection"); len(got) != 1 {
				t.Errorf("got %q, want one connection", got)
			}
			for _, l := range s.lines("F2>TW") {
				if !strings.Contains(l, "F2>TW 40 ") && !strings.Contains(l, "F2>TW ? ") {
					t.Errorf("got %q, want 40 ms in FIN_WAIT2, or that it is not known", l)
				}
			}
			for _, l := range s.lines("TW>C") {
				if !strings.Contains(l, "TW>C 60000 ") && !strings.Contains(l, "TW>C ? ") {
					t.Errorf("got %q, want 60 s in TIME_WAIT, or that it is not known", l)
				}
			}
			s.checkNoMinis()
		})
	}
}

// A later scan finds one whose beginning was lost.
func TestAMinisocketThatALaterScanFindsIsTiedToItsSocket(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.closesFirst(client)
	s.pass(40) // its beginning, and the socket's end, are lost
	s.pass(1000)
	s.mini(mini(client), events.TimeWait, 59*time.Second)
	for range 10 {
		s.pass(20)
		s.tick()
	}
	s.pass(59_000 - 200)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	if got := s.lines("connection"); len(got) != 1 || !strings.Contains(got[0], "c cli(2,connect) connection role=client ") ||
		!strings.HasSuffix(got[0], " F2=? TW=? expired gap") {
		t.Errorf("got %q, want the client's connection with unknown times and a gap", got)
	}
	for _, l := range s.lines(" mini") {
		if !strings.Contains(l, " ? mini") {
			t.Errorf("got %q, want that its time is not known", l)
		}
	}
	s.checkNoMinis()
}

// churns tells of a connection that process 2 opens and is done with at once.
func (s *story) churns(k sock) {
	s.step(k, "C>SS", by(2, "cli"))
	s.step(k, "SS>E", with(events.HasSocket))
	s.step(k, "E>C", by(2, "cli"), with(events.HasSocket), shut(3))
	s.destroy(k)
}

// The same events say the same, findings' names included: a recording is played again.
func TestTheSameEventsAreToldInTheSameOrderEachTime(t *testing.T) {
	const n = 16
	for _, tt := range []struct {
		name string
		want int // records, at the least
		play func(*story)
	}{
		{"sockets whose last transition was missed are looked for", n, func(s *story) {
			for k := range n {
				s.closesFirst(nth(k))
				s.pass(5)
				s.begins(mini(nth(k)), "TW", timeWait)
			}
			s.pass(1000)
			s.tick()
		}},
		{"minisockets whose ends were missed are given up", n, func(s *story) {
			for k := range n {
				s.waits(nth(k))
			}
			s.pass(10 * minute)
			s.scan()
		}},
		{"sockets and minisockets that no scan finds any more", 2 * n, func(s *story) {
			for k := range n {
				s.waits(nth(k))
				s.closesFirst(nth(100 + k))
			}
			for range unseenScans {
				s.pass(2000)
				bare(client, "E")(s) // there is something to find
				s.tick()
				s.tr.Scanned(events.Scan{Complete: true, Every: true, All: true, Walked: []uint32{1}})
				s.tick()
			}
		}},
		{"short-lived connections to several destinations", n, func(s *story) {
			for range 1500 {
				for k := range n {
					to := nth(k)
					to.rport = uint16(80 + k)
					s.churns(to)
					s.pass(1)
				}
				s.tick()
			}
			s.said = s.lines("#")
			for k, f := range s.findings {
				s.said = append(s.said, fmt.Sprintf("%d %s %d", k, f.ID, f.Evidence.Churn.Rport))
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tell := func() []string {
				s := newMiniStory(t, Filter{})
				tt.play(s)
				return s.said
			}
			first := tell()
			if len(first) < tt.want {
				t.Fatalf("got %q, want %d records", first, tt.want)
			}
			for range 3 {
				if again := tell(); !slices.Equal(first, again) {
					t.Fatalf("got  %q\nthen %q; want the same", first, again)
				}
			}
		})
	}
}

// Without Minisocket events nothing is tracked that only they could end.
func TestMinisocketsAreOnlyTrackedWhereTheirEndsAreSeen(t *testing.T) {
	s := newStory(t, Filter{})
	s.closesFirst(client)
	s.pass(40)
	s.step(client, "F2>C", with(orphan), shut(3))
	s.tells(
		"c cli(2,connect) F2>C ?", // a minisocket may have taken over
		"c cli(2,connect) connection role=client life=51.25 closer=local end= call=close E=10 SS=1 F1=0.25 F2=?",
	)
	s.closesFirst(nth(1))
	s.pass(40)
	s.step(nth(1), "F2>C", with(orphan|events.Done), shut(3))
	s.tells(
		"501 cli(2,connect) F2>C 40",
		"501 cli(2,connect) connection role=client life=51.25 closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=40",
	)
}

// A dead socket has given its port back, however long its descriptor stays open.
func TestADeadSocketThatWasThereBeforeHoldsNoPort(t *testing.T) {
	s := &story{t: t, ms: 100_000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	s.tick()
	s.tr.Network(&events.Network{Netns: 1, PortLow: 32768, PortHigh: 60999})
	s.scan(holds(client, "C", 2, "cli", 4))
	audit(t, s.tr)
	s.destroy(client)
	s.tick()
	auditEmpty(t, s.tr)
}

// It looked like a client by its port; the event from before the scan says that it is a
// server's.
func TestASocketThatProvesToBeAServersHoldsNoPort(t *testing.T) {
	s := &story{t: t, ms: 100_000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	s.tick()
	s.tr.Network(&events.Network{Netns: 1, PortLow: 32768, PortHigh: 60999})
	s.pass(10)
	s.row(client, "E", 1, "srv", 4)
	s.pass(-5)
	s.step(client, "L>SR", from(listen.cookie))
	audit(t, s.tr)
	s.destroy(client)
	s.scan()
	auditEmpty(t, s.tr)
}

// A second CLOSE after an ordinary hand-over, which no kernel sends, takes back no loss that there was not.
func TestASecondCloseIsNoMissedOne(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.closesFirst(nth(0))
	s.handsOver(nth(0), "F2>C", "TW", with(orphan|events.Done))
	s.step(nth(0), "C>C")
	if m := s.tr.Counts().Missed; m != 0 {
		t.Errorf("got %d missed, want 0", m)
	}
}
