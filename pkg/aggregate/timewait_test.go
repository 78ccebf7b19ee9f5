package aggregate

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// In these stories a millisecond of a minisocket's time is one of the story's, so that
// its jiffies are exact.
const timeWait = 60_000

// newMiniStory is a story in which minisockets are seen.
func newMiniStory(t *testing.T, f Filter) *story {
	s := newStory(t, f)
	s.tr.SeesMinisockets(true)
	return s
}

// mini is the minisocket of k: the same ends and cookie, another address.
func mini(k sock) sock {
	k.addr += 0x77_0000
	return k
}

// begins tells of a minisocket that begins, or whose timer is set anew, with so many
// milliseconds to go.
func (s *story) begins(m sock, state string, left float64) {
	ev := s.event(m, events.Minisocket)
	ev.New, ev.Left = abbreviations[state], inTime(left)
	s.tr.Observe(&ev)
}

// ends tells of a minisocket that ends, with so much of its time left.
func (s *story) ends(m sock, state string, left float64, why events.Why) {
	ev := s.event(m, events.Minisocket)
	ev.Old, ev.New, ev.Left, ev.Why = abbreviations[state], events.Close, inTime(left), why
	s.tr.Observe(&ev)
}

func inTime(ms float64) time.Duration { return time.Duration(ms * 1e6) }

// settles lets so much time pass that an end is believed.
func (s *story) settles() {
	s.pass(20)
	s.tick()
}

// closesFirst tells of a client's connection up to FIN_WAIT2: process 2 has called
// close(). What is said of that is forgotten.
func (s *story) closesFirst(k sock) {
	s.t.Helper()
	s.step(k, "C>SS", by(2, "cli"))
	s.pass(1)
	s.step(k, "SS>E", with(events.HasSocket))
	s.pass(10)
	s.step(k, "E>F1", by(2, "cli"), with(events.HasSocket), shut(3))
	s.pass(0.25)
	s.step(k, "F1>F2", with(orphan), shut(3))
	s.said = nil
}

// shutsDown is the same with shutdown(SHUT_WR): the descriptor stays open.
func (s *story) shutsDown(k sock) {
	s.t.Helper()
	s.step(k, "C>SS", by(2, "cli"))
	s.pass(1)
	s.step(k, "SS>E", with(events.HasSocket))
	s.pass(10)
	s.step(k, "E>F1", by(2, "cli"), with(events.HasSocket), shut(2))
	s.pass(0.25)
	s.step(k, "F1>F2", with(events.HasSocket), shut(2))
	s.said = nil
}

// handsOver is what the kernel does in one go when a minisocket takes over, and the
// last that is heard of the socket: a bit later on the same CPU.
func (s *story) handsOver(k sock, change, state string, opts ...func(*events.Event)) {
	s.t.Helper()
	s.begins(mini(k), state, timeWait)
	s.pass(0.125)
	s.step(k, change, append([]func(*events.Event){shut(3)}, opts...)...)
}

// waits takes a client's connection into TIME_WAIT, its peer having closed at once, and
// forgets what is said of it.
func (s *story) waits(k sock) {
	s.t.Helper()
	s.closesFirst(k)
	s.pass(40)
	s.handsOver(k, "F2>C", "TW", with(orphan|events.Done))
	s.destroy(k)
	s.said = nil
}

// orphaned takes it into a FIN_WAIT2 without a process.
func (s *story) orphaned(k sock) {
	s.t.Helper()
	s.closesFirst(k)
	s.handsOver(k, "F2>C", "F2", with(orphan))
	s.destroy(k)
	s.said = nil
}

// checkNoMinis checks that nothing is left of minisockets.
func (s *story) checkNoMinis() {
	s.t.Helper()
	audit(s.t.(*testing.T), s.tr)
	if n := s.tr.minis.len(); n != 0 {
		s.t.Errorf("tracks %d minisockets, want 0", n)
	}
	if n, k := len(s.tr.starting), len(s.tr.held); n != 0 || k != 0 {
		s.t.Errorf("waits for the sockets of %d minisockets, holds back %d; want 0, 0", n, k)
	}
}

