package aggregate

import (
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// connectionOfTheStorm is one whole connection, both ends: what a busy host does
// all day. It has ten transitions.
func connectionOfTheStorm() (evs []events.Event) {
	s := &story{ms: 1}
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
	return evs
}

// storm plays the connection again and again, a microsecond an event.
type storm struct {
	tr            *Tracker
	evs           []events.Event
	cookie, ktime uint64
}

func newStorm() *storm {
	tr := NewTracker(take{connection: func(*Connection) {}}, &Filter{}, 1<<20, thresholds(time.Minute))
	tr.Scanned(events.Scan{Complete: true, Every: true})
	return &storm{tr: tr, evs: connectionOfTheStorm(), cookie: 1, ktime: 1}
}

func (s *storm) play() {
	for i := range s.evs {
		s.evs[i].Cookie = s.cookie + s.evs[i].Skaddr%2 // two sockets, other ones each time
		s.evs[i].Ktime = s.ktime
		s.ktime += 1000
		s.tr.Observe(&s.evs[i])
	}
	s.cookie += 2
}

func BenchmarkObserve(b *testing.B) {
	const transitions = 10
	s := newStorm()
	b.ReportAllocs()
	for b.Loop() {
		s.play()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/transitions, "ns/transition")
	if c := s.tr.Counts(); c.Missed != 0 || c.Tracked != 0 {
		b.Fatalf("the benchmark's connections are not whole: %+v", c)
	}
}

func TestObservingAllocatesNothing(t *testing.T) {
	s := newStorm()
	s.play() // what grows has grown
	if got := testing.AllocsPerRun(1000, s.play); got != 0 {
		t.Errorf("got %v allocations for a connection, want 0", got)
	}
}

// leakers is a tracker with n late sockets of seven processes, all of which the scan
// under way has found.
func leakers(b *testing.B, n int) (*Tracker, []events.Event) {
	tr := NewTracker(take{}, &Filter{}, n, thresholds(time.Minute))
	tr.Scanned(events.Scan{Complete: true, Every: true})
	s := &story{t: b, tr: tr, ms: 1000}
	for k := range n {
		s.leave(nth(k), 1+uint32(k%7), "srv")
	}
	s.pass(minute)
	s.tick()
	var rows []events.Event
	for k := range n {
		ev := s.event(nth(k), events.Socket)
		ev.Old, ev.New, ev.Flags, ev.Fd = events.CloseWait, events.CloseWait, events.HasSocket, int32(k)
		ev.Unsent = ev.Ktime
		ev.Proc = events.Proc{Pid: 1 + uint32(k%7), Comm: events.MakeComm("srv")}
		rows = append(rows, ev)
	}
	return tr, rows
}

// What a scan costs the tracker when it is over: with it, nothing else is done.
func BenchmarkFindLeaks(b *testing.B) {
	const sockets = 100_000
	tr, rows := leakers(b, sockets)
	for k := range rows {
		tr.Observe(&rows[k])
	}
	b.ReportAllocs()
	for b.Loop() {
		tr.findLeaks(true)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/sockets, "ns/socket")
	checkLeakers(b, tr, sockets)
}

// The same with what comes before it and after it.
func BenchmarkScan(b *testing.B) {
	const sockets = 100_000
	tr, rows := leakers(b, sockets)
	b.ReportAllocs()
	for b.Loop() {
		for k := range rows {
			tr.Observe(&rows[k])
		}
		tr.Scanned(events.Scan{Complete: true, Every: true})
		tr.Tick(tr.now + 1)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/sockets, "ns/socket")
	checkLeakers(b, tr, sockets)
}

func checkLeakers(b *testing.B, tr *Tracker, want int) {
	b.Helper()
	got, findings := 0, 0
	for _, f := range tr.findings {
		if f != nil {
			got, findings = got+f.count, findings+1
		}
	}
	if got != want || findings != 7 {
		b.Fatalf("got %d sockets in %d findings, want %d in 7", got, findings, want)
	}
}
