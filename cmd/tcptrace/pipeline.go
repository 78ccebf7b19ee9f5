package main

import (
	"errors"

	"github.com/tcptrace/tcptrace/internal/jsonl"
	"github.com/tcptrace/tcptrace/internal/otlp"
	"github.com/tcptrace/tcptrace/internal/text"
	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// encoder is what jsonl and text have in common: each method appends a record.
type encoder interface {
	Transition([]byte, *aggregate.Transition) []byte
	Connection([]byte, *aggregate.Connection) []byte
	Socket([]byte, *aggregate.Socket) []byte
	Finding([]byte, *aggregate.Finding) []byte
	Summary([]byte, *aggregate.Summary) []byte
	Stats([]byte, *aggregate.Stats) []byte
}

// pipeline is the straight line that every event takes: decode, tracker,
// encoder, sink. It is the recording.Sink of a live run and of a replay alike,
// and the tracker's Output.
type pipeline struct {
	cfg     *config
	tracker *aggregate.Tracker
	enc     encoder
	wall    *int64              // of enc
	head    func([]byte) []byte // of enc, if its records stand under a header
	out     *sink
	otlp    *otlp.Exporter // nil: nobody asked for it
	wants   wants
	line    []byte // of a record that goes ahead
	board   *board // nil: nothing is drawn

	ev      events.Event
	ktime   uint64 // the last Clock
	books   events.Books
	probes  []aggregate.Probe
	records aggregate.Records
	decode  uint64 // records that could not be decoded
	shed    uint64
	failed  bool // a finding of --fail-on was made

	recorded    events.Thresholds // of the recording that is replayed
	nextSummary uint64            // of a replay
}

// wants says which types of records are printed. It is asked for every record, for which a
// map would be too slow.
type wants struct {
	transition, connection, socket, finding, summary, stats bool
}

func newPipeline(cfg *config, out *sink) *pipeline {
	p := &pipeline{cfg: cfg, out: out, wants: wants{
		transition: cfg.print["transition"], connection: cfg.print["connection"], socket: cfg.print["socket"],
		finding: cfg.print["finding"], summary: cfg.print["summary"], stats: cfg.print["stats"],
	}}
	switch {
	case cfg.text && cfg.snapshot:
		e := text.NewSnapshot(screen(out.file))
		p.enc, p.wall, p.head = e, &e.Wall, e.Begin
	case cfg.text:
		e := text.NewEncoder(screen(out.file))
		p.enc, p.wall, p.head = e, &e.Wall, e.Begin
	default:
		e := &jsonl.Encoder{}
		p.enc, p.wall = e, &e.Wall
	}
	p.tracker = aggregate.NewTracker(p, &cfg.filter, cfg.maxSockets, cfg.thresholds)
	if cfg.snapshot {
		p.tracker.SeesMinisockets(false) // all that there are
	}
	return p
}

// begin prints what stands above the records that have columns, once it is certain that there
// will be some.
func (p *pipeline) begin() {
	if p.head == nil || !p.wants.transition && !p.wants.connection && !p.wants.socket {
		return
	}
	if b, ok := p.out.room(); ok {
		p.out.put(p.head(b))
	}
}

// Event implements recording.Sink.
func (p *pipeline) Event(raw []byte) error {
	if err := events.Decode(raw, &p.ev); err != nil {
		p.decode++
		return nil
	}
	p.tracker.Observe(&p.ev)
	return nil
}

// Clock implements recording.Sink.
func (p *pipeline) Clock(ktime uint64, wall int64) error {
	p.ktime = ktime
	*p.wall = wall
	if p.otlp != nil {
		p.otlp.Clock(wall)
	}
	p.tracker.Tick(ktime)
	if p.board != nil {
		p.board.show(p)
	}
	if every := uint64(p.cfg.summaryInterval); every > 0 && p.cfg.replay != "" && p.cfg.summaryInterval != p.recorded.SummaryInterval {
		if p.nextSummary != 0 && ktime >= p.nextSummary {
			p.tracker.Summarize()
		}
		if ktime >= p.nextSummary {
			p.nextSummary = ktime + every
		}
	}
	return nil
}

// Scanned implements recording.Sink.
func (p *pipeline) Scanned(s events.Scan) error {
	p.tracker.Scanned(s)
	return nil
}

// Thresholds implements recording.Sink. A recording has the scans that fit its own
// CloseWaitAfter; to look for leaks after another time in it finds them late, or not at
// all.
func (p *pipeline) Thresholds(t events.Thresholds) error {
	p.recorded = t
	p.tracker.SetThresholds(p.cfg.over(t))
	return nil
}

// Summarize implements recording.Sink. A replay with another --summary-interval than the
// run's makes summaries when it is time by that, see Clock.
func (p *pipeline) Summarize() error {
	if p.cfg.replay == "" || p.cfg.summaryInterval == p.recorded.SummaryInterval {
		p.tracker.Summarize()
	}
	return nil
}

// Network implements recording.Sink.
func (p *pipeline) Network(n events.Network) error {
	p.tracker.Network(&n)
	return nil
}

// Books implements recording.Sink.
func (p *pipeline) Books(b events.Books) error {
	p.books = b
	return nil
}

// Probe implements recording.Sink.
func (p *pipeline) Probe(facility, variant string) error {
	p.probes = append(p.probes, aggregate.Probe{Facility: facility, Variant: variant})
	if facility == "time_wait" && variant != "" {
		p.tracker.SeesMinisockets(variant == "timer")
	}
	return nil
}

// Details implements recording.Sink.
func (p *pipeline) Details(d *events.Details) error {
	p.tracker.Details(d)
	return nil
}

// Container implements recording.Sink.
func (p *pipeline) Container(c *events.Container) error {
	p.tracker.Container(c)
	return nil
}

// Transition implements aggregate.Output.
func (p *pipeline) Transition(t *aggregate.Transition) bool {
	if !p.wants.transition {
		return true
	}
	b, ok := p.out.room()
	if !ok {
		p.shed++
		return false
	}
	p.out.put(p.enc.Transition(b, t))
	p.records.Transition++
	return true
}

// Connection implements aggregate.Output.
func (p *pipeline) Connection(c *aggregate.Connection) bool {
	if !p.wants.connection {
		return true
	}
	if p.otlp != nil {
		p.otlp.Connection(c)
	}
	b, ok := p.out.room()
	if !ok {
		p.shed++
		return false
	}
	p.out.put(p.enc.Connection(b, c))
	p.records.Connection++
	return true
}

// Socket implements aggregate.Output.
func (p *pipeline) Socket(s *aggregate.Socket) bool {
	if !p.wants.socket {
		return true
	}
	b, ok := p.out.room()
	if !ok {
		p.shed++
		return false
	}
	p.out.put(p.enc.Socket(b, s))
	p.records.Socket++
	return true
}

// Finding implements aggregate.Output.
func (p *pipeline) Finding(f *aggregate.Finding) bool {
	p.failed = p.failed || p.cfg.failOn[f.Kind.String()]
	if p.board != nil {
		p.board.finding(f)
	}
	if p.wants.finding {
		p.line = p.enc.Finding(p.line[:0], f)
		if !p.out.first(p.line) {
			return false // the tracker will try again
		}
		p.records.Finding++
	}
	if p.otlp != nil {
		p.otlp.Finding(f)
	}
	return true
}

// Summary implements aggregate.Output.
func (p *pipeline) Summary(s *aggregate.Summary) {
	if !p.wants.summary {
		return
	}
	b, ok := p.out.room()
	if !ok {
		p.shed++
		return
	}
	p.out.put(p.enc.Summary(b, s))
	p.records.Summary++
}

// stats does the sums. The books of the kernel side are those of the last call
// of Books; what they count and the ring buffer still holds is not seen yet.
func (p *pipeline) stats() aggregate.Stats {
	c, k := p.tracker.Counts(), &p.books
	// What the second program found to do was skipped, or done twice.
	rescued := k.Rescued - min(k.Rescued, c.Duplicates)
	escaped := k.Skipped - min(k.Skipped, rescued)
	s := aggregate.Stats{
		Ktime:       p.ktime,
		Delivered:   c.Delivered,
		Filtered:    k.Filtered,
		RecordsLost: max(k.RecordsLost, c.MissedMinis),
		Records:     p.records,
		Unprinted:   p.shed + c.Shed,
		Tracked:     c.Tracked,
		Evicted:     c.Evicted,
		Hidden:      c.Hidden,
		Probes:      p.probes,
		Exported:    p.exported(),
		Lost: aggregate.Lost{
			RingFull:  k.RingFull,
			Nested:    escaped,
			TableFull: c.TableFull,
			Decode:    p.decode,
		},
	}
	// A transition that the tracker misses and no counter explains has been
	// skipped too: on some hosts the kernel does not count all of these.
	if explained := s.Lost.Sum(); c.Missed > explained {
		s.Lost.Nested += c.Missed - explained
	}
	s.Seen = uint64(int64(k.Seen-c.Duplicates+s.Lost.Nested) - p.underway())
	return s
}

// underway is the number of transitions that the kernel side has handed over by
// the last Books and that have not arrived: 0 once the ring buffer is drained.
// In a recording that was cut the books may be older than the last events.
func (p *pipeline) underway() int64 {
	c, k := p.tracker.Counts(), &p.books
	arrived := c.Delivered + c.Duplicates + c.TableFull + p.decode
	return int64(k.Seen - k.Filtered - k.RingFull - arrived)
}

// tryStats prints the books ahead of what waits, and reports whether it did: while something else
// waits that goes ahead, findings or older books, they would only be in its way.
func (p *pipeline) tryStats() bool {
	if !p.wants.stats || p.out.crowded() {
		return false
	}
	p.records.Stats++
	s := p.stats()
	p.line = p.enc.Stats(p.line[:0], &s)
	if !p.out.first(p.line) {
		p.records.Stats--
		return false
	}
	return true
}

// finish says what the tracker has still to say.
func (p *pipeline) finish() { p.shed += uint64(p.tracker.Finish()) }

// printStats prints the books, whatever was shed before.
func (p *pipeline) printStats() {
	if !p.wants.stats {
		return
	}
	p.records.Stats++
	s := p.stats()
	p.out.put(p.enc.Stats(p.out.last(), &s))
}

// errStop ends a replay before the end of its recording.
var errStop = errors.New("stop")
