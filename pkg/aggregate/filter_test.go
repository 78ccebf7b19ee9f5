package aggregate

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

func pids(p ...uint32) Filter { return Filter{Pids: p} }

// serve tells a whole life of a server's socket that pid accepts and closes.
func serve(s *story, k sock, pid uint32, comm string) {
	s.t.Helper()
	s.steps(k, "L>SR SR>E", from(listen.cookie))
	s.accept(k, pid, comm)
	s.steps(k, "E>CW", with(events.HasSocket|events.Done), shut(1))
	s.steps(k, "CW>LA", by(pid, comm), with(events.HasSocket|events.Done), shut(3))
	s.steps(k, "LA>C", with(orphan|events.Done), shut(3))
	s.destroy(k)
}

func TestAPidGetsTheWholeStoryOfWhatItAccepted(t *testing.T) {
	s := newStory(t, pids(5))
	s.step(listen, "C>L", by(1, "master"))
	other := server
	other.addr, other.cookie, other.rport = 0x51, 0x6, 40001
	serve(s, server, 5, "worker")
	serve(s, other, 6, "worker")
	s.steps(client, "C>SS SS>E", by(2, "cli"))
	s.tells(
		"5 worker(5,accept) L>SR ?",
		"5 worker(5,accept) SR>E 1",
		"5 worker(5,accept) E>CW 1",
		"5 worker(5,accept) CW>LA 1",
		"5 worker(5,accept) LA>C 1",
		"5 worker(5,accept) connection role=server life=4 closer=remote end=fin call=close E=1 SR=1 CW=1 LA=1",
	)
	if len(s.tr.held) != 0 {
		t.Errorf("%d sockets are still held back", len(s.tr.held))
	}
}

func TestAListenersPidGetsWhatNobodyAccepts(t *testing.T) {
	s := newStory(t, pids(1))
	s.step(listen, "C>L", by(1, "srv"))
	s.steps(server, "L>SR SR>E", from(listen.cookie))
	s.tick()
	s.tells("1 srv(1,listen) C>L ?") // may still be accepted by another process
	s.pass(1001)
	s.tick()
	s.tells("5 srv(1,listener) L>SR ?", "5 srv(1,listener) SR>E 1")

	// And one that ends before that.
	short := server
	short.addr, short.cookie = 0x52, 0x7
	s.steps(short, "L>SR SR>E", from(listen.cookie))
	s.steps(short, "E>C", failed(104))
	s.tells(
		"7 srv(1,listener) L>SR ?",
		"7 srv(1,listener) SR>E 1",
		"7 srv(1,listener) E>C 1",
		"7 srv(1,listener) connection role=server life=2 closer= end=reset_received call= E=1 SR=1",
	)
}

func TestASocketThatAPidReceivesIsItsFromThenOn(t *testing.T) {
	s := newStory(t, pids(9))
	s.step(listen, "C>L", by(1, "srv"))
	s.steps(server, "L>SR SR>E", from(listen.cookie))
	s.accept(server, 1, "srv")
	s.steps(server, "E>CW", with(events.HasSocket|events.Done))
	s.tells()
	s.steps(server, "CW>LA", by(9, "heir"), shut(3))
	s.steps(server, "LA>C", with(orphan|events.Done))
	s.tells(
		"5 heir(9,close) CW>LA 1",
		"5 heir(9,close) LA>C 1",
		"5 heir(9,close) connection role=server life=4 closer=remote end=fin call=close E=1 SR=1 CW=1 LA=1",
	)
}

// taken says that the kernel side has turned away what came before.
func taken(ev *events.Event) { ev.Taken = true }

