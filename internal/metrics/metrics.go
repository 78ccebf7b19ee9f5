// Package metrics shows what a run knows to Prometheus. It never touches the tracker:
// whoever owns that publishes a Snapshot now and then, and a scrape reads the last one.
// So no scrape, however frequent, costs the run anything but its own few series; and
// these are bounded whatever the host does.
package metrics

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
)

// A run that has not said for so long that it goes on does not trace any more. A scan of a
// large host takes a fraction of a second.
const stuckAfter = 30 * time.Second

// Scrapes at once; each makes its whole answer in memory.
const maxScrapes = 4

// Snapshot is what a run knows at one moment. It must not be changed once it is published.
type Snapshot struct {
	Census aggregate.Census
	Counts aggregate.Counts
	Dwells *aggregate.Dwells
	Lost   aggregate.Lost
	Probes []aggregate.Probe
	// Unprinted is the number of records that were shed.
	Unprinted uint64
}

// Metrics is an http.Handler of /metrics, /healthz and /readyz. All its methods may be
// called from any goroutine, Publish from one at a time.
type Metrics struct {
	http.Handler
	begun time.Time
	alive atomic.Pointer[time.Time] // when the run began, or last said that it goes on
	last  atomic.Pointer[Snapshot]  // nil until the run is tracing
}

// New returns the metrics of a run that begins, for those whom access lets in. Whether the
// run is well, anybody may ask.
func New(access *Access) *Metrics {
	m := &Metrics{begun: time.Now()}
	m.GoesOn()
	registry := prometheus.NewRegistry()
	registry.MustRegister(m, buildInfo(), collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", access.guard(promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes})))
	mux.HandleFunc("GET /healthz", m.health)
	mux.HandleFunc("GET /readyz", m.ready)
	m.Handler = http.MaxBytesHandler(mux, 0)
	return m
}

// Publish replaces what the next scrapes see. The first call says that the run is
// tracing.
func (m *Metrics) Publish(s Snapshot) {
	if last := m.last.Load(); last != nil {
		// What the books blame on one cause can turn out to be another's, or nothing at
		// all. To Prometheus a counter that falls by one has begun anew, and all of it is
		// new loss.
		s.Lost.RingFull = max(s.Lost.RingFull, last.Lost.RingFull)
		s.Lost.Nested = max(s.Lost.Nested, last.Lost.Nested)
		s.Lost.TableFull = max(s.Lost.TableFull, last.Lost.TableFull)
		s.Lost.Decode = max(s.Lost.Decode, last.Lost.Decode)
	}
	m.last.Store(&s)
}

// GoesOn says that the run traces, or is about to, whether there is something new to be
// published or that would cost too much.
func (m *Metrics) GoesOn() {
	now := time.Now()
	m.alive.Store(&now)
}

// silent is how long ago GoesOn was called.
func (m *Metrics) silent() time.Duration { return time.Since(*m.alive.Load()) }

// health fails when the run does not go on.
func (m *Metrics) health(w http.ResponseWriter, _ *http.Request) {
	if d := m.silent(); d > stuckAfter {
		http.Error(w, fmt.Sprintf("nothing was read from the kernel for %s", d.Truncate(time.Second)), http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// ready fails until every transition is seen.
func (m *Metrics) ready(w http.ResponseWriter, _ *http.Request) {
	if m.last.Load() == nil {
		http.Error(w, "not tracing yet", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}