// the FIN arrives in FIN_WAIT2, and TIME_WAIT begins there and
// then. Its timer is up to two seconds late at 250 Hz.
func TestTimeWaitIsToldFromItsBeginningToItsEnd(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.closesFirst(client)
	s.pass(40)
	s.handsOver(client, "F2>C", "TW", with(orphan|events.Done))
	s.destroy(client)
	s.tells("c cli(2,connect) F2>TW 40 mini")
	if c := s.tr.Counts(); c.Tracked != 1 || c.Missed != 0 {
		t.Errorf("in TIME_WAIT: got %+v, want 1 tracked, 0 missed", c)
	}
	s.pass(timeWait - 0.125 + 1250)
	s.ends(mini(client), "TW", -1250, events.WhyOther)
	s.settles()
	s.tells(
		"c cli(2,connect) TW>C 61250 mini",
		"c cli(2,connect) connection role=client life=61301.25 closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=40 TW=61250 expired",
	)
	s.checkNoMinis()
	if c := s.tr.Counts(); c.Tracked != 0 || c.Missed != 0 || c.MissedMinis != 0 || c.Delivered != 5 {
		t.Errorf("at the end: got %+v, want nothing tracked, nothing missed, 5 delivered", c)
	}
}

// The common case: close() is called first, and FIN_WAIT2 outlives the socket.
func TestAnOrphanStaysInFinWait2UntilItsPeersFin(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.closesFirst(client)
	s.handsOver(client, "F2>C", "F2", with(orphan))
	s.destroy(client)
	s.pass(499.875)
	s.tick()
	s.tells() // no false CLOSE
	s.begins(mini(client), "TW", timeWait)
	s.tells("c cli(2,connect) F2>TW 500 mini")
	s.pass(timeWait)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	s.tells(
		"c cli(2,connect) TW>C 60000 mini",
		"c cli(2,connect) connection role=client life=60511.25 closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=500 TW=60000 expired",
	)
	s.checkNoMinis()
}

// What can happen to a minisocket, and the scenarios
// that end a minisocket (21, 23, 30). left is what the kernel says of the timer.
func TestWhatEndsAMinisocket(t *testing.T) {
	for _, tt := range []struct {
		name    string
		state   string
		left    float64
		why     events.Why
		want    End
		timeEnd TimeWaitEnd
	}{
		{"TIME_WAIT is over", "TW", 0, events.WhyOther, EndFin, Expired},
		{"TIME_WAIT is over, and its timer late", "TW", -2044, events.WhyOther, EndFin, Expired},
		{"TIME_WAIT is over, and what ends it is not watched", "TW", -8, events.WhyUnknown, EndFin, Expired},
		{"a reset came in TIME_WAIT", "TW", 30_000, events.WhyOther, EndFin, Killed},
		{"ss -K, or the network namespace is gone", "TW", 30_000, events.WhyKilled, EndFin, Killed},
		{"the same while the timer is late", "TW", -100, events.WhyKilled, EndFin, Killed},
		{"connect() took the port", "TW", 59_000, events.WhyConnect, EndFin, Reused},
		{"connect() took the port while the timer was late", "TW", -100, events.WhyConnect, EndFin, Reused},
		{"a SYN of its peer", "TW", 59_000, events.WhySyn, EndFin, Reused},
		// A reset, or a SYN: nothing tells. What is unknown is null.
		{"before its time, and what ends it is not watched", "TW", 30_000, events.WhyUnknown, EndFin, TimeWaitEndUnknown},

		{"the orphan's time is up", "F2", 0, events.WhyOther, EndTimeout, TimeWaitEndUnknown},
		{"the same, and what ends it is not watched", "F2", -300, events.WhyUnknown, EndTimeout, TimeWaitEndUnknown},
		{"a reset came for the orphan", "F2", 30_000, events.WhyOther, EndResetReceived, TimeWaitEndUnknown},
		{"data came for the orphan", "F2", 30_000, events.WhyReset, EndResetSent, TimeWaitEndUnknown},
		{"data came while its timer was late", "F2", -4, events.WhyReset, EndResetSent, TimeWaitEndUnknown},
		{"ss -K of an orphan", "F2", 30_000, events.WhyKilled, EndAborted, TimeWaitEndUnknown},
		{"of an orphan, and what ends it is not watched", "F2", 30_000, events.WhyUnknown, EndUnknown, TimeWaitEndUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newMiniStory(t, Filter{})
			s.orphaned(client)
			in := 99.875 // FIN_WAIT2 began a bit before
			if tt.state == "TW" {
				s.pass(in)
				s.begins(mini(client), "TW", timeWait)
				s.tells("c cli(2,connect) F2>TW 100 mini")
			}
			s.pass(timeWait - tt.left)
			s.ends(mini(client), tt.state, tt.left, tt.why)
			s.settles()
			// life begins 11.25 ms before FIN_WAIT2.
			lasted := timeWait - tt.left
			life, spent := 11.25+100+lasted, "F2=100 TW="+fmt.Sprint(lasted)
			if tt.state == "F2" {
				lasted += 0.125
				life, spent = 11.25+lasted, "F2="+fmt.Sprint(lasted)
			}
			if tt.timeEnd != TimeWaitEndUnknown {
				spent += " " + tt.timeEnd.String()
			}
			s.tells(
				fmt.Sprintf("c cli(2,connect) %s>C %v mini", tt.state, lasted),
				fmt.Sprintf("c cli(2,connect) connection role=client life=%v closer=local end=%s call=close E=10 SS=1 F1=0.25 %s",
					life, tt.want, spent),
			)
			s.checkNoMinis()
		})
	}
}

