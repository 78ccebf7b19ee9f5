package livetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// kernelStates are the kernel's names for those of ss.
var kernelStates = map[string]string{
	"LISTEN": "LISTEN", "ESTAB": "ESTABLISHED", "SYN-SENT": "SYN_SENT", "SYN-RECV": "SYN_RECV", "FIN-WAIT-1": "FIN_WAIT1",
	"FIN-WAIT-2": "FIN_WAIT2", "TIME-WAIT": "TIME_WAIT", "CLOSE-WAIT": "CLOSE_WAIT", "LAST-ACK": "LAST_ACK", "CLOSING": "CLOSING",
}

// countStates counts what ss lists in the namespace, the host's if nil, by state.
func countStates(t *testing.T, ns *netns) map[string]int {
	t.Helper()
	var text []byte
	var err error
	run := func() { text, err = exec.Command("ss", "-antH").Output() }
	if ns == nil {
		run()
	} else {
		ns.do(t, run)
	}
	if err != nil {
		t.Fatalf("ss: %v", err)
	}
	counts := map[string]int{}
	for _, state := range kernelStates {
		counts[state] = 0
	}
	for line := range strings.Lines(string(text)) {
		name, _, _ := strings.Cut(line, " ")
		counts[kernelStates[name]]++
	}
	return counts
}

// A summary is a record of that type.
type summary struct {
	Time       time.Time       `json:"time"`
	IntervalMs float64         `json:"interval_ms"`
	Netns      uint64          `json:"netns"`
	States     map[string]*int `json:"states"`
	Dead       int             `json:"dead"`
	Opened     int             `json:"opened"`
	Closed     int             `json:"closed"`
	Processes  []struct {
		Pid       int      `json:"pid"`
		Comm      string   `json:"comm"`
		CloseWait int      `json:"close_wait"`
		TimeWait  int      `json:"time_wait"`
		OldestMs  *float64 `json:"oldest_close_wait_ms"`
		Entered   int      `json:"close_wait_entered"`
		Closed    int      `json:"close_wait_closed"`
	} `json:"processes"`
}

// summariesOf are those of one namespace.
func summariesOf(t *testing.T, records []record, netns uint64) (out []summary) {
	t.Helper()
	for _, r := range records {
		if r.Type != "summary" || r.Netns != netns {
			continue
		}
		line, err := json.Marshal(r.fields)
		if err != nil {
			t.Fatal(err)
		}
		var s summary
		if err := json.Unmarshal(line, &s); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		out = append(out, s)
	}
	return out
}

// counts is the states as numbers; what is null is left out.
func (s *summary) counts() map[string]int {
	out := map[string]int{}
	for state, n := range s.States {
		if n != nil {
			out[state] = *n
		}
	}
	return out
}

// agrees says whether these are the states that ss has counted. What is not a
// socket yet may be unknown.
func (s *summary) agrees(listed map[string]int) bool {
	counts := s.counts()
	if _, known := counts["SYN_RECV"]; !known {
		counts["SYN_RECV"] = listed["SYN_RECV"]
	}
	return maps.Equal(counts, listed)
}

// sibling is another peer at the same device.
func (p *tunPeer) sibling(port uint16) *tunPeer {
	other := *p
	other.local = netip.AddrPortFrom(p.local.Addr(), port)
	return &other
}

// A museumOfStates has sockets of all states, which stay in them.
type museumOfStates struct {
	cli, srv *agent
	listener *sock
	held     []leaked // of srv, in CLOSE_WAIT
}

func everyState(s *scene) (m museumOfStates) {
	s.t.Helper()
	m.cli, m.srv = s.agent("cli"), s.agent("srv")
	cli, srv := m.cli, m.srv
	first := s.peer()
	port := first.local.Port()
	peer := func() *tunPeer {
		port++
		return first.sibling(port)
	}
	l := srv.listen(anyPort4)
	m.listener = l
	pair(cli, l)

	cli.socket(anyPort4).connectLater(peer().local) // SYN_SENT
	p := peer()
	p.remote = srv.listen(first.remote.Addr().String() + ":0").local
	p.send(syn) // SYN_RECV
	p.expect(syn | ack)

	p = peer()
	cli.dialPeer(p).close() // FIN_WAIT1
	p.peek(fin | ack)
	p = peer()
	cli.dialPeer(p).close() // CLOSING
	p.peek(fin | ack)
	p.send(fin | ack)
	p.peek(ack)
	p = peer()
	c := cli.dialPeer(p) // LAST_ACK
	p.send(fin | ack)
	c.read("")
	c.close()
	p.peek(fin | ack)

	for i := range 5 { // FIN_WAIT2, held and orphaned, and CLOSE_WAIT
		c, d := pair(cli, l)
		one := leaked{cookie: d.id(), before: time.Now()}
		if i%2 == 0 {
			c.shutdownWrite()
		} else {
			c.close()
		}
		one.after = time.Now()
		m.held = append(m.held, one)
	}
	_, d := pair(cli, l) // the same the other way around
	d.close()
	for range 3 { // TIME_WAIT
		m.lifeOf()
	}
	c, d = pair(cli, l) // dead
	d.linger0()
	d.close()
	c.readFails(unix.ECONNRESET)
	return m
}

