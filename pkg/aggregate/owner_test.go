package aggregate

import (
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// the acceptor closes its descriptor, which says nothing,
// and the child that inherited one is killed.
func TestTheLastHolderIsTheOneThatCloses(t *testing.T) {
	s := newStory(t, Filter{})
	s.step(listen, "C>L", by(1, "srv"))
	s.steps(server, "L>SR SR>E", from(listen.cookie))
	s.accept(server, 1, "srv")
	s.steps(server, "E>CW", with(events.HasSocket|events.Done))
	s.said = nil
	s.steps(server, "CW>LA", by(7, "child"), shut(3), with(events.Exiting))
	s.steps(server, "LA>C", with(orphan|events.Done))
	s.tells(
		"5 child(7,close) CW>LA 1",
		"5 child(7,close) LA>C 1",
		"5 child(7,close) connection role=server life=4 closer=remote end=fin call=exit E=1 SR=1 CW=1 LA=1",
	)
}

func TestABystanderIsNeverNamed(t *testing.T) {
	s := newStory(t, Filter{})
	s.step(listen, "C>L", by(1, "srv"))
	s.steps(server, "L>SR SR>E", from(listen.cookie))
	s.said = nil

	// Accepted, but how nobody saw: its listener's owner is no longer good enough.
	s.step(server, "E>CW", with(events.HasSocket|events.Done))
	// ss -K: in the killer's context, on this very socket.
	s.step(server, "CW>C", by(6, "ss"), shut(3), failed(103))
	s.tells(
		"5 - E>CW 1",
		"5 - CW>C 0",
		"5 - connection role=server life=2 closer=remote end=aborted call= E=1 SR=1 CW=0",
	)
	// A listener is killed with no error set; sk_shutdown shows that nobody closed it.
	s.step(listen, "L>C", by(6, "ss"))
	s.tells("1 srv(1,listen) L>C 2")
}

func TestACloseByTheKernelItselfIsNobodys(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(client, "C>SS SS>E", by(2, "cli"))
	s.said = nil
	// A descriptor in flight over a Unix socket: a kworker drops it.
	s.step(client, "E>F1", with(events.Owned|events.KThread|events.HasSocket), shut(3))
	s.step(client, "F1>C", with(orphan), failed(104))
	s.tells(
		"c cli(2,connect) E>F1 1",
		"c cli(2,connect) F1>C 0",
		"c cli(2,connect) connection role=client life=2 closer=local end= call= E=1 SS=1 F1=0",
	)
}

// Closing a listener.
func TestAChildThatNobodyAcceptedIsItsListeners(t *testing.T) {
	s := newStory(t, Filter{})
	s.step(listen, "C>L", by(1, "srv"))
	s.steps(server, "L>SR SR>E", from(listen.cookie))
	s.said = nil
	s.step(listen, "L>C", by(1, "srv"), shut(3))
	s.step(server, "E>C") // task, but the socket's lock is not owned: inet_child_forget
	s.tells(
		"1 srv(1,listen) L>C 2",
		"5 srv(1,listener) E>C 1",
		"5 srv(1,listener) connection role=server life=2 closer= end=reset_sent call= E=1 SR=1",
	)
}

func TestAUserOfASocketWithoutOwnerIsItsHolder(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(server, "L>SR SR>E")
	s.said = nil
	// The FIN is processed at the end of a read() of process 4.
	s.step(server, "E>CW", by(4, "reader"), with(events.HasSocket|events.Done), shut(1))
	s.tells("5 reader(4,fd) E>CW 1")
}

func TestAScanIsAskedForOnceWhenAnOwnerStaysUnknown(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(server, "L>SR SR>E")
	s.step(server, "E>CW", with(events.HasSocket|events.Done))
	s.tick()
	if s.tr.WantScan() != WantNothing {
		t.Error("wants a scan at once; the accept() may just be returning")
	}
	s.pass(150)
	s.tick()
	if s.tr.WantScan() != WantOwners || s.tr.WantScan() != WantNothing {
		t.Error("want one scan after 150 ms")
	}
	s.said = nil
	s.row(server, "CW", 4, "holder", 7)
	stranger := server
	stranger.cookie = 0xabc // another socket has the address by now
	s.row(stranger, "CW", 5, "stranger", 7)
	s.step(server, "CW>LA", by(4, "holder"), shut(3))
	s.tells("5 holder(4,fd) CW>LA 150")
}

func TestAnAcceptorThatCannotBeSeenLeavesNoOwner(t *testing.T) {
	s := newStory(t, Filter{})
	s.step(listen, "C>L", by(1, "srv"))
	s.steps(server, "L>SR SR>E", from(listen.cookie))
	s.accept(server, 0, "")
	s.said = nil
	s.step(server, "E>CW", with(events.HasSocket|events.Done))
	s.tells("5 - E>CW 1")
}

func TestListenersThatShareAPortLeaveTheQueuedWithoutOwner(t *testing.T) {
	s := &story{t: t, ms: 1000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	other := listen
	other.addr, other.cookie = 0x11, 0x2
	noSocket := func(ev *events.Event) { ev.Flags = 0 }
	s.row(listen, "L", 1, "srv", 3)
	s.row(other, "L", 2, "srv", 3)
	s.row(server, "E", 0, "", -1, noSocket)
	s.tr.Scanned(events.Scan{Complete: true, Every: true})
	if got := s.lines("5 - socket E"); len(got) != 1 {
		t.Errorf("want the queued socket without owner, got %q", s.said)
	}
}

// The kernel gives the memory of a listener that has ended to another. If neither was told of, its
// address still names the one that was.
func TestAnAddressNamesNoListenerThatCannotBeMeant(t *testing.T) {
	for name, before := range map[string]func(*story){
		"ended": func(s *story) {
			s.step(listen, "C>L", by(1, "srv"))
			s.step(listen, "L>C", by(1, "srv"), shut(3))
		},
		"in another namespace": func(s *story) {
			other := listen
			other.netns = 2
			s.step(other, "C>L", by(1, "srv"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStory(t, Filter{})
			before(s)
			s.said = nil
			s.step(server, "L>SR", from(listen.addr))
			s.tells("5 - L>SR ?")
		})
	}
}

// TPROXY, and BPF programs of the type sk_lookup, hand a listener what was sent to another port.
func TestAListenerHasConnectionsToOtherPortsToo(t *testing.T) {
	s := newStory(t, Filter{})
	s.step(listen, "C>L", by(1, "srv"))
	s.said = nil
	child := server
	child.lport++
	s.step(child, "L>SR", from(listen.addr))
	s.tells("5 srv(1,listener) L>SR ?")
}
