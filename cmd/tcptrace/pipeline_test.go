package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// parseFlags returns the configuration of a command line that must be right.
func parseFlags(t testing.TB, args ...string) *config {
	t.Helper()
	cfg, err := parse(args...)
	check(t, err)
	return cfg
}

// take gives raw events to the pipeline.
func take(t *testing.T, p *pipeline, raw ...[]byte) {
	t.Helper()
	for _, b := range raw {
		check(t, p.Event(b))
	}
}

// With nobody reading stdout, records are refused and counted; what is printed
// later says so, and the books still come out.
func TestWhatABlockedReaderShedsIsCounted(t *testing.T) {
	guard(t)
	r, w := pipe(t)
	out := newSink(w)
	p := newPipeline(parseFlags(t), out)

	watched := client(1)
	life := watched.activeClose()
	take(t, p, life[0])
	refused := uint64(0)
	for n := uint64(2); p.shed == 0; n++ {
		if n > 1<<20 {
			t.Fatal("a million connections that nobody reads about and none refused")
		}
		take(t, p, client(n).step(events.Close, events.SynSent, events.Owned))
		refused = n
	}
	take(t, p, life[1], life[2]) // refused both
	if p.shed != 3 {
		t.Errorf("unprinted: got %d, want 3", p.shed)
	}
	if !p.tryStats() || p.tryStats() {
		t.Error("got no books or two ahead of what waits, want one: the second would only fill the place of findings")
	}

	got := drain(r)
	enough(t, out)
	take(t, p, life[3], life[4])
	late := client(refused)
	late.at += 1e6
	take(t, p, late.step(events.SynSent, events.Established, 0))
	p.printStats()
	check(t, out.close())
	check(t, w.Close())

	all := records(t, <-got)
	byCookie := map[string][]printed{}
	types := map[string]uint64{}
	for _, rec := range all {
		byCookie[rec.Cookie] = append(byCookie[rec.Cookie], rec)
		types[rec.Type]++
	}
	type brief struct {
		typ, newstate string
		unprinted     uint64
	}
	want := []brief{
		{"transition", "SYN_SENT", 0}, {"transition", "FIN_WAIT2", 2}, {"transition", "CLOSE", 2}, {"connection", "", 2},
	}
	for i, rec := range byCookie["1"] {
		if got := (brief{rec.Type, rec.Newstate, rec.Unprinted}); i >= len(want) || got != want[i] {
			t.Errorf("record %d of the watched connection: got %+v, want one of %+v", i, got, want)
		}
	}
	if n := len(byCookie["1"]); n != len(want) {
		t.Errorf("the watched connection: got %d records, want %d", n, len(want))
	}
	if last := all[len(all)-2]; last.Newstate != "ESTABLISHED" || last.Unprinted != 1 {
		t.Errorf("the connection whose first record was refused: got %+v, want ESTABLISHED with 1 unprinted", last)
	}
	stats := all[len(all)-1]
	if late := all[2*chunkBytes/200 : len(all)-1]; types["stats"] != 2 || slices.ContainsFunc(late, func(p printed) bool { return p.Type == "stats" }) {
		t.Errorf("got %d stats, want 2: one ahead of what had waited, one at the end", types["stats"])
	}
	if stats.Type != "stats" || stats.Unprinted != 3 {
		t.Errorf("the last record: got %s with unprinted %d, want stats with 3", stats.Type, stats.Unprinted)
	}
	for typ, n := range types {
		if stats.Records[typ] != n {
			t.Errorf("records of type %s: stats say %d, want the %d that were printed", typ, stats.Records[typ], n)
		}
	}
}

// leaking is a pipeline with a finding to tell as soon as it has a place to.
func leaking(t *testing.T, out *sink, flags ...string) *pipeline {
	t.Helper()
	p := newPipeline(parseFlags(t, flags...), out)
	check(t, p.Clock(1e9, 0))
	check(t, p.Scanned(events.Scan{Complete: true, Every: true}))
	s := client(1)
	for _, step := range [][]byte{
		s.step(events.Close, events.SynSent, events.Owned),
		s.step(events.SynSent, events.Established, events.HasSocket),
		s.step(events.Established, events.CloseWait, events.HasSocket|events.Done),
	} {
		take(t, p, step)
	}
	check(t, p.Clock(62e9, 0))
	take(t, p, s.row(62e9, events.CloseWait, 7))
	check(t, p.Scanned(events.Scan{Complete: true, Every: true}))
	return p
}