// Only the SYN's request_sock tells what it was; that comes microseconds later.
func TestASynThatTakesTheConnectionsPlaceIsToldOnce(t *testing.T) {
	for _, between := range []float64{0, 0.5} {
		s := newMiniStory(t, Filter{})
		s.waits(client)
		s.pass(4999.875)
		s.ends(mini(client), "TW", 55_000, events.WhyOther)
		at := s.ms
		s.pass(between)
		s.tick()
		s.tells() // not yet
		again := s.event(mini(client), events.Minisocket)
		again.Ktime = uint64(at * 1e6) // it is the same end
		again.Old, again.New, again.Left, again.Why = events.TimeWait, events.Close, 55*time.Second, events.WhySyn
		s.tr.Observe(&again)
		s.settles()
		s.pass(1000)
		s.tick()
		s.tells(
			"c cli(2,connect) TW>C 5000 mini",
			"c cli(2,connect) connection role=client life=5051.25 closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=40 TW=5000 reused",
		)
		s.checkNoMinis()
	}
}

func TestAnEndIsBelievedAfterAMoment(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.waits(client)
	s.pass(timeWait)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.pass(19.9)
	s.tick()
	s.tells()
	s.pass(0.1)
	s.tick()
	if len(s.said) != 2 {
		t.Errorf("20 ms after the end: got %q, want a transition and a connection", s.said)
	}
}

// timer_cancel and timer_start of the same minisocket, in one go: its timer is set anew,
// by the FIN or by one that is repeated.
func TestAnEndThatABeginningFollowsIsNone(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.orphaned(client)
	s.pass(4999.875)
	s.ends(mini(client), "F2", 55_000, events.WhyOther)
	s.begins(mini(client), "TW", timeWait)
	s.tells("c cli(2,connect) F2>TW 5000 mini")
	s.pass(10_000)
	s.ends(mini(client), "TW", 50_000, events.WhyOther)
	s.begins(mini(client), "TW", timeWait)
	s.settles()
	s.pass(1000)
	s.tick()
	s.tells()
	s.pass(timeWait - 1020)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	s.tells(
		"c cli(2,connect) TW>C 70000 mini",
		"c cli(2,connect) connection role=client life=75011.25 closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=5000 TW=70000 expired",
	)
	s.checkNoMinis()
}

// a timer that stays in its bucket of the wheel is set anew in silence, but
// when it ends, expires − 60 s is when the FIN came.
func TestAFinThatNothingShowedIsToldByTheEnd(t *testing.T) {
	for _, tt := range []struct {
		left float64
		why  events.Why
		end  string
	}{
		{-300, events.WhyOther, "expired"},
		{2000, events.WhySyn, "reused"},
	} {
		s := newMiniStory(t, Filter{})
		s.orphaned(client)
		s.pass(999.875) // the FIN comes, and makes no event
		s.pass(timeWait - tt.left)
		s.ends(mini(client), "TW", tt.left, tt.why)
		s.settles()
		s.tells(
			"c cli(2,connect) F2>TW 1000 mini",
			fmt.Sprintf("c cli(2,connect) TW>C %v mini", timeWait-tt.left),
			fmt.Sprintf("c cli(2,connect) connection role=client life=%v closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=1000 TW=%v %s",
				1011.25+timeWait-tt.left, timeWait-tt.left, tt.end),
		)
		s.checkNoMinis()
	}
}

