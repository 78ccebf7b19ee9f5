package livetest

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What stands in for a socket has to be told from what the process still holds: the
// beginning of TIME_WAIT is the peer's FIN, whenever that comes.
func TestAnOrphanStaysInFinWait2UntilItsPeerCloses(t *testing.T) {
	t.Parallel()
	delays := []time.Duration{
		lag / 4, lag, 5 * lag, 300 * time.Millisecond, 900 * time.Millisecond, 1700 * time.Millisecond, 2300 * time.Millisecond, 5 * time.Second,
	}
	var waits []timeWait
	s, runs := playComplete(t, func(s *scene) {
		cli, srv := s.agents2()
		tr := s.trace()
		l := srv.listen(anyPort4)
		waits = nil
		var wants []expect
		var peers []*sock
		for range delays {
			c, d := pair(cli, l)
			waits = append(waits, timeWait{expect: expect{who: "client", sock: c, path: clientWaits, conn: []string{"client local fin close"}}})
			wants = append(wants, expect{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}})
			peers = append(peers, d)
		}
		for i := range waits {
			waits[i].sock.close()
		}
		orphans := time.Now()
		for i, d := range delays {
			waits[i].who = fmt.Sprintf("client whose peer closes after %v", d)
			time.Sleep(d - time.Since(orphans))
			c := waits[i].sock
			if last := lastStates(tr.seen())[c.id()]; d > 10*lag && last != "FIN_WAIT2" {
				t.Errorf("%s: %s before that, want FIN_WAIT2", waits[i].who, last)
			}
			waits[i].began = s.closed(peers[i], c)
		}
		// A FIN is not always noticed at once: it may take as long again.
		s.short = !tr.waitLong(2*delays[len(delays)-1], func(records []record) bool {
			last := lastStates(records)
			return !slices.ContainsFunc(waits, func(w timeWait) bool { return last[w.sock.id()] != "TIME_WAIT" })
		}) || s.short
		s.settle(append(expects(waits), wants...))
	})
	for i := range waits {
		waits[i].check(s, runs[0].records, waits[i].sock.id())
		waits[i].checkBegin(t, runs[0].records)
	}
	worst := time.Duration(0)
	for _, w := range waits {
		for _, r := range transitionsOf(runs[0].records, w.sock.id()) {
			if r.NewState == "TIME_WAIT" {
				worst = max(worst, w.began.from.Sub(r.Time), r.Time.Sub(w.began.to))
			}
		}
	}
	t.Logf("TIME_WAIT of %d orphans began at most %v beyond the clocks", len(waits), worst)
}

// An orphan ends without TIME_WAIT when its peer never closes in order. The peers are
// not kernels, because the acknowledgement of the FIN has to come when close() has
// returned: the socket itself is the orphan if it comes within.
func TestAnOrphanWhosePeerNeverCloses(t *testing.T) {
	t.Parallel()
	var wants []expect
	ends := map[string]moment{} // by cookie
	s, runs := playComplete(t, func(s *scene) {
		wants = nil
		clear(ends)
		cli := s.agent("cli")
		s.ns.sysctl(t, "ipv4/tcp_fin_timeout", "3")
		s.trace()
		orphan := func(who, end string, linger2 int) (*sock, *tunPeer) {
			p := s.peer()
			c := cli.dialPeer(p)
			if linger2 != 0 {
				c.setOption(unix.IPPROTO_TCP, unix.TCP_LINGER2, linger2)
			}
			c.close()
			p.expect(fin | ack)
			ends[c.id()] = moment{from: time.Now()}
			p.send(ack)
			path := "C SS E F1 F2 X"
			if linger2 < 0 {
				path = "C SS E F1 F2 C"
			}
			wants = append(wants, expect{who: who, sock: c, path: path, conn: []string{"client local " + end + " close"}})
			return c, p
		}
		var waiting []string
		for who, linger2 := range map[string]int{
			"tcp_fin_timeout": 0, "TCP_LINGER2 of 2 s": 2,
			// The socket itself waits for what is beyond a minute, and then all over again.
			"TCP_LINGER2 of 62 s": 62,
		} {
			c, _ := orphan(who, "timeout", linger2)
			waiting = append(waiting, c.id())
		}

		c, p := orphan("TCP_LINGER2 below 0", "reset_sent", -1)
		p.expect(rst)
		ends[c.id()] = moment{ends[c.id()].from, time.Now()}

		c, p = orphan("reset", "reset_received", 0)
		time.Sleep(lag)
		at := moment{from: time.Now()}
		p.send(rst | ack)
		at.to = time.Now()
		ends[c.id()] = at

		c, p = orphan("sent data", "reset_sent", 0)
		time.Sleep(lag)
		at = moment{from: time.Now()}
		p.sendData(ack, "late")
		p.expect(rst)
		at.to = time.Now()
		ends[c.id()] = at

		maps.Copy(ends, s.vanish(callTimeout, waiting))
		s.await(func(records []record) bool {
			connections := connectionOwners(records)
			return !slices.ContainsFunc(wants, func(e expect) bool { return connections[e.sock.id()] == nil })
		})
	})
	checkAll(s, runs[0], wants)
	for i := range wants {
		e := &wants[i]
		for _, r := range transitionsOf(runs[0].records, e.sock.id()) {
			if r.NewState != "CLOSE" {
				continue
			}
			if at := ends[e.sock.id()]; !at.has(r.Time) {
				t.Errorf("%s: ended at %v, want it %v", e.who, r.Time, at)
			}
			t.Logf("%s: %s ms in FIN_WAIT2", e.who, orNull(r.DwellMs))
		}
	}
}

