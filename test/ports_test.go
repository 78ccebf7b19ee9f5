package livetest

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A traffic is a process that runs leak/traffic.py. It belongs to the test's
// goroutine.
type traffic struct {
	t *testing.T
	process
	stdin *os.File
	out   *os.File
	lines *bufio.Scanner
}

func startTraffic(t *testing.T, ns *netns, args ...any) *traffic {
	t.Helper()
	argv := []string{"leak/traffic.py"}
	for _, a := range args {
		argv = append(argv, fmt.Sprint(a))
	}
	return startTrafficAt(t, ns, "127.0.0.1", argv)
}

func startTrafficAt(t *testing.T, ns *netns, host string, argv []string) *traffic {
	t.Helper()
	cmd := exec.Command("python3", argv...)
	cmd.Env = append(os.Environ(), "HOST="+host)
	var p *traffic
	ns.do(t, func() { p = runTraffic(t, cmd) })
	p.ready()
	return p
}

func runTraffic(t *testing.T, cmd *exec.Cmd) *traffic {
	t.Helper()
	in, stdin := newPipe(t)
	out, stdout := newPipe(t)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %q: %v", cmd.Args, err)
	}
	in.Close()
	stdout.Close()
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it is killed
		close(ended)
	}()
	p := &traffic{t: t, process: process{pid: cmd.Process.Pid}, stdin: stdin, out: out, lines: bufio.NewScanner(out)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // fails if it has ended
		<-ended
	})
	return p
}

// next is the words of its next line, which has to begin with word.
func (p *traffic) next(word string) []string {
	p.t.Helper()
	if err := p.out.SetReadDeadline(time.Now().Add(2 * callTimeout)); err != nil {
		p.t.Fatal(err)
	}
	if !p.lines.Scan() {
		p.t.Fatalf("%s %d: no line %q: %v", p.comm, p.pid, word, p.lines.Err())
	}
	words := strings.Fields(p.lines.Text())
	if words[0] != word {
		p.t.Fatalf("%s %d: line %q, want %q", p.comm, p.pid, p.lines.Text(), word)
	}
	return words[1:]
}

func (p *traffic) ready() {
	p.t.Helper()
	p.next("ready")
	// By now it is certainly what it was started as.
	p.process = processOf(p.t, p.pid)
}

// begin lets a client connect.
func (p *traffic) begin() {
	p.t.Helper()
	if _, err := p.stdin.WriteString("\n"); err != nil {
		p.t.Fatal(err)
	}
}

// An outcome is what a client says in the end.
type outcome struct {
	opened      int
	first, last time.Time // of the calls of connect()
	errno       syscall.Errno
	closes      string // by the test
}

// perSecond is the rate at which it has opened connections.
func (o outcome) perSecond() float64 { return float64(o.opened-1) / o.last.Sub(o.first).Seconds() }

// finish waits until a client has "done" all, or has "failed".
func (p *traffic) finish(word string) outcome {
	p.t.Helper()
	var n [4]int64
	for i, w := range p.next(word) {
		var err error
		if n[i], err = strconv.ParseInt(w, 10, 64); err != nil {
			p.t.Fatal(err)
		}
	}
	return outcome{opened: int(n[0]), first: time.Unix(0, n[1]), last: time.Unix(0, n[2]), errno: syscall.Errno(n[3])}
}

// awaitLong is waitFor with a limit of the caller's.
func awaitLong(tr *tracer, limit time.Duration, done func([]record) bool) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); {
		if tr.waitFor(done) {
			return true
		}
	}
	return false
}

// findingsAbout is those of a kind, by the process that they are about first.
func findingsAbout(records []record, kind string, pid int) (out []record) {
	for i := range records {
		if (&leak{kind: kind, who: process{pid: pid}}).about(&records[i]) {
			out = append(out, records[i])
		}
	}
	return out
}