// A finding goes ahead of what waits for a reader who has stopped. If there is no room for it
// even so, it is not shed: it waits.
func TestAFindingIsNeitherLateNorUnprintedBecauseOfABlockedReader(t *testing.T) {
	guard(t)
	for _, crowded := range []bool{false, true} {
		r, w := pipe(t)
		out := newSink(w)
		p := leaking(t, out)
		for n := uint64(2); p.shed == 0; n++ {
			if n > 1<<20 {
				t.Fatal("a million connections that nobody reads about and none refused")
			}
			take(t, p, client(n).step(events.Close, events.SynSent, events.Owned))
		}
		if crowded {
			crowd(t, out)
		}
		for range 5 {
			check(t, p.Clock(62e9, 0))
			if p.tryStats() {
				t.Error("the books were printed while something waited to go ahead, want none: they could fill its place")
			}
		}
		got := drain(r)
		for out.crowded() {
			time.Sleep(time.Millisecond)
		}
		check(t, p.Clock(62e9, 0))
		check(t, p.Clock(62e9, 0))
		p.printStats()
		check(t, out.close())
		check(t, w.Close())

		findings, early := 0, false
		all := records(t, <-got)
		for i, rec := range all {
			if rec.Type == "finding" {
				findings++
				early = i < 2*chunkBytes/200 // records are longer than that
			}
		}
		stats := all[len(all)-1]
		if findings != 1 || stats.Records["finding"] != 1 {
			t.Errorf("got %d findings, the stats say %d; want 1", findings, stats.Records["finding"])
		}
		if !crowded && !early {
			t.Error("the finding came behind what had waited for the reader, want it ahead")
		}
		if stats.Unprinted != 1 {
			t.Errorf("unprinted: got %d, want 1, the transition: the finding was printed in the end", stats.Unprinted)
		}
	}
}

// --fail-on is about what there was, not about what got through.
func TestAFindingFailsTheRunWhetherItIsPrintedOrNot(t *testing.T) {
	guard(t)
	for _, tt := range []struct {
		flags []string
		want  bool
	}{
		{nil, false},
		{[]string{"--fail-on", "never_closed"}, false},
		{[]string{"--fail-on", "close_wait_leak"}, true},
		{[]string{"--fail-on", "any"}, true},
		{[]string{"--fail-on", "any", "--events", "stats"}, true},
		{[]string{"--fail-on", "any", "-o", "text"}, true},
		{[]string{"--fail-on", "any", "--close-wait-after", "2m"}, false},
	} {
		f, err := os.Create(filepath.Join(t.TempDir(), "out"))
		check(t, err)
		out := newSink(f)
		p := leaking(t, out, tt.flags...)
		check(t, p.Clock(62e9, 0))
		check(t, out.close())
		check(t, f.Close())
		if p.failed != tt.want {
			t.Errorf("%q: failed: got %v, want %v", tt.flags, p.failed, tt.want)
		}
	}
	_, w := pipe(t) // nobody reads
	out := newSink(w)
	fill(t, out)
	crowd(t, out)
	p := leaking(t, out, "--fail-on", "any")
	check(t, p.Clock(62e9, 0))
	if !p.failed || p.records.Finding != 0 {
		t.Errorf("with a reader that has stopped: failed: %v, with %d findings printed; want true, 0", p.failed, p.records.Finding)
	}
}

// story is what happens to a pipeline before it does the sums, and how many
// transitions there really were.
type story struct {
	name   string
	flags  []string
	play   func(t *testing.T, p *pipeline) (books events.Books)
	seen   uint64
	lost   map[string]uint64
	passed uint64 // delivered
}