// Its timer may run out in the middle of a system call of whoever looks at sockets.
// To look is not to kill.
func TestWhoListsSocketsKillsNone(t *testing.T) {
	t.Parallel()
	const n = 100
	var orphans []*sock
	run := playOnce(t, func(s *scene) {
		cli, srv := s.agents2()
		tr := s.trace()
		l := srv.listen(anyPort4)
		orphans = nil
		for range n {
			c, _ := pair(cli, l)
			c.setOption(unix.IPPROTO_TCP, unix.TCP_LINGER2, 1)
			orphans = append(orphans, c)
		}
		for _, c := range orphans {
			c.close()
			s.ns.ss(t, "-tan") // and time passes, so that they do not end at once
		}
		tr.waitLong(4*time.Second, func(records []record) bool {
			s.ns.ss(t, "-tan")
			return len(connectionOwners(records)) == n
		})
	})
	checkTimeouts(t, run.records, orphans)
}

// What has ended a minisocket that is filtered out says nothing about the next one
// that the kernel puts in its place.
func TestAResetInAnotherNamespaceEndsNothingHere(t *testing.T) {
	t.Parallel()
	const n = 120
	var orphans []*sock
	run := playOnce(t, func(s *scene) {
		cli, srv := s.agents2()
		other := newNetns(t)
		otherCli, otherSrv := startAgent(t, other, "othercli"), startAgent(t, other, "othersrv")
		tr := s.trace()
		l, otherListener := srv.listen(anyPort4), otherSrv.listen(anyPort4)
		orphans = nil
		for range n {
			c, d := pair(otherCli, otherListener)
			c.close()
			time.Sleep(lag / 10)
			d.write("x") // which is answered by a reset
			d.close()

			c, _ = pair(cli, l)
			c.setOption(unix.IPPROTO_TCP, unix.TCP_LINGER2, 1)
			c.close()
			orphans = append(orphans, c)
		}
		tr.waitLong(4*time.Second, func(records []record) bool { return len(connectionOwners(records)) == n })
	})
	checkTimeouts(t, run.records, orphans)
}

// playOnce is playComplete for what stays true if the kernel loses some events.
func playOnce(t *testing.T, play func(*scene)) traced {
	t.Helper()
	s := &scene{t: t, ns: newNetns(t)}
	play(s)
	return s.tr.stop()
}

// checkTimeouts checks that the orphans have ended when they had waited long enough.
func checkTimeouts(t *testing.T, records []record, orphans []*sock) {
	t.Helper()
	ended := connectionOwners(records)
	missing := 0
	for _, c := range orphans {
		r := ended[c.id()]
		transitions := transitionsOf(records, c.id())
		if r == nil || len(transitions) == 0 {
			missing++
			continue
		}
		// Where the socket itself is the orphan, it is the tracepoint that shows it,
		// and the timer resets the connection.
		ends := []string{"timeout"}
		if transitions[len(transitions)-1].Source == "tracepoint" {
			ends = append(ends, "reset_sent", "null")
		}
		if !slices.Contains(ends, orNull(r.End)) {
			t.Errorf("%s, want it to end as one of %v", r.summary(), ends)
		}
	}
	t.Logf("%d of %d orphans were not seen to end", missing, len(orphans))
	if missing > len(orphans)/4 {
		t.Error("too many: this test has shown nothing")
	}
}