// kindsIn are the kinds of the findings, each once.
func kindsIn(records []record) (out []string) {
	for _, r := range records {
		if r.Type == "finding" && !slices.Contains(out, r.Kind) {
			out = append(out, r.Kind)
		}
	}
	return out
}

// isStatus says whether the last record is of this status, and severity unless "".
func lastIs(records []record, status, severity string) bool {
	n := len(records)
	return n > 0 && records[n-1].Status == status && (severity == "" || records[n-1].Severity == severity)
}

// logFindings shows all findings of a test that has failed.
func logFindings(t *testing.T, records []record) {
	t.Helper()
	if t.Failed() {
		for i := range records {
			if records[i].Type == "finding" {
				t.Log(records[i].finding())
			}
		}
	}
}

// checkEvidence compares the members of the evidence that want has.
func checkEvidence(t *testing.T, r *record, want map[string]any) {
	t.Helper()
	for name, v := range want {
		if got := fmt.Sprint(r.Evidence[name]); got != fmt.Sprint(v) {
			t.Errorf("%s %s: %s %s, want %v", r.Kind, r.Status, name, got, v)
		}
	}
}

// number is a member of the evidence, NaN if it is none.
func (r *record) number(name string) float64 {
	if n, ok := r.Evidence[name].(float64); ok {
		return n
	}
	return math.NaN()
}

// checkRatio compares two numbers that may differ by a factor.
func checkRatio(t *testing.T, where string, got, want, factor float64) {
	t.Helper()
	if !(got >= want/factor && got <= want*factor) {
		t.Errorf("%s %.1f, want %.1f to a factor of %.2f", where, got, want, factor)
	}
}

// processes is what the evidence says of this one, and no other.
func makers(counts ...any) []any {
	out := []any{}
	for i := 0; i < len(counts); i += 2 {
		p := counts[i].(process)
		out = append(out, map[string]any{"pid": float64(p.pid), "comm": p.comm, "count": counts[i+1]})
	}
	return out
}

// endClients ends all connections to the traffic's server, and endTimeWait what is
// in TIME_WAIT at either end.
func endClients(t *testing.T, ns *netns) {
	endSockets(t, ns, "dport", "=", fmt.Sprint(":", trafficPort))
}

func endTimeWait(t *testing.T, ns *netns) { endSockets(t, ns, "state", "time-wait") }

func endSockets(t *testing.T, ns *netns, which ...string) {
	t.Helper()
	ns.endAll(t, which...)
}

const (
	trafficPort = 7000
	lowPort     = 20000
	highPort    = 20199
)

// fewPorts leaves the namespace 200 ports for connect(), without those reserved.
func fewPorts(t *testing.T, ns *netns, reserved, reuse string) {
	t.Helper()
	ns.sysctl(t, "ipv4/ip_local_port_range", fmt.Sprint(lowPort, " ", highPort))
	ns.sysctl(t, "ipv4/ip_local_reserved_ports", reserved)
	ns.sysctl(t, "ipv4/tcp_tw_reuse", reuse)
}