// Both sides close at once.
func TestASimultaneousCloseGoesFromClosingToTimeWait(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.step(client, "C>SS", by(2, "cli"))
	s.pass(1)
	s.step(client, "SS>E", with(events.HasSocket))
	s.pass(10)
	s.step(client, "E>F1", by(2, "cli"), with(events.HasSocket), shut(3))
	s.pass(2)
	s.step(client, "F1>CG", with(orphan|events.Done), shut(3))
	s.pass(3)
	s.said = nil
	s.handsOver(client, "CG>C", "TW", with(orphan|events.Done))
	s.destroy(client)
	s.tells("c cli(2,connect) CG>TW 3 mini")
	s.pass(timeWait - 0.125)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	s.tells(
		"c cli(2,connect) TW>C 60000 mini",
		"c cli(2,connect) connection role=client life=60016 closer=both end=fin call=close E=10 SS=1 F1=2 TW=60000 CG=3 expired",
	)
	s.checkNoMinis()
}

// The slab gives the address away at once; the end of the first is not settled yet, or
// was missed.
func TestAMinisocketsAddressThatIsUsedAgainMixesNoConnections(t *testing.T) {
	second := nth(1)
	for _, tt := range []struct {
		name   string
		missed bool
		want   []string
	}{
		{"at once", false, []string{
			"c cli(2,connect) TW>C 60000 mini",
			"c cli(2,connect) connection role=client life=60051.25 closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=40 TW=60000 expired",
		}},
		{"its end missed", true, []string{
			"c cli(2,connect) connection role=client life=? closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=40 TW=? gap",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newMiniStory(t, Filter{})
			s.waits(client)
			s.closesFirst(second)
			s.pass(timeWait - 11.375)
			if !tt.missed {
				s.ends(mini(client), "TW", 0, events.WhyOther)
			}
			s.tick()
			next := second
			next.addr = mini(client).addr
			s.begins(next, "TW", timeWait)
			s.step(second, "F2>C", with(orphan|events.Done), shut(3))
			s.destroy(second)
			s.tells(append(tt.want, "501 cli(2,connect) F2>TW 59988.625 mini")...)
			s.settles()
			s.tells()
			s.pass(timeWait - 20)
			s.ends(next, "TW", 0, events.WhyOther)
			s.settles()
			s.tells(
				"501 cli(2,connect) TW>C 60000 mini",
				"501 cli(2,connect) connection role=client life=119999.875 closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=59988.625 TW=60000 expired",
			)
			s.checkNoMinis()
			if c := s.tr.Counts(); (c.MissedMinis == 1) != tt.missed {
				t.Errorf("missed the ends of %d minisockets, want it to be one: %v", c.MissedMinis, tt.missed)
			}
		})
	}
}

// shutdown(SHUT_WR), the peer closes, and the descriptor is
// open. TIME_WAIT begins; and ss shows the one, but not the leak.
func TestADescriptorThatOutlivesItsConnectionIsALeakInTimeWaitToo(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.shutsDown(client)
	s.pass(40)
	s.handsOver(client, "F2>C", "TW", with(events.HasSocket|events.Done))
	s.tells("c cli(2,connect) F2>TW 40 mini")
	s.pass(minute - 1)
	row := holds(client, "C", 2, "cli", 4)
	s.scan(row)
	s.tells()
	s.pass(1)
	s.scan(row)
	s.tells("#1 reset_fd_leak open warning cli(2) n=1 oldest=60000 2/4:c")
	if got, want := s.found().Evidence.Ended, [numEnds]int{EndFin: 1}; got != want {
		t.Errorf("got ended %v, want %v", got, want)
	}
	s.ends(mini(client), "TW", -0.125, events.WhyOther)
	s.settles()
	s.tells(
		"c cli(2,connect) TW>C 60000.125 mini",
		"c cli(2,connect) connection role=client life=60051.375 closer=local end=fin call=shutdown E=10 SS=1 F1=0.25 F2=40 TW=60000.125 expired",
	)
	s.checkNoMinis()
	s.destroy(client) // close()
	s.tick()
	s.tells("#1 reset_fd_leak resolved warning cli(2) n=0 oldest=?")
	auditEmpty(t, s.tr)
}