// lifeOf is a connection from begin to end, the client's TIME_WAIT aside.
func (m *museumOfStates) lifeOf() {
	c, d := pair(m.cli, m.listener)
	c.close()
	d.read("")
	d.close()
}

const summaryEvery = "500ms"

func TestASummaryCountsWhatSsCounts(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "run.rec")
	var m museumOfStates
	var listed map[string]int
	var text string
	var quietFrom, quietTo time.Time
	s, runs := playComplete(t, func(s *scene) {
		s.trace("--summary-interval", summaryEvery, "--record", file)
		s.trace() // says no summaries
		m = everyState(s)
		// Two in a row that agree: nothing is under way any more.
		listed = countStates(t, s.ns)
		for until := time.Now().Add(3 * time.Second); time.Now().Before(until); {
			time.Sleep(5 * lag)
			now := countStates(t, s.ns)
			if maps.Equal(now, listed) {
				break
			}
			listed = now
		}
		quietFrom = time.Now()
		s.await(func(records []record) bool {
			got := summariesOf(t, records, s.ns.inode)
			return len(got) > 2 && got[len(got)-3].Time.After(quietFrom)
		})
		text, _, _ = runCommand(t, "--netns", fmt.Sprint(s.ns.inode), "--summary-interval", summaryEvery, "--events", "summary",
			"-o", "text", "--duration", "4s") // its start is part of that
		quietTo = time.Now()
		if now := countStates(t, s.ns); !maps.Equal(now, listed) {
			t.Fatalf("ss counts %v, and then %v: the scene does not stand still", listed, now)
		}
		// Traffic that is counted.
		for range 4 {
			m.lifeOf()
		}
		after := time.Now()
		s.await(func(records []record) bool {
			got := summariesOf(t, records, s.ns.inode)
			return len(got) > 1 && got[len(got)-2].Time.After(after)
		})
	})
	for state, n := range listed {
		if n == 0 {
			t.Errorf("no socket in %s: the test shows nothing of it", state)
		}
	}
	all := summariesOf(t, runs[0].records, s.ns.inode)
	agreed, whole := 0, false
	var last summary
	for _, got := range all {
		if got.Time.Before(quietFrom) || got.Time.After(quietTo) {
			continue
		}
		last = got
		agreed++
		if !got.agrees(listed) {
			t.Errorf("summary of %v, want %v as ss counts", got.counts(), listed)
		}
		whole = whole || got.States["SYN_RECV"] != nil
		if got.Dead != 1 {
			t.Errorf("dead %d, want 1", got.Dead)
		}
		m.checkProcesses(t, got)
	}
	if agreed < 2 || !whole {
		t.Errorf("%d summaries of the quiet scene, SYN_RECV known: %v; want several, and in one at least", agreed, whole)
	}
	m.checkFlow(t, all, runs[0].records, quietTo)
	if got := typesOf(runs[1].records); slices.Contains(got, "summary") {
		t.Errorf("records of types %v without --summary-interval, want no summary", got)
	}
	checkSummaryText(t, text, s.ns.inode, listed, m)

	replayed := summariesOf(t, runForRecords(t, 0, "--replay", file, "--summary-interval", summaryEvery), s.ns.inode)
	found := slices.ContainsFunc(replayed, func(r summary) bool {
		return !r.Time.Before(quietFrom) && !r.Time.After(quietTo) && r.agrees(listed)
	})
	if !found {
		t.Errorf("no summary of the replay has the states %v; those of the run have", last.counts())
		for _, r := range replayed {
			t.Log(r.Time.Format("05.000"), r.counts())
		}
	}
}

// checkProcesses checks who has what in the museum.
func (m *museumOfStates) checkProcesses(t *testing.T, got summary) {
	t.Helper()
	names := []string{}
	for _, p := range got.Processes {
		names = append(names, fmt.Sprintf("%d %s %d %d", p.Pid, p.Comm, p.CloseWait, p.TimeWait))
	}
	want := []string{fmt.Sprintf("%d srv %d 0", m.srv.pid, len(m.held)), fmt.Sprintf("%d cli 1 3", m.cli.pid)}
	if !slices.Equal(names, want) {
		t.Errorf("processes %q, want %q", names, want)
		return
	}
	oldest := got.Processes[0].OldestMs
	if oldest == nil {
		t.Error("oldest_close_wait_ms null, want an age")
		return
	}
	checkAgeBetween(t, "oldest_close_wait_ms", *oldest, got.Time.Sub(m.held[0].after), got.Time.Sub(m.held[0].before))
}

