package aggregate

import (
	"encoding/binary"
	"runtime"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// closers plays whole lives of connections that this side closes first: a FIN_WAIT2
// without a process, TIME_WAIT, and its end.
type closers struct {
	tr     *Tracker
	socket []events.Event // up to the minisocket's beginning, and the socket's last
	fin    events.Event
	end    events.Event
	cookie uint64
	ktime  uint64
	step   uint64 // between two events
}

func newClosers(role Role) *closers {
	s := &story{ms: 1}
	c := &closers{tr: NewTracker(take{connection: func(*Connection) {}}, &Filter{}, 1<<18, events.DefaultThresholds), ktime: 1, step: 1000}
	c.tr.SeesMinisockets(true)
	c.tr.Network(&events.Network{Netns: 1, PortLow: 32768, PortHigh: 60999})
	c.tr.Scanned(events.Scan{Complete: true, Every: true})
	add := func(k sock, kind events.Kind, from, to string, opts ...func(*events.Event)) events.Event {
		ev := s.event(k, kind)
		ev.Old, ev.New = abbreviations[from], abbreviations[to]
		for _, o := range opts {
			o(&ev)
		}
		return ev
	}
	k := client
	if role == Server {
		k = server
		c.socket = append(c.socket,
			add(k, events.Transition, "L", "SR"),
			add(k, events.Transition, "SR", "E"),
			add(k, events.Accept, "E", "E", by(2, "cli")))
	} else {
		c.socket = append(c.socket,
			add(k, events.Transition, "C", "SS", by(2, "cli")),
			add(k, events.Transition, "SS", "E"))
	}
	c.socket = append(c.socket,
		add(k, events.Transition, "E", "F1", by(2, "cli"), shut(3)),
		add(k, events.Transition, "F1", "F2", with(orphan)),
		add(mini(k), events.Minisocket, "", "F2"),
		add(k, events.Transition, "F2", "C", with(orphan)),
		add(k, events.Destroy, "C", "C"))
	c.fin = add(mini(k), events.Minisocket, "", "TW")
	c.end = add(mini(k), events.Minisocket, "TW", "C")
	c.fin.Left, c.end.Why = timeWaitLen, events.WhyOther
	return c
}

// observe has the tracker see an event of connection n, which comes from an address, or
// a port, of its own.
func (c *closers) observe(ev events.Event, n uint64) {
	ev.Cookie = n
	if ev.Kind == events.Minisocket {
		ev.Skaddr = 0x100_0000 + n<<8
	}
	if ev.Lport == server.lport {
		binary.BigEndian.PutUint32(ev.Raddr[12:], uint32(n))
	} else {
		ev.Lport = uint16(n)
	}
	c.ktime += c.step
	ev.Ktime = c.ktime
	c.tr.Observe(&ev)
}

// wait takes one more connection into TIME_WAIT.
func (c *closers) wait() {
	c.cookie++
	for k := range c.socket {
		c.observe(c.socket[k], c.cookie)
	}
	c.observe(c.fin, c.cookie)
}

// play is a whole life.
func (c *closers) play() {
	c.wait()
	c.ktime += uint64(timeWaitLen)
	c.observe(c.end, c.cookie)
	c.ktime += endSettled
	c.tr.Tick(c.ktime)
}

func BenchmarkTimeWait(b *testing.B) {
	c := newClosers(Client)
	b.ReportAllocs()
	for b.Loop() {
		c.play()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N), "ns/connection")
	if n := c.tr.Counts(); n.Missed != 0 || n.MissedMinis != 0 || n.Tracked != 0 {
		b.Fatalf("the benchmark's connections are not whole: %+v", n)
	}
}

// A scan of all sockets holds what is known against what there is.
func BenchmarkReconcile(b *testing.B) {
	const n = 50_000
	c := newClosers(Server)
	var rows []events.Event
	for range n {
		c.wait()
		row := c.fin
		row.Kind, row.Mini, row.New, row.Fd = events.Socket, true, events.TimeWait, -1
		row.Cookie, row.Skaddr, row.Ktime = c.cookie, 0x100_0000+c.cookie<<8, c.ktime
		rows = append(rows, row)
	}
	b.ReportAllocs()
	for b.Loop() {
		for k := range rows {
			c.tr.Observe(&rows[k])
		}
		c.tr.Scanned(events.Scan{Complete: true, Every: true, All: true, Walked: []uint32{1}})
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/minisocket")
	if got := c.tr.minis.len(); got != n {
		b.Fatalf("got %d minisockets, want %d", got, n)
	}
}

func TestObservingATimeWaitAllocatesNothing(t *testing.T) {
	for _, role := range []Role{Client, Server} {
		c := newClosers(role)
		c.play() // what grows has grown
		if got := testing.AllocsPerRun(1000, c.play); got != 0 {
			t.Errorf("%s: got %v allocations for a connection, want 0", role, got)
		}
		if n := c.tr.Counts(); n.Missed != 0 || n.MissedMinis != 0 || n.Tracked != 0 {
			t.Fatalf("%s: the connections are not whole: %+v", role, n)
		}
	}
}

// The garbage collector needs its part too: it lets the heap grow before it looks again.
func TestManyTimeWaitsTakeLittleMemory(t *testing.T) {
	const n, most = 131_072, timeWaitBytes
	for _, tt := range []struct {
		name string
		role Role
	}{
		{"of a client, to one destination", Client},
		{"of a server, each from another address", Server},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newClosers(tt.role)
			c.step = uint64(10 * time.Microsecond)
			before := heap()
			for k := range n {
				if c.wait(); k%1000 == 0 {
					c.tr.Tick(c.ktime)
				}
			}
			each := (heap() - before) / n
			t.Logf("%d bytes each", each)
			if each > most {
				t.Errorf("got %d bytes for each, want at most %d", each, most)
			}
			if got := c.tr.minis.len(); got != n {
				t.Fatalf("got %d minisockets, want %d", got, n)
			}
			runtime.KeepAlive(c)
		})
	}
}
