package aggregate

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// Lives that a socket can have, by kernel.md, section A.
var lives = []string{
	"C>SS SS>E E>F1 F1>F2 F2>C",
	"C>SS SS>E E>F1 F1>F2 F2>F2 F2>C",
	"C>SS SS>E E>CW CW>LA LA>C",
	"C>SS SS>E E>F1 F1>CG CG>C",
	"C>SS SS>E E>C",
	"C>SS SS>C",
	"C>SS SS>SR SR>E E>CW CW>LA LA>LA LA>C",
	"L>SR SR>E E>CW CW>LA LA>C",
	"L>SR SR>E E>F1 F1>F1 F1>F2 F2>C",
	"L>SR SR>E E>CW CW>C",
	"L>SR SR>C",
	"C>L L>C",
}

type stateOf struct {
	cookie uint64
	state  events.State
}

// truth keeps, for each socket, how long it really was in each state, and checks
// every time that the tracker gives against it.
type truth struct {
	t           *testing.T
	dwell       map[stateOf]time.Duration
	entered     map[stateOf]bool
	begun       map[uint64]int // cookie -> connections that really were
	connections map[uint64]int // and that were reported
}

func (o *truth) Transition(r *Transition) bool {
	if want, ok := o.dwell[stateOf{r.Cookie, r.Old}]; r.Dwell != Unknown && (!ok || r.Dwell != want) {
		o.t.Errorf("socket %x was in %s for %v; the tracker says %v", r.Cookie, r.Old, want, r.Dwell)
	}
	return true
}

func (o *truth) Connection(r *Connection) bool {
	for st := events.State(1); int(st) < events.NumStates; st++ {
		d, ok := r.Spent.In(st)
		want := o.dwell[stateOf{r.Cookie, st}]
		if ok && !o.entered[stateOf{r.Cookie, st}] {
			o.t.Errorf("socket %x never was in %s; the tracker says %v", r.Cookie, st, d)
		}
		if ok && d != Unknown && d != want {
			o.t.Errorf("socket %x was in %s for %v; its connection says %v", r.Cookie, st, want, d)
		}
	}
	o.connections[r.Cookie]++
	return true
}

func (o *truth) Socket(*Socket) bool { return true }

func (o *truth) Finding(*Finding) bool { return true }

