package aggregate

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// A table does what a map does, while it grows and while it empties.
func TestATableFindsWhatIsInIt(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	tb := newTable[uint64, uint64](hashAddr)
	in := map[uint64]uint32{}
	for round, keep := range []float64{0.9, 0.1, 0.6, 0} { // how often one is added, rather than removed
		for range 5000 {
			key := 0xffff_8880_0000_0000 + 1216*rng.Uint64N(4000) // as slabs hand them out
			i, known := in[key]
			if got := tb.find(key); got != i {
				t.Fatalf("round %d: %x is number %d, want %d", round, key, got, i)
			}
			switch add := rng.Float64() < keep; {
			case known && *tb.at(i) != key:
				t.Fatalf("round %d: entry of %x holds %x", round, key, *tb.at(i))
			case known && !add:
				tb.remove(i)
				delete(in, key)
			case !known && add:
				i = tb.add(key)
				if *tb.at(i) != 0 {
					t.Fatalf("round %d: a new entry holds %x, want it zero", round, *tb.at(i))
				}
				*tb.at(i), in[key] = key, i
			}
		}
		auditTable(t, &tb)
		if tb.len() != len(in) {
			t.Errorf("round %d: got %d entries, want %d", round, tb.len(), len(in))
		}
		for i, v := range tb.all() {
			if in[*v] != i {
				t.Errorf("round %d: a walk finds %x as number %d, want %d", round, *v, i, in[*v])
			}
		}
	}
	if int(tb.used) > 4000+1 {
		t.Errorf("made %d entries for at most 4000 at once", tb.used-1)
	}
}

// However many there are, to find one takes a few steps: the buckets grow with the entries.
func TestTheBucketsOfATableStayShort(t *testing.T) {
	tb := newTable[uint64, [0]byte](hashAddr)
	for n := range uint64(200_000) {
		tb.add(0xffff_8880_0000_0000 + 2432*n)
	}
	longest := 0
	for b := range tb.used {
		n := 0
		for i := *tb.first(b); i != 0; i = *tb.next(i) {
			n++
		}
		longest = max(longest, n)
	}
	if longest > 16 {
		t.Errorf("the longest bucket has %d entries, want at most 16", longest)
	}
}

// Of states that exclude each other the later time is kept; all others are exact.
func TestTimesThatCannotBothBeAreUnknown(t *testing.T) {
	type step struct {
		in events.State
		d  time.Duration
	}
	for _, tt := range []struct {
		name  string
		steps []step
		want  map[events.State]time.Duration
	}{
		{"both sides open, and close", []step{
			{events.SynSent, 1}, {events.SynRecv, 2}, {events.Established, 3}, {events.FinWait1, 4}, {events.Closing, 5},
		}, map[events.State]time.Duration{
			events.SynSent: 1, events.SynRecv: 2, events.Established: 3, events.FinWait1: 4, events.Closing: 5,
		}},
		{"twice in one", []step{{events.CloseWait, 1}, {events.CloseWait, 2}, {events.LastAck, 3}},
			map[events.State]time.Duration{events.CloseWait: 3, events.LastAck: 3}},
		{"known, and then not", []step{{events.FinWait1, 1}, {events.FinWait1, Unknown}, {events.FinWait1, 7}},
			map[events.State]time.Duration{events.FinWait1: Unknown}},
		{"of two connections", []step{{events.FinWait1, 1}, {events.FinWait2, 2}, {events.CloseWait, 4}, {events.LastAck, 8}},
			map[events.State]time.Duration{
				events.FinWait1: Unknown, events.FinWait2: Unknown, events.CloseWait: 4, events.LastAck: 8,
			}},
		{"of two connections, one of them not known", []step{{events.FinWait2, 2}, {events.LastAck, Unknown}, {events.FinWait2, 3}},
			map[events.State]time.Duration{events.FinWait2: 5, events.LastAck: Unknown}},
		{"no state of a connection", []step{{events.Listen, 1}, {events.Close, Unknown}}, nil},
	} {
		var p past
		for _, s := range tt.steps {
			p.spend(s.in, s.d)
		}
		var got Spent
		p.spentIn(&got)
		for st := events.State(1); int(st) < events.NumStates; st++ {
			want, in := tt.want[st]
			if d, visited := got.In(st); d != want || visited != in {
				t.Errorf("%s: %s: got %v, %v; want %v, %v", tt.name, st, d, visited, want, in)
			}
		}
	}
}

// A process that goes on as another program keeps what it has opened: as it was called then.
func TestAnOwnerIsCalledAsItWasWhenItBecameOne(t *testing.T) {
	s := newStory(t, Filter{})
	s.steps(nth(1), "C>SS SS>E", by(2, "sh"))
	s.steps(nth(2), "C>SS SS>E", by(2, "curl"))
	s.steps(nth(3), "C>SS SS>E", by(2, "sh"))
	audit(t, s.tr)
	s.said = nil
	for n := range 3 {
		s.steps(nth(n+1), "E>C", failed(104))
		s.destroy(nth(n + 1))
	}
	got := s.lines("E>C")
	for n, want := range []string{"sh(2,connect)", "curl(2,connect)", "sh(2,connect)"} {
		if n >= len(got) || !strings.Contains(got[n], want) {
			t.Errorf("socket %d: got %q, want it to be %s's", n+1, got, want)
		}
	}
	audit(t, s.tr)
	if n := len(s.tr.procs.nameOf); n != 1 {
		t.Errorf("keeps %d names, want that of the process now", n)
	}
}
