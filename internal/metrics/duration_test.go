package metrics

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// silent takes no notice of any record.
type silent struct{}

func (silent) Transition(*aggregate.Transition) bool { return true }
func (silent) Connection(*aggregate.Connection) bool { return true }
func (silent) Socket(*aggregate.Socket) bool         { return true }
func (silent) Finding(*aggregate.Finding) bool       { return true }
func (silent) Summary(*aggregate.Summary)            {}

// established are connections, each of which is established for one of the times.
func established(times []time.Duration) *aggregate.Dwells {
	tr := aggregate.NewTracker(silent{}, &aggregate.Filter{}, 10, events.DefaultThresholds)
	tr.Scanned(events.Scan{Complete: true, Every: true})
	for n, d := range times {
		step := func(at time.Duration, from, to events.State) {
			tr.Observe(&events.Event{Kind: events.Transition, Skaddr: 7, Cookie: uint64(n + 1), Ktime: uint64(time.Second + at), Old: from, New: to})
		}
		step(0, events.SynRecv, events.Established)
		step(d, events.Established, events.Close)
		tr.Observe(&events.Event{Kind: events.Destroy, Skaddr: 7, Cookie: uint64(n + 1)})
	}
	return tr.Dwells()
}

// gathered is the histogram of the only metric family, or of the one with this state.
func gathered(t *testing.T, c prometheus.Collector, state string) *dto.Histogram {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if h := m.GetHistogram(); h != nil && (len(m.GetLabel()) == 0 || m.GetLabel()[0].GetValue() == state) {
				return h
			}
		}
	}
	t.Fatal("no histogram")
	return nil
}

// The client library's own histogram is given the same times.
func TestTimesAreShownAsPrometheusWouldHaveCountedThem(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var times []time.Duration
	for range 10_000 {
		times = append(times, time.Duration(math.Exp(rng.Float64()*40))) // up to seven years
	}
	var bounds []float64
	for _, bound := range aggregate.DwellBounds {
		bounds = append(bounds, bound.Seconds())
		times = append(times, bound, bound+1)
	}
	theirs := prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "theirs", Help: "-", Buckets: bounds, NativeHistogramBucketFactor: 1.19, NativeHistogramZeroThreshold: aggregate.DwellTiny,
	})
	for _, d := range times {
		theirs.Observe(d.Seconds())
	}
	m := New(nil)
	s := full()
	s.Dwells = established(times)
	m.Publish(s)
	want, got := gathered(t, theirs, ""), gathered(t, m, "ESTABLISHED")
	if created := got.CreatedTimestamp.AsTime(); created.After(time.Now()) || time.Since(created) > time.Minute {
		t.Errorf("created at %v, want when the run began", created)
	}
	want.CreatedTimestamp, got.CreatedTimestamp = nil, nil
	diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(dto.Histogram{}, dto.Bucket{}, dto.BucketSpan{}),
		cmpopts.EquateApprox(1e-9, 0), cmpopts.EquateEmpty())
	if diff != "" {
		t.Errorf("got (+) and the library's (-) differ:\n%s", diff)
	}
	if empty := gathered(t, m, "CLOSING"); empty.GetSampleCount() != 0 || len(empty.GetBucket()) != len(bounds) {
		t.Errorf("a state that none has left: got %v, want all of it, with 0", empty)
	}
}