// A finding that comes when connect() fails already comes too late.
func TestPortsThatRunOutAreFoundBeforeConnectFails(t *testing.T) {
	for _, tt := range []struct {
		name, reserved string
		ports, kept    int
		closes         string
	}{
		{"all of the range", "", 200, 0, "first"},
		{"without the reserved", "7000,20000-20039,20050,20200-20300", 159, 41, "first"},
		{"by connections that stay", "", 200, 0, "never"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			const rate = 50
			var client *traffic
			var out outcome
			var lastClient process // as who comes later sees it
			var critical, started time.Time
			var snapshot []record
			s, runs := playComplete(t, func(s *scene) {
				startTraffic(t, s.ns, "serve", trafficPort, map[string]string{"first": "last", "never": "never"}[tt.closes])
				client = startTraffic(t, s.ns, "connect", trafficPort, 300, rate, tt.closes)
				if tt.closes == "never" {
					lastClient = client.process
				}
				fewPorts(t, s.ns, tt.reserved, "0")
				tr, early := s.trace(), s.trace("--ports-percent", "50")
				client.begin()
				s.short = !awaitLong(tr, 6*time.Second, func(records []record) bool {
					return lastIs(findingsAbout(records, "time_wait_ports", client.pid), "update", "critical")
				})
				critical = time.Now()
				out = client.finish("failed")
				out.closes = tt.closes

				// For who comes now, it is so from the beginning.
				started = time.Now()
				late := s.trace()
				late.waitFor(func(records []record) bool {
					return lastIs(findingsAbout(records, "time_wait_ports", lastClient.pid), "open", "")
				})
				snapshot = runForRecords(t, 3, "snapshot", "--netns", fmt.Sprint(s.ns.inode), "--fail-on", "time_wait_ports")

				endClients(t, s.ns)
				for tr, pid := range map[*tracer]int{tr: client.pid, early: client.pid, late: lastClient.pid} {
					s.short = !tr.waitFor(func(records []record) bool {
						return lastIs(findingsAbout(records, "time_wait_ports", pid), "resolved", "")
					}) || s.short
				}
			})
			if out.errno != unix.EADDRNOTAVAIL || out.opened < tt.ports {
				t.Fatalf("connect() failed with %v after %d connections, want %v after %d", out.errno, out.opened, unix.EADDRNOTAVAIL, tt.ports)
			}
			if !critical.Before(out.last) {
				t.Errorf("the finding had become critical at %v, want it before connect() failed at %v", critical, out.last)
			}
			want := map[string]any{
				"netns": float64(s.ns.inode), "side": "client", "laddr": "127.0.0.1", "raddr": "127.0.0.1", "rport": trafficPort, "ports": tt.ports,
				"ip_local_port_range": []any{lowPort, highPort}, "reserved_ports": tt.kept, "tcp_tw_reuse": 0, "tcp_timestamps": 1,
				"reusable": false, "sustainable_per_second": fmt.Sprintf("%.1f", float64(tt.ports)/60),
			}
			mine := findingsAbout(runs[0].records, "time_wait_ports", client.pid)
			if len(mine) != 3 {
				logFindings(t, runs[0].records)
				t.Fatalf("%d findings about the ports, want open, update and resolved", len(mine))
			}
			for i, percent := range []int{75, 90} {
				checkPorts(t, &mine[i], want, client.process, out, percent)
			}
			checkCourse(t, "time_wait_ports", mine, true)
			if mine[0].Severity != "warning" || mine[1].Severity != "critical" {
				t.Errorf("severity %s and %s, want warning and critical", mine[0].Severity, mine[1].Severity)
			}
			if got := findingsAbout(runs[1].records, "time_wait_ports", client.pid); len(got) == 0 {
				t.Error("no finding with --ports-percent 50")
			} else {
				checkPorts(t, &got[0], want, client.process, out, 50)
			}
			for _, records := range [][]record{runs[2].records, snapshot} {
				checkExhausted(t, records, want, lastClient)
			}
			if got := findingsAbout(runs[2].records, "time_wait_ports", lastClient.pid); len(got) > 0 && got[0].Time.Sub(started) > 2*time.Second {
				t.Errorf("found %v after the start, want it at the start", got[0].Time.Sub(started))
			}
			for _, records := range [][]record{runs[0].records, runs[1].records, runs[2].records, snapshot} {
				if got := kindsIn(records); len(got) != 1 {
					t.Errorf("findings of kinds %v, want time_wait_ports only", got)
				}
				logFindings(t, records)
			}
		})
	}
}

