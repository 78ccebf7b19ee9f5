package metrics

import (
	"cmp"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// So many programs are named in tcptrace_close_wait_sockets.
const maxPrograms = 20

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("tcptrace_"+name, help, labels, nil)
}

var (
	sockets       = desc("sockets", "TCP sockets now, by state: as ss counts them.", "state")
	closeWait     = desc("close_wait_sockets", "Sockets in CLOSE_WAIT now, by the program that is to close them: the 20 that have most, and other.", "process", "container")
	findingsOpen  = desc("findings_open", "Findings that are open now, by kind.", "kind")
	findingsTotal = desc("findings_total", "Findings so far, by kind.", "kind")
	transitions   = desc("transitions_total", "State transitions that were observed.")
	connections   = desc("connections_total", "Connections whose last state has ended, by what ended them.", "end")
	lost          = desc("lost_total", "State transitions that were lost, by cause.", "cause")
	evicted       = desc("sockets_evicted_total", "Sockets that were forgotten to make room for others: there are more than --max-sockets.")
	unprinted     = desc("unprinted_total", "Records that were shed, because stdout was too slow for example.")
)

// Describe implements prometheus.Collector.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{sockets, closeWait, findingsOpen, findingsTotal, transitions, connections, lost, evicted, unprinted} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Until the run is tracing there is nothing.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	s := m.last.Load()
	if s == nil {
		return
	}
	gauge := func(d *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(n), labels...)
	}
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for st := events.Established; st < events.NewSynRecv; st++ {
		if st != events.Close {
			gauge(sockets, s.Census.States[st], st.String())
		}
	}
	for _, p := range programs(s.Census.CloseWait) {
		gauge(closeWait, p.sockets, p.process, p.container)
	}
	for k, n := range s.Census.Findings {
		if k := aggregate.Kind(k); k != aggregate.NeverClosed { // which is over when it is told
			gauge(findingsOpen, n, k.String())
		}
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

// program is a series of closeWait.
type program struct {
	process, container string
	sockets            int
}

// programs returns the series, those with most sockets first.
func programs(of map[aggregate.Program]int) []program {
	all := make([]program, 0, len(of))
	for p, n := range of {
		// A name may hold any byte, a label may not.
		all = append(all, program{strings.ToValidUTF8(string(p.Comm.Bytes()), "\uFFFD"), p.Container, n})
	}
	slices.SortFunc(all, func(a, b program) int {
		return cmp.Or(cmp.Compare(b.sockets, a.sockets), cmp.Compare(a.process, b.process), cmp.Compare(a.container, b.container))
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
		named[i].sockets += p.sockets
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
