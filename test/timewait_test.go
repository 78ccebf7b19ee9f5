package livetest

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// timeWaitLen is TCP_TIMEWAIT_LEN of the kernel. Its timer is never early, but for
// a jiffy, and late by up to timerSlack: the width of a bucket of the timer wheel at
// that distance (HZ=100).
const (
	timeWaitLen = 60 * time.Second
	timerSlack  = 5120 * time.Millisecond
)

// bar is how exact the beginning and the end of TIME_WAIT have to be.
const bar = 10 * time.Millisecond

// A moment is something that happened between two readings of this machine's clock.
type moment struct{ from, to time.Time }

func (m moment) String() string {
	return fmt.Sprintf("from %s to %s", m.from.UTC().Format("05.000000"), m.to.UTC().Format("05.000000"))
}

// has says whether it can have been at that time, the bar aside.
func (m moment) has(at time.Time) bool {
	return !at.Before(m.from.Add(-bar)) && !at.After(m.to.Add(bar))
}

// during is the moment of a call of an agent.
func during(r reply) moment { return moment{r.Before.time(), r.After.time()} }

// until makes a moment of what began at from, and ends when ss lists the socket in
// that state, as the kernel's own word.
func (s *scene) until(from time.Time, c *sock, state string) moment {
	s.t.Helper()
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); {
		if s.ss()[c.id()] == state {
			return moment{from, time.Now()}
		}
	}
	s.t.Fatalf("socket %s (%s): ss does not list it in %s:\n%s", c.id(), c.local, state, s.ns.ss(s.t, "-tane"))
	return moment{}
}

// closed has the passive side close, which begins TIME_WAIT of the other. Before, it
// waits for the acknowledgement of the other's FIN: on its way through another CPU's
// queue it can be overtaken by the second FIN. In TIME_WAIT it then counts as old and is
// answered; at the other end nobody is left, so that end resets, and what is reset in
// TIME_WAIT is gone at once (RFC 1337).
func (s *scene) closed(passive, active *sock) moment {
	s.t.Helper()
	s.until(time.Now(), active, "FIN_WAIT2")
	return s.until(passive.close().Before.time(), active, "TIME_WAIT")
}

// finned has a packet-crafting peer send its FIN, likewise.
func (s *scene) finned(p *tunPeer, active *sock) moment {
	s.t.Helper()
	from := time.Now()
	p.send(fin | ack)
	return s.until(from, active, "TIME_WAIT")
}

// vanish watches ss until none of the sockets is listed any more, and says when each
// ceased to be. What is missing once may be ss's fault: it reads /proc/net/tcp, which has no
// cookies, if the kernel refuses it the other way.
func (s *scene) vanish(limit time.Duration, ids []string) map[string]moment {
	s.t.Helper()
	out := map[string]moment{}
	last := map[string]time.Time{}
	missed := map[string]moment{}
	for deadline := time.Now().Add(limit); len(out) < len(ids); time.Sleep(5 * time.Millisecond) {
		from := time.Now()
		listed := s.ss()
		to := time.Now()
		for _, id := range ids {
			if _, gone := out[id]; gone {
				continue
			}
			switch _, before := missed[id]; {
			case listed[id] != "":
				last[id] = from
				delete(missed, id)
			case before:
				out[id] = missed[id]
			default:
				missed[id] = moment{last[id], to}
			}
		}
		if to.After(deadline) {
			s.t.Fatalf("ss lists %d of %d sockets still, after %v", len(ids)-len(out), len(ids), limit)
		}
	}
	return out
}

// A timeWait is a socket in TIME_WAIT, and what other clocks say of that.
type timeWait struct {
	expect
	began moment // by the FIN
	anew  moment // by a FIN that was repeated
	ended moment
}

// since is when its timer was set for the last time.
func (w *timeWait) since() moment {
	if !w.anew.from.IsZero() {
		return w.anew
	}
	return w.began
}