// The books of a run whose kernel side counts what it is played.
func stories() []story {
	whole := func(t *testing.T, p *pipeline) events.Books {
		take(t, p, client(1).activeClose()...)
		return events.Books{Seen: 5}
	}
	scanned := func(t *testing.T, p *pipeline) {
		check(t, p.Clock(1e9, 0))
		check(t, p.Scanned(events.Scan{Complete: true, Every: true}))
	}
	return []story{
		{name: "nothing happened", play: func(*testing.T, *pipeline) events.Books { return events.Books{} }},
		{name: "all went well", play: whole, seen: 5, passed: 5},
		{
			name: "some filtered in the kernel", seen: 45, passed: 5,
			play: func(t *testing.T, p *pipeline) events.Books {
				whole(t, p)
				return events.Books{Seen: 45, Filtered: 40}
			},
		},
		{
			name: "the ring buffer was full, for two transitions and one other record", seen: 5, passed: 3,
			lost: map[string]uint64{"ring_full": 2},
			play: func(t *testing.T, p *pipeline) events.Books {
				scanned(t, p)
				life := client(1).activeClose()
				take(t, p, life[0], life[3], life[4])
				return events.Books{Seen: 5, RingFull: 2, RecordsLost: 1}
			},
		},
		{
			name: "the kernel skipped one and counted it", seen: 5, passed: 4,
			lost: map[string]uint64{"nested": 1},
			play: func(t *testing.T, p *pipeline) events.Books {
				scanned(t, p)
				life := client(1).activeClose()
				take(t, p, life[0], life[1], life[3], life[4])
				return events.Books{Seen: 4, Skipped: 1}
			},
		},
		{
			name: "the kernel skipped one and did not count it", seen: 5, passed: 4,
			lost: map[string]uint64{"nested": 1},
			play: func(t *testing.T, p *pipeline) events.Books {
				scanned(t, p)
				life := client(1).activeClose()
				take(t, p, life[0], life[1], life[3], life[4])
				return events.Books{Seen: 4}
			},
		},
		{
			name: "one came twice", seen: 5, passed: 5,
			play: func(t *testing.T, p *pipeline) events.Books {
				life := client(1).activeClose()
				take(t, p, life[0], life[0])
				take(t, p, life[1:]...)
				return events.Books{Seen: 6}
			},
		},
		{
			name: "one could not be decoded", seen: 5, passed: 4,
			lost: map[string]uint64{"decode": 1},
			play: func(t *testing.T, p *pipeline) events.Books {
				life := client(1).activeClose()
				life[4][30] = 77 // no such state
				take(t, p, life...)
				return events.Books{Seen: 5}
			},
		},
		{
			name: "the table was full", flags: []string{"--max-sockets", "1"}, seen: 10, passed: 5,
			lost: map[string]uint64{"table_full": 5},
			play: func(t *testing.T, p *pipeline) events.Books {
				one, two := client(1).activeClose(), client(2).activeClose()
				for i := range one {
					take(t, p, one[i], two[i])
				}
				return events.Books{Seen: 10}
			},
		},
		{
			name: "the table was full of idle sockets", flags: []string{"--max-sockets", "1"}, seen: 10, passed: 10,
			play: func(t *testing.T, p *pipeline) events.Books {
				scanned(t, p)
				one, two := client(1), client(2)
				first := one.activeClose()
				two.at = one.at + 2e9
				second := two.activeClose()
				take(t, p, first[:2]...)
				take(t, p, second...)
				one.at = two.at + 2e9
				take(t, p, one.step(events.Established, events.FinWait1, events.Owned|events.HasSocket),
					one.step(events.FinWait1, events.FinWait2, events.Dead), one.step(events.FinWait2, events.Close, events.Dead|events.Done))
				return events.Books{Seen: 10}
			},
		},
		{
			name: "everything at once", flags: []string{"--max-sockets", "1"}, seen: 112, passed: 4,
			lost: map[string]uint64{"ring_full": 3, "nested": 1, "table_full": 3, "decode": 1},
			play: func(t *testing.T, p *pipeline) events.Books {
				scanned(t, p)
				one, two := client(1).activeClose(), client(2).activeClose()
				two[4][29] = 0                                                                     // no such state
				take(t, p, one[0], one[0], two[0], one[1], two[1], two[3], one[3], two[4], one[4]) // one[2], two[2] missed
				return events.Books{Seen: 112, Filtered: 100, RingFull: 3, Skipped: 1}
			},
		},
		{
			name: "the books were read before the rest of the ring buffer", seen: 2, passed: 2,
			play: func(t *testing.T, p *pipeline) events.Books {
				take(t, p, client(1).activeClose()[:2]...)
				return events.Books{Seen: 5}
			},
		},
		{
			name: "a recording that was cut before its last books", seen: 5, passed: 5,
			play: func(t *testing.T, p *pipeline) events.Books {
				whole(t, p)
				return events.Books{Seen: 2}
			},
		},
		{
			name: "a recording that was cut before its first books", seen: 5, passed: 5,
			play: func(t *testing.T, p *pipeline) events.Books {
				life := client(1).activeClose()
				take(t, p, life[0], life[0])
				take(t, p, life[1:]...)
				return events.Books{}
			},
		},
	}
}