// checkFlow checks the numbers that are of an interval: all together they are
// those of the stream.
func (m *museumOfStates) checkFlow(t *testing.T, all []summary, records []record, quietTo time.Time) {
	t.Helper()
	opened, closed, entered, left := 0, 0, 0, 0
	for i, s := range all {
		opened += s.Opened
		closed += s.Closed
		if i > 0 {
			apart := s.Time.Sub(all[i-1].Time)
			if diff := (apart - ms(s.IntervalMs)).Abs(); diff > time.Millisecond {
				t.Errorf("interval_ms %v, want %v as the records are apart", s.IntervalMs, apart)
			}
		}
		for _, p := range s.Processes {
			if p.Pid == m.srv.pid && s.Time.After(quietTo) {
				entered += p.Entered
				left += p.Closed
			}
		}
	}
	if entered != 4 || left != 4 {
		t.Errorf("srv has entered CLOSE_WAIT %d times and left it %d times after the pause, want 4 and 4", entered, left)
	}
	begun, ended := 0, 0
	end := slices.IndexFunc(records, func(r record) bool { return r.Type == "summary" && r.Time.Equal(all[len(all)-1].Time) })
	for _, r := range records[:end] {
		switch {
		case r.Type == "connection":
			ended++
		case r.isTransition() && (r.NewState == "SYN_SENT" || r.OldState == "LISTEN" && r.NewState == "SYN_RECV"):
			begun++
		}
	}
	if opened != begun || closed != ended {
		t.Errorf("opened %d and closed %d in all summaries, want %d and %d as in the stream", opened, closed, begun, ended)
	}
}

var summaryCount = regexp.MustCompile(`\b([A-Z_0-9]+)=(\d+)`)

// checkSummaryText looks for the same numbers in what is for eyes.
func checkSummaryText(t *testing.T, text string, netns uint64, listed map[string]int, m museumOfStates) {
	t.Helper()
	want := map[string]int{}
	for state, n := range listed {
		if n > 0 {
			want[state] = n
		}
	}
	got := map[string]int{}
	who := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "TIME ") {
			continue // the names of the columns
		}
		if !strings.Contains(line, " summary ") || !strings.Contains(line, fmt.Sprintf("netns=%d", netns)) {
			t.Errorf("line %q, want a summary of %d", line, netns)
		}
		for _, m := range summaryCount.FindAllStringSubmatch(line, -1) {
			n, err := strconv.Atoi(m[2])
			if err != nil {
				t.Error(err)
			}
			got[m[1]] = n
		}
		who = who || strings.Contains(line, fmt.Sprintf("srv[%d] close_wait=%d", m.srv.pid, len(m.held)))
	}
	if _, known := got["SYN_RECV"]; !known {
		delete(want, "SYN_RECV")
	}
	if !maps.Equal(got, want) || !who {
		t.Errorf("text has %v, srv named: %v; want %v in:\n%s", got, who, want, text)
	}
}

func TestOnlySummariesWhenOnlySummariesAreAskedFor(t *testing.T) {
	t.Parallel()
	live(t)
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
		t.Fatal(err)
	}
	ns := newNetns(t)
	srv := startAgent(t, ns, "srv")
	srv.listen(anyPort4)

	type sample struct {
		from, to time.Time
		counts   map[string]int
	}
	var samples []sample
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
				from := time.Now()
				samples = append(samples, sample{from, time.Now(), countStates(t, nil)})
			}
		}
	}()
	records := runForRecords(t, 0, "--summary-interval", "300ms", "--events", "summary", "--duration", "4s")
	close(stop)
	<-stopped
	if got := typesOf(records); !slices.Equal(got, []string{"summary"}) {
		t.Errorf("records of types %v, want summary only", got)
	}
	mine := summariesOf(t, records, ns.inode)
	if len(mine) < 2 {
		t.Errorf("%d summaries of a namespace with one listener, want one every 300 ms", len(mine))
	}
	for _, s := range mine {
		if n := s.States["LISTEN"]; n == nil || *n != 1 || s.Opened != 0 || len(s.Processes) != 0 {
			t.Errorf("%v, opened %d, processes %v; want one listener and nothing else", s.counts(), s.Opened, s.Processes)
		}
	}
	compared := 0
	for _, s := range summariesOf(t, records, st.Ino) {
		at := slices.IndexFunc(samples, func(p sample) bool { return p.from.After(s.Time) })
		if at < 1 || !maps.Equal(samples[at-1].counts, samples[at].counts) {
			continue // the host was not quiet then
		}
		compared++
		if !s.agrees(samples[at].counts) {
			t.Errorf("the host: %v, want %v as ss counts", s.counts(), samples[at].counts)
		}
	}
	if compared == 0 && len(samples) > 0 && slices.ContainsFunc(slices.Collect(maps.Values(samples[0].counts)), func(n int) bool { return n > 0 }) {
		t.Errorf("no summary of the host to be compared, of %d samples", len(samples))
	}
	t.Logf("%d summaries of the host compared with ss", compared)
}

