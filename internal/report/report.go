// Package report makes one HTML page of what tcptrace has recorded. The page needs nothing
// else: no network, no server.
//
// Its memory has a bound, whatever the input: curves and histograms have a fixed size, and of
// findings, processes, destinations and connections the worst are kept, the others counted.
package report

import (
	"errors"
	"math"
	"time"
)

// What is kept, and what of that the page shows.
const (
	maxProcesses    = 1024
	maxDestinations = 1024
	maxFindings     = 256
	maxRuns         = 64
	maxSockets      = 1 << 16 // in CLOSE_WAIT at once, of one input
	maxExisting     = 1000    // sockets from before the start in other states, of one input
	maxNetworks     = 4096    // network namespaces
	shownRows       = 50      // of processes and destinations
	shownCurves     = 12
	longest         = 20
)

// A Report takes in records and becomes a page. It belongs to one goroutine.
type Report struct {
	inputs    []*Input
	from, to  int64 // of all records, ns of Unix time
	processes *board[processKey, process]
	places    *board[placeKey, place]
	sideless  uint64            // entered TIME_WAIT, and which end is the client's is not known
	ports     map[network]ports // of the namespaces that a finding tells of
	findings  findings
	conns     connections
	stopped   bool
}

// New returns a Report of nothing.
func New() *Report {
	return &Report{
		from: math.MaxInt64, to: math.MinInt64,
		processes: newBoard[processKey](maxProcesses, (*process).weight, func(p *process) { p.level.retire() }),
		places:    newBoard[placeKey](maxDestinations, (*place).weight, func(p *place) { p.level.retire() }),
		ports:     map[network]ports{}, findings: findings{all: map[findingKey]*finding{}},
	}
}

// Empty reports whether there is nothing to make a page of.
func (r *Report) Empty() bool { return r.from > r.to }

// Stopped says on the page that not all input was read.
func (r *Report) Stopped() { r.stopped = true }

// Input begins another input. What belongs together in it, by PID or cookie, has
// nothing to do with what other inputs have.
func (r *Report) Input(name string) *Input {
	in := &Input{
		report: r, number: len(r.inputs), name: clip(name, maxText), counts: map[string]uint64{},
		began: map[string]uint64{}, from: math.MaxInt64, to: math.MinInt64,
		open: map[string]*socket{}, existing: map[string]*connection{}, found: map[string]uint64{}, summarized: map[uint32]int64{},
		dwell: newDwells(), spent: newDwells(),
	}
	in.everyone.input, in.every.input = in.number, in.number
	r.inputs = append(r.inputs, in)
	return in
}

// ErrNothing is the error of an input without a single record.
var ErrNothing = errors.New("no record of tcptrace in it")

// clip cuts what a hostile input makes long.
func clip(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && s[limit]&0xc0 == 0x80 { // not within a character
		limit--
	}
	return s[:limit] + "…"
}

const (
	maxName = 64   // bytes of a command name, a state, an address
	maxText = 2048 // of a message, a path
)

// stamp is the time of a record in ns of Unix time.
func stamp(s string) (int64, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return 0, err
	}
	if y := t.Year(); y < 1970 || y > 2200 {
		return 0, errors.New("a time out of range: " + s)
	}
	return t.UnixNano(), nil
}

func ms(ns int64) float64 { return float64(ns/1000) / 1000 }

func ns(ms float64) int64 { return int64(min(max(ms, 0), 1e12) * 1e6) }
