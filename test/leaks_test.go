package livetest

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A leakShape is one way not to close connections, and what has to be found.
type leakShape struct {
	name    string
	program string // of leak/, with its arguments
	n       int    // connections, 1 unless set
	data    string // that the peer sends before it closes
	reset   bool   // how it closes
	verdict string // of the sockets in CLOSE_WAIT
	unread  int
	copies  int // descriptors of each connection, 1 unless set
	kind    string
	ended   string // with kind reset_fd_leak
	open    int    // descriptors of the process in the end, out of leakerLimit; instead of n
	mptcp   bool   // can be had where the kernel speaks it only
	casts   bool   // is seen where a program may cast pointers only
}

// leakerLimit is RLIMIT_NOFILE of the shape "limit".
const leakerLimit = 64

var leakShapes = []leakShape{
	{name: "reads EOF and keeps the socket, in C", program: "c eof", n: 2, data: "bye", verdict: "eof_read"},
	{name: "reads EOF and keeps the socket, in Python", program: "py eof", verdict: "eof_read"},
	{name: "never reads, in C", program: "c never", n: 3, data: "hello", verdict: "eof_unread", unread: 5},
	{name: "never reads, in Python", program: "py never", verdict: "eof_unread"},
	{name: "has its workers blocked on a futex, in C", program: "c blocked", n: 2, data: "job", verdict: "eof_unread", unread: 3},
	{name: "has its worker blocked on a pipe, in Python", program: "py blocked", data: "job", verdict: "eof_unread", unread: 3},
	{name: "asks epoll for RDHUP and ignores it, in C", program: "c epoll", n: 2, verdict: "eof_unread"},
	{name: "is told once by an edge and never reads, in Python", program: "py edge", data: "x", verdict: "eof_unread", unread: 1},
	{name: "forks, and only the child keeps it, in C", program: "c child", verdict: "eof_unread"},
	{name: "forks, and only the child keeps it, in Python", program: "py child", n: 1, data: "x", verdict: "eof_unread", unread: 1},
	{name: "passes it to a process that keeps it, in Python", program: "py pass", n: 2, data: "x", verdict: "eof_read"},
	{name: "never accepts, in C", program: "c queue", n: 3, data: "anyone?", verdict: "not_accepted", unread: 7, copies: -1},
	// As Go's net package does unless told otherwise. The peer speaks TCP only.
	{name: "never accepts from its MPTCP listener, in C", program: "c mptcp-queue", n: 2, verdict: "not_accepted", copies: -1, mptcp: true, casts: true},
	{name: "reads EOF and keeps the socket of an MPTCP listener, in C", program: "c mptcp-eof", n: 2, data: "bye", verdict: "eof_read", mptcp: true},
	{name: "keeps what was reset, in C", program: "c eof", n: 2, reset: true, kind: "reset_fd_leak", ended: "reset_received"},
	{name: "keeps what was reset and never looks, in Python", program: "py never", reset: true, kind: "reset_fd_leak", ended: "reset_received"},
	{name: "keeps what it has shut down, in C", program: "c shutdown", kind: "reset_fd_leak", ended: "fin"},
	{name: "has it twice, in C", program: "c dup", n: 2, copies: 2, verdict: "eof_unread"},
	{name: "may soon run out of descriptors, in C", program: "c limit", open: 53, verdict: "eof_unread"},
	{name: "keeps what it has connected, in C", program: "c client", n: 3, verdict: "eof_read"},
}

// possibleLeaks are those that a process can have on the kernel at hand.
func possibleLeaks() []leakShape {
	return slices.DeleteFunc(slices.Clone(leakShapes), func(shape leakShape) bool {
		return shape.mptcp && !speaksMPTCP()
	})
}

func TestEachLeakIsFoundNamedAndProven(t *testing.T) {
	for _, shape := range possibleLeaks() {
		t.Run(shape.name, func(t *testing.T) {
			t.Parallel()
			var wants []leak
			_, runs := playComplete(t, func(s *scene) {
				s.trace("--close-wait-after", closeWaitAfter.String())
				l, sockets := shape.start(s, s.agent("peer"), 0)
				if shape.casts && !castsPointers() {
					wants = nil
					time.Sleep(closeWaitAfter + 5*time.Second) // two scans and more
					return
				}
				wants = shape.wants(l, sockets, true)
				s.awaitFindings(wants)
				if shape.verdict == "" {
					l.kill()
					s.awaitResolved(wants)
					return
				}
				past := neverClosed(wants[0].who, sockets, l.kill)
				s.awaitResolved(wants)
				s.awaitFindings([]leak{past})
				wants = append(wants, past)
			})
			checkFindings(t, runs[0].records, wants)
		})
	}
}

