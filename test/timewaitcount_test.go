package livetest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A full tcp_max_tw_buckets makes connections skip TIME_WAIT: the kernel's own
// counter says how many.
func TestThereIsNoTimeWaitBeyondTheLimit(t *testing.T) {
	t.Parallel()
	const limit, n = 3, 8
	var wants []expect
	s, runs := playComplete(t, func(s *scene) {
		cli, srv := s.agents2()
		s.trace()
		l := srv.listen(anyPort4)
		s.ns.sysctl(t, "ipv4/tcp_max_tw_buckets", fmt.Sprint(limit))
		var clients, servers []*sock
		for range n {
			c, d := pair(cli, l)
			c.shutdownWrite()
			d.read("")
			d.close()
			c.read("")
			c.close()
			clients, servers = append(clients, c), append(servers, d)
		}
		listed := s.ss()
		s.ns.sysctl(t, "ipv4/tcp_max_tw_buckets", "0")
		p := s.peer()
		orphan := cli.dialPeer(p)
		orphan.close()
		p.expect(fin | ack)
		p.send(ack)
		p.send(fin | ack)
		p.expect(rst)

		// Without a minisocket, nothing tells how it ended.
		wants = []expect{
			{who: "orphan", sock: orphan, path: "C SS E F1 F2 C", conn: []string{"client local null close"}},
		}
		for i, c := range clients {
			path := "C SS E F1 F2 C"
			if listed[c.id()] == "TIME_WAIT" {
				path = clientWaits
			}
			wants = append(wants, expect{who: "client", sock: c, path: path, conn: []string{"client local fin shutdown"}},
				expect{who: "server", sock: servers[i], path: "L SR E CW LA C", conn: []string{"server remote fin|reset_received close"}})
		}
		waits := strings.Count(s.ns.ss(t, "-tanH", "state", "time-wait"), "\n")
		// Some kernels allow for one more.
		if skipped := s.ns.counter(t, "TcpExtTCPTimeWaitOverflow"); waits != limit && waits != limit+1 || skipped != n+1-waits {
			t.Errorf("%d in TIME_WAIT and %d beyond the limit, want %d and %d", waits, skipped, limit, n+1-limit)
		}
		s.settle(wants)
	})
	checkAll(s, runs[0], wants)
}

// Where nobody asks for it, the stream is the tracepoint's.
func TestWithoutTimeWaitTheStreamIsTheTracepoints(t *testing.T) {
	t.Parallel()
	var orphan, half *sock
	_, runs := playComplete(t, func(s *scene) {
		cli, srv := s.agents2()
		s.trace("--time-wait=false")
		l := srv.listen(anyPort4)
		var d *sock
		orphan, d = pair(cli, l)
		orphan.close()
		time.Sleep(lag)
		d.close()
		half, d = pair(cli, l)
		half.shutdownWrite()
		d.read("")
		d.close()
		half.read("")
		half.close()
		s.await(func(records []record) bool { return len(connectionOwners(records)) == 4 })
		s.endMinisockets()
		time.Sleep(5 * lag)
	})
	records := runs[0].records
	for _, r := range records {
		if r.isTransition() && r.Source != "tracepoint" || r.OldState == "TIME_WAIT" || r.NewState == "TIME_WAIT" {
			t.Errorf("%s, want nothing of TIME_WAIT", r.summary())
		}
		if r.Type == "connection" && r.TimeWaitEnd != nil {
			t.Errorf("time_wait_end %s, want null", *r.TimeWaitEnd)
		}
	}
	if way, ok := lastStats(records).Probes["time_wait"]; ok && way != "" {
		t.Errorf("probes: time_wait is %q, want none", way)
	}
	for _, want := range []struct {
		c       *sock
		end     string
		unknown bool
	}{{orphan, "null", true}, {half, "fin", false}} {
		transitions, connections := transitionsOf(records, want.c.id()), connectionsOf(records, want.c.id())
		if got := path(transitions); got != "C SS E F1 F2 C" || len(connections) != 1 {
			t.Errorf("path %q and %d connections, want the tracepoint's and 1", got, len(connections))
			continue
		}
		if dwell := transitions[4].DwellMs; (dwell == nil) != want.unknown {
			t.Errorf("dwell_ms in FIN_WAIT2 %s, want null: %v", orNull(dwell), want.unknown)
		}
		if got := orNull(connections[0].End); got != want.end {
			t.Errorf("end %s, want %s", got, want.end)
		}
	}
}