// What the kernel side has turned away was not lost.
func TestWhatCameBeforeASocketWasTakenIsNotMissed(t *testing.T) {
	s := newStory(t, pids(9))
	s.pass(1)
	s.steps(server, "CW>LA", by(9, "heir"), shut(3), taken)
	s.steps(server, "LA>C", with(orphan|events.Done))
	s.tells(
		"5 heir(9,close) CW>LA ?",
		"5 heir(9,close) LA>C 1",
		"5 heir(9,close) connection role= life=? closer=remote end=fin call=close CW=? LA=1",
	)
	if n := s.tr.Counts().Missed; n != 0 {
		t.Errorf("missed %d, want 0", n)
	}
	// What is not taken, and not known, is.
	other := nth(1)
	s.steps(other, "CW>LA", by(9, "heir"), shut(3))
	if n := s.tr.Counts().Missed; n != 1 {
		t.Errorf("missed %d, want 1", n)
	}
}

func TestASocketThatALaterScanTakesIsKnownFromThenOn(t *testing.T) {
	s := newStory(t, pids(9))
	s.pass(1)
	s.scan(holds(server, "E", 9, "heir", 4, taken), holds(nth(1), "E", 9, "heir", 5))
	if n := s.tr.Counts().Tracked; n != 1 {
		t.Errorf("tracks %d sockets, want the one that was taken", n)
	}
	s.steps(server, "E>CW", with(events.HasSocket|events.Done))
	s.tells("5 heir(9,fd) E>CW ?")
	if n := s.tr.Counts().Missed; n != 0 {
		t.Errorf("missed %d, want 0", n)
	}
}

// Its listener is one that nothing has told of: what comes of it may be turned away.
func TestWhoAcceptsWhatIsNotKnownIsLookedAt(t *testing.T) {
	s := newStory(t, pids(9))
	s.accept(server, 8, "other")
	if got := s.tr.WantScan(); got != WantNothing {
		t.Errorf("another process accepts: wants scan %d, want none", got)
	}
	s.accept(server, 9, "heir")
	if got := s.tr.WantScan(); got != WantOwners {
		t.Errorf("the process asked for accepts: wants scan %d, want %d", got, WantOwners)
	}
}

func TestFollowTakesChildrenAndOnlyThose(t *testing.T) {
	f := pids(1)
	f.Follow = true
	s := newStory(t, f)
	s.fork(1, 10, "srv")
	s.fork(10, 11, "srv")
	s.fork(2, 12, "cli")
	for pid, want := range map[uint32]bool{1: true, 10: true, 11: true, 12: false, 2: false} {
		comm := events.MakeComm("x")
		if got := s.tr.procs.match(pid, &comm); got != want {
			t.Errorf("process %d: got %v, want %v", pid, got, want)
		}
	}
}

// The processes that are there at the start are told as forks, before the first
// scan is over.
func TestAProcessThatWasThereBeforeKeepsItsPid(t *testing.T) {
	s := &story{t: t, ms: 1000}
	s.tr = NewTracker(s, &Filter{Pids: []uint32{2}, Follow: true}, 10, thresholds(time.Minute))
	s.fork(1, 2, "cli")
	s.fork(2, 3, "child")
	s.tr.Scanned(events.Scan{Complete: true, Every: true})
	s.steps(client, "C>SS", by(2, "cli"))
	s.steps(server, "C>SS", by(3, "child"))
	s.tells("c cli(2,connect) C>SS ?", "5 child(3,connect) C>SS ?")
}

func TestAPidThatIsGivenAgainIsAnotherProcess(t *testing.T) {
	s := newStory(t, pids(2))
	s.fork(1, 2, "newcomer")
	s.steps(client, "C>SS SS>E", by(2, "newcomer"))
	s.tells()
}