// close() waits in SO_LINGER, and sets SOCK_DEAD only when that is over.
func TestALingeringCloseIsNotTakenForAShutdown(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.shutsDown(client)
	s.handsOver(client, "F2>C", "TW", with(events.HasSocket|events.Done|events.Linger))
	s.pass(timeWait)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	if got := s.lines(" call= "); len(got) != 1 {
		t.Errorf("got %q, want a connection whose call is not known", s.lines("connection"))
	}
}

// The socket is gone as soon as its minisocket is there, and its address another's.
func TestASocketsAddressThatIsUsedAgainIsAnother(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.waits(client)
	second := client
	second.cookie, second.lport = 0xd, 40001
	s.pass(10_000)
	s.step(second, "C>SS", by(3, "other"))
	s.pass(1)
	s.step(second, "SS>E", with(events.HasSocket))
	s.pass(5)
	s.step(second, "E>C", with(events.HasSocket), failed(104))
	s.destroy(second)
	s.tells(
		"d other(3,connect) C>SS ?",
		"d other(3,connect) SS>E 1",
		"d other(3,connect) E>C 5",
		"d other(3,connect) connection role=client life=6 closer= end=reset_received call= E=5 SS=1",
	)
	s.pass(timeWait - 10_006.125)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	s.tells(
		"c cli(2,connect) TW>C 60000 mini",
		"c cli(2,connect) connection role=client life=60051.25 closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=40 TW=60000 expired",
	)
	s.checkNoMinis()
}

// One whose descriptor is open can go through connect(AF_UNSPEC) and have another
// connection while the first is in TIME_WAIT. The cookie stays.
func TestASocketThatIsConnectedAgainHasTwoMinisocketsOfOneCookie(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.shutsDown(client)
	s.handsOver(client, "F2>C", "TW", with(events.HasSocket|events.Done))
	s.pass(1000)
	again := client
	again.lport = 40001
	s.closesFirst(again)
	other := mini(again)
	other.addr++
	s.begins(other, "F2", timeWait)
	s.step(again, "F2>C", with(orphan), shut(3))
	s.destroy(again)
	s.tells()
	s.pass(500)
	s.begins(other, "TW", timeWait)
	s.tells("c cli(2,connect) F2>TW 500 mini")
	s.pass(timeWait - 1511.25 - 0.125)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	s.tells(
		"c cli(2,connect) TW>C 60000 mini",
		"c cli(2,connect) connection role=client life=60011.25 closer=local end=fin call=shutdown E=10 SS=1 F1=0.25 F2=0 TW=60000 expired",
	)
	s.pass(1511.375 - 20)
	s.ends(other, "TW", 0, events.WhyOther)
	s.settles()
	if got := s.lines("connection"); len(got) != 1 || !strings.Contains(got[0], "call=close E=10 SS=1 F1=0.25 F2=500 TW=60000 expired") {
		t.Errorf("the second: got %q, want one connection with F2=500, TW=60000", got)
	}
	s.checkNoMinis()
}

// FIN_WAIT2 -> CLOSE with no minisocket: the connection has ended (tcp_max_tw_buckets,
// TCP_LINGER2 < 0, data for an orphan). Where minisockets are not seen, that is not known.
func TestFinWait2WithoutAMinisocketIsTheEnd(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.closesFirst(client)
	s.pass(40)
	s.step(client, "F2>C", with(orphan), shut(3))
	s.destroy(client)
	s.tells(
		"c cli(2,connect) F2>C 40",
		"c cli(2,connect) connection role=client life=51.25 closer=local end= call=close E=10 SS=1 F1=0.25 F2=40",
	)
	s.checkNoMinis()
	s.closesFirst(server)
	s.pass(40)
	s.step(server, "F2>C", with(orphan), shut(3), func(ev *events.Event) { ev.Linger2 = true })
	if got := s.lines("end=reset_sent"); len(got) != 1 {
		t.Errorf("TCP_LINGER2 < 0: got %q, want a connection with end=reset_sent", s.said)
	}
}

