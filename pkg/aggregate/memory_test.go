package aggregate

import (
	"encoding/binary"
	"math"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// What docs/performance.md promises for each socket, and for each connection in
// TIME_WAIT; and what a port group may add to a socket that has one of its own.
const (
	socketBytes   = 300
	timeWaitBytes = 200
)

// The index takes a link and a bucket for each entry, and the address.
const indexBytes = 8 + 4 + 4

func TestEntriesAreSmall(t *testing.T) {
	for _, tt := range []struct {
		name      string
		size, max uintptr
	}{
		{"a socket", unsafe.Sizeof(conn{}) + indexBytes, 224},
		{"a minisocket", unsafe.Sizeof(minisocket{}) + indexBytes, 192},
		{"a chunk of sockets, each", unsafe.Sizeof(chunk[uint64, conn]{}) / chunkLen, 224},
		{"a port group", unsafe.Sizeof(chunk[portKey, portGroup]{}) / chunkLen, socketBytes - 224},
		{"a chunk of minisockets, each", unsafe.Sizeof(chunk[uint64, minisocket]{}) / chunkLen, 192},
	} {
		if tt.size > tt.max {
			t.Errorf("%s takes %d bytes, want at most %d", tt.name, tt.size, tt.max)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// crowd is connections, each with a socket, an address and a port of its own.
type crowd struct {
	tr  *Tracker
	evs []events.Event
	n   uint64
}

func newCrowd(max int, evs []events.Event) *crowd {
	l := &crowd{tr: NewTracker(take{connection: func(*Connection) {}}, &Filter{}, max, events.DefaultThresholds), evs: evs}
	l.tr.SeesMinisockets(true)
	l.tr.Network(&events.Network{Netns: 1, PortLow: 1, PortHigh: math.MaxUint16})
	l.tr.Scanned(events.Scan{Complete: true, Every: true})
	return l
}

// begin plays the events for one more connection. Some of its address and port comes
// from its number.
func (l *crowd) begin(distinct func(ev *events.Event, n uint64)) {
	l.n++
	for k := range l.evs {
		ev := l.evs[k]
		ev.Skaddr, ev.Cookie, ev.Ktime = 0xffff_8880_0000_0000+l.n*2432, l.n, l.n*1000+uint64(k)
		distinct(&ev, l.n)
		l.tr.Observe(&ev)
	}
}

func accepted() []events.Event {
	return []events.Event{
		{Kind: events.Transition, Netns: 1, Old: events.Listen, New: events.SynRecv, Lport: 80, Rport: 1},
		{Kind: events.Transition, Netns: 1, Old: events.SynRecv, New: events.Established, Lport: 80, Rport: 1},
		{Kind: events.Accept, Netns: 1, Proc: events.Proc{Pid: 7, Comm: events.MakeComm("srv")}},
	}
}

func connected() []events.Event {
	p := events.Proc{Pid: 7, Comm: events.MakeComm("cli")}
	return []events.Event{
		{Kind: events.Transition, Netns: 1, Old: events.Close, New: events.SynSent, Rport: 80, Flags: events.Owned | events.HasSocket, Proc: p},
		{Kind: events.Transition, Netns: 1, Old: events.SynSent, New: events.Established, Rport: 80, Flags: events.HasSocket},
	}
}

func fromAfar(ev *events.Event, n uint64) { binary.BigEndian.PutUint32(ev.Raddr[12:], uint32(n)) }

// fromManyPorts has as many local addresses as it takes.
func fromManyPorts(ev *events.Event, n uint64) {
	ev.Lport, ev.Laddr[15], ev.Raddr[15] = uint16(n%20_000)+1, byte(n/20_000), 1
}

// BenchmarkMemoryOfSockets says what the tracker keeps for each of a million sockets.
func BenchmarkMemoryOfSockets(b *testing.B) {
	for _, bb := range []struct {
		name     string
		evs      []events.Event
		distinct func(*events.Event, uint64)
	}{
		{"of a server, each from another address", accepted(), fromAfar},
		{"of a client, to one destination", connected(), fromManyPorts},
		{"of a client, each to another destination", connected(), fromAfar},
	} {
		b.Run(bb.name, func(b *testing.B) {
			const n = 1_000_000
			for b.Loop() {
				before := heap()
				l := newCrowd(1<<20, bb.evs)
				for range n {
					l.begin(bb.distinct)
				}
				l.tr.Tick(l.n * 1000)
				each := float64(heap()-before) / n
				b.ReportMetric(each, "bytes/socket")
				if got := l.tr.Counts().Tracked; got != n {
					b.Fatalf("got %d sockets, want %d", got, n)
				}
				if each > socketBytes {
					b.Errorf("got %.1f bytes for each, want at most %d", each, socketBytes)
				}
				runtime.KeepAlive(l)
			}
		})
	}
}

// BenchmarkMemoryOfTimeWaits says what it keeps for each of a million in TIME_WAIT.
func BenchmarkMemoryOfTimeWaits(b *testing.B) {
	for _, role := range []Role{Client, Server} {
		b.Run(role.String(), func(b *testing.B) {
			const n = 1_000_000
			for b.Loop() {
				before := heap()
				c := newClosers(role)
				c.tr.max = 1 << 21
				c.step = uint64(5 * time.Microsecond)
				for k := range n {
					if c.wait(); k%1000 == 0 {
						c.tr.Tick(c.ktime)
					}
				}
				each := float64(heap()-before) / n
				b.ReportMetric(each, "bytes/time-wait")
				if got := c.tr.minis.len(); got != n {
					b.Fatalf("got %d minisockets, want %d", got, n)
				}
				if each > timeWaitBytes {
					b.Errorf("got %.1f bytes for each, want at most %d", each, timeWaitBytes)
				}
				runtime.KeepAlive(c)
			}
		})
	}
}

// BenchmarkMemoryOfTheFirstScan says what is kept of a million that it has found.
func BenchmarkMemoryOfTheFirstScan(b *testing.B) {
	socket := events.Event{
		Kind: events.Socket, Netns: 1, Old: events.Established, New: events.Established, Flags: events.HasSocket,
		Proc: events.Proc{Pid: 7, Comm: events.MakeComm("srv")}, Lport: 80, Rport: 1, Quiet: 1,
	}
	timeWait := events.Event{
		Kind: events.Socket, Netns: 1, Old: events.TimeWait, New: events.TimeWait, Mini: true, Fd: -1, Lport: 80, Rport: 1, Left: timeWaitLen,
	}
	for _, bb := range []struct {
		name string
		row  events.Event
		most float64
	}{
		{"sockets", socket, socketBytes},
		{"connections in TIME_WAIT", timeWait, timeWaitBytes},
	} {
		b.Run(bb.name, func(b *testing.B) {
			const n = 1_000_000
			for b.Loop() {
				before := heap()
				tr := NewTracker(take{}, &Filter{}, 1<<21, events.DefaultThresholds)
				tr.SeesMinisockets(true)
				for k := range uint64(n) {
					ev := bb.row
					ev.Skaddr, ev.Cookie, ev.Ktime = 0xffff_8880_0000_0000+k*2432, k+1, uint64(time.Hour)+k
					fromAfar(&ev, k)
					tr.Observe(&ev)
				}
				tr.Scanned(events.Scan{Complete: true, Every: true})
				tr.Tick(uint64(time.Hour + time.Second))
				each := float64(heap()-before) / n
				b.ReportMetric(each, "bytes/each")
				if got := tr.Counts().Tracked; got != n {
					b.Fatalf("got %d, want %d", got, n)
				}
				if each > bb.most {
					b.Errorf("got %.1f bytes for each, want at most %.0f", each, bb.most)
				}
				runtime.KeepAlive(tr)
			}
		})
	}
}
