package aggregate

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// dwelt checks how often a state was left after a known time, and how long it took in all.
func (s *story) dwelt(state string, count uint64, sumMs float64) {
	s.t.Helper()
	got := s.tr.Dwells().In(abbreviations[state])
	if want := sumMs / 1000; got.Count != count || math.Abs(got.Sum-want) > 1e-9 {
		s.t.Errorf("%s: got %d times, %v s in all; want %d, %v s", state, got.Count, got.Sum, count, want)
	}
}

// Whether the records are printed makes no difference.
func TestTimesAreCountedWhenAStateIsLeft(t *testing.T) {
	s := newMiniStory(t, Filter{})
	s.refu = true
	s.leave(server, 1, "srv")
	s.pass(500)
	s.dwelt("CW", 0, 0)
	s.closes(server, 1, "srv")
	s.dwelt("CW", 1, 500)
	s.leave(nth(1), 1, "srv")
	s.pass(250)
	s.closes(nth(1), 1, "srv")
	s.dwelt("CW", 2, 750)

	// close() after shutdown() leaves no state.
	s.shutsDown(client)
	s.pass(8)
	s.step(client, "F2>F2", by(2, "cli"), with(orphan), shut(3))
	s.dwelt("E", 3, 10) // with the servers', which were over at once
	s.dwelt("F1", 1, 0.25)
	s.dwelt("F2", 0, 0)
	s.pass(40)
	s.handsOver(client, "F2>C", "TW", with(orphan|events.Done))
	s.destroy(client)
	s.dwelt("F2", 1, 48)
	s.pass(timeWait)
	s.ends(mini(client), "TW", 0, events.WhyUnknown)
	s.settles()
	s.dwelt("TW", 1, 0.125+timeWait)
}

// What began before tracing did, and what was missed, has no time.
func TestTimesThatAreNotKnownAreNotCounted(t *testing.T) {
	s := &story{t: t, ms: 1000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	s.scan(holds(server, "CW", 1, "srv", 4))
	s.pass(500)
	s.closes(server, 1, "srv")
	s.dwelt("CW", 0, 0)
	s.step(nth(1), "SR>E") // and its beginning was lost
	s.dwelt("SR", 0, 0)
}

// What is held back until a filter has decided counts once it has.
func TestTimesAreOfWhatTheFilterLetsThrough(t *testing.T) {
	s := newStory(t, pids(5))
	s.step(listen, "C>L", by(1, "master"))
	s.steps(server, "L>SR SR>E", from(listen.cookie))
	s.dwelt("SR", 0, 0)
	s.accept(server, 5, "worker")
	s.dwelt("SR", 1, 1)
	other := nth(1)
	s.steps(other, "L>SR SR>E", from(listen.cookie))
	s.accept(other, 6, "worker")
	s.dwelt("SR", 1, 1)
}

// Each bucket has what lies between its bounds, which are computed here as they are defined.
func TestTimesAreInTheBucketsThatTheyBelongTo(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	times := []time.Duration{1, math.MaxInt64}
	for _, bound := range DwellBounds {
		times = append(times, bound-1, bound, bound+1)
	}
	for i := -25 * 4; i < 10*4; i++ { // from there on a float64 does not tell the bound from what is next to it
		bound := time.Duration(math.Exp2(float64(i)/4) * 1e9)
		times = append(times, bound, bound+1)
	}
	for range 100_000 {
		times = append(times, time.Duration(rng.Int64()>>rng.IntN(63)))
	}
	for _, d := range times {
		var all Dwells
		all.add(events.Established, d)
		got := all.In(events.Established)
		if got.Count != 1 || math.Abs(got.Sum/d.Seconds()-1) > 1e-9 {
			t.Fatalf("%d ns: got %d times, %v s in all", d, got.Count, got.Sum)
		}
		for k, bound := range DwellBounds {
			if in := got.Coarse[k] == 1; in != (d <= bound) {
				t.Fatalf("%d ns: got %v below %v", d, in, bound)
			}
		}
		if tiny := d.Seconds() <= DwellTiny; tiny {
			if got.Tiny != 1 || len(got.Fine) != 0 {
				t.Fatalf("%d ns: got %d tiny, %v", d, got.Tiny, got.Fine)
			}
			continue
		}
		bucket := min(math.Ceil(4*math.Log2(d.Seconds())), fineTop)
		if got.Tiny != 0 || len(got.Fine) != 1 || got.Fine[int(bucket)] != 1 {
			t.Fatalf("%d ns: got %d tiny, and in buckets %v; want one in %v", d, got.Tiny, got.Fine, bucket)
		}
	}
}

// It is part of what every transition costs.
func BenchmarkDwell(b *testing.B) {
	var all Dwells
	rng := rand.New(rand.NewPCG(1, 2))
	var times [1 << 10]time.Duration
	for i := range times {
		times[i] = time.Duration(rng.Int64() >> (20 + rng.IntN(30)))
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		all.add(events.State(i%8), times[i%len(times)])
		i++
	}
}