// checkPorts checks a finding of ports that are about to run out: at this share of
// them, and with numbers that the program's own bear out.
func checkPorts(t *testing.T, r *record, want map[string]any, client process, out outcome, percent int) {
	t.Helper()
	total := want["ports"].(int)
	checkEvidence(t, r, want)
	left := out.last.Sub(r.Time)
	if left <= 0 {
		t.Errorf("%s: at %v, want it before connect() failed at %v", r.Status, r.Time, out.last)
	}
	// By how many it is late: one tick.
	least := (total*percent + 99) / 100
	if r.Count < least || r.Count > least+total/20 {
		t.Errorf("%s: count %d, want it when %d of %d ports are taken", r.Status, r.Count, least, total)
	}
	if got := int(r.number("time_wait") + r.number("live")); got != r.Count {
		t.Errorf("%s: count %d, want %d, the sum of time_wait and live", r.Status, r.Count, got)
	}
	// A few may be on their way: the server is a process that has to get a CPU.
	if stay := r.number("live") > r.number("time_wait"); stay != (out.closes == "never") {
		t.Errorf("%s: live %v, time_wait %v of connections that are closed %s", r.Status, r.Evidence["live"], r.Evidence["time_wait"], out.closes)
	}
	if got, want := fmt.Sprint(r.Evidence["processes"]), fmt.Sprint(makers(client, r.Count)); got != want {
		t.Errorf("%s: processes %s, want %s", r.Status, got, want)
	}
	if orNull(r.Exe) != client.exe {
		t.Errorf("%s: exe %s, want %s", r.Status, orNull(r.Exe), client.exe)
	}
	checkRatio(t, r.Status+": connections_per_second", r.number("connections_per_second"), out.perSecond(), 2)
	checkRatio(t, r.Status+": exhausted_in_ms", r.number("exhausted_in_ms"), float64(left.Milliseconds()), 2)
}

// checkExhausted checks the finding of who came when no port was left. Of what is
// in TIME_WAIT nobody can tell any more who made it.
func checkExhausted(t *testing.T, records []record, want map[string]any, who process) {
	t.Helper()
	mine := findingsAbout(records, "time_wait_ports", who.pid)
	if len(mine) == 0 {
		t.Error("no finding of who came later")
		return
	}
	r := &mine[0]
	total := want["ports"].(int)
	checkEvidence(t, r, want)
	if who.pid == 0 {
		checkEvidence(t, r, map[string]any{"time_wait": total, "live": 0, "processes": makers()})
	} else {
		checkEvidence(t, r, map[string]any{"time_wait": 0, "live": total, "processes": makers(who, total)})
	}
	// It has seen nobody take one.
	if rate := r.number("connections_per_second"); rate > 0 {
		t.Errorf("%s: %v connections a second, want none or null: nobody opens any", r.Status, rate)
	}
	if r.Status != "open" || r.Severity != "critical" || r.Count != total {
		t.Errorf("%s, %s, count %d; want open, critical, %d", r.Status, r.Severity, r.Count, total)
	}
}

// What has waited for a second is as good as free, where connect() may take it; and
// a port may be taken once for each destination.
func TestPortsThatAreEnoughDoNotRunOut(t *testing.T) {
	const rate = 120 // a second, of 200 ports
	for _, tt := range []struct {
		name, reuse  string
		destinations int
		seconds      int
		late         time.Duration // how long the tracer waits
	}{
		{"taken again in time", "1", 1, 5, 0},
		{"taken again in time, and traced from the middle on", "1", 1, 6, 4 * time.Second},
		{"of two destinations", "0", 2, 1, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var listed int
			_, runs := playComplete(t, func(s *scene) {
				var clients []*traffic
				for i := range tt.destinations {
					startTraffic(t, s.ns, "serve", trafficPort+i, "last")
					clients = append(clients, startTraffic(t, s.ns, "connect", trafficPort+i, tt.seconds*rate, rate, "first"))
				}
				fewPorts(t, s.ns, "", tt.reuse)
				if tt.late == 0 {
					s.trace()
				}
				for _, c := range clients {
					c.begin()
				}
				if tt.late > 0 {
					time.Sleep(tt.late)
					s.trace()
				}
				for _, c := range clients {
					if out := c.finish("done"); out.opened != tt.seconds*rate {
						t.Fatalf("%d connections, want %d", out.opened, tt.seconds*rate)
					}
				}
				listed = countStates(t, s.ns)["TIME_WAIT"]
				time.Sleep(5 * lag)
			})
			if listed <= rate {
				t.Fatalf("%d in TIME_WAIT, want those of more than a second", listed)
			}
			if got := kindsIn(runs[0].records); len(got) != 0 {
				t.Errorf("findings of kinds %v, want none", got)
			}
			logFindings(t, runs[0].records)
		})
	}
}