// start makes the leak, and has made sure that it is one. The peer stays idle
// before each close.
func (shape leakShape) start(s *scene, peer *agent, idle time.Duration) (*leaker, []leaked) {
	s.t.Helper()
	var l *leaker
	sockets := make([]leaked, max(shape.n, 1))
	if shape.program == "c client" {
		server := peer.listen(anyPort4)
		l = s.startLeaker(peer, fmt.Sprintf("%s %d %d", shape.program, server.local.Port(), shape.n))
		for i := range sockets {
			sockets[i] = shape.end(l, server.accept(), idle)
		}
	} else {
		l = s.startLeaker(peer, shape.program)
		if shape.open > 0 {
			sockets = make([]leaked, shape.open-l.descriptors())
		}
		for i := range sockets {
			sockets[i] = shape.end(l, peer.dial(l.at), idle)
		}
	}
	s.prove(sockets)
	return l, sockets
}

// end lets the leaker's peer close, which makes the leak.
func (shape leakShape) end(l *leaker, c *sock, idle time.Duration) leaked {
	out := leaked{local: c.remote, remote: c.local, verdict: shape.verdict, unread: shape.unread}
	if shape.copies >= 0 {
		out.holders = l.held(max(shape.copies, 1))
		out.cookie = out.holders[0].Cookie
	}
	if shape.data != "" {
		c.write(shape.data)
	}
	if shape.reset {
		c.linger0()
	}
	time.Sleep(idle)
	out.closedBy(c)
	return out
}

// closedBy notes when the peer closes.
func (s *leaked) closedBy(c *sock) {
	c.a.t.Helper()
	s.before = time.Now()
	c.close()
	s.after = time.Now()
}

// wants is the findings about the leaker.
func (shape leakShape) wants(l *leaker, sockets []leaked, seen bool) []leak {
	who := l.process
	if holders := sockets[0].holders; len(holders) > 0 && !slices.ContainsFunc(holders, func(h holder) bool { return h.Pid == who.pid }) {
		who = processOf(l.s.t, holders[0].Pid)
	}
	if shape.kind == "reset_fd_leak" {
		return []leak{resetLeak(who, sockets, shape.ended, seen)}
	}
	wants := []leak{closeWaitLeak(who, sockets, seen)}
	if shape.copies < 0 {
		wants[0].evidence["listeners"] = l.listeners()
	}
	if shape.open > 0 {
		wants = append(wants, nearLimit(who, shape.open, sockets))
	}
	return wants
}

// listeners is the evidence of who should have accepted.
func (l *leaker) listeners() []any {
	s, ok := socketOf(l.s.ns.sockets(l.s.t), func(s ssSocket) bool {
		return s.state == "LISTEN" && s.lport == portOf(l.at.local)
	})
	if !ok || len(s.descriptors) != 1 {
		l.s.t.Fatalf("ss lists %v as the holders of the listener, want one", s.descriptors)
	}
	h := s.descriptors[0]
	return []any{map[string]any{"pid": float64(h.Pid), "comm": h.Comm, "fd": float64(h.FD), "cookie": h.Cookie}}
}

// descriptors is how many the leaker has open.
func (l *leaker) descriptors() int {
	l.s.t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", l.pid))
	if err != nil {
		l.s.t.Fatal(err)
	}
	return len(open)
}

// nearLimit is the finding about a process that soon can open nothing any more.
func nearLimit(who process, open int, sockets []leaked) leak {
	severity := "warning"
	if 100*open >= 95*leakerLimit {
		severity = "critical"
	}
	tcp := len(sockets) + 1 // the listener
	return leak{kind: "fd_limit", who: who, count: tcp, severity: severity, evidence: map[string]any{
		"open_fds": float64(open), "limit": float64(leakerLimit), "sockets": float64(tcp), "close_wait": float64(len(sockets)),
	}}
}

// prove waits until ss and /proc agree that the sockets are what the test means
// them to be, and fills in the cookies of those that nobody could ask for theirs.
func (s *scene) prove(sockets []leaked) {
	s.t.Helper()
	why := ""
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		listed := s.ns.sockets(s.t)
		why = ""
		for i := range sockets {
			if why = sockets[i].disproof(listed); why != "" {
				break
			}
		}
		if why == "" {
			return
		}
	}
	s.t.Fatalf("the leak is not what it should be: %s", why)
}

