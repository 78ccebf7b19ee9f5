package livetest

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A stuck is a connection that one end has closed and the other has not.
type stuck struct {
	closer, other *sock
	before, after time.Time // around the close() or shutdown()
	by            *agent
}

// closeFirst closes one end, and notes when.
func closeFirst(c, d *sock, closing func()) stuck {
	out := stuck{closer: c, other: d, by: c.a, before: time.Now()}
	closing()
	out.after = time.Now()
	return out
}

// proveStuck waits until ss shows both ends as a test means them to be.
func proveStuck(t *testing.T, near, far *netns, connections []stuck) {
	t.Helper()
	why := ""
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		ours, theirs := near.sockets(t), far.sockets(t)
		why = ""
		for _, s := range connections {
			c, _ := socketOf(ours, func(l ssSocket) bool { return l.cookie == s.closer.id() })
			d, _ := socketOf(theirs, func(l ssSocket) bool { return l.cookie == s.other.id() })
			if c.state != "FIN-WAIT-2" || d.state != "CLOSE-WAIT" || len(d.descriptors) != 1 || d.descriptors[0].Pid != s.other.a.pid {
				why = fmt.Sprintf("ss lists %+v and %+v", c, d)
			}
		}
		if why == "" {
			return
		}
	}
	t.Fatalf("no connection that waits for its peer: %s", why)
}

// stuckOn is the finding's records about the peer at this address.
func stuckOn(records []record, netns *netns, peer netip.AddrPort) (out []record) {
	ids := map[string]bool{}
	for _, r := range records {
		if r.Type != "finding" || r.Kind != "fin_wait2_stuck" {
			continue
		}
		if r.Evidence["raddr"] == peer.Addr().String() && r.number("rport") == float64(peer.Port()) {
			ids[r.ID] = true
		}
		if ids[r.ID] {
			out = append(out, r)
		}
	}
	return out
}

// checkStuck checks the worst record about these connections, which all have the
// same process at either end.
func checkStuck(t *testing.T, mine []record, connections []stuck, held int) {
	t.Helper()
	first := connections[0]
	closer, other := first.by.process(), first.other.a.process()
	where := fmt.Sprintf("fin_wait2_stuck of %v", first.closer.remote)
	at := slices.IndexFunc(mine, func(r record) bool { return r.Status == "resolved" })
	if at < 0 {
		at = len(mine)
	}
	if at == 0 {
		t.Errorf("%s: no finding", where)
		return
	}
	r := &mine[at-1]
	n := len(connections)
	// What a process still holds may wait for an answer.
	severity := "warning"
	if held == n {
		severity = "info"
	}
	if r.Count != n || r.Severity != severity {
		t.Errorf("%s: %s, count %d, want %s, %d", where, r.Severity, r.Count, severity, n)
	}
	if got, want := fmt.Sprintf("%s %s %s", orNull(r.Pid), orNull(r.Comm), orNull(r.Exe)), fmt.Sprintf("%d %s %s", other.pid, other.comm, other.exe); got != want {
		t.Errorf("%s: about %q, want %q, who has the other end", where, got, want)
	}
	checkEvidence(t, r, map[string]any{
		"raddr": first.closer.remote.Addr(), "rport": first.closer.remote.Port(), "held": held, "orphans": n - held, "tcp_fin_timeout": 60,
		"closed_by": makers(closer, n), "peers": makers(other, n),
	})
	var want, got []string
	for _, s := range connections {
		want = append(want, fmt.Sprint(map[string]any{"cookie": s.closer.id(), "peer_cookie": s.other.id(), "peer_pid": other.pid}))
	}
	pairs, _ := r.Evidence["pairs"].([]any)
	for _, p := range pairs {
		got = append(got, fmt.Sprint(p))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%s: pairs %v, want %v", where, got, want)
	}
	if r.OldestMs == nil {
		t.Errorf("%s: oldest_ms null, want the age of the oldest", where)
		return
	}
	checkAgeBetween(t, where+": oldest_ms", *r.OldestMs, r.Time.Sub(first.after), r.Time.Sub(first.before))
}