func TestFiltersByEnds(t *testing.T) {
	in := func(cidr string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(cidr)} }
	six := client
	six.raddr, six.cookie, six.addr = "2001:db8::7", 0x66, 0xc6
	blue := client
	blue.netns, blue.cookie, blue.addr = 4026, 0xb, 0xcb

	for _, tt := range []struct {
		name string
		f    Filter
		want []string // cookies
	}{
		{"none", Filter{}, []string{"1", "5", "66", "b", "c"}},
		{"local port", Filter{Lports: []uint16{80}}, []string{"1", "5"}},
		{"local port of a client", Filter{Lports: []uint16{1, 40000}}, []string{"66", "b", "c"}},
		{"remote port", Filter{Rports: []uint16{80}}, []string{"66", "b", "c"}},
		{"IPv4", Filter{Family: 4}, []string{"1", "5", "b", "c"}},
		{"IPv6", Filter{Family: 6}, []string{"66"}},
		{"peer", Filter{Remotes: in("10.0.0.0/8")}, []string{"5", "b", "c"}},
		{"IPv6 peer", Filter{Remotes: in("2001:db8::/32")}, []string{"66"}},
		{"namespace", Filter{Netns: 4026}, []string{"b"}},
		{"all at once", Filter{Netns: 4026, Family: 6}, nil},
		{"process and port", Filter{Pids: []uint32{2}, Rports: []uint16{80}}, []string{"66", "b", "c"}},
		{"name", Filter{Comms: []events.Comm{events.MakeComm("srv")}}, []string{"1", "5"}},
		{"name and process", Filter{Comms: []events.Comm{events.MakeComm("srv")}, Pids: []uint32{2}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStory(t, tt.f)
			s.step(listen, "C>L", by(1, "srv"))
			for _, k := range []sock{client, six, blue} {
				unbound := k
				unbound.lport = 0
				s.step(unbound, "C>SS", by(2, "cli"))
				s.step(k, "SS>E")
				s.step(k, "E>F1", by(2, "cli"), shut(3))
				s.step(k, "F1>F2", with(orphan))
				s.step(k, "F2>C", with(orphan))
				s.destroy(k)
			}
			serve(s, server, 1, "srv")

			lines := map[string]int{}
			for _, l := range s.said {
				cookie, _, _ := strings.Cut(l, " ")
				lines[cookie]++
			}
			for _, c := range tt.want {
				want := 6 // five transitions and a connection: complete, or it is not there
				if c == "1" {
					want = 1
				}
				if lines[c] != want {
					t.Errorf("socket %s: got %d records, want %d", c, lines[c], want)
				}
				delete(lines, c)
			}
			if len(lines) > 0 {
				t.Errorf("got records of sockets that do not match: %v", lines)
			}
			if n := s.tr.Counts().Missed; n != 0 || len(s.tr.held) != 0 {
				t.Errorf("missed %d, holds %d; want 0, 0", n, len(s.tr.held))
			}
		})
	}
}

func TestAChildWithoutItsPeerWaitsForItsName(t *testing.T) {
	s := newStory(t, Filter{})
	var families []bool
	s.tr.out = take{transition: func(r *Transition) { families = append(families, r.Is4()) }}
	bare := server
	bare.rport, bare.raddr, bare.cookie = 0, "::", 0
	s.step(bare, "L>SR", func(ev *events.Event) { ev.Laddr = events.Addr{} })
	if len(families) != 0 {
		t.Fatal("told of a child whose family is not known yet")
	}
	s.step(server, "SR>E")
	if len(families) != 2 || !families[0] || !families[1] {
		t.Errorf("got IPv4 %v, want it for both transitions", families)
	}

	// And if nothing more comes of it, it is told as it was.
	lone := bare
	lone.addr = 0x77
	s.step(lone, "L>SR")
	s.destroy(lone)
	if len(families) != 3 {
		t.Errorf("got %d transitions, want 3", len(families))
	}
}

// Kernels before 6.15 announce a child without its peer.
func TestAChildIsHeldBackUntilItsPeerIsKnown(t *testing.T) {
	s := newStory(t, Filter{Remotes: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")}})
	bare := server
	bare.rport, bare.raddr, bare.cookie = 0, "::", 0
	s.steps(bare, "L>SR")
	s.tells()
	s.steps(server, "SR>E")
	s.tells("5 - L>SR ?", "5 - SR>E 1")

	bare.addr = 0x53
	elsewhere := server
	elsewhere.addr, elsewhere.cookie, elsewhere.raddr = 0x53, 0x8, "10.9.9.9"
	s.steps(bare, "L>SR")
	s.steps(elsewhere, "SR>E")
	s.tells()
	if got := s.tr.Counts().Tracked; got != 1 {
		t.Errorf("tracks %d sockets, want 1", got)
	}
}