func TestTheBooksBalance(t *testing.T) {
	for _, tt := range stories() {
		t.Run(tt.name, func(t *testing.T) {
			f, err := os.Create(filepath.Join(t.TempDir(), "out"))
			check(t, err)
			defer f.Close()
			out := newSink(f)
			p := newPipeline(parseFlags(t, append(tt.flags, "--events", "stats")...), out)
			check(t, p.Books(tt.play(t, p)))
			p.printStats()
			check(t, out.close())
			b, err := os.ReadFile(f.Name())
			check(t, err)
			all := records(t, b)
			if len(all) != 1 || all[0].Type != "stats" {
				t.Fatalf("got %s, want one stats record", b)
			}
			got := all[0]
			sum := got.Delivered + got.Filtered
			for cause, n := range got.Lost {
				sum += n
				if n != tt.lost[cause] {
					t.Errorf("lost to %s: got %d, want %d", cause, n, tt.lost[cause])
				}
			}
			if got.Seen != sum {
				t.Errorf("seen: got %d, want delivered + filtered + lost, which is %d: %s", got.Seen, sum, b)
			}
			if got.Seen != tt.seen || got.Delivered != tt.passed {
				t.Errorf("got %d seen, %d delivered; want %d, %d: %s", got.Seen, got.Delivered, tt.seen, tt.passed, b)
			}
		})
	}
}

// recordOf is a recording of so many connections, one after the other.
func recordOf(t *testing.T, connections uint64) []byte {
	t.Helper()
	return record(t, func(w *recording.Writer) error {
		for n := range connections {
			for _, raw := range client(n + 1).activeClose() {
				if err := w.Event(raw); err != nil {
					return err
				}
			}
		}
		return w.Books(events.Books{Seen: 5 * connections})
	})
}

// A replay has all the time in the world: however slowly stdout is read, and
// wherever its buffers end, every record of it is printed.
func TestAReplayToASlowReaderShedsNothing(t *testing.T) {
	guard(t)
	const connections = 5_000
	file := recordOf(t, connections)
	name := filepath.Join(t.TempDir(), "long.rec")
	check(t, os.WriteFile(name, file, 0o600))
	r, w := pipe(t)
	slow := make(chan []byte, 1)
	go func() {
		// Small reads keep the queue full, as jq would.
		var all bytes.Buffer
		buf := make([]byte, 64)
		for {
			n, err := r.Read(buf)
			all.Write(buf[:n])
			if err != nil {
				break
			}
		}
		slow <- all.Bytes()
	}()
	check(t, run(t.Context(), env{stdout: w, stderr: io.Discard, args: []string{"--replay", name}}))
	check(t, w.Close())

	all := records(t, <-slow)

	if want := 6*connections + 1; len(all) != want {
		t.Errorf("got %d records, want %d", len(all), want)
	}
	if got := all[len(all)-1].Unprinted; got != 0 {
		t.Errorf("unprinted: got %d, want 0", got)
	}
}

// The scans of a recording fit its own --close-wait-after.
func TestAReplayLooksForLeaksAfterTheTimeOfItsRecording(t *testing.T) {
	for _, tt := range []struct {
		flags string
		want  bool
	}{
		{"", true},
		{"--close-wait-after 2m", false}, // the user knows better
	} {
		_, w := pipe(t)
		p := newPipeline(parseFlags(t, strings.Fields(tt.flags)...), newSink(w))
		th := events.DefaultThresholds
		th.CloseWaitAfter = 30 * time.Second
		check(t, p.Thresholds(th))
		check(t, p.Clock(1e9, 0))
		check(t, p.Scanned(events.Scan{Complete: true, Every: true}))
		s := client(1)
		take(t, p, s.step(events.Close, events.SynSent, events.Owned))
		take(t, p, s.step(events.SynSent, events.Established, events.HasSocket))
		take(t, p, s.step(events.Established, events.CloseWait, events.HasSocket|events.Done))
		check(t, p.Clock(45e9, 0))
		if got := p.tracker.WantScan() == aggregate.WantSuspects; got != tt.want {
			t.Errorf("%q, 45 s into a recording made with 30s: wants a look: %v, want %v", tt.flags, got, tt.want)
		}
	}
}