const stuckAfter = 2 * time.Second

func TestAPeerThatDoesNotCloseIsNamed(t *testing.T) {
	t.Parallel()
	var orphans, held []stuck
	var innocent []netip.AddrPort
	var resolved bool
	var snapshot []record
	s, runs := playComplete(t, func(s *scene) {
		tr := s.trace("--fin-wait2-after", stuckAfter.String())
		cli, mute := s.agent("cli"), s.agent("mute")
		silent, streamer, slow := s.agent("silent"), s.agent("streamer"), s.agent("slow")
		l := mute.listen(anyPort4)
		orphans = nil
		for range 2 {
			c, d := pair(cli, l)
			orphans = append(orphans, closeFirst(c, d, func() { c.close() }))
		}
		c, d := pair(cli, silent.listen(anyPort4))
		held = []stuck{closeFirst(c, d, c.shutdownWrite)}
		proveStuck(t, s.ns, s.ns, slices.Concat(orphans, held))

		// One that uses what is open, and one that closes in time.
		streamed, from := pair(cli, streamer.listen(anyPort4))
		streamed.shutdownWrite()
		late, later := pair(cli, slow.listen(anyPort4))
		late.close()
		innocent = []netip.AddrPort{streamed.remote, late.remote}
		began := time.Now()
		for time.Since(began) < 2*stuckAfter {
			from.write("tick")
			time.Sleep(100 * time.Millisecond)
			if later != nil && time.Since(began) > stuckAfter/2 {
				later.close()
				later = nil
			}
		}
		s.await(func(records []record) bool {
			mine := stuckOn(records, s.ns, orphans[0].closer.remote)
			return len(mine) > 0 && mine[len(mine)-1].Count == 2 && len(stuckOn(records, s.ns, held[0].closer.remote)) > 0
		})
		// Since when an orphan has waited is not to be seen any more; it is of a socket.
		snapshot = runForRecords(t, 3, "snapshot", "--netns", fmt.Sprint(s.ns.inode), "--fin-wait2-after", stuckAfter.String(),
			"--fail-on", "fin_wait2_stuck")
		for _, s := range slices.Concat(orphans, held) {
			s.other.close()
		}
		resolved = tr.waitFor(func(records []record) bool {
			return lastIs(stuckOn(records, s.ns, orphans[0].closer.remote), "resolved", "") &&
				lastIs(stuckOn(records, s.ns, held[0].closer.remote), "resolved", "")
		})
		s.short = s.short || !resolved
	})
	records := runs[0].records
	for i, connections := range [][]stuck{orphans, held} {
		mine := stuckOn(records, s.ns, connections[0].closer.remote)
		checkStuck(t, mine, connections, i)
		if len(mine) > 0 {
			checkCourse(t, "fin_wait2_stuck", mine, true)
		}
	}
	checkStuck(t, stuckOn(snapshot, s.ns, held[0].closer.remote), held, 1)
	for _, peer := range innocent {
		if got := stuckOn(records, s.ns, peer); len(got) > 0 {
			t.Errorf("a finding about a peer that has done no wrong: %s", got[0].finding())
		}
	}
	if got := kindsIn(records); len(got) != 1 {
		t.Errorf("findings of kinds %v, want fin_wait2_stuck only", got)
	}
	logFindings(t, records)
}

// connectFrom connects from an address and port of the test's choice.
func connectFrom(a *agent, from string, to *sock) (c, d *sock) {
	c = a.socket(from)
	c.bind(from)
	c.connect(to.local)
	return c, to.accept()
}

