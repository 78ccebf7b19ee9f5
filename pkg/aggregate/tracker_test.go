package aggregate

import (
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

const orphan = events.Dead

var (
	client = sock{addr: 0xc0, cookie: 0xc, lport: 40000, rport: 80}
	server = sock{addr: 0x50, cookie: 0x5, lport: 80, rport: 40000}
	listen = sock{addr: 0x10, cookie: 0x1, lport: 80}
)

// the client closes first, the server after 500 ms.
func TestBothEndsOfAConnectionAreToldWithTheirTimesAndOwners(t *testing.T) {
	s := newStory(t, Filter{})
	unbound := client
	unbound.lport = 0

	s.step(listen, "C>L", by(1, "srv"))
	s.step(unbound, "C>SS", by(2, "cli"))
	s.pass(3)
	s.step(client, "SS>E", by(2, "cli"))
	s.step(server, "L>SR", from(listen.cookie))
	s.step(server, "SR>E")
	s.accept(server, 1, "srv")
	s.pass(10)
	s.step(client, "E>F1", by(2, "cli"), shut(3))
	s.step(server, "E>CW", with(events.HasSocket|events.Done), shut(1))
	s.pass(0.25)
	s.step(client, "F1>F2", with(orphan), shut(3))
	s.step(client, "F2>C", with(orphan), shut(3))
	s.destroy(client)
	s.pass(499.75)
	s.step(server, "CW>LA", by(1, "srv"), shut(3), with(events.HasSocket|events.Done))
	s.pass(0.5)
	s.step(server, "LA>C", with(orphan|events.Done), shut(3))
	s.destroy(server)

	s.tells(
		"1 srv(1,listen) C>L ?",
		"c cli(2,connect) C>SS ?",
		"c cli(2,connect) SS>E 3",
		"5 srv(1,listener) L>SR ?",
		"5 srv(1,listener) SR>E 0",
		"c cli(2,connect) E>F1 10",
		"5 srv(1,accept) E>CW 10",
		"c cli(2,connect) F1>F2 0.25",
		"c cli(2,connect) F2>C ?", // a minisocket took over: FIN_WAIT2 goes on
		"c cli(2,connect) connection role=client life=13.25 closer=local end= call=close E=10 SS=3 F1=0.25 F2=?",
		"5 srv(1,accept) CW>LA 500",
		"5 srv(1,accept) LA>C 0.5",
		"5 srv(1,accept) connection role=server life=510.5 closer=remote end=fin call=close E=10 SR=0 CW=500 LA=0.5",
	)
	if c := s.tr.Counts(); c.Tracked != 1 || c.Delivered != 11 || c.Missed != 0 {
		t.Errorf("got %+v, want 1 tracked, 11 delivered, 0 missed", c)
	}
}

func TestCloseAfterShutdownEndsNoState(t *testing.T) {
	s := newStory(t, Filter{})
	s.step(client, "C>SS", by(2, "cli"))
	s.step(client, "SS>E")
	s.step(client, "E>F1", by(2, "cli"), shut(2), with(events.HasSocket))
	s.pass(5)
	s.step(client, "F1>F2", with(events.HasSocket))
	s.pass(7)
	s.step(client, "F2>F2", by(2, "cli"), shut(3), with(events.HasSocket))
	s.pass(1)
	s.step(client, "F2>C", with(orphan|events.Done), shut(3))
	s.tells(
		"c cli(2,connect) C>SS ?",
		"c cli(2,connect) SS>E 0",
		"c cli(2,connect) E>F1 0",
		"c cli(2,connect) F1>F2 5",
		"c cli(2,connect) F2>F2 ?",
		"c cli(2,connect) F2>C 8",
		"c cli(2,connect) connection role=client life=13 closer=local end=fin call=close E=0 SS=0 F1=5 F2=8",
	)
}

func TestShutdownAloneIsNoClose(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(client, "C>SS", by(2, "cli"))
	s.steps(client, "SS>E")
	s.steps(client, "E>F1", by(2, "cli"), shut(2), with(events.HasSocket))
	s.steps(client, "F1>F2", with(events.HasSocket))
	s.said = nil
	s.step(client, "F2>C", with(events.HasSocket|events.Done), shut(3))
	s.tells(
		"c cli(2,connect) F2>C 1",
		"c cli(2,connect) connection role=client life=4 closer=local end=fin call=shutdown E=1 SS=1 F1=1 F2=1",
	)
	s.destroy(client)
	s.tells()
}

func TestAMissedTransitionIsMarkedAndMakesNoFalseTime(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(client, "C>SS", by(2, "cli"))
	s.said = nil
	// SS>E and E>F1 never came.
	s.pass(100)
	s.steps(client, "F1>F2 F2>C", with(orphan|events.Done))
	s.tells(
		"c cli(2,connect) F1>F2 ? gap",
		"c cli(2,connect) F2>C 1",
		"c cli(2,connect) connection role=client life=102 closer=local end=fin call= SS=? F1=? F2=1 gap",
	)
	if got := s.tr.Counts().Missed; got != 1 {
		t.Errorf("missed %d, want 1", got)
	}
}

func TestAMissedEndIsNoticedWhenTheSocketIsDestroyed(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(client, "C>SS SS>E", by(2, "cli"))
	s.steps(client, "E>F1", by(2, "cli"), shut(3))
	s.said = nil
	s.destroy(client)
	s.tells("c cli(2,connect) connection role=client life=? closer=local end= call= E=1 SS=1 F1=? gap")
	if c := s.tr.Counts(); c.Missed != 1 || c.Tracked != 0 {
		t.Errorf("got %+v, want 1 missed, 0 tracked", c)
	}
}

func TestADuplicateIsDroppedAndCounted(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(client, "C>SS C>SS SS>E SS>E", by(2, "cli"))
	s.tells(
		"c cli(2,connect) C>SS ?",
		"c cli(2,connect) SS>E 2",
	)
	s.said = nil
	s.steps(client, "E>F1 F1>F1 F1>F1", by(2, "cli")) // of close() after shutdown() too
	s.tells(
		"c cli(2,connect) E>F1 2",
		"c cli(2,connect) F1>F1 ?",
	)
	if c := s.tr.Counts(); c.Delivered != 4 || c.Duplicates != 3 || c.Missed != 0 {
		t.Errorf("got %+v, want 4 delivered, 3 duplicates, 0 missed", c)
	}
}

// 10,000 sockets were seen to share 1,051 addresses.
func TestAnAddressThatIsUsedAgainMixesNoConnections(t *testing.T) {
	s := newStory(t, Filter{})
	second := client
	second.cookie, second.lport = 0xd, 40001

	s.steps(client, "C>SS SS>E", by(2, "cli"))
	s.said = nil
	// Neither the end of the first nor its destruction came.
	s.pass(50)
	s.steps(second, "C>SS SS>E", by(3, "other"))
	s.tells(
		"c cli(2,connect) connection role=client life=? closer= end= call= E=? SS=1 gap",
		"d other(3,connect) C>SS ?",
		"d other(3,connect) SS>E 1",
	)
}

// Kernels before 5.12 give no cookies: the address is all there is.
func TestAChildWithoutACookieIsAlwaysANewSocket(t *testing.T) {
	s := newStory(t, Filter{})
	child := server
	child.cookie = 0
	s.steps(child, "L>SR SR>E")
	s.said = nil
	s.pass(20)
	s.steps(child, "L>SR SR>E")
	s.tells(
		"0 - connection role=server life=? closer= end= call= E=? SR=1 gap",
		"0 - L>SR ?",
		"0 - SR>E 1",
	)
}

// connect(AF_UNSPEC), and another connection of the same socket.
func TestOneSocketCanCarryTwoConnections(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(client, "C>SS SS>E", by(2, "cli"))
	s.step(client, "E>C", by(2, "cli"), with(events.HasSocket))
	s.pass(30)
	again := client
	again.lport = 0
	s.step(again, "C>SS", by(2, "cli"))
	again.lport, again.rport = 40007, 81
	s.pass(2)
	s.step(again, "SS>E")
	s.tells(
		"c cli(2,connect) C>SS ?",
		"c cli(2,connect) SS>E 1",
		"c cli(2,connect) E>C 1",
		"c cli(2,connect) connection role=client life=2 closer= end=reset_sent call= E=1 SS=1",
		"c cli(2,connect) C>SS ?",
		"c cli(2,connect) SS>E 2",
	)
}

func TestAFullTableIsCountedAndForgetsNobody(t *testing.T) {
	s := newStory(t, Filter{})
	s.tr.max = 1
	s.steps(client, "C>SS SS>E", by(2, "cli"))
	s.steps(server, "L>SR SR>E")
	s.said = nil
	s.steps(client, "E>C", failed(104))
	s.destroy(client)
	s.tells(
		"c cli(2,connect) E>C 3",
		"c cli(2,connect) connection role=client life=4 closer= end=reset_received call= E=3 SS=1",
	)
	if c := s.tr.Counts(); c.TableFull != 2 || c.Delivered != 3 {
		t.Errorf("got %+v, want 2 without a place, 3 delivered", c)
	}
}

func TestWhatWasShedIsShownOnTheNextRecord(t *testing.T) {
	s := newStory(t, Filter{})
	s.refu = true
	s.steps(client, "C>SS SS>E", by(2, "cli"))
	s.refu = false
	s.steps(client, "E>C", failed(104))
	s.tells(
		"c cli(2,connect) E>C 1 unprinted=2",
		"c cli(2,connect) connection role=client life=2 closer= end=reset_received call= E=1 SS=1 unprinted=2",
	)
}

func TestTheFirstScanTellsOfSocketsThatWereThereBefore(t *testing.T) {
	s := &story{t: t, ms: 1000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	s.tick()
	queued := server
	queued.addr, queued.cookie, queued.rport = 0x51, 0x6, 40001

	s.row(listen, "L", 1, "srv", 3)
	s.row(server, "CW", 1, "srv", 4, quiet(7))
	s.row(server, "CW", 9, "child", 4)
	s.row(queued, "E", 0, "", -1, quiet(2), func(ev *events.Event) { ev.Flags = 0 })
	s.pass(5)
	s.tick()
	s.tr.Scanned(events.Scan{Complete: true, Every: true})
	s.tells(
		"1 srv(1,fd) socket L age=? 1/3",
		"5 srv(1,fd) socket CW age=7 1/4 9/4",
		"6 srv(1,listener) socket E age=2",
	)
	s.pass(100)
	s.steps(server, "CW>LA", by(9, "child"), shut(3))
	s.steps(server, "LA>C", with(orphan|events.Done))
	s.steps(queued, "E>CW", with(events.Done))
	s.tells(
		"5 child(9,close) CW>LA ?",
		"5 child(9,close) LA>C 1",
		"5 child(9,close) connection role= life=? closer=remote end=fin call=close CW=? LA=1",
		"6 srv(1,listener) E>CW ?",
	)
	if got := s.tr.Counts().Missed; got != 0 {
		t.Errorf("missed %d, want 0", got)
	}
}

// The programs are attached before the scan: its rows are read first, the events
// that led to them after.
func TestEventsFromBeforeTheFirstScanAreNoGaps(t *testing.T) {
	s := &story{t: t, ms: 1000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	s.ms = 1010
	s.row(server, "CW", 1, "srv", 4)
	s.row(client, "F1", 0, "", -1)
	s.ms = 1015
	s.tick()
	s.tr.Scanned(events.Scan{Complete: true, Every: true})
	s.said = nil

	gone := sock{addr: 0x99, cookie: 0x9, lport: 7, rport: 8}
	s.ms = 1001
	s.step(server, "L>SR", from(listen.cookie))
	s.step(server, "SR>E")
	s.ms = 1002
	s.step(client, "E>F1", by(2, "cli"), shut(3))
	s.ms = 1004
	s.step(gone, "E>CW", with(events.Done)) // went before the scan came to it
	s.step(server, "E>CW", with(events.Done|events.HasSocket))
	s.ms = 1020
	s.step(server, "CW>LA", by(1, "srv"), shut(3))
	s.step(client, "F1>F2", with(orphan))
	s.tells(
		"5 srv(1,fd) L>SR ?",
		"5 srv(1,fd) SR>E 0",
		"c cli(2,close) E>F1 ?",
		"9 - E>CW ?",
		"5 srv(1,fd) E>CW 3",
		"5 srv(1,fd) CW>LA 16",
		"c cli(2,close) F1>F2 18",
	)
	if got := s.tr.Counts().Missed; got != 0 {
		t.Errorf("missed %d, want 0", got)
	}
}
