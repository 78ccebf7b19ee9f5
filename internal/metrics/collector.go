package metrics

import (
	"cmp"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// So many programs are named in tcptrace_close_wait_sockets and tcptrace_close_wait_oldest_seconds.
const maxPrograms = 20

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tcptrace_"+name, help, labels, nil)
}

var (
	sockets       = desc("sockets", "TCP sockets now, by state: as ss counts them.", "state")
	closeWait     = desc("close_wait_sockets", "Sockets in CLOSE_WAIT now, by the program that is to close them: the 20 that have most, and other.", "process", "container")
	oldest        = desc("close_wait_oldest_seconds", "Age of the oldest socket in CLOSE_WAIT, by the program that is to close it: the same programs.", "process", "container")
	findingsOpen  = desc("findings_open", "Findings that are open now, by kind and by how urgent they are.", "kind", "severity")
	findingsTotal = desc("findings_total", "Findings so far, by kind.", "kind")
	durations     = desc("state_duration_seconds", "Time that sockets were in a state, of those that have left it: counted when they do.", "state")
	ports         = desc("ephemeral_ports_used_ratio", "Share of the ephemeral ports that is taken to the one destination to which most are, TIME_WAIT included.")
	transitions   = desc("transitions_total", "State transitions that were observed.")
	connections   = desc("connections_total", "Connections whose last state has ended, by what ended them.", "end")
	lost          = desc("lost_total", "State transitions that were lost, by cause.", "cause")
	evicted       = desc("sockets_evicted_total", "Sockets that were forgotten to make room for others: there are more than --max-sockets.")
	unprinted     = desc("unprinted_total", "Records that were shed, because stdout was too slow for example.")
	probes        = desc("probe_info", "1, of the way in which a facility of the kernel side is provided; none if the kernel refuses all.", "facility", "variant")
)

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		sockets, closeWait, oldest, findingsOpen, findingsTotal, durations, ports, transitions, connections, lost, evicted, unprinted, probes,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Until the run is tracing there is nothing; nor
// when it is stuck, because what was true then is not known to be.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	s := m.last.Load()
	if s == nil || m.silent() > stuckAfter {
		return
	}
	gauge := func(d *prometheus.Desc, n float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, n, labels...)
	}
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for st := events.Established; st < events.NewSynRecv; st++ {
		if st != events.Close {
			gauge(sockets, float64(s.Census.States[st]), st.String())
		}
		if st != events.Close && st != events.Listen {
			ch <- m.duration(s.Dwells.In(st), st.String())
		}
	}
	for _, p := range programs(s.Census.CloseWait) {
		gauge(closeWait, float64(p.Sockets), p.process, p.container)
		gauge(oldest, p.Oldest.Seconds(), p.process, p.container)
	}
	for k, by := range s.Census.Findings {
		for severity, n := range by {
			if k := aggregate.Kind(k); k != aggregate.NeverClosed { // which is over when it is told
				gauge(findingsOpen, float64(n), k.String(), aggregate.Severity(severity).String())
			}
		}
	}
	if s.Census.Ports >= 0 {
		gauge(ports, s.Census.Ports)
	}
	for _, p := range s.Probes {
		gauge(probes, 1, p.Facility, cmp.Or(p.Variant, "none"))
	}
	for k, n := range s.Counts.Findings {
		counter(findingsTotal, n, aggregate.Kind(k).String())
	}
	for e, n := range s.Counts.Ended {
		counter(connections, n, cmp.Or(aggregate.End(e).String(), "unknown"))
	}
	counter(transitions, s.Counts.Delivered)
	counter(lost, s.Lost.RingFull, "ring_full")
	counter(lost, s.Lost.Nested, "nested")
	counter(lost, s.Lost.TableFull, "table_full")
	counter(lost, s.Lost.Decode, "decode")
	counter(evicted, s.Counts.Evicted)
	counter(unprinted, s.Unprinted)
}

// histogram is one metric in both forms: Prometheus takes the one that it understands.
type histogram struct {
	prometheus.Metric // the native form
	classic           []*dto.Bucket
}

// Write implements prometheus.Metric.
func (h histogram) Write(out *dto.Metric) error {
	if err := h.Metric.Write(out); err != nil {
		return err
	}
	out.Histogram.Bucket = h.classic
	return nil
}

// duration is the series of one state.
func (m *Metrics) duration(d aggregate.Dwell, state string) prometheus.Metric {
	h := histogram{Metric: prometheus.MustNewConstNativeHistogram(durations, d.Count, d.Sum, d.Fine, nil, d.Tiny,
		aggregate.DwellScale, aggregate.DwellTiny, m.begun, state)}
	for i, bound := range aggregate.DwellBounds {
		h.classic = append(h.classic, &dto.Bucket{UpperBound: new(bound.Seconds()), CumulativeCount: new(d.Coarse[i])})
	}
	return h
}

// program is a series of closeWait, and of oldest.
type program struct {
	process, container string
	aggregate.Waits
}

// programs returns the series, those with most sockets first.
func programs(of map[aggregate.Program]aggregate.Waits) []program {
	all := make([]program, 0, len(of))
	for p, w := range of {
		// A name may hold any byte, a label may not.
		all = append(all, program{strings.ToValidUTF8(string(p.Comm.Bytes()), "\uFFFD"), p.Container, w})
	}
	slices.SortFunc(all, func(a, b program) int {
		return cmp.Or(cmp.Compare(b.Sockets, a.Sockets), cmp.Compare(a.process, b.process), cmp.Compare(a.container, b.container))
	})
	named := make([]program, 0, maxPrograms+1)
	// add makes one of two of the same name: it may be what was no UTF-8 in it that was
	// different, and a process may be called other. Two series with the same labels would fail
	// the scrape.
	add := func(p program) {
		i := slices.IndexFunc(named, func(q program) bool { return q.process == p.process && q.container == p.container })
		if i < 0 {
			named = append(named, p)
			return
		}
		named[i].Add(p.Waits)
	}
	for i, p := range all {
		if i >= maxPrograms {
			p.process, p.container = "other", ""
		}
		add(p)
	}
	return named
}

// buildInfo is 1, and its labels say which build of tcptrace this is.
func buildInfo() prometheus.Collector {
	version, revision, goVersion := "unknown", "unknown", "unknown"
	if b, ok := debug.ReadBuildInfo(); ok {
		version, goVersion = b.Main.Version, b.GoVersion
		for _, s := range b.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	g := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "tcptrace_build_info", Help: "1, of the build that its labels name.",
		ConstLabels: prometheus.Labels{"version": version, "revision": revision, "goversion": goVersion},
	})
	g.Set(1)
	return g
}
