package report

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
)

// An Input is one file or stream of records.
type Input struct {
	report    *Report
	number    int
	name      string
	recording bool
	counts    map[string]uint64 // records by type
	unknown   uint64            // records of types that there are not yet
	bad       uint64            // lines that are none
	firstBad  error
	cut       bool // it ends in the middle
	gaps      uint64
	from, to  int64

	runs  []stats           // the last books of each
	more  int               // runs beyond maxRuns
	stats *stats            // of the current run
	began map[string]uint64 // counts when it began
	run   int

	open       map[string]*socket     // that are or were in CLOSE_WAIT, and whose connection has not ended
	departed   int                    // that have left CLOSE_WAIT since the last sweep of open
	unfollowed uint64                 // that found no place in open
	strays     int                    // of these, in CLOSE_WAIT now
	existing   map[string]*connection // from before the start, in other states, unchanged since; nil: only counted
	found      map[string]uint64      // sockets from before the start, by state
	summarized map[uint32]int64       // namespace -> time of its last summary

	everyone process // all of them together
	every    place   // likewise

	seesTimeWait bool // some came there, or left it

	dwell dwells // of transitions
	spent dwells // of connections, for want of transitions
}

// Recorded says that the records come from a recording, which has all types.
func (in *Input) Recorded() { in.recording = true }

// Cut says that the input ends in the middle of something.
func (in *Input) Cut() { in.cut = true }

// IsCut reports whether it does.
func (in *Input) IsCut() bool { return in.cut }

// Bad is the number of lines that are no records, and an error for the first of them.
func (in *Input) Bad() (uint64, error) { return in.bad, in.firstBad }

// A line that is longer is none of tcptrace's.
const maxLine = 1 << 20

// Read takes all records of r. It returns ErrNothing if there is none, else only what r does;
// that the input breaks off is no error, as its writer may have been killed.
func (in *Input) Read(r io.Reader) error {
	br := bufio.NewReaderSize(r, maxLine)
	var rec record
	for n := uint64(1); ; n++ {
		line, err := br.ReadSlice('\n')
		long := false
		for errors.Is(err, bufio.ErrBufferFull) {
			long = true
			_, err = br.ReadSlice('\n')
		}
		last := err != nil
		if last && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.Join(err, in.end())
		}
		line = bytes.TrimSpace(line)
		var bad error
		switch {
		case long:
			bad = fmt.Errorf("it is longer than %d bytes", maxLine)
		case len(line) > 0:
			bad = rec.decode(line)
		}
		switch {
		case bad != nil && last:
			in.cut = true
		case bad != nil:
			if in.bad++; in.bad == 1 {
				in.firstBad = fmt.Errorf("line %d: %w", n, bad)
			}
		case len(line) > 0:
			in.take(&rec)
		}
		if last {
			in.cut = in.cut || errors.Is(err, io.ErrUnexpectedEOF) // of gzip
			return in.end()
		}
	}
}

// end draws the conclusions from what has come.
func (in *Input) end() error {
	in.close()
	for _, key := range slices.Sorted(maps.Keys(in.open)) {
		s := in.open[key]
		in.report.conns.add(s.row(in, s.run == in.run))
	}
	for _, key := range slices.Sorted(maps.Keys(in.existing)) {
		if c := in.existing[key]; c != nil {
			in.report.conns.add(c)
		} else {
			in.report.conns.seen++
		}
	}
	in.open, in.existing = nil, nil
	if len(in.counts) == 0 {
		return ErrNothing
	}
	return nil
}

func (in *Input) take(r *record) {
	r.trim()
	switch r.Type {
	case "transition", "connection", "socket", "finding", "summary", "stats":
	default:
		in.unknown++
		return
	}
	// Sockets from before the start are printed at the start: these are another run's, if
	// the books of this one have come, and have told of no more such sockets.
	if s := in.stats; r.Type == "socket" && s != nil && s.Records["socket"] <= in.counts["socket"]-in.began["socket"] {
		in.nextRun(r.at)
	}
	in.counts[r.Type]++
	in.from, in.to = min(in.from, r.at), max(in.to, r.at)
	in.report.from, in.report.to = min(in.report.from, r.at), max(in.report.to, r.at)
	switch r.Type {
	case "transition":
		in.transition(r)
	case "connection":
		in.connection(r)
	case "socket":
		in.socket(r)
	case "finding":
		in.finding(r)
	case "summary":
		in.summary(r)
	case "stats":
		in.books(r)
	}
}

// stats is the books of a run.
type stats struct {
	Input       int                `json:"input"`
	Run         int                `json:"run"`
	Seen        uint64             `json:"seen"`
	Delivered   uint64             `json:"delivered"`
	Filtered    uint64             `json:"filtered"`
	Lost        map[string]uint64  `json:"lost"`
	RecordsLost uint64             `json:"records_lost"`
	Unprinted   uint64             `json:"unprinted"`
	Evicted     uint64             `json:"sockets_evicted"`
	Hidden      uint64             `json:"hidden_processes"`
	Records     map[string]uint64  `json:"records"`
	Probes      map[string]*string `json:"probes"`
}

func (s *stats) lost() (n uint64) {
	for _, k := range s.Lost {
		n += k
	}
	return n
}

func (in *Input) books(r *record) {
	// Each run counts its own: where that does not go up, another run has begun.
	if in.stats != nil && r.Records["stats"] <= in.stats.Records["stats"] {
		in.nextRun(r.at)
	}
	in.stats = &stats{
		Input: in.number, Run: in.run, Seen: r.Seen, Delivered: r.Delivered, Filtered: r.Filtered,
		Lost: few(r.Lost), RecordsLost: r.RecordsLost, Unprinted: r.Unprinted, Evicted: r.Evicted, Hidden: r.Hidden,
		Records: few(r.Records), Probes: few(r.Probes),
	}
}

// few returns m if it is as small as tcptrace makes it.
func few[V any](m map[string]V) map[string]V {
	maps.DeleteFunc(m, func(k string, _ V) bool { return len(k) > maxName })
	if len(m) > maxName {
		return nil
	}
	return m
}

// nextRun begins another run, whose first record is from time at. What this one has not ended,
// the next one tells of again, or it has ended in between.
func (in *Input) nextRun(at int64) {
	in.close()
	for _, key := range slices.Sorted(maps.Keys(in.open)) {
		if s := in.open[key]; s.run != in.run {
			in.report.conns.add(s.row(in, false))
			delete(in.open, key)
		}
	}
	clear(in.existing)
	in.strays = 0
	in.releaseAll(at)
	in.run++
	in.began = maps.Clone(in.counts)
}

// close puts the books of the current run away.
func (in *Input) close() {
	if in.stats == nil {
		return
	}
	if len(in.runs) < maxRuns {
		in.runs = append(in.runs, *in.stats)
	} else {
		in.more++
	}
	in.stats = nil
}