// Whatever is lost, and whatever comes twice: no time is ever false, no connection
// is told twice, and the books add up.
func TestNothingFalseIsSaidWhateverIsLost(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 7))
		lose, repeat := rng.Float64()*0.5, rng.Float64()*0.2
		o := &truth{
			t: t, dwell: map[stateOf]time.Duration{}, entered: map[stateOf]bool{},
			begun: map[uint64]int{}, connections: map[uint64]int{},
		}
		tr := NewTracker(o, &Filter{}, 40, time.Minute)
		tr.Tick(1)
		tr.Scanned(true)

		type life struct {
			k     sock
			steps []string
			since uint64
		}
		var alive []*life
		var fed, cookie uint64
		now := uint64(1e9)
		for range 2000 {
			now += rng.Uint64N(uint64(50 * time.Millisecond))
			if len(alive) < 50 && rng.IntN(3) == 0 {
				cookie++
				// Addresses are few, and only one living socket has one.
				addr := rng.Uint64N(60) + 1
				taken := false
				for _, l := range alive {
					taken = taken || l.k.addr == addr
				}
				if !taken {
					k := sock{addr: addr, cookie: cookie, lport: 1, rport: 2}
					alive = append(alive, &life{k: k, steps: strings.Fields(lives[rng.IntN(len(lives))])})
				}
			}
			if len(alive) == 0 {
				continue
			}
			n := rng.IntN(len(alive))
			l := alive[n]
			if len(l.steps) == 0 {
				alive = append(alive[:n], alive[n+1:]...)
				if rng.Float64() >= lose {
					tr.Observe(&events.Event{Kind: events.Destroy, Ktime: now, Skaddr: l.k.addr, Cookie: l.k.cookie})
				}
				continue
			}
			from, to, _ := strings.Cut(l.steps[0], ">")
			l.steps = l.steps[1:]
			ev := events.Event{
				Kind: events.Transition, Ktime: now, Skaddr: l.k.addr, Cookie: l.k.cookie, Netns: 1,
				Lport: 1, Rport: 2, Old: abbreviations[from], New: abbreviations[to],
			}
			if l.since == 0 && ev.New != events.Listen {
				o.begun[l.k.cookie]++
			}
			// Time before the beginning is no time, and a transition into the
			// same state ends none.
			if ev.Old != ev.New {
				if l.since != 0 {
					o.dwell[stateOf{l.k.cookie, ev.Old}] = time.Duration(now - l.since)
				}
				l.since = now
				o.entered[stateOf{l.k.cookie, ev.New}] = true
			}
			if rng.Float64() < lose {
				continue
			}
			for range 1 + rng.IntN(2)*int(repeat+rng.Float64()) {
				tr.Observe(&ev)
				fed++
			}
		}

		c := tr.Counts()
		if sum := c.Delivered + c.Duplicates + c.TableFull; sum != fed {
			t.Errorf("seed %d: %d transitions came, %d are accounted for: %+v", seed, fed, sum, c)
		}
		if c.Tracked > 40 {
			t.Errorf("seed %d: tracks %d sockets, limit 40", seed, c.Tracked)
		}
		for k, n := range o.connections {
			if n > o.begun[k] {
				t.Errorf("seed %d: socket %x had %d connections, the tracker told %d", seed, k, o.begun[k], n)
			}
		}
		for addr := range uint64(61) {
			tr.Observe(&events.Event{Kind: events.Destroy, Ktime: now, Skaddr: addr})
		}
		if c := tr.Counts(); c.Tracked != 0 || len(tr.held)+len(tr.listeners) != 0 {
			t.Errorf("seed %d: after everything was destroyed: %+v, held %d, listeners %d", seed, c, len(tr.held), len(tr.listeners))
		}
		if t.Failed() {
			return
		}
	}
}

// Events that no kernel would send, in any order.
func TestNoEventBreaksTheTracker(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 11))
		f := Filter{}
		if seed%2 == 0 {
			f = Filter{Pids: []uint32{1, 2}, Follow: true, Lports: []uint16{1, 2}, Family: 4}
		}
		tr := NewTracker(take{connection: func(*Connection) {}}, &f, 20, time.Minute)
		var transitions uint64
		for n := range 3000 {
			ev := events.Event{
				Kind: events.Kind(rng.IntN(7)), Ktime: rng.Uint64N(1 << 40), Skaddr: rng.Uint64N(30), Cookie: rng.Uint64N(10),
				Netns: rng.Uint32N(2), Flags: events.Flags(rng.Uint32()), Old: events.State(rng.IntN(12) + 1),
				New: events.State(rng.IntN(12) + 1), Lport: uint16(rng.IntN(4)), Rport: uint16(rng.IntN(4)),
				Shutdown: uint8(rng.IntN(4)), Err: rng.Uint32N(120), Listener: rng.Uint64N(10), Fd: int32(rng.IntN(5)) - 1,
				Proc: events.Proc{Pid: rng.Uint32N(4)}, Parent: events.Proc{Pid: rng.Uint32N(4)},
			}
			if ev.Kind == events.Transition {
				transitions++
			}
			tr.Observe(&ev)
			switch {
			case n == 500:
				tr.Scanned(rng.IntN(2) == 0)
			case n%100 == 0:
				tr.Tick(ev.Ktime)
			}
		}
		c := tr.Counts()
		if sum := c.Delivered + c.Duplicates + c.TableFull; sum != transitions || c.Tracked > 20 {
			t.Fatalf("seed %d: %d transitions came: %+v", seed, transitions, c)
		}
	}
}