// Seen from the server, a load balancer is one address with so many ports.
func TestPortsOfOneClientInTimeWaitHereAreWorthAWord(t *testing.T) {
	t.Parallel()
	const n = 190
	var server *traffic
	s, runs := playComplete(t, func(s *scene) {
		server = startTraffic(t, s.ns, "serve", trafficPort, "first")
		client := startTraffic(t, s.ns, "connect", trafficPort, n, 100, "last", lowPort)
		fewPorts(t, s.ns, "", "0")
		tr := s.trace()
		client.begin()
		client.finish("done")
		s.await(func(records []record) bool { return len(findingsAbout(records, "time_wait_ports", server.pid)) > 0 })
		endTimeWait(t, s.ns)
		s.short = !tr.waitFor(func(records []record) bool {
			return lastIs(findingsAbout(records, "time_wait_ports", server.pid), "resolved", "")
		}) || s.short
	})
	mine := findingsAbout(runs[0].records, "time_wait_ports", server.pid)
	if len(mine) == 0 {
		logFindings(t, runs[0].records)
		t.Fatal("no finding about the server's side")
	}
	checkCourse(t, "time_wait_ports", mine, true)
	r := &mine[0]
	if r.Severity != "info" || r.Count < 150 || r.Count > 160 {
		t.Errorf("severity %s, count %d; want info when there are 150", r.Severity, r.Count)
	}
	checkEvidence(t, r, map[string]any{
		"netns": float64(s.ns.inode), "side": "server", "laddr": "127.0.0.1", "raddr": "127.0.0.1", "lport": trafficPort,
		"ports": 200, "time_wait": r.Count, "processes": makers(server.process, r.Count),
	})
	if len(kindsIn(runs[0].records)) != 1 || len(mine) != len(findingsOf(runs[0].records)) {
		t.Error("findings beside that one, want none")
	}
	logFindings(t, runs[0].records)
}

