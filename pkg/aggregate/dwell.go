package aggregate

import (
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// DwellScale says how fine Dwell.Fine is: 2^DwellScale buckets for every power of two
// seconds, as exponential histograms (OpenTelemetry's, and Prometheus' native ones) have them.
const DwellScale = 2

// DwellTiny is the longest time in Dwell.Tiny, in seconds.
const DwellTiny = 1.0 / (1 << 20)

// DwellBounds are the bounds of Dwell.Coarse: round times, around those that TCP waits for.
var DwellBounds = [...]time.Duration{
	100 * time.Microsecond, time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 5 * time.Second, 15 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 15 * time.Minute,
	time.Hour, 4 * time.Hour, 24 * time.Hour,
}

// Dwell is how long sockets were in one state: those that have left it, and whose time
// in it is known.
type Dwell struct {
	Count  uint64
	Sum    float64                  // seconds: of all sockets together it may be centuries
	Tiny   uint64                   // of at most DwellTiny
	Fine   map[int]int64            // number i: more than 2^((i-1)/4) s, and at most 2^(i/4) s
	Coarse [len(DwellBounds)]uint64 // at most so long, all that are shorter included
}

// Dwells is how long sockets were in each state.
type Dwells struct {
	cells [events.NumStates][maxCells]uint64
	sum   [events.NumStates]float64 // ns
}

// Dwells returns what was counted so far, of what the filter lets through.
func (t *Tracker) Dwells() *Dwells {
	d := t.dwells
	return &d
}

// In returns how long sockets were in a state.
func (d *Dwells) In(st events.State) Dwell {
	in := Dwell{Sum: d.sum[st] / float64(time.Second), Fine: map[int]int64{}}
	for cell, n := range &d.cells[st] {
		if n == 0 {
			continue
		}
		in.Count += n
		if fine := dwellGrid.fine[cell]; fine == fineLow {
			in.Tiny += n
		} else {
			in.Fine[fine] += int64(n)
		}
		for k := dwellGrid.coarse[cell]; k < len(in.Coarse); k++ {
			in.Coarse[k] += n
		}
	}
	return in
}

// add counts; it is called for every transition that is told.
func (d *Dwells) add(st events.State, dwell time.Duration) {
	if dwell == Unknown {
		return
	}
	ns := uint64(dwell)
	cell := dwellGrid.first[slotOf(ns)]
	for ns > dwellGrid.upper[cell] {
		cell++
	}
	d.cells[st][cell]++
	d.sum[st] += float64(ns)
}

// The buckets of Dwell.Fine.
const (
	perOctave = 1 << DwellScale
	fineLow   = -20 * perOctave // DwellTiny, and all below
	fineTop   = 28 * perOctave  // 2^28 s are eight years, and all above
)

// Cells are what the bounds of both Fine and Coarse cut time into: so one counter serves
// both, and neither is guessed from the other.
const maxCells = 1 << 8

// grid finds the cell of a time.
type grid struct {
	upper  [maxCells]uint64 // the longest time in it, ns
	fine   [maxCells]int    // the bucket that it is in
	coarse [maxCells]int    // the bound that it is below
	first  [slots]uint8     // the cell of the shortest time in a slot
}

// A slot is found without a search: there are 32 for every power of two nanoseconds. So
// it has few cells.
const (
	slotBits = 5
	slots    = 65 << slotBits
)

func slotOf(ns uint64) uint {
	n := uint(bits.Len64(ns | 1<<slotBits))
	return n<<slotBits | uint(ns>>(n-1-slotBits))%(1<<slotBits)
}

var dwellGrid = newGrid()

func newGrid() *grid {
	g := &grid{}
	cell, coarse := 0, 0
	for fine := fineLow; fine <= fineTop; cell++ {
		upper := uint64(math.Exp2(float64(fine)/perOctave) * float64(time.Second))
		g.fine[cell], g.coarse[cell] = fine, coarse
		round := uint64(math.MaxUint64)
		if coarse < len(DwellBounds) {
			round = uint64(DwellBounds[coarse])
		}
		if round <= upper {
			coarse++
		}
		if upper <= round {
			fine++
		}
		g.upper[cell] = min(upper, round)
	}
	g.upper[cell-1] = math.MaxUint64
	for n := uint(slotBits + 1); n <= 64; n++ {
		for sub := range uint64(1 << slotBits) {
			shortest := (1<<slotBits | sub) << (n - 1 - slotBits)
			g.first[slotOf(shortest)] = uint8(slices.IndexFunc(g.upper[:], func(upper uint64) bool { return shortest <= upper }))
		}
	}
	return g
}