// disproof says what is wrong with the leak, not with what is said of it.
func (s *leaked) disproof(listed []ssSocket) string {
	got, ok := socketOf(listed, func(l ssSocket) bool {
		return l.lport == portOf(s.local) && l.rport == portOf(s.remote)
	})
	if s.verdict == "" {
		link := linkOf(s.holders[0])
		if ok || !strings.HasPrefix(link, "socket:[") {
			return fmt.Sprintf("ss lists %+v, descriptor is %q; want none listed, and a socket", got, link)
		}
		return ""
	}
	unread := s.unread
	if s.verdict != "eof_read" {
		unread++ // the FIN
	}
	if s.cookie == "" {
		s.cookie = got.cookie
	}
	if !ok || got.state != "CLOSE-WAIT" || got.unread != unread || got.cookie != s.cookie || !slices.Equal(got.descriptors, s.holders) {
		return fmt.Sprintf("ss lists %+v, want CLOSE-WAIT with Recv-Q %d and %v", got, unread, s.holders)
	}
	for _, h := range s.holders {
		if link, want := linkOf(h), "socket:["+got.inode+"]"; link != want {
			return fmt.Sprintf("descriptor %d of %d is %q, want %q", h.FD, h.Pid, link, want)
		}
	}
	return ""
}

// leakOf is a connection of which an agent keeps its end. The peer closes.
func leakOf(peer, kept *sock, verdict string, copies ...*sock) leaked {
	peer.a.t.Helper()
	out := leaked{cookie: kept.id(), local: kept.local, remote: kept.remote, verdict: verdict}
	for _, c := range append(copies, kept) {
		out.holders = append(out.holders, holder{c.a.pid, c.a.name, c.fd, c.id()})
	}
	slices.SortFunc(out.holders, byHolder)
	out.closedBy(peer)
	return out
}

// What a whole run must say is known only when it is over: most tests are a play
// and the leaks that were in it.
func testLeaks(t *testing.T, play func(*scene) []leak) []record {
	t.Helper()
	var wants []leak
	_, runs := playComplete(t, func(s *scene) { wants = play(s) })
	checkFindings(t, runs[0].records, wants)
	return runs[0].records
}

func TestOneConnectionInTenIsCountedExactly(t *testing.T) {
	t.Parallel()
	const n = 30
	var who process
	records := testLeaks(t, func(s *scene) []leak {
		s.trace("--close-wait-after", closeWaitAfter.String())
		peer := s.agent("peer")
		l := s.startLeaker(peer, "py one-in-ten")
		who = l.process
		var sockets []leaked
		for i := 1; i <= n; i++ {
			c := peer.dial(l.at)
			one := leaked{local: c.remote, remote: c.local, verdict: "eof_read"}
			one.closedBy(c)
			if i%10 != 0 {
				l.next("closed")
				continue
			}
			one.holders = l.held(1)
			one.cookie = one.holders[0].Cookie
			sockets = append(sockets, one)
		}
		s.prove(sockets)
		want := closeWaitLeak(who, sockets, true)
		want.never = true
		want.evidence["peer_closed_first"], want.evidence["closed"] = float64(n), float64(n-len(sockets))
		delete(want.evidence, "fin_to_close_p50_ms")
		delete(want.evidence, "fin_to_close_p99_ms")
		s.awaitFindings([]leak{want})
		return []leak{want}
	})
	var took []float64 // from FIN to close, as the kernel's clock has it
	for _, r := range records {
		if r.isTransition() && r.OldState == "CLOSE_WAIT" && r.Pid != nil && *r.Pid == who.pid {
			took = append(took, *r.DwellMs)
		}
	}
	slices.Sort(took)
	if len(took) != n*9/10 {
		t.Fatalf("%d connections were closed, want %d", len(took), n*9/10)
	}
	want := leak{kind: "close_wait_leak", who: who}
	found := want.worst(records)
	if found == nil {
		return // and checkFindings has said so
	}
	const precision = 0.03
	for name, at := range map[string]int{"fin_to_close_p50_ms": len(took) / 2, "fin_to_close_p99_ms": len(took) - 1} {
		got, _ := found.Evidence[name].(float64)
		least, most := took[max(at-1, 0)]*(1-precision), took[min(at+1, len(took)-1)]*(1+precision)
		if got < least || got > most {
			t.Errorf("%s: %v, want it between %v and %v", name, found.Evidence[name], least, most)
		}
	}
}

