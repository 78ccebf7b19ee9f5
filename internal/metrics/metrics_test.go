package metrics

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// get returns what a GET of the path gives.
func get(t *testing.T, m *Metrics, path string) (status int, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, http.NoBody))
	return w.Code, w.Body.String()
}

// scrape returns the value of each series, of those of tcptrace itself, by its name and
// labels as they stand in the answer.
func scrape(t *testing.T, m *Metrics) map[string]float64 {
	t.Helper()
	status, body := get(t, m, "/metrics")
	if status != http.StatusOK {
		t.Fatalf("got status %d, want 200: %s", status, body)
	}
	out := map[string]float64{}
	for line := range strings.Lines(body) {
		if !strings.HasPrefix(line, "tcptrace_") || strings.HasPrefix(line, "tcptrace_build_info") {
			continue
		}
		series, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if value == "" {
			series, value, _ = strings.Cut(strings.TrimSpace(line), " ")
		} else {
			series += "}"
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		out[series] = v
	}
	return out
}

// full is a snapshot in which every number is another.
func full() Snapshot {
	var s Snapshot
	s.Census.States = [events.NumStates]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	s.Census.CloseWait = map[aggregate.Program]aggregate.Waits{
		{Comm: events.MakeComm("web")}:                          {Sockets: 5, Oldest: 90 * time.Second},
		{Comm: events.MakeComm("web"), Container: "0123456789"}: {Sockets: 2, Oldest: 1500 * time.Millisecond},
		{}: {Sockets: 1},
	}
	s.Census.Ports = 0.75
	s.Probes = []aggregate.Probe{{Facility: "time_wait", Variant: "timer"}, {Facility: "accept"}}
	s.Dwells = &aggregate.Dwells{}
	for k := range s.Census.Findings {
		s.Census.Findings[k] = [3]int{1000 + k, 2000 + k, 20 + k}
		s.Counts.Findings[k] = 30 + uint64(k)
	}
	for e := range s.Counts.Ended {
		s.Counts.Ended[e] = 40 + uint64(e)
	}
	s.Counts.Delivered = 50
	s.Lost = aggregate.Lost{RingFull: 60, Nested: 61, TableFull: 62, Decode: 63}
	s.Counts.Evicted = 51
	s.Unprinted = 70
	return s
}

func TestAScrapeIsWhatWasPublishedLast(t *testing.T) {
	m := New(nil)
	if got := scrape(t, m); len(got) > 0 {
		t.Errorf("before anything is published: got %v, want nothing that looks like a count", got)
	}
	m.Publish(Snapshot{Dwells: &aggregate.Dwells{}})
	m.Publish(full())
	want := map[string]float64{
		`tcptrace_sockets{state="ESTABLISHED"}`: 1, `tcptrace_sockets{state="SYN_SENT"}`: 2, `tcptrace_sockets{state="SYN_RECV"}`: 3,
		`tcptrace_sockets{state="FIN_WAIT1"}`: 4, `tcptrace_sockets{state="FIN_WAIT2"}`: 5, `tcptrace_sockets{state="TIME_WAIT"}`: 6,
		`tcptrace_sockets{state="CLOSE_WAIT"}`: 8, `tcptrace_sockets{state="LAST_ACK"}`: 9, `tcptrace_sockets{state="LISTEN"}`: 10,
		`tcptrace_sockets{state="CLOSING"}`: 11,

		`tcptrace_close_wait_sockets{container="",process="web"}`:           5,
		`tcptrace_close_wait_sockets{container="0123456789",process="web"}`: 2,
		`tcptrace_close_wait_sockets{container="",process=""}`:              1,

		`tcptrace_close_wait_oldest_seconds{container="",process="web"}`:           90,
		`tcptrace_close_wait_oldest_seconds{container="0123456789",process="web"}`: 1.5,
		`tcptrace_close_wait_oldest_seconds{container="",process=""}`:              0,

		`tcptrace_ephemeral_ports_used_ratio`:                       0.75,
		`tcptrace_probe_info{facility="time_wait",variant="timer"}`: 1,
		`tcptrace_probe_info{facility="accept",variant="none"}`:     1,

		`tcptrace_findings_total{kind="close_wait_leak"}`: 30, `tcptrace_findings_total{kind="never_closed"}`: 31,
		`tcptrace_findings_total{kind="reset_fd_leak"}`: 32, `tcptrace_findings_total{kind="fd_limit"}`: 33,
		`tcptrace_findings_total{kind="fin_wait2_stuck"}`: 34, `tcptrace_findings_total{kind="time_wait_ports"}`: 35,
		`tcptrace_findings_total{kind="time_wait_overflow"}`: 36, `tcptrace_findings_total{kind="short_lived"}`: 37,
		`tcptrace_findings_total{kind="half_open"}`: 38,

		`tcptrace_connections_total{end="unknown"}`: 40, `tcptrace_connections_total{end="fin"}`: 41,
		`tcptrace_connections_total{end="reset_sent"}`: 42, `tcptrace_connections_total{end="reset_received"}`: 43,
		`tcptrace_connections_total{end="timeout"}`: 44, `tcptrace_connections_total{end="refused"}`: 45,
		`tcptrace_connections_total{end="aborted"}`: 46,

		`tcptrace_transitions_total`:              50,
		`tcptrace_lost_total{cause="ring_full"}`:  60,
		`tcptrace_lost_total{cause="nested"}`:     61,
		`tcptrace_lost_total{cause="table_full"}`: 62,
		`tcptrace_lost_total{cause="decode"}`:     63,
		`tcptrace_sockets_evicted_total`:          51,
		`tcptrace_unprinted_total`:                70,
	}
	for kind, n := range map[string]float64{
		"close_wait_leak": 0, "reset_fd_leak": 2, "fd_limit": 3, "fin_wait2_stuck": 4, "time_wait_ports": 5, "time_wait_overflow": 6,
		"short_lived": 7, "half_open": 8,
	} {
		want[`tcptrace_findings_open{kind="`+kind+`",severity="info"}`] = 1000 + n
		want[`tcptrace_findings_open{kind="`+kind+`",severity="warning"}`] = 2000 + n
		want[`tcptrace_findings_open{kind="`+kind+`",severity="critical"}`] = 20 + n
	}
	got := scrape(t, m)
	for name := range got {
		if strings.HasPrefix(name, "tcptrace_state_duration_seconds") {
			delete(got, name) // see TestTimesAreShownAsPrometheusWouldHaveCountedThem
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("got (+) and want (-) differ:\n%s", diff)
	}
}

// The linter is the one of promtool check metrics.
func TestPrometheusFindsNothingToCriticize(t *testing.T) {
	m := New(nil)
	m.Publish(full())
	_, body := get(t, m, "/metrics")
	for _, name := range []string{"tcptrace_build_info{", "go_goroutines ", "process_cpu_seconds_total "} {
		if !strings.Contains(body, "\n"+name) {
			t.Errorf("got no %s, want one in:\n%s", name, body)
		}
	}
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// However many processes there are, and whatever they call themselves.
func TestTheSeriesAreBoundedAndTheirLabelsAreText(t *testing.T) {
	s := Snapshot{Dwells: &aggregate.Dwells{}}
	s.Census.CloseWait = map[aggregate.Program]aggregate.Waits{}
	put := func(comm string, sockets int) {
		s.Census.CloseWait[aggregate.Program{Comm: events.MakeComm(comm)}] = aggregate.Waits{Sockets: sockets, Oldest: time.Duration(sockets) * time.Second}
	}
	const many = 10_000
	for n := range many / 2 {
		put(fmt.Sprintf("p%d", n), 1)
		s.Census.CloseWait[aggregate.Program{Comm: events.MakeComm("in"), Container: fmt.Sprintf("%064x", n)}] = aggregate.Waits{Sockets: 1}
	}
	put("a\xff", 1000)
	put("a\xfe", 100)
	put("other", 500)
	put("\"\\\n", 400)
	m := New(nil)
	m.Publish(s)
	named, sum := 0, 0.0
	got := scrape(t, m)
	for name, v := range got {
		if strings.HasPrefix(name, "tcptrace_close_wait_sockets") {
			named++
			sum += v
		}
	}
	if most := maxPrograms + 1; named > most {
		t.Errorf("got %d programs, want at most %d", named, most)
	}
	// What docs/metrics.md promises.
	if most := 300; len(got) > most {
		t.Errorf("got %d series, want at most %d", len(got), most)
	}
	if got := got["tcptrace_close_wait_oldest_seconds{container=\"\",process=\"a\uFFFD\"}"]; got != 1000 {
		t.Errorf("got an age of %v, want that of the oldest of both", got)
	}
	if want := float64(many + 2000); sum != want {
		t.Errorf("got %v sockets in all series, want %v", sum, want)
	}
	for name, want := range map[string]float64{
		"a\uFFFD": 1100,
		`\"\\\n`:  400,
		"other":   500 + many - (maxPrograms - 4), // its own, and those of all who are not named
	} {
		if got := got[`tcptrace_close_wait_sockets{container="",process="`+name+`"}`]; got != want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

// The books may be put right downwards; to Prometheus that is a counter that has begun
// anew.
func TestNoCounterFalls(t *testing.T) {
	m := New(nil)
	m.Publish(Snapshot{Dwells: &aggregate.Dwells{}, Lost: aggregate.Lost{RingFull: 9, Nested: 3, TableFull: 8, Decode: 7}})
	m.Publish(Snapshot{Dwells: &aggregate.Dwells{}, Lost: aggregate.Lost{RingFull: 8, Nested: 2, TableFull: 7, Decode: 6}})
	m.Publish(Snapshot{Dwells: &aggregate.Dwells{}, Lost: aggregate.Lost{RingFull: 7, Nested: 4}})
	got := scrape(t, m)
	for cause, want := range map[string]float64{"ring_full": 9, "nested": 4, "table_full": 8, "decode": 7} {
		if got := got[`tcptrace_lost_total{cause="`+cause+`"}`]; got != want {
			t.Errorf("%s: got %v, want %v", cause, got, want)
		}
	}
}

func TestProbesSayWhetherItTraces(t *testing.T) {
	m := New(nil)
	answers := func(when string, health, ready int) {
		t.Helper()
		for path, want := range map[string]int{"/healthz": health, "/readyz": ready} {
			if got, body := get(t, m, path); got != want {
				t.Errorf("%s: %s: got status %d, want %d: %s", when, path, got, want, body)
			}
		}
	}
	const no = http.StatusServiceUnavailable
	answers("it begins", http.StatusOK, no)
	longAgo := time.Now().Add(-2 * stuckAfter)
	m.alive.Store(&longAgo)
	answers("it does not come to trace", no, no)
	m.GoesOn()
	m.Publish(Snapshot{Dwells: &aggregate.Dwells{}})
	answers("it traces", http.StatusOK, http.StatusOK)
	m.alive.Store(&longAgo)
	answers("it is stuck", no, http.StatusOK)
	if got := scrape(t, m); len(got) > 0 {
		t.Errorf("it is stuck: got %v, want nothing: it is not known any more", got)
	}
	m.GoesOn()
	answers("it goes on, and to publish would cost too much", http.StatusOK, http.StatusOK)
}

func TestNothingElseIsServed(t *testing.T) {
	m := New(nil)
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{http.MethodPost, "/metrics", http.StatusMethodNotAllowed},
		{http.MethodGet, "/", http.StatusNotFound},
		{http.MethodGet, "/debug/pprof/", http.StatusNotFound},
	} {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, http.NoBody))
		if w.Code != tt.want {
			t.Errorf("%s %s: got status %d, want %d", tt.method, tt.path, w.Code, tt.want)
		}
	}
}

// On a host where as many programs as may be have something in CLOSE_WAIT.
func BenchmarkScrape(b *testing.B) {
	for _, count := range []int{10, 10_000} {
		b.Run(fmt.Sprintf("%d programs", count), func(b *testing.B) {
			s := full()
			for n := range count {
				p := aggregate.Program{Comm: events.MakeComm(fmt.Sprintf("p%d", n))}
				s.Census.CloseWait[p] = aggregate.Waits{Sockets: n, Oldest: time.Second}
			}
			s.Dwells = established([]time.Duration{time.Microsecond, time.Millisecond, time.Second, time.Minute})
			m := New(nil)
			m.Publish(s)
			b.ReportAllocs()
			for b.Loop() {
				w := httptest.NewRecorder()
				m.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
				if w.Code != http.StatusOK {
					b.Fatalf("got status %d", w.Code)
				}
			}
		})
	}
}