// A namespace that ends takes its TIME_WAITs along; tracing it does not keep it.
func TestWithItsNamespaceAFindingAboutPortsEnds(t *testing.T) {
	t.Parallel()
	var client *traffic
	_, runs := playComplete(t, func(s *scene) {
		script := fmt.Sprintf("ip link set lo up && echo %d %d > /proc/sys/net/ipv4/ip_local_port_range && "+
			"echo 0 > /proc/sys/net/ipv4/tcp_tw_reuse && exec python3 leak/traffic.py alone 180 100", lowPort, highPort)
		cmd := exec.Command("unshare", "--net", "sh", "-c", script)
		client = runTraffic(t, cmd)
		client.ready()
		tr := s.add(startTracer(t, "--netns", fmt.Sprintf("/proc/%d/ns/net", client.pid)))
		client.begin()
		client.finish("done")
		s.await(func(records []record) bool {
			return lastIs(findingsAbout(records, "time_wait_ports", client.pid), "open", "")
		})
		if err := unix.Kill(client.pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.short = !tr.waitFor(func(records []record) bool {
			return lastIs(findingsAbout(records, "time_wait_ports", client.pid), "resolved", "")
		}) || s.short
	})
	mine := findingsAbout(runs[0].records, "time_wait_ports", client.pid)
	if len(mine) < 2 {
		t.Fatalf("%d findings about the ports, want it open and resolved", len(mine))
	}
	checkCourse(t, "time_wait_ports", mine, true)
	killed := map[string]int{}
	for _, r := range runs[0].records {
		if r.Type == "connection" {
			killed[fmt.Sprint(r.fields["time_wait_end"])]++
		}
	}
	if killed["killed"] != 180 {
		t.Errorf("time_wait_end %v, want 180 killed", killed)
	}
	logFindings(t, runs[0].records)
}

// overflows is the kernel's own count of connections that skipped TIME_WAIT.
func overflows(t *testing.T, ns *netns) int {
	t.Helper()
	var text []byte
	var err error
	ns.do(t, func() { text, err = os.ReadFile("/proc/thread-self/net/netstat") })
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(text, []byte("\n"))
	at := bytes.Fields(lines[0])
	i := slices.IndexFunc(at, func(name []byte) bool { return string(name) == "TCPTimeWaitOverflow" })
	if i < 0 {
		t.Fatal("no TCPTimeWaitOverflow in /proc/net/netstat")
	}
	n, err := strconv.Atoi(string(bytes.Fields(lines[1])[i]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Each namespace has a limit of its own, and processes of its own that hit it.
func TestConnectionsThatSkipTimeWaitAreCountedByNamespace(t *testing.T) {
	t.Parallel()
	const n = 120
	type place struct {
		ns     *netns
		limit  int
		client *traffic
		grown  int
	}
	var places []*place
	inTime := false
	_, runs := playComplete(t, func(s *scene) {
		places = []*place{{ns: s.ns, limit: 30}, {ns: newNetns(t), limit: 50}, {ns: newNetns(t), limit: 4096}}
		for _, p := range places {
			startTraffic(t, p.ns, "serve", trafficPort, "last")
			p.client = startTraffic(t, p.ns, "connect", trafficPort, n, 10*n, "first")
			p.ns.sysctl(t, "ipv4/tcp_max_tw_buckets", fmt.Sprint(p.limit))
			p.grown = -overflows(t, p.ns)
		}
		started := time.Now()
		s.add(startTracer(t, "--events", "finding,stats"))
		for _, p := range places {
			p.client.begin()
		}
		for _, p := range places {
			p.client.finish("done")
		}
		// The kernel is asked once a second at the most: so only when all is over.
		inTime = time.Since(started) < time.Second
		s.await(func(records []record) bool {
			return len(overflowsIn(records, places[0].ns)) > 0 && len(overflowsIn(records, places[1].ns)) > 0
		})
		for _, p := range places {
			p.grown += overflows(t, p.ns)
		}
	})
	t.Logf("all over within a second: %v", inTime)
	for _, p := range places {
		mine := overflowsIn(runs[0].records, p.ns)
		if p.limit > n {
			if p.grown != 0 || len(mine) != 0 {
				t.Errorf("%d overflows with a limit of %d, and %d findings, want none", p.grown, p.limit, len(mine))
			}
			continue
		}
		if p.grown < n-p.limit-5 {
			t.Fatalf("%d of %d connections skipped TIME_WAIT with a limit of %d", p.grown, n, p.limit)
		}
		if len(mine) == 0 {
			t.Errorf("no finding, want one with count %d", p.grown)
			continue
		}
		r := &mine[len(mine)-1]
		// What came later is told when the number has doubled.
		if r.Count != p.grown && (inTime || r.Count > p.grown || 2*r.Count <= p.grown) {
			t.Errorf("count %d, want %d as the kernel has counted", r.Count, p.grown)
		}
		if orNull(r.Pid) != fmt.Sprint(p.client.pid) || r.Severity != "warning" {
			t.Errorf("%s about %s, want warning about %d", r.Severity, orNull(r.Pid), p.client.pid)
		}
		checkEvidence(t, r, map[string]any{"tcp_max_tw_buckets": p.limit})
		by, _ := r.Evidence["processes"].([]any)
		if len(by) != 1 || by[0].(map[string]any)["pid"] != float64(p.client.pid) {
			t.Errorf("processes %v, want %d only", by, p.client.pid)
		}
	}
	logFindings(t, runs[0].records)
}

func overflowsIn(records []record, ns *netns) (out []record) {
	for _, r := range records {
		if r.Type == "finding" && r.Kind == "time_wait_overflow" && r.number("netns") == float64(ns.inode) {
			out = append(out, r)
		}
	}
	return out
}

// One who opens a connection for each request costs everybody; one who does so
// now and then, or keeps one, does not.
func TestConnectionsThatAPoolWouldSaveAreCounted(t *testing.T) {
	t.Parallel()
	const fastRate, slowRate = 70, 20
	var fast, slow *traffic
	var fastOut, slowOut outcome
	_, runs := playComplete(t, func(s *scene) {
		startTraffic(t, s.ns, "serve", trafficPort, "last")
		startTraffic(t, s.ns, "serve", trafficPort+1, "last")
		fast = startTraffic(t, s.ns, "connect", trafficPort, 11*fastRate, fastRate, "first")
		slow = startTraffic(t, s.ns, "connect", trafficPort, 11*slowRate, slowRate, "first")
		keeper := startTraffic(t, s.ns, "stretch", trafficPort+1, 10)
		tr := s.trace("--events", "finding,stats")
		s.trace("--events", "finding,stats", "--short-lived-rate", "10")
		s.trace("--events", "finding,stats", "--short-lived-rate", "150")
		for _, p := range []*traffic{fast, slow, keeper} {
			p.begin()
		}
		fastOut, slowOut = fast.finish("done"), slow.finish("done")
		s.short = !awaitLong(tr, 8*time.Second, func(records []record) bool {
			return lastIs(findingsAbout(records, "short_lived", fast.pid), "resolved", "")
		})
	})
	for i, want := range []map[*traffic]outcome{{fast: fastOut}, {fast: fastOut, slow: slowOut}, {}} {
		records := runs[i].records
		ids := map[string]bool{}
		for _, r := range records {
			if r.Type == "finding" {
				ids[r.ID] = true
			}
		}
		if len(ids) != len(want) {
			t.Errorf("%d findings, want %d", len(ids), len(want))
		}
		for p, out := range want {
			mine := findingsAbout(records, "short_lived", p.pid)
			if len(mine) == 0 {
				t.Errorf("no finding about %d, want one", p.pid)
				continue
			}
			checkChurn(t, &mine[0], p.process, out)
		}
		logFindings(t, records)
	}
	checkCourse(t, "short_lived", findingsAbout(runs[0].records, "short_lived", fast.pid), true)
}

func checkChurn(t *testing.T, r *record, who process, out outcome) {
	t.Helper()
	where := filepath.Base(who.exe)
	checkEvidence(t, r, map[string]any{"raddr": "127.0.0.1", "rport": trafficPort})
	const precision = 1.2
	checkRatio(t, where+": connections_per_second", r.number("connections_per_second"), out.perSecond(), precision)
	checkRatio(t, where+": count", float64(r.Count), out.perSecond()*r.number("window_ms")/1000, precision)
	checkRatio(t, where+": window_ms", r.number("window_ms"), 5000, precision)
	soFar := out.perSecond() * r.Time.Sub(out.first).Seconds()
	checkRatio(t, where+": connections", r.number("connections"), soFar, precision)
	// It closes as soon as it is connected.
	if life := r.number("life_p50_ms"); !(life > 0 && life < 1000/out.perSecond()) {
		t.Errorf("%s: life_p50_ms %v, want less than the time between two", where, life)
	}
	if orNull(r.Exe) != who.exe || orNull(r.Comm) != who.comm || r.Severity != "warning" {
		t.Errorf("%s about %s %s, want warning about %s %s", r.Severity, orNull(r.Comm), orNull(r.Exe), who.comm, who.exe)
	}
}
