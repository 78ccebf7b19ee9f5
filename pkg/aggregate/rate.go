package aggregate

import (
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// rate is what happened in a group within the last second, by tenths of one.
type rate struct {
	asked   uint64 // Ktime at which the filter was last found not to ask for any of the group's processes
	slot    uint64
	taken   [rateSlots]uint32 // connections begun
	given   [rateSlots]uint32 // ports given back
	entered [rateSlots]uint32 // TIME_WAITs begun
}

const (
	rateSlots = 11 // the one under way, and a second before it
	slotLen   = uint64(100 * time.Millisecond)
	second    = uint64(time.Second)
)

// count adds one to a row, for what has happened at ktime.
func (r *rate) count(row *[rateSlots]uint32, ktime uint64) {
	r.roll(ktime)
	if back := r.slot - ktime/slotLen; back < rateSlots {
		row[back]++
	}
}

func (r *rate) roll(ktime uint64) {
	slot := ktime / slotLen
	if slot <= r.slot {
		return
	}
	by := min(slot-r.slot, rateSlots)
	r.slot = slot
	for _, row := range []*[rateSlots]uint32{&r.taken, &r.given, &r.entered} {
		copy(row[by:], row[:])
		clear(row[:by])
	}
}

func sum(row *[rateSlots]uint32) (n uint32) {
	for _, k := range row {
		n += k
	}
	return n
}

// perSecond returns how many a second a row has, at ktime. What has just begun has not
// gone on for a second.
func (r *rate) perSecond(row *[rateSlots]uint32, ktime uint64) float64 {
	r.roll(ktime)
	oldest := rateSlots - 1
	for n := sum(row); n > rateSlots && oldest > 0 && row[oldest] == 0; oldest-- {
	}
	return float64(sum(row)) / time.Duration(ktime%slotLen+uint64(oldest)*slotLen+1).Seconds()
}

// watchRate begins to keep the rate of a group, with what is known of the last second.
func (t *Tracker) watchRate(i uint32) {
	n := uint32(len(t.rates))
	if l := len(t.freeRates); l > 0 {
		n, t.freeRates = t.freeRates[l-1], t.freeRates[:l-1]
	} else {
		t.rates = append(t.rates, rate{})
	}
	t.groups.at(i).rate = n
	r := &t.rates[n]
	*r = rate{slot: t.now / slotLen}
	for _, m := range t.minis.all() {
		if m.ports != i {
			continue
		}
		if m.start != 0 {
			r.count(&r.taken, m.start)
		}
		if m.state == events.TimeWait {
			r.count(&r.entered, m.enteredTimeWait())
		}
	}
	for _, c := range t.table.all() {
		if c.ports == i && c.start != 0 {
			r.count(&r.taken, c.start)
		}
	}
}

// enteredTimeWait returns when the minisocket came into TIME_WAIT, as far as its timer
// tells.
func (m *minisocket) enteredTimeWait() uint64 {
	if m.since != 0 {
		return m.since
	}
	return m.expires - min(uint64(timeWaitLen), m.expires)
}