// closesFirst opens a connection and brings its client into TIME_WAIT.
func (s *scene) closesFirst(cli *agent, l *sock) (waits timeWait, other expect) {
	s.t.Helper()
	c, d := pair(cli, l)
	c.close()
	time.Sleep(lag)
	waits = timeWait{expect: expect{who: "client", sock: c, path: clientWaits, conn: []string{"client local fin close"}}}
	waits.began = s.closed(d, c)
	return waits, expect{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}}
}

// checkTimeWaits plays what ends TIME_WAIT before its time, and checks it.
func checkTimeWaits(t *testing.T, play func(s *scene) ([]timeWait, []expect)) {
	t.Helper()
	var waits []timeWait
	var others []expect
	s, runs := playComplete(t, func(s *scene) {
		waits, others = play(s)
		s.await(func(records []record) bool {
			connections := connectionOwners(records)
			return !slices.ContainsFunc(waits, func(w timeWait) bool { return connections[w.sock.id()] == nil })
		})
		s.settle(others)
	})
	checkAll(s, runs[0], append(expects(waits), others...))
	for i := range waits {
		waits[i].checkBegin(t, runs[0].records)
		waits[i].checkEnd(t, runs[0].records)
	}
}

// Whose it was is not who takes its port.
func TestConnectMayReuseAPortInTimeWait(t *testing.T) {
	t.Parallel()
	checkTimeWaits(t, func(s *scene) ([]timeWait, []expect) {
		cli, late, srv := s.agent("cli"), s.agent("late"), s.agent("srv")
		l := srv.listen(anyPort4)
		s.ns.sysctl(t, "ipv4/ip_local_port_range", "40001 40001")
		s.ns.sysctl(t, "ipv4/tcp_tw_reuse", "1")
		s.trace()
		first, server := s.closesFirst(cli, l)
		cli.kill()
		time.Sleep(2100 * time.Millisecond) // the kernel waits for a second to pass, which some count in whole ones
		second := late.socket(anyPort4)
		first.ended = during(second.connect(l.local))
		first.timeWaitEnd = "reused"
		if second.local != first.sock.local {
			t.Fatalf("the second connection is from %v, want it from %v", second.local, first.sock.local)
		}
		return []timeWait{first}, []expect{
			server,
			{who: "second client", sock: second, path: "C SS E"},
			{who: "second server", sock: l.accept(), path: "L SR E"},
		}
	})
}

func TestANewSynMayEndTimeWait(t *testing.T) {
	t.Parallel()
	checkTimeWaits(t, func(s *scene) ([]timeWait, []expect) {
		cli, srv := s.agents2()
		p := s.peer()
		s.trace()
		l := srv.listen(anyPort4)
		c, d := pair(cli, l)
		d.close()
		c.read("")
		wait := timeWait{expect: expect{who: "server", sock: d, path: serverWaits, conn: []string{"server local fin close"}, timeWaitEnd: "reused"}}
		wait.began = s.closed(c, d)
		time.Sleep(lag)
		again := cli.socket(anyPort4)
		again.bind(c.local.String())
		wait.ended = during(again.connect(l.local))

		// Of a peer that sends no more than that, there is no connection.
		lp := srv.listen("10.99.0.1:0")
		p.connect(lp.local)
		e := lp.accept()
		e.close()
		p.expect(fin | ack)
		alone := timeWait{expect: expect{who: "server of a peer", sock: e, path: serverWaits, conn: []string{"server local fin close"}, timeWaitEnd: "reused"}}
		alone.began = s.finned(p, e)
		p.next += 1 << 20
		alone.ended.from = time.Now()
		p.send(syn)
		p.expect(syn | ack)
		alone.ended.to = time.Now()
		return []timeWait{wait, alone}, []expect{
			{who: "client", sock: c, path: "C SS E CW LA C", conn: []string{"client remote fin close"}},
			{who: "client again", sock: again, path: "C SS E"},
			{who: "server again", sock: l.accept(), path: "L SR E"},
		}
	})
}