// checkBegin and checkEnd compare the stream with the clocks. They return by how
// much it was beyond them.
func (w *timeWait) checkBegin(t *testing.T, records []record) {
	t.Helper()
	for _, r := range transitionsOf(records, w.sock.id()) {
		if r.NewState == "TIME_WAIT" && !w.began.has(r.Time) {
			t.Errorf("%s: TIME_WAIT from %v on, want it %v", w.who, r.Time, w.began)
		}
	}
}

func (w *timeWait) checkEnd(t *testing.T, records []record) {
	t.Helper()
	for _, r := range transitionsOf(records, w.sock.id()) {
		if r.OldState == "TIME_WAIT" && !w.ended.has(r.Time) {
			t.Errorf("%s: TIME_WAIT until %v, want it %v", w.who, r.Time, w.ended)
		}
	}
}

// checkMinute checks what the kernel promises of one that was left alone.
func (w *timeWait) checkMinute(t *testing.T, records []record) {
	t.Helper()
	for _, r := range transitionsOf(records, w.sock.id()) {
		if r.OldState != "TIME_WAIT" || r.DwellMs == nil {
			continue
		}
		least, most := timeWaitLen, timeWaitLen+timerSlack
		if !w.anew.from.IsZero() {
			least, most = least+w.anew.from.Sub(w.began.to), most+w.anew.to.Sub(w.began.from)
		}
		if got := ms(*r.DwellMs); got < least-bar || got > most+bar {
			t.Errorf("%s: %v in TIME_WAIT, want from %v to %v", w.who, got, least, most)
		}
	}
}

func sockets(waits []timeWait) (ids []string) {
	for i := range waits {
		ids = append(ids, waits[i].sock.id())
	}
	return ids
}

func expects(waits []timeWait) (wants []expect) {
	for i := range waits {
		wants = append(wants, waits[i].expect)
	}
	return wants
}

// All ways into TIME_WAIT, to the end of their 60 seconds: a test of TIME_WAIT's length
// takes as long, so there is one.
func TestEachTimeWaitLastsItsMinute(t *testing.T) {
	t.Parallel()
	var w minute
	file := filepath.Join(t.TempDir(), "run.rec")
	s, runs := playComplete(t, func(s *scene) {
		s.long = true
		w = minute{scene: s}
		w.cli, w.srv, w.gone = s.agent("cli"), s.agent("srv"), s.agent("gone")
		// The peers of the packet-crafting kind must be there before a connection is.
		s.trace("--record", file)
		s.trace("--pid", fmt.Sprint(w.gone.pid))
		w.onLoopback()
		w.withPeers()
		if s.short {
			return
		}
		w.gone.kill()
		time.Sleep(lag)
		s.trace() // to which all this is old
		ended := s.vanishFrom(w.waits)
		for i := range w.waits {
			w.waits[i].ended = ended[w.waits[i].sock.id()]
		}
		for _, tr := range s.all {
			s.short = !tr.waitFor(func(records []record) bool {
				connections := connectionOwners(records)
				return !slices.ContainsFunc(w.waits, func(w timeWait) bool {
					return connections[w.sock.id()] == nil && (tr != s.all[1] || w.sock.a.name == "gone")
				})
			}) || s.short
		}
	})
	checkAll(s, runs[0], append(expects(w.waits), w.others...))
	for i := range w.waits {
		wait := &w.waits[i]
		wait.checkBegin(t, runs[0].records)
		for _, run := range runs {
			wait.checkEnd(t, run.records)
			wait.checkMinute(t, run.records)
		}
		wait.checkOld(t, runs[2].records)
	}
	w.checkGone(t, runs[1].records)
	for _, run := range runs {
		if way := lastStats(run.records).Probes["time_wait"]; way != "fentry" && way != "timer" {
			t.Errorf("probes: time_wait is %q, want fentry or timer", way)
		}
	}
	checkReplay(t, file, runs[0].records)
	w.logFigures(runs[0].records)
}

// A minute is what TestEachTimeWaitLastsItsMinute makes.
type minute struct {
	*scene
	cli, srv, gone *agent // gone ends while its connections are in TIME_WAIT
	waits          []timeWait
	others         []expect
}

func (w *minute) add(began moment, e expect) {
	e.timeWaitEnd = "expired"
	w.waits = append(w.waits, timeWait{expect: e, began: began})
}