// timeWaits is how ss counts what is in TIME_WAIT: as its summary has it, and line by
// line.
func (n *netns) timeWaits(t *testing.T) (summary, lines int) {
	t.Helper()
	m := regexp.MustCompile(`\btimewait (\d+)`).FindStringSubmatch(n.ss(t, "-s"))
	if m == nil {
		t.Fatal("ss -s does not count what is in TIME_WAIT")
	}
	summary, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return summary, strings.Count(n.ss(t, "-tanH", "state", "time-wait"), "\n")
}

// Not parallel: it loads the machine.
func TestFiftyThousandInTimeWaitAreThoseThatSsCounts(t *testing.T) {
	connections := int(stormSize(50_000))
	bin := buildStorm(t)
	for attempt := 1; ; attempt++ {
		lost := fiftyThousand(t, bin, connections)
		switch {
		case lost == 0:
			return
		case attempt == stormAttempts:
			t.Fatalf("lost %d transitions as nested in storm %d in a row", lost, attempt)
		}
		t.Logf("once more: %d transitions lost as nested", lost)
	}
}

// fiftyThousand returns how many transitions the kernel has lost, and checks nothing
// if it has.
func fiftyThousand(t *testing.T, bin string, connections int) (lost uint64) {
	t.Helper()
	ns := newNetns(t)
	ns.sysctl(t, "ipv4/tcp_max_tw_buckets", "200000")
	ns.sysctl(t, "ipv4/tcp_tw_reuse", "0")
	netns := fmt.Sprint(ns.inode)
	tr := startTracer(t, "--netns", netns, "--summary-interval", "500ms", "--events", "summary,stats")
	before := residentKB(t, tr.pid)
	ns.do(t, func() {
		out, err := exec.Command(bin, "-n", fmt.Sprint(connections)).CombinedOutput()
		if err != nil {
			t.Fatalf("storm: %v\n%s", err, out)
		}
		t.Logf("under tcptrace: %s", bytes.TrimSpace(out))
	})
	// None may have ended yet when it was counted.
	after := time.Now()
	tr.waitLong(callTimeout, func(records []record) bool {
		return len(records) > 0 && records[len(records)-1].Time.After(after.Add(time.Second))
	})
	t.Logf("%d kB more resident memory", residentKB(t, tr.pid)-before)
	run := tr.stop()
	late := startTracer(t, "--netns", netns, "--events", "socket,stats")
	summary, lines := ns.timeWaits(t)
	lateRun := late.stop()
	stats := lastStats(run.records)
	if stats == nil {
		t.FailNow() // and stop has said so
	}
	if lost := stats.Lost["nested"]; lost != 0 {
		return lost
	}

	run.checkNothingLost(t)
	lateRun.checkNothingLost(t)
	// Now and then the kernel makes do without one.
	if summary != lines || lines < connections*99/100 {
		t.Fatalf("%d in TIME_WAIT, and %d listed, want %d: this test has made something else", summary, lines, connections)
	}
	connections = lines
	if stats.Tracked != connections {
		t.Errorf("sockets_tracked %d, want %d", stats.Tracked, connections)
	}
	var last *record
	for i := range run.records {
		if run.records[i].Type == "summary" {
			last = &run.records[i]
		}
	}
	if last == nil {
		t.Fatal("no summary record")
	}
	for state, n := range last.States {
		want := 0
		if state == "TIME_WAIT" {
			want = connections
		}
		if n != nil && *n != want {
			t.Errorf("summary: %d in %s, want %d", *n, state, want)
		}
	}
	found := 0
	for _, r := range lateRun.records {
		if r.Type != "socket" {
			continue
		}
		found++
		if r.State != "TIME_WAIT" || r.ExpiresMs == nil || ms(*r.ExpiresMs) <= 0 || ms(*r.ExpiresMs) > timeWaitLen+bar {
			t.Fatalf("socket in %s with expires_ms %s, want TIME_WAIT and less than %v", r.State, orNull(r.ExpiresMs), timeWaitLen)
		}
	}
	// This test may be too slow a reader.
	if stats := lastStats(lateRun.records); found+int(stats.Unprinted) != connections || stats.Tracked != connections {
		t.Errorf("a tracer that came later printed %d, did not print %d and tracked %d, want %d", found, stats.Unprinted, stats.Tracked, connections)
	}
	return 0
}

func residentKB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
