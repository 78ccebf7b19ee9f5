package livetest

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var metricsURL = regexp.MustCompile(`https?://[^"]+/metrics`)

// scrape returns the value of each series, by its name and labels as they stand in the
// answer.
func (tr *tracer) scrape() map[string]float64 {
	tr.t.Helper()
	client := http.Client{Timeout: callTimeout}
	resp, err := client.Get(metricsURL.FindString(tr.log()))
	if err != nil {
		tr.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		tr.t.Fatalf("%s, %v:\n%s", resp.Status, err, body)
	}
	out := map[string]float64{}
	for line := range strings.Lines(string(body)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		at := strings.LastIndexByte(line, ' ')
		v, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			tr.t.Fatalf("%v: %q", err, line)
		}
		out[line[:at]] = v
	}
	return out
}

// by is the values of the series of one name, by the value of their only label.
func by(series map[string]float64, name, label string) map[string]int {
	out := map[string]int{}
	for s, v := range series {
		if value, ok := strings.CutPrefix(s, name+"{"+label+`="`); ok {
			out[strings.TrimSuffix(value, `"}`)] = int(v)
		}
	}
	return out
}

// awaitScrape scrapes until done says so, and returns the last one.
func (tr *tracer) awaitScrape(limit time.Duration, done func(map[string]float64) bool) map[string]float64 {
	tr.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		if got := tr.scrape(); done(got) || time.Now().After(deadline) {
			return got
		}
	}
}

func TestAScrapeAgreesWithSsAndWithTheStream(t *testing.T) {
	t.Parallel()
	var listed map[string]int
	var held, resolved map[string]float64
	var m museumOfStates
	_, runs := playComplete(t, func(s *scene) {
		tr := s.trace("--metrics", "127.0.0.1:0", "--close-wait-after", closeWaitAfter.String())
		m = everyState(s)
		// What is no socket yet is counted every ten seconds.
		held = tr.awaitScrape(15*time.Second, func(got map[string]float64) bool {
			listed = countStates(t, s.ns)
			return maps.Equal(by(got, "tcptrace_sockets", "state"), listed) && got[`tcptrace_findings_open{kind="close_wait_leak",severity="warning"}`] == 2
		})
		m.srv.kill()
		m.cli.kill()
		resolved = tr.awaitScrape(3*time.Second, func(got map[string]float64) bool {
			return got[`tcptrace_findings_total{kind="never_closed"}`] == 2 && got[`tcptrace_sockets{state="LISTEN"}`] == 0
		})
	})
	if got := by(held, "tcptrace_sockets", "state"); !maps.Equal(got, listed) {
		t.Errorf("sockets %v, want %v as ss counts", got, listed)
	}
	for state, n := range listed {
		if n == 0 {
			t.Errorf("no socket in %s: the test shows nothing of it", state)
		}
	}
	for series, want := range map[string]int{
		`tcptrace_close_wait_sockets{container="",process="srv"}`:           len(m.held),
		`tcptrace_close_wait_sockets{container="",process="cli"}`:           1,
		`tcptrace_findings_open{kind="close_wait_leak",severity="warning"}`: 2,
		`tcptrace_findings_open{kind="reset_fd_leak",severity="warning"}`:   1,
		`tcptrace_findings_total{kind="close_wait_leak"}`:                   2,
		`tcptrace_findings_total{kind="never_closed"}`:                      0,
	} {
		if got, ok := held[series]; !ok || got != float64(want) {
			t.Errorf("%s %v, there: %v; want %d", series, got, ok, want)
		}
	}
	for _, kind := range []string{"close_wait_leak", "reset_fd_leak"} {
		if got := resolved[`tcptrace_findings_open{kind="`+kind+`",severity="warning"}`]; got != 0 {
			t.Errorf("%v findings of %s are open without the processes, want 0", got, kind)
		}
	}
	checkTotals(t, resolved, runs[0].records)
}

// checkTotals compares the counters with what the stream had told by then. The scene
// stood still, so it has told no more since, what its end tells aside.
func checkTotals(t *testing.T, got map[string]float64, records []record) {
	t.Helper()
	ends, kinds := map[string]int{}, map[string]int{}
	for _, r := range records {
		switch {
		case r.Type == "connection":
			ends[orNull(r.End)]++
		case r.Type == "finding" && r.Status == "open":
			kinds[r.Kind]++
		}
	}
	if n, want := int(got["tcptrace_transitions_total"]), int(lastStats(records).Delivered); n != want {
		t.Errorf("%d transitions, want %d", n, want)
	}
	for name, want := range map[string]map[string]int{"tcptrace_connections_total{end": ends, "tcptrace_findings_total{kind": kinds} {
		for value, n := range want {
			series := fmt.Sprintf("%s=%q}", name, strings.Replace(value, "null", "unknown", 1))
			if int(got[series]) != n {
				t.Errorf("%s %v, want %d", series, got[series], n)
			}
		}
	}
}

func TestAPortThatIsTakenIsAnErrorThatNamesIt(t *testing.T) {
	t.Parallel()
	live(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	stdout, stderr, status := runCommand(t, "--metrics", l.Addr().String(), "--duration", "1s")
	want := fmt.Sprintf("tcptrace: --metrics %q: ", l.Addr())
	if status != 1 || stdout != "" || !strings.HasPrefix(stderr, want) || !strings.Contains(stderr, "address already in use; give ") {
		t.Errorf("exit status %d, stdout %q, stderr:\n%swant status 1, and one line that begins with %q and says what to do", status, stdout, stderr, want)
	}
}

// Whoever may connect must not use up the descriptors that scans of the host need.
func TestTooManyConnectionsAreTurnedAway(t *testing.T) {
	t.Parallel()
	ns := newNetns(t)
	tr := startTracer(t, "--netns", fmt.Sprint(ns.inode), "--metrics", "127.0.0.1:0")
	base := strings.TrimSuffix(metricsURL.FindString(tr.log()), "/metrics")
	addr := strings.TrimPrefix(base, "http://")
	const many, most = 200, 32
	var silent []net.Conn
	for range many {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	open := 0
	until := time.Now().Add(time.Second)
	for _, c := range slices.Backward(silent) { // those that came last are closed
		if err := c.SetReadDeadline(until); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
			open++
		}
	}
	if open == 0 || open > most {
		t.Errorf("%d of %d connections are open, want some, and at most %d", open, many, most)
	}
	for _, c := range silent {
		c.Close()
	}
	for _, path := range []string{"/metrics", "/healthz", "/readyz"} {
		status := 0
		for until := time.Now().Add(3 * time.Second); status == 0 && time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
			if resp, err := http.Get(base + path); err == nil {
				status = resp.StatusCode
				resp.Body.Close()
			}
		}
		if status != http.StatusOK {
			t.Errorf("%s, when they are gone: status %d, want 200", path, status)
		}
	}
	tr.stop()
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Errorf("%s still takes connections after the end of the run", addr)
	}
}