// passive adds the server's end of a connection that its client has closed first.
func (w *minute) passive(d *sock) {
	w.others = append(w.others, expect{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}})
}

const clientWaits, serverWaits = "C SS E F1 F2 TW", "L SR E F1 F2 TW"

func (w *minute) onLoopback() {
	cli, srv := w.cli, w.srv
	l, six, dual := srv.listen(anyPort4), srv.listen("[::1]:0"), srv.listen("[::]:0")
	for who, a := range map[string]*agent{"active-passive": cli, "closed by a process that is gone": w.gone} {
		c, d := pair(a, l)
		c.close()
		time.Sleep(lag)
		w.add(w.closed(d, c), expect{who: who, sock: c, path: clientWaits, conn: []string{"client local fin close"}})
		w.passive(d)
	}

	c, d := pair(cli, l)
	d.close()
	time.Sleep(lag)
	w.add(w.closed(c, d), expect{who: "server-active", sock: d, path: serverWaits, conn: []string{"server local fin close"}})
	w.others = append(w.others, expect{who: "client of server-active", sock: c, path: "C SS E CW LA C", conn: []string{"client remote fin close"}})

	c, d = pair(cli, l)
	c.shutdownWrite()
	d.read("")
	w.add(w.closed(d, c), expect{who: "half-close, never closed", sock: c, path: clientWaits, conn: []string{"client local fin shutdown"}})
	w.passive(d)

	c, d = pair(cli, l)
	c.shutdownWrite()
	d.read("")
	d.write("x") // see shutwr-then-close-first
	c.read("x")
	c.close()
	time.Sleep(lag)
	w.add(w.closed(d, c), expect{who: "shutwr-then-close-first", sock: c, path: "C SS E F1 F2 F2 TW",
		conn: []string{"client local fin close"}, received: 1})
	w.others = append(w.others, expect{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}, sent: 1})

	self := cli.socket(anyPort4)
	self.bind(anyPort4)
	self.connect(self.local)
	at := self.close().Before.time()
	w.add(w.until(at, self, "TIME_WAIT"), expect{who: "self-connect", sock: self, path: "C SS SR E F1 CG TW", conn: []string{"client both fin close"}})

	exits := w.agent("exits")
	c, d = pair(exits, l)
	exits.exit()
	d.read("")
	w.add(w.closed(d, c), expect{who: "exit", sock: c, path: clientWaits, conn: []string{"client local fin exit"}})
	w.passive(d)

	c, d = pair(cli, l)
	heir := w.spawn(cli, "heir", c)
	c.close()
	c.in(heir, 3).close()
	w.add(w.closed(d, c), expect{who: "connected by the parent", sock: c, path: clientWaits, conn: []string{"client local fin close"},
		heldBy: heir, by: heir, byAt: 2})
	w.passive(d)

	c, first := pair(cli, l)
	firstLocal := c.local
	c.disconnect()
	first.close()
	c.connect(l.local)
	d = l.accept()
	c.close()
	w.add(w.closed(d, c), expect{who: "disconnect-unspec", sock: c, path: "C SS E C SS E F1 F2 TW", firstLocal: firstLocal,
		conn: []string{"client null reset_sent null", "client local fin close"}})
	w.others = append(w.others, expect{who: "first server", sock: first, path: "L SR E C", conn: []string{"server null reset_received null"}})
	w.passive(d)

	c, d = pair(cli, six)
	c.write("six")
	d.read("six")
	c.close()
	w.add(w.closed(d, c), expect{who: "IPv6", sock: c, path: clientWaits, conn: []string{"client local fin close"}, sent: 3})
	w.others = append(w.others, expect{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}, received: 3})

	c = cli.socket(anyPort4)
	c.connect(mapped4(dual))
	d = dual.accept()
	d.close()
	w.add(w.closed(c, d), expect{who: "IPv4-mapped", sock: d, path: serverWaits, conn: []string{"server local fin close"}})
	w.others = append(w.others, expect{who: "client", sock: c, path: "C SS E CW LA C", conn: []string{"client remote fin close"}})
}