// Every process that holds it is listed; the one who accepted is to blame as long
// as it holds it, and then whoever is left.
func TestTheHeirInheritsTheLeak(t *testing.T) {
	t.Parallel()
	testLeaks(t, func(s *scene) []leak {
		s.trace("--close-wait-after", closeWaitAfter.String())
		cli, srv := s.agents2()
		c, d := pair(cli, srv.listen(anyPort4))
		heir := s.spawn(srv, "heir", d)
		inherited := d.in(heir, 3)
		shared := leakOf(c, d, "eof_unread", inherited)
		s.prove([]leaked{shared})
		both := closeWaitLeak(srv.process(), []leaked{shared}, true)
		s.awaitFindings([]leak{both})

		d.close() // not the last descriptor: the kernel says nothing
		left := shared
		left.holders = []holder{{heir.pid, heir.name, inherited.fd, d.id()}}
		s.prove([]leaked{left})
		alone := closeWaitLeak(heir.process(), []leaked{left}, true)
		s.awaitResolved([]leak{both})
		s.awaitFindings([]leak{alone})

		past := neverClosed(alone.who, []leaked{left}, heir.kill)
		s.awaitResolved([]leak{alone})
		s.awaitFindings([]leak{past})
		return []leak{both, alone, past}
	})
}

func TestALeakOfAnIPv6ConnectionByAGoProgram(t *testing.T) {
	t.Parallel()
	testLeaks(t, func(s *scene) []leak {
		s.trace("--close-wait-after", closeWaitAfter.String())
		cli, srv := s.agents2()
		c, d := pair(cli, srv.listen("[::1]:0"))
		one := leakOf(c, d, "eof_read")
		d.read("")
		s.prove([]leaked{one})
		want := closeWaitLeak(srv.process(), []leaked{one}, true)
		s.awaitFindings([]leak{want})
		d.close()
		s.awaitResolved([]leak{want})
		return []leak{want}
	})
}

// A process may go on sending for as long as it likes after its peer has ended
// its own half.
func TestAHalfCloseInUseIsNoLeakUntilItFallsSilent(t *testing.T) {
	t.Parallel()
	testLeaks(t, func(s *scene) []leak {
		tr := s.trace("--close-wait-after", closeWaitAfter.String())
		peer := s.agent("peer")
		l := s.startLeaker(peer, "py stream")
		c := peer.dial(l.at)
		one := leaked{local: c.remote, remote: c.local, verdict: "eof_read", holders: l.held(1)}
		one.cookie = one.holders[0].Cookie
		one.before = time.Now()
		c.shutdownWrite()
		one.after = time.Now()
		s.prove([]leaked{one})
		time.Sleep(4 * closeWaitAfter)
		want := closeWaitLeak(l.process, []leaked{one}, true)
		if early := want.of(tr.seen()); len(early) > 0 {
			s.t.Errorf("found while it still sent: %s", early[0].finding())
		}
		if _, err := l.stdin.WriteString("stop\n"); err != nil {
			s.t.Fatal(err)
		}
		s.awaitFindings([]leak{want})
		past := neverClosed(l.process, []leaked{one}, l.kill)
		c.close()
		s.awaitResolved([]leak{want})
		s.awaitFindings([]leak{past})
		return []leak{want, past}
	})
}

func TestASlowCloserIsNoLeakerUnlessItIsTooSlow(t *testing.T) {
	t.Parallel()
	const after = 2 * time.Second
	testLeaks(t, func(s *scene) []leak {
		s.trace("--close-wait-after", after.String())
		cli := s.agent("cli")
		slow, slower := s.agent("slow"), s.agent("slower")
		c, d := pair(cli, slow.listen(anyPort4))
		c2, d2 := pair(cli, slower.listen(anyPort4))
		ok, late := leakOf(c, d, "eof_read"), leakOf(c2, d2, "eof_read")
		d.read("")
		d2.read("")
		s.prove([]leaked{ok, late})
		time.Sleep(after - 400*time.Millisecond - time.Since(ok.before))
		d.close()
		time.Sleep(400*time.Millisecond + 2500*time.Millisecond)
		want := closeWaitLeak(slower.process(), []leaked{late}, true)
		s.awaitFindings([]leak{want})
		d2.close()
		s.awaitResolved([]leak{want})
		return []leak{want}
	})
}