func TestTimeWaitMayBeKilled(t *testing.T) {
	t.Parallel()
	t.Run("by a reset", func(t *testing.T) {
		t.Parallel()
		checkTimeWaits(t, func(s *scene) ([]timeWait, []expect) {
			cli, p := s.agent("cli"), s.peer()
			s.ns.sysctl(t, "ipv4/tcp_rfc1337", "0")
			s.trace()
			c := cli.dialPeer(p)
			c.close()
			p.expect(fin | ack)
			w := timeWait{expect: expect{who: "client", sock: c, path: clientWaits, conn: []string{"client local fin close"}}}
			w.began = s.finned(p, c)
			p.expect(ack)
			time.Sleep(lag)
			w.ended.from = time.Now()
			p.send(rst | ack)
			w.ended.to = time.Now()
			return []timeWait{w}, nil
		})
	})
	t.Run("by ss", func(t *testing.T) {
		t.Parallel()
		checkTimeWaits(t, func(s *scene) ([]timeWait, []expect) {
			cli, srv := s.agents2()
			s.trace()
			l := srv.listen(anyPort4)
			w, server := s.closesFirst(cli, l)
			orphan, left := pair(cli, l)
			orphan.close()
			s.until(time.Now(), orphan, "FIN_WAIT2")
			time.Sleep(5 * lag)
			w.ended.from = time.Now()
			s.endMinisockets()
			w.ended.to = time.Now()
			return []timeWait{w}, []expect{
				server,
				{who: "orphan", sock: orphan, path: "C SS E F1 F2 X", conn: []string{"client local aborted close"}},
				{who: "peer of the orphan", sock: left, path: "L SR E CW"},
			}
		})
	})
}

// A socket has a cookie from when somebody asks for it, and that may be ss while it is
// in TIME_WAIT.
func TestACookieThatIsGivenInTimeWaitChangesNothing(t *testing.T) {
	t.Parallel()
	ports := map[uint16]bool{}
	scene, runs := playComplete(t, func(s *scene) {
		clear(ports)
		s.ns.do(t, func() {
			l, err := net.Listen("tcp", anyPort4)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			for range 3 {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				d, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				ports[netip.MustParseAddrPort(c.LocalAddr().String()).Port()] = true
				c.Close()
				time.Sleep(lag)
				d.Close()
			}
		})
		s.trace()
		s.endMinisockets() // which lists them first
		s.await(func(records []record) bool {
			n := 0
			for _, r := range records {
				if r.Type == "connection" {
					n++
				}
			}
			return n == len(ports)
		})
	})
	end := "killed"
	if scene.outlasted {
		end = "expired"
	}
	ended := map[uint16]int{}
	for _, r := range runs[0].records {
		switch r.Type {
		case "transition":
			ended[*r.Lport]++
			if r.OldState != "TIME_WAIT" || r.NewState != "CLOSE" || r.DwellMs != nil || !ports[*r.Lport] {
				t.Errorf("%s, want the end of TIME_WAIT, whose beginning is not known", r.summary())
			}
		case "connection":
			ended[*r.Lport]++
			if orNull(r.End) != "fin" || orNull(r.TimeWaitEnd) != end || !ports[*r.Lport] {
				t.Errorf("%s, want it to end as fin and %s", r.summary(), end)
			}
		}
	}
	for port := range ports {
		if ended[port] != 2 {
			t.Errorf("port %d: %d records, want a transition and a connection", port, ended[port])
		}
	}
}

// What tcptrace holds of a namespace must not keep it alive.
func TestTimeWaitEndsWithItsNamespace(t *testing.T) {
	t.Parallel()
	var wait timeWait
	var orphan *sock
	var deleted moment
	s, runs := playComplete(t, func(s *scene) {
		cli, srv := s.agents2()
		p := s.peer()
		tr := s.trace()
		wait, _ = s.closesFirst(cli, srv.listen(anyPort4))
		orphan = cli.dialPeer(p)
		orphan.close()
		p.expect(fin | ack)
		p.send(ack)
		s.until(time.Now(), orphan, "FIN_WAIT2")
		time.Sleep(5 * lag)
		for _, a := range s.agents {
			a.kill()
			a.conn.Close() // this end too was made in the namespace, by connect()
		}
		p.tun.Close()
		deleted.from = time.Now()
		s.ns.remove(t)
		s.short = !tr.waitLong(callTimeout, func(records []record) bool {
			connections := connectionOwners(records)
			return connections[wait.sock.id()] != nil && connections[orphan.id()] != nil
		}) || s.short
		deleted.to = time.Now()
	})
	wait.ended = deleted
	wait.check(s, runs[0].records, wait.sock.id())
	wait.checkBegin(t, runs[0].records)
	wait.checkEnd(t, runs[0].records)
	want := expect{who: "orphan", sock: orphan, path: "C SS E F1 F2 X", conn: []string{"client local aborted close"}}
	want.check(s, runs[0].records, orphan.id())
}