func (w *minute) withPeers() {
	cli := w.cli
	p := w.peer()
	c := cli.dialPeer(p)
	c.shutdownWrite()
	c.close()
	p.expect(fin | ack)
	p.send(ack)
	time.Sleep(lag)
	w.add(w.finned(p, c), expect{who: "close-in-fin-wait1", sock: c, path: "C SS E F1 F1 F2 TW", conn: []string{"client local fin close"}})

	for who, path := range map[string]string{"simultaneous-close": "C SS E F1 CG TW", "closing-dup": "C SS E F1 CG CG TW"} {
		p := w.peer()
		c := cli.dialPeer(p)
		c.shutdownWrite()
		if who == "simultaneous-close" {
			c.close()
			path = "C SS E F1 F1 CG TW"
		}
		p.peek(fin | ack)
		p.send(fin | ack)
		p.expect(ack)
		if who == "closing-dup" {
			c.close()
		}
		from := time.Now()
		p.send(ack)
		w.add(w.until(from, c, "TIME_WAIT"), expect{who: who, sock: c, path: path, conn: []string{"client both fin close"}})
	}

	p = w.peer()
	c = p.openAtOnce(cli)
	p.send(ack)
	c.connected()
	c.close()
	p.expect(fin | ack)
	w.add(w.finned(p, c), expect{who: "simultaneous-open", sock: c, path: "C SS SR E F1 F2 TW", conn: []string{"client local fin close"}})

	// With TCP Fast Open, a server may close before the handshake is over.
	p = w.peer()
	w.ns.sysctl(w.t, "ipv4/tcp_fastopen", fmt.Sprint(0x1|0x2|0x200|0x400)) // for all, without a cookie
	l := w.srv.listen("0.0.0.0:0")
	p.remote = netip.AddrPortFrom(p.local.Addr().Prev(), l.local.Port())
	p.sendData(syn, "data")
	d := l.accept()
	d.read("data")
	d.close()
	p.expect(syn | ack)
	p.expect(fin | ack)
	p.send(ack)
	w.add(w.finned(p, d), expect{who: "closed in SYN_RECV", sock: d, path: "L SR F1 F2 TW", acceptedAt: 1,
		conn: []string{"server local fin close"}, received: 4})

	// A reset for what is in TIME_WAIT is obeyed or not.
	p = w.peer()
	w.ns.sysctl(w.t, "ipv4/tcp_rfc1337", "1")
	c = cli.dialPeer(p)
	c.close()
	p.expect(fin | ack)
	w.add(w.finned(p, c), expect{who: "reset with tcp_rfc1337", sock: c, path: clientWaits, conn: []string{"client local fin close"}})
	p.expect(ack)
	p.send(rst | ack)

	// A FIN that comes again, as when the last ACK was lost, begins it anew.
	p = w.peer()
	c = cli.dialPeer(p)
	c.close()
	p.expect(fin | ack)
	w.add(w.finned(p, c), expect{who: "FIN repeated", sock: c, path: clientWaits, conn: []string{"client local fin close"}})
	p.expect(ack)
	time.Sleep(2200 * time.Millisecond) // further than the timer's bucket
	again := moment{from: time.Now()}
	p.next--
	p.send(fin | ack)
	p.expect(ack)
	again.to = time.Now()
	w.waits[len(w.waits)-1].anew = again
}

// vanishFrom is vanish for what has its minute before it.
func (s *scene) vanishFrom(waits []timeWait) map[string]moment {
	s.t.Helper()
	time.Sleep(time.Until(waits[0].began.from.Add(timeWaitLen - time.Second)))
	return s.vanish(time.Until(waits[len(waits)-1].since().to.Add(timeWaitLen+2*timerSlack)), sockets(waits))
}