// A census is how many sockets ss has counted, while it looked.
type census struct {
	from, to time.Time
	total    int
}

func takeCensus(t *testing.T, ns *netns) census {
	t.Helper()
	c := census{from: time.Now()}
	c.total = sum(countStates(t, ns))
	c.to = time.Now()
	return c
}

func sum(counts map[string]int) (n int) {
	for _, k := range counts {
		n += k
	}
	return n
}

// Not parallel: they load the host, if only for seconds.
func TestInAStormASummaryIsWithinOnePercent(t *testing.T) {
	bin := buildStorm(t)
	t.Run("as fast as it goes", func(t *testing.T) {
		inStorm(t, 0.25, func(ns *netns) <-chan error {
			cmd := exec.Command(bin, "-n", "20000", "-workers", "1")
			cmd.Stderr = os.Stderr
			ns.do(t, func() {
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
			})
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			return ended
		})
	})
	t.Run("slow enough for ss", func(t *testing.T) {
		inStorm(t, 0.02, func(ns *netns) <-chan error {
			startTraffic(t, ns, "serve", trafficPort, "last")
			client := startTraffic(t, ns, "connect", trafficPort, 4000, 1000, "first")
			client.begin()
			ended := make(chan error, 1)
			go func() {
				if !client.lines.Scan() || !strings.HasPrefix(client.lines.Text(), "done ") {
					ended <- fmt.Errorf("client: %q, %w", client.lines.Text(), client.lines.Err())
				}
				close(ended)
			}()
			return ended
		})
	})
}

// inStorm compares each summary with what ss counts before and after it. Nothing
// ends within seconds, so these are bounds of the truth; tight says how close they
// have to be, once at least, for this to prove anything.
func inStorm(t *testing.T, tight float64, begin func(*netns) <-chan error) {
	t.Helper()
	const attempts = 3
	for attempt := 1; ; attempt++ {
		ns := newNetns(t)
		ns.sysctl(t, "ipv4/tcp_max_tw_buckets", "200000")
		tr := startTracer(t, "--netns", fmt.Sprint(ns.inode), "--summary-interval", "500ms", "--events", "summary,stats")
		ended := begin(ns)
		var counted []census
		for over := false; !over; {
			select {
			case err := <-ended:
				if err != nil {
					t.Fatal(err)
				}
				over = true
			default:
			}
			counted = append(counted, takeCensus(t, ns))
		}
		calm := takeCensus(t, ns)
		tr.waitFor(func(records []record) bool {
			n := len(records)
			return n > 0 && records[n-1].Type == "summary" && records[n-1].Time.After(calm.to)
		})
		got := summariesOf(t, tr.stop().records, ns.inode)
		if len(got) == 0 {
			t.Fatal("no summary")
		}
		wrong, proofs := []string{}, 0
		if last := sum(got[len(got)-1].counts()); last != calm.total {
			wrong = append(wrong, fmt.Sprintf("%d sockets when the storm is over, want %d", last, calm.total))
		}
		for _, s := range got {
			before := slices.IndexFunc(counted, func(c census) bool { return !c.to.Before(s.Time) }) - 1
			after := slices.IndexFunc(counted, func(c census) bool { return c.from.After(s.Time) })
			if before < 0 || after < 0 {
				continue
			}
			total, least, most := sum(s.counts()), counted[before].total, counted[after].total
			if float64(total) < 0.99*float64(least) || float64(total) > 1.01*float64(most) {
				wrong = append(wrong, fmt.Sprintf("%s: %d sockets, want them between %d and %d", s.Time.Format("05.000"), total, least, most))
			}
			if float64(most-least) <= tight*float64(most) {
				proofs++
			}
		}
		if len(wrong) == 0 && proofs > 0 {
			t.Logf("%d of %d summaries within 1%% of ss, which was close to them", proofs, len(got))
			return
		}
		if attempt == attempts {
			t.Fatalf("%d summaries close to what ss has counted; wrong: %q", proofs, wrong)
		}
		t.Logf("once more: %d summaries close to what ss has counted; wrong: %q", proofs, wrong)
	}
}
