package aggregate

import (
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// One whole connection of the storm, both ends: what a busy host does all day.
func BenchmarkObserve(b *testing.B) {
	tr := NewTracker(take{connection: func(*Connection) {}}, &Filter{}, 1<<20, time.Minute)
	s := &story{ms: 1}
	var evs []events.Event
	add := func(k sock, kind events.Kind, from, to string, opts ...func(*events.Event)) {
		ev := s.event(k, kind)
		ev.Old, ev.New = abbreviations[from], abbreviations[to]
		for _, o := range opts {
			o(&ev)
		}
		evs = append(evs, ev)
	}
	transition := func(k sock, from, to string, opts ...func(*events.Event)) {
		add(k, events.Transition, from, to, opts...)
	}
	transition(client, "C", "SS", by(2, "cli"))
	transition(client, "SS", "E")
	transition(server, "L", "SR")
	transition(server, "SR", "E")
	add(server, events.Accept, "E", "E", by(1, "srv"))
	transition(client, "E", "F1", by(2, "cli"), shut(3))
	transition(server, "E", "CW", with(events.HasSocket|events.Done))
	transition(client, "F1", "F2", with(orphan))
	transition(client, "F2", "C", with(orphan))
	add(client, events.Destroy, "C", "C")
	transition(server, "CW", "LA", by(1, "srv"), shut(3))
	transition(server, "LA", "C", with(orphan|events.Done))
	add(server, events.Destroy, "C", "C")

	const transitions = 10
	cookie, ktime := uint64(1), uint64(1)
	b.ReportAllocs()
	for b.Loop() {
		for i := range evs {
			evs[i].Cookie = cookie + evs[i].Skaddr%2 // two sockets, other ones each time
			evs[i].Ktime = ktime
			ktime += 1000
			tr.Observe(&evs[i])
		}
		cookie += 2
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/transitions, "ns/transition")
	if c := tr.Counts(); c.Missed != 0 || c.Tracked != 0 {
		b.Fatalf("the benchmark's connections are not whole: %+v", c)
	}
}