func TestThousandsOfLeakedSocketsAreOneFinding(t *testing.T) {
	t.Parallel()
	const n, shown = 3000, 16
	records := testLeaks(t, func(s *scene) []leak {
		s.trace("--close-wait-after", closeWaitAfter.String(), "--events", "finding,stats")
		peer := s.agent("peer")
		l := s.startLeaker(peer, "c never")
		before := time.Now()
		dial := request{Op: "dial", N: n, Addr: l.at.local, Order: "first"}
		peer.begin(dial)
		sockets := make([]leaked, n)
		for i := range sockets {
			held := l.held(1)
			sockets[i] = leaked{cookie: held[0].Cookie, holders: held, local: l.at.local, verdict: "eof_unread", before: before}
		}
		if r := peer.finish(dial.Op); r.Errno != 0 {
			s.t.Fatalf("dial: %v", r.Errno)
		}
		for i := range sockets {
			sockets[i].after = time.Now()
		}
		inCloseWait := 0
		for _, listed := range s.ns.sockets(s.t) {
			if listed.state == "CLOSE-WAIT" && listed.unread == 1 && len(listed.descriptors) == 1 && listed.descriptors[0].Pid == l.pid {
				sockets[inCloseWait].remote = netip.AddrPortFrom(l.at.local.Addr(), mustPort(s.t, listed.rport))
				inCloseWait++
			}
		}
		if inCloseWait != n {
			s.t.Fatalf("ss lists %d sockets of the leaker in CLOSE-WAIT, want %d", inCloseWait, n)
		}
		want := closeWaitLeak(l.process, sockets, true)
		s.awaitFindings([]leak{want})
		past := neverClosed(l.process, sockets, l.kill)
		s.awaitResolved([]leak{want})
		s.awaitFindings([]leak{past})
		return []leak{want, past}
	})
	for _, r := range records {
		if r.Type == "finding" && r.Kind == "close_wait_leak" && r.Status != "resolved" && r.Count >= shown && len(r.Holders) != shown {
			t.Errorf("%d sockets: %d holders, want %d", r.Count, len(r.Holders), shown)
		}
	}
}

func mustPort(t *testing.T, s string) uint16 {
	t.Helper()
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		t.Fatal(err)
	}
	return uint16(n)
}

// One process, one finding, whatever it has done to each of its sockets; and the
// filters choose among processes.
func TestAllFaultsOfAProcessAreOneFinding(t *testing.T) {
	t.Parallel()
	var want, dead leak
	_, runs := playComplete(t, func(s *scene) {
		cli, srv := s.agents2()
		after := closeWaitAfter.String()
		s.trace("--close-wait-after", after)
		s.trace("--close-wait-after", after, "--pid", fmt.Sprint(srv.pid))
		s.trace("--close-wait-after", after, "--pid", fmt.Sprint(cli.pid))
		l := srv.listen(anyPort4)
		partly, d1 := pair(cli, l)
		unread, d2 := pair(cli, l)
		read, d3 := pair(cli, l)
		reset, d4 := pair(cli, l)
		queued := cli.dial(l)
		partly.write("0123456789")
		d1.read("0123")
		unread.write("hello")
		reset.linger0()
		sockets := []leaked{leakOf(partly, d1, "eof_unread"), leakOf(unread, d2, "eof_unread"), leakOf(read, d3, "eof_read")}
		sockets[0].unread, sockets[1].unread = 6, 5
		d3.read("")
		waiting := leaked{local: queued.remote, remote: queued.local, verdict: "not_accepted"}
		waiting.closedBy(queued)
		sockets = append(sockets, waiting)
		gone := []leaked{leakOf(reset, d4, "")}
		s.prove(sockets)
		s.prove(gone)
		want, dead = closeWaitLeak(srv.process(), sockets, true), resetLeak(srv.process(), gone, "reset_received", true)
		want.evidence["peer_closed_first"], want.evidence["held"] = 3.0, 3.0
		want.evidence["listeners"] = []any{map[string]any{"pid": float64(srv.pid), "comm": srv.name, "fd": float64(l.fd), "cookie": l.id()}}
		s.all[1].awaitFindings([]leak{want, dead})
		s.awaitFindings([]leak{want, dead})
		for _, d := range []*sock{d1, d2, d3, d4, l.accept()} {
			d.close()
		}
		s.all[1].awaitResolved([]leak{want, dead})
		s.awaitResolved([]leak{want, dead})
	})
	checkFindings(t, runs[0].records, []leak{want, dead})
	checkFindings(t, runs[1].records, []leak{want, dead})
	checkFindings(t, runs[2].records, nil)
}