// The payload is what the socket's last transition says, without SYN and FIN.
func TestBytesGoThroughTimeWait(t *testing.T) {
	s := newMiniStory(t, Filter{})
	var got Connection
	s.tr.out = take{connection: func(c *Connection) { got = *c }}
	s.closesFirst(client)
	s.handsOver(client, "F2>C", "TW", with(orphan|events.Done), func(ev *events.Event) { ev.Sent, ev.Received = 7, 11 })
	s.pass(timeWait)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	if !got.Payload || got.Sent != 7 || got.Received != 10 || !got.Ended || got.Gap {
		t.Errorf("got %+v, want 7 bytes sent, 10 received: the FIN is no payload", got)
	}
	// Of one whose last transition never came it is not known.
	s.closesFirst(nth(1))
	s.begins(mini(nth(1)), "TW", timeWait)
	s.destroy(nth(1))
	s.pass(timeWait)
	s.ends(mini(nth(1)), "TW", 0, events.WhyOther)
	s.settles()
	if got.Cookie != nth(1).cookie || got.Payload || !got.Gap {
		t.Errorf("got %+v, want one of socket %x with unknown bytes and a gap", got, nth(1).cookie)
	}
}

func TestRecordsThatFindNoRoomAreCountedThroughTimeWait(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.refu = true
	s.closesFirst(client) // four
	s.handsOver(client, "F2>C", "F2", with(orphan))
	s.destroy(client)
	s.pass(100)
	s.begins(mini(client), "TW", timeWait) // five
	s.refu = false
	s.pass(timeWait)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	s.tells(
		"c cli(2,connect) TW>C 60000 mini unprinted=5",
		"c cli(2,connect) connection role=client life=60111.375 closer=local end=fin call=close E=10 SS=1 F1=0.25 F2=100.125 TW=60000 expired unprinted=5",
	)
}

// A FIN that ends FIN_WAIT2 may make no event: so it is looked for.
func TestMinisocketsInFinWait2AreLookedAt(t *testing.T) {
	s := newStory(t, Filter{})
	s.tr.SeesMinisockets(true)
	s.waits(nth(1)) // in TIME_WAIT: there is nothing to look for
	s.closesFirst(client)
	began := s.ms
	s.handsOver(client, "F2>C", "F2", with(orphan))
	s.destroy(client)

	var at []float64
	for s.ms < began+10_000 {
		s.ms++
		s.tick()
		switch looks := s.tr.Looks(); {
		case len(looks) == 0:
		case len(looks) == 1 && looks[0] == events.Look{Skaddr: mini(client).addr, Cookie: client.cookie}:
			at = append(at, s.ms-began)
		default:
			t.Fatalf("at %v ms: looks at %+v, want the one in FIN_WAIT2 only", s.ms-began, looks)
		}
	}
	// Most leave it at once. After some seconds the timer's bucket is another, and the
	// event does not fail to come (5.12 s wide at 100 Hz).
	if len(at) < 3 || at[0] > 50 || at[len(at)-1] < 5120 {
		t.Errorf("looked at after %v ms, want it soon, more than once, and once after 5120 ms", at)
	}
	for k := 1; k < len(at); k++ {
		if at[k] < 2*at[k-1] {
			t.Errorf("looked at after %v ms, want it ever less often", at)
		}
	}
}

func TestWhatALookFindsIsToldAndNotLookedForAgain(t *testing.T) {
	s := newStory(t, Filter{})
	s.tr.SeesMinisockets(true)
	s.orphaned(client)
	s.pass(19.875)
	s.tick()
	if n := len(s.tr.Looks()); n != 1 {
		t.Fatalf("after 20 ms: looks at %d, want 1", n)
	}
	s.pass(1)
	s.begins(mini(client), "TW", timeWait-13) // the FIN came 13 ms ago
	s.tells("c cli(2,connect) F2>TW 8 mini")
	for range 10_000 {
		s.ms++
		s.tick()
		if n := len(s.tr.Looks()); n != 0 {
			t.Fatalf("in TIME_WAIT: looks at %d, want none", n)
		}
	}
	s.tells()
	// Nor at those that have ended, or where it need not be done.
	s.orphaned(nth(1))
	s.pass(10)
	s.ends(mini(nth(1)), "F2", 50_000, events.WhyOther)
	s.pass(10)
	s.tick()
	if n := len(s.tr.Looks()); n != 0 {
		t.Errorf("of one that has ended: looks at %d, want none", n)
	}
	other := newMiniStory(t, Filter{})
	other.tr.SeesMinisockets(false)
	other.orphaned(client)
	other.pass(20)
	other.tick()
	if n := len(other.tr.Looks()); n != 0 {
		t.Errorf("where every FIN makes an event: looks at %d, want none", n)
	}
}