// joined makes another namespace and a cable between it and the scene's.
func (s *scene) joined() *netns {
	far := newNetns(s.t)
	near, other := "v0", "v1"
	s.ns.ip(s.t, fmt.Sprintf("link add %s type veth peer name %s netns %s\naddr add 10.50.0.1/24 dev %s\nlink set %s up", near, other, far.name, near, near))
	far.ip(s.t, fmt.Sprintf("addr add 10.50.0.2/24 dev %s\nlink set %s up", other, other))
	return far
}

// The other end may be in another namespace of this host, as a container's is.
// Where it cannot be, on loopback, it is not, though the numbers are the same.
func TestTheOtherEndIsFoundWhereItIs(t *testing.T) {
	t.Parallel()
	var abroad, home []stuck
	s, runs := playComplete(t, func(s *scene) {
		tr := s.add(startTracer(t, "--fin-wait2-after", stuckAfter.String(), "--events", "finding,stats"))
		far := s.joined()
		cli, srv := s.agent("cli"), startAgent(t, far, "srv")
		c, d := connectFrom(cli, "10.50.0.1:6001", srv.listen("10.50.0.2:6000"))
		abroad = []stuck{closeFirst(c, d, func() { c.close() })}
		proveStuck(t, s.ns, far, abroad)

		mute, twin, twins := s.agent("mute"), startAgent(t, far, "twin"), startAgent(t, far, "twins")
		c, d = connectFrom(cli, "127.0.0.1:6001", mute.listen("127.0.0.1:6000"))
		connectFrom(twin, "127.0.0.1:6001", twins.listen("127.0.0.1:6000"))
		home = []stuck{closeFirst(c, d, func() { c.close() })}
		proveStuck(t, s.ns, s.ns, home)
		s.short = !awaitLong(tr, 5*time.Second, func(records []record) bool {
			return len(stuckOn(records, s.ns, abroad[0].closer.remote)) > 0 && len(stuckOn(records, s.ns, home[0].closer.remote)) > 0
		})
		abroad[0].other.close()
		home[0].other.close()
		s.await(func(records []record) bool {
			return lastIs(stuckOn(records, s.ns, abroad[0].closer.remote), "resolved", "") &&
				lastIs(stuckOn(records, s.ns, home[0].closer.remote), "resolved", "")
		})
	})
	for _, connections := range [][]stuck{abroad, home} {
		mine := stuckOn(runs[0].records, s.ns, connections[0].closer.remote)
		checkStuck(t, mine, connections, 0)
		if len(mine) > 0 {
			checkCourse(t, "fin_wait2_stuck", mine, true)
		}
	}
	logFindings(t, runs[0].records)
}