// checkOld checks what a tracer says that came when it was in TIME_WAIT already.
func (w *timeWait) checkOld(t *testing.T, records []record) {
	t.Helper()
	where := w.who + ", found in TIME_WAIT"
	found := 0
	for i := range records {
		r := &records[i]
		// Whose descriptor is open still has a socket in CLOSE, too.
		if r.Type != "socket" || !r.of(w.sock.id()) || r.State == "CLOSE" && len(r.Holders) > 0 {
			continue
		}
		found++
		w.checkEnds(t, where, r, len(w.conn)-1)
		if r.State != "TIME_WAIT" || r.ExpiresMs == nil {
			t.Errorf("%s: state %s, expires_ms %s", where, r.State, orNull(r.ExpiresMs))
		} else if began := r.Time.Add(ms(*r.ExpiresMs) - timeWaitLen); !w.since().has(began) {
			t.Errorf("%s: expires_ms %v at %v, so it began at %v, want that %v", where, *r.ExpiresMs, r.Time, began, w.since())
		}
	}
	if found != 1 {
		t.Errorf("%s: %d socket records, want 1", where, found)
	}
	transitions, connections := transitionsOf(records, w.sock.id()), connectionsOf(records, w.sock.id())
	if path(transitions) != "TW C" || len(connections) != 1 {
		t.Errorf("%s: path %q, %d connections; want TW C, 1", where, path(transitions), len(connections))
		return
	}
	r, c := &transitions[0], &connections[0]
	if r.DwellMs != nil || r.Source != "timewait" {
		t.Errorf("%s: dwell_ms %s, source %s; want null, timewait", where, orNull(r.DwellMs), r.Source)
	}
	if c.Start != nil || c.DurationMs != nil || orNull(c.End) != "fin" || orNull(c.TimeWaitEnd) != "expired" {
		t.Errorf("%s: connection with start %s, duration_ms %s, end %s, time_wait_end %s; want null, null, fin, expired", where,
			orNull(c.Start), orNull(c.DurationMs), orNull(c.End), orNull(c.TimeWaitEnd))
	}
}

// checkGone checks that the connection of a process is that process's, also when
// nobody is there any more, and for a filter too.
func (w *minute) checkGone(t *testing.T, records []record) {
	t.Helper()
	for _, r := range records {
		if r.Type == "transition" && (r.Pid == nil || *r.Pid != w.gone.pid || *r.Comm != w.gone.name) {
			t.Errorf("--pid %d: %s", w.gone.pid, r.summary())
		}
	}
	for _, wait := range w.waits {
		want := ""
		if wait.sock.a == w.gone {
			want = printedPath(wait.path)
		}
		if got := path(transitionsOf(records, wait.sock.id())); got != want {
			t.Errorf("--pid %d: %s went %q, want %q", w.gone.pid, wait.who, got, want)
		}
	}
}

// checkReplay compares a recording with what the run has printed.
func checkReplay(t *testing.T, file string, printed []record) {
	t.Helper()
	lines := func(records []record) (out []map[string]any) {
		for _, r := range records {
			if r.Type == "transition" || r.Type == "connection" {
				out = append(out, r.fields)
			}
		}
		return out
	}
	replayed := runForRecords(t, 0, "--replay", file)
	if diff := gocmp.Diff(lines(printed), lines(replayed)); diff != "" {
		t.Errorf("a replay differs (-printed +replayed):\n%s", diff)
	}
}

// logFigures says how good it was.
func (w *minute) logFigures(records []record) {
	var begin, end, width time.Duration
	var dwell []time.Duration
	for _, wait := range w.waits {
		for _, r := range transitionsOf(records, wait.sock.id()) {
			switch "TIME_WAIT" {
			case r.NewState:
				begin = max(begin, wait.began.from.Sub(r.Time), r.Time.Sub(wait.began.to))
			case r.OldState:
				end = max(end, wait.ended.from.Sub(r.Time), r.Time.Sub(wait.ended.to))
				width = max(width, wait.ended.to.Sub(wait.ended.from))
				if r.DwellMs != nil {
					dwell = append(dwell, ms(*r.DwellMs))
				}
			}
		}
	}
	slices.Sort(dwell)
	w.t.Logf("%d in TIME_WAIT for %v; beyond the clocks by at most %v at the beginning and %v at the end, which was known to %v",
		len(dwell), dwell, begin, end, width)
}