// The jiffies say that the FIN came a tick before FIN_WAIT2 began.
func TestNoTimeIsNegative(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.orphaned(client)
	s.begins(mini(client), "TW", timeWait-4)
	s.tells("c cli(2,connect) F2>TW 0 mini")
	s.ends(mini(client), "TW", timeWait+4, events.WhyKilled)
	s.settles()
	if got := s.lines("TW>C 0.125 mini"); len(got) != 1 {
		t.Errorf("got %q, want TIME_WAIT to have taken 0.125 ms", s.said)
	}
}

// ss shows no process for these.
func TestTheProcessThatMadeATimeWaitIsKeptWithItsContainer(t *testing.T) {
	s := newMiniStory(t, Filter{})
	var got []string
	s.tr.out = take{
		transition: func(r *Transition) {
			got = append(got, fmt.Sprintf("%s %s>%s %s", owner(&r.Owner), short(r.Old), short(r.New), r.Container.ID))
		},
		connection: func(r *Connection) { got = append(got, owner(&r.Owner)+" connection "+r.Container.ID) },
	}
	s.details(events.Details{Pid: 2, Container: "old"})
	s.orphaned(client)
	s.pass(500)
	s.begins(mini(client), "TW", timeWait)
	// Process 2 exits, and its PID is another's that has connections too.
	s.fork(9, 2, "new")
	s.details(events.Details{Pid: 2, Container: "new"})
	s.step(nth(1), "C>SS", by(2, "new"))
	audit(t, s.tr)
	s.pass(timeWait)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.settles()
	want := []string{
		"cli(2,connect) C>SS old", "cli(2,connect) SS>E old", "cli(2,connect) E>F1 old", "cli(2,connect) F1>F2 old",
		"cli(2,connect) F2>TW old", "new(2,connect) C>SS new", "cli(2,connect) TW>C old", "cli(2,connect) connection old",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	s.checkNoMinis()
	for range 3 { // what counts the connections of a process forgets it too
		s.pass(minute)
		s.tick()
	}
	left := 0
	for _, q := range s.tr.procs.all[1:] {
		if q != nil {
			left++
		}
	}
	if left != 1 {
		t.Errorf("knows %d processes, want 1: the old one is forgotten", left)
	}
}

// The last who held it, not the first, has made this side the active closer.
func TestATimeWaitIsTheOnesThatCalledClose(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.steps(server, "L>SR SR>E", from(listen.cookie))
	s.accept(server, 1, "srv")
	s.step(server, "E>F1", by(7, "child"), with(events.HasSocket|events.Exiting), shut(3))
	s.step(server, "F1>F2", with(orphan), shut(3))
	s.said = nil
	s.handsOver(server, "F2>C", "TW", with(orphan|events.Done))
	s.destroy(server)
	s.tells("5 child(7,close) F2>TW 0 mini")
	for pid, want := range map[uint32]int{1: 0, 7: 1} {
		if got := s.process(pid).timeWait; got != want {
			t.Errorf("process %d: made %d TIME_WAITs, want %d", pid, got, want)
		}
	}
	s.pass(timeWait)
	s.ends(mini(server), "TW", 0, events.WhyOther)
	s.settles()
	if got := s.lines("5 child(7,close) connection role=server "); len(got) != 1 || !strings.Contains(got[0], " call=exit ") {
		t.Errorf("got %q, want a connection of child(7) that its exit closed", s.said)
	}
	s.checkNoMinis()
}

func TestForgettingProcessesKeepsThoseThatMadeATimeWait(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.waits(client)
	n := s.tr.procs.byPid[2]
	for pid := range uint32(3 * manyProcesses) {
		s.details(events.Details{Pid: 100 + pid, Container: "c"})
	}
	if got := s.tr.procs.byPid[2]; got != n || s.tr.procs.all[n].pid != 2 {
		t.Errorf("process 2: has number %d, want %d", got, n)
	}
	audit(t, s.tr)
}

// What has ended as far as is known is told when the run is over; what has not, is not.
func TestARunThatIsOverTellsTheEndsThatAreNotSettled(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.waits(client)
	s.waits(nth(1))
	s.pass(timeWait)
	s.ends(mini(client), "TW", 0, events.WhyOther)
	s.tr.Finish()
	if got := s.said; len(got) != 2 || !strings.HasPrefix(got[0], "c cli(2,connect) TW>C ") || !strings.HasPrefix(got[1], "c cli(2,connect) connection ") {
		t.Errorf("got %q, want the transition and the connection of the one that has ended", got)
	}
	audit(t, s.tr)
}

func TestFiltersReachIntoTimeWait(t *testing.T) {
	const whole = 2 // FIN_WAIT2 -> TIME_WAIT -> CLOSE, and besides them the connection
	closedByNobody := func(ev *events.Event) { ev.Flags |= events.Owned | events.KThread | events.HasSocket }
	for _, tt := range []struct {
		name string
		f    Filter
		want int
	}{
		{"none", Filter{}, whole},
		{"its port", Filter{Lports: []uint16{40000}}, whole},
		{"another port", Filter{Lports: []uint16{80}}, 0},
		{"its peer's port", Filter{Rports: []uint16{80}}, whole},
		{"another namespace", Filter{Netns: 2}, 0},
		{"its process", pids(2), whole},
		{"another process", pids(3), 0},
		{"its process's name and its port", Filter{Comms: []events.Comm{events.MakeComm("cli")}, Rports: []uint16{80}}, whole},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newMiniStory(t, tt.f)
			s.orphaned(client)
			s.pass(500)
			s.begins(mini(client), "TW", timeWait)
			s.pass(timeWait)
			s.ends(mini(client), "TW", 0, events.WhyOther)
			s.settles()
			if n, c := len(s.lines(" mini")), len(s.lines("connection")); n != tt.want || c != tt.want/whole {
				t.Errorf("got %q, want %d transitions of a minisocket, %d connections", s.said, tt.want, tt.want/whole)
			}
			s.checkNoMinis()
			if c := s.tr.Counts(); c.Tracked != 0 || c.Missed != 0 || c.MissedMinis != 0 {
				t.Errorf("got %+v, want nothing left and nothing missed", c)
			}
		})
	}

	// A server's child that nobody was seen to have, up to the end.
	for _, f := range []Filter{pids(1), pids(3)} {
		s := newMiniStory(t, f)
		s.steps(server, "L>SR SR>E")
		s.step(server, "E>F1", closedByNobody, shut(3))
		s.step(server, "F1>F2", with(orphan), shut(3))
		if n := len(s.tr.held); n != 1 {
			t.Errorf("undecided: holds back the records of %d sockets, want 1", n)
		}
		s.handsOver(server, "F2>C", "TW", with(orphan|events.Done))
		s.destroy(server)
		s.pass(timeWait)
		s.ends(mini(server), "TW", 0, events.WhyOther)
		s.settles()
		s.tells()
		s.checkNoMinis()
	}

	// And one whose process is known only by its close().
	s := newMiniStory(t, pids(7))
	s.steps(server, "L>SR SR>E")
	s.step(server, "E>F1", by(7, "late"), with(events.HasSocket), shut(3))
	s.step(server, "F1>F2", with(orphan), shut(3))
	s.said = nil
	s.handsOver(server, "F2>C", "TW", with(orphan|events.Done))
	s.tells("5 late(7,close) F2>TW 0 mini")
}

// Before a summary all are looked at, whenever it is their turn.
func TestAllInFinWait2MayBeLookedAt(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.orphaned(client)
	s.pass(300) // between two looks
	s.tick()
	want := []events.Look{{Skaddr: mini(client).addr, Cookie: client.cookie}}
	if got := s.tr.InFinWait2(); !slices.Equal(got, want) {
		t.Errorf("in FIN_WAIT2: got %v, want %v", got, want)
	}
	s.begins(mini(client), "TW", timeWait)
	if got := s.tr.InFinWait2(); len(got) != 0 {
		t.Errorf("in TIME_WAIT: got %v, want none", got)
	}
}