// Where nothing comes and nothing asks, nobody notices that the peer has gone. On loopback
// the kernel does: so this is on an address that might be another host's.
func TestASilentConnectionWithoutKeepAliveIsHalfOpenPerhaps(t *testing.T) {
	t.Parallel()
	const after, host = 3 * time.Second, "10.60.0.1"
	type silence struct {
		who           process
		sockets       []holder
		before, after time.Time // around the last that it has received
		lport, rport  any
		raddr         any
	}
	var cliSilence, srvSilence silence
	var innocent []int
	var snapshot []record
	_, runs := playComplete(t, func(s *scene) {
		tr := s.trace("--half-open-after", after.String())
		cli, srv, watched := s.agent("cli"), s.agent("srv"), s.agent("watched")
		s.ns.ip(s.t, "addr add "+host+"/32 dev lo")
		_, near := pair(cli, srv.listen(anyPort4))
		innocent = []int{watched.pid}
		l := srv.listen(host + ":0")
		srvSilence = silence{who: srv.process(), before: time.Now(), lport: l.local.Port(), raddr: host}
		plain, d1 := pair(cli, l)
		srvSilence.after = time.Now()
		cliSilence = silence{
			who: cli.process(), before: srvSilence.before, after: srvSilence.after,
			sockets: []holder{{cli.pid, cli.name, plain.fd, plain.id()}},
			lport:   plain.local.Port(), rport: l.local.Port(), raddr: host,
		}
		alive, d2 := pair(watched, l)
		alive.setOption(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		timed, d3 := pair(watched, l)
		timed.setOption(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 60_000)
		for _, d := range []*sock{d1, d2, d3} {
			srvSilence.sockets = append(srvSilence.sockets, holder{srv.pid, srv.name, d.fd, d.id()})
		}
		for i, order := range []string{"last", "never"} {
			port := fmt.Sprint(trafficPort + i)
			server := startTrafficAt(t, s.ns, host, []string{"leak/traffic.py", "serve", port, order})
			client := startTrafficAt(t, s.ns, host, []string{"leak/traffic.py", "stretch", port, "5"})
			client.begin()
			innocent = append(innocent, server.pid, client.pid)
		}
		s.short = !awaitLong(tr, 2*after+2*time.Second, func(records []record) bool {
			return lastCount(findingsAbout(records, "half_open", cli.pid)) == 1 && lastCount(findingsAbout(records, "half_open", srv.pid)) == 3
		})
		snapshot = runForRecords(t, 3, "snapshot", "--netns", fmt.Sprint(s.ns.inode), "--half-open-after", after.String(),
			"--fail-on", "half_open")

		near.close()
		// Words end the silence; a close too.
		alive.close()
		timed.close()
		d2.close()
		d3.close()
		over := func(records []record) bool {
			return lastIs(findingsAbout(records, "half_open", cli.pid), "resolved", "") &&
				lastIs(findingsAbout(records, "half_open", srv.pid), "resolved", "")
		}
		for until := time.Now().Add(after + 3*time.Second); !over(tr.seen()) && time.Now().Before(until); time.Sleep(after / 10) {
			plain.write("x")
			d1.read("x")
		}
		s.await(over)
	})
	records := runs[0].records
	for _, want := range []silence{cliSilence, srvSilence} {
		mine := findingsAbout(records, "half_open", want.who.pid)
		if len(mine) == 0 {
			t.Errorf("no finding about %s", want.who.comm)
			continue
		}
		checkCourse(t, "half_open", mine, true)
		if lastCount(findingsAbout(snapshot, "half_open", want.who.pid)) != len(want.sockets) {
			t.Errorf("the snapshot has no finding about the %d of %s", len(want.sockets), want.who.comm)
		}
		// They fall silent one after the other, and a scan may come in between.
		whole := slices.IndexFunc(mine, func(r record) bool { return r.Count == len(want.sockets) })
		r := &mine[max(whole, 0)]
		if r.Severity != "info" || orNull(r.Exe) != want.who.exe || orNull(r.Comm) != want.who.comm {
			t.Errorf("%s about %s %s, want info about %s %s", r.Severity, orNull(r.Comm), orNull(r.Exe), want.who.comm, want.who.exe)
		}
		if r.Count != len(want.sockets) || !slices.Equal(r.Holders, want.sockets) {
			t.Errorf("%s: count %d, holders %v; want %v", want.who.comm, r.Count, r.Holders, want.sockets)
		}
		checkEvidence(t, r, map[string]any{"lport": want.lport, "rport": want.rport, "raddr": want.raddr})
		if r.OldestMs == nil {
			t.Errorf("%s: oldest_ms null, want an age", want.who.comm)
			continue
		}
		checkAgeBetween(t, want.who.comm+": oldest_ms", *r.OldestMs, r.Time.Sub(want.after), r.Time.Sub(want.before))
	}
	for i, pid := range innocent {
		if got := findingsAbout(records, "half_open", pid); len(got) > 0 {
			t.Errorf("innocent %d is found: %s", i, got[0].finding())
		}
	}
	if got := kindsIn(records); len(got) != 1 {
		t.Errorf("findings of kinds %v, want half_open only", got)
	}
	logFindings(t, records)
}

// lastCount is the count of the last record, 0 if there is none.
func lastCount(records []record) int {
	if len(records) == 0 {
		return 0
	}
	return records[len(records)-1].Count
}
