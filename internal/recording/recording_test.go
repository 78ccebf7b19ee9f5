package recording

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// The calls of a Sink, as values.
type (
	eventCall      struct{ Raw string }
	scannedCall    struct{ Scan events.Scan }
	booksCall      struct{ Books events.Books }
	probeCall      struct{ Facility, Variant string }
	detailsCall    struct{ Details events.Details }
	thresholdsCall struct{ Thresholds events.Thresholds }
	networkCall    struct{ Network events.Network }
	containerCall  struct{ Container events.Container }
	summarizeCall  struct{}
	clockCall      struct {
		Ktime uint64
		Wall  int64
	}
)

// sinkFunc is a Sink that is one function of the calls.
type sinkFunc func(call any) error

func (f sinkFunc) Event(raw []byte) error               { return f(eventCall{string(raw)}) }
func (f sinkFunc) Clock(k uint64, w int64) error        { return f(clockCall{k, w}) }
func (f sinkFunc) Scanned(s events.Scan) error          { return f(scannedCall{s}) }
func (f sinkFunc) Thresholds(t events.Thresholds) error { return f(thresholdsCall{t}) }
func (f sinkFunc) Network(n events.Network) error       { return f(networkCall{n}) }
func (f sinkFunc) Summarize() error                     { return f(summarizeCall{}) }
func (f sinkFunc) Books(b events.Books) error           { return f(booksCall{b}) }
func (f sinkFunc) Probe(facility, v string) error       { return f(probeCall{facility, v}) }
func (f sinkFunc) Details(d *events.Details) error      { return f(detailsCall{*d}) }
func (f sinkFunc) Container(c *events.Container) error  { return f(containerCall{*c}) }

// keep is a Sink that appends to calls.
func keep(calls *[]any) sinkFunc {
	return func(c any) error {
		*calls = append(*calls, c)
		return nil
	}
}

func replayed(t testing.TB, file []byte) []any {
	t.Helper()
	var calls []any
	check(t, Replay(bytes.NewReader(file), keep(&calls)))
	return calls
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// do makes the call on s.
func do(s Sink, call any) error {
	switch c := call.(type) {
	case eventCall:
		return s.Event([]byte(c.Raw))
	case clockCall:
		return s.Clock(c.Ktime, c.Wall)
	case scannedCall:
		return s.Scanned(c.Scan)
	case thresholdsCall:
		return s.Thresholds(c.Thresholds)
	case networkCall:
		return s.Network(c.Network)
	case summarizeCall:
		return s.Summarize()
	case booksCall:
		return s.Books(c.Books)
	case probeCall:
		return s.Probe(c.Facility, c.Variant)
	case detailsCall:
		return s.Details(&c.Details)
	case containerCall:
		return s.Container(&c.Container)
	}
	panic("no such call")
}

// record returns the file that the calls make, and where each frame of it ends;
// the first border is that of the header.
func record(t testing.TB, calls []any) (file []byte, borders []int) {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b)
	check(t, err)
	check(t, w.Flush())
	borders = append(borders, b.Len())
	for _, c := range calls {
		check(t, do(w, c))
		check(t, w.Flush())
		borders = append(borders, b.Len())
	}
	return b.Bytes(), borders
}

// sample is every call with its extreme values.
func sample() []any {
	return []any{
		probeCall{"transitions", "tp_btf"},
		probeCall{"clock", ""},
		detailsCall{events.Details{Pid: 1<<32 - 1, OpenFiles: 1<<32 - 1, FileLimit: 1<<64 - 1, Exe: "/usr/bin/\xff (deleted)", Container: "0123abcd"}},
		detailsCall{events.Details{Gone: true}},
		detailsCall{},
		containerCall{events.Container{ID: strings.Repeat("0123456789abcdef", 4), Name: "web", Pod: strings.Repeat("p", 253), Namespace: "shop"}},
		containerCall{},
		clockCall{1, 1_700_000_000_000_000_000},
		eventCall{strings.Repeat("\x00", 128)},
		thresholdsCall{events.Thresholds{
			CloseWaitAfter: 90 * time.Second, FinWait2After: math.MaxInt64, HalfOpenAfter: 1, ShortLived: math.MaxUint32, PortsPercent: 100,
		}},
		thresholdsCall{},
		networkCall{events.Network{
			Netns: math.MaxUint32, PortLow: 1, PortHigh: math.MaxUint16, Reserved: 3, ReusePolicy: 2, Timestamps: 1,
			MaxTimeWait: 1 << 18, FinTimeout: 60, TimeWaitSkipped: math.MaxUint64,
		}},
		networkCall{},
		summarizeCall{},
		scannedCall{events.Scan{Complete: true}},
		scannedCall{events.Scan{Every: true}},
		scannedCall{events.Scan{All: true}},
		scannedCall{},
		eventCall{""},
		eventCall{"\x01\x02\xff\n"},
		clockCall{math.MaxUint64, math.MinInt64},
		booksCall{events.Books{Seen: 1, Filtered: 2, RingFull: 3, Skipped: 4, Rescued: 7, RecordsLost: math.MaxUint64}},
		eventCall{Magic},
		probeCall{"a", "b=c"},
		booksCall{},
	}
}

func TestAReplayMakesTheCallsThatWereRecorded(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var many []any
	for range 20_000 { // more than any buffer between the two
		raw := make([]byte, random.IntN(300))
		for i := range raw {
			raw[i] = byte(random.Uint32())
		}
		many = append(many, eventCall{string(raw)}, clockCall{random.Uint64(), random.Int64()})
	}
	for _, tt := range []struct {
		name  string
		calls []any
	}{
		{"none", nil},
		{"one of each", sample()},
		{"the largest event", []any{eventCall{strings.Repeat("x", math.MaxUint16)}, scannedCall{events.Scan{Complete: true}}}},
		{"many", many},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file, _ := record(t, tt.calls)
			if diff := cmp.Diff(tt.calls, replayed(t, file)); diff != "" {
				t.Errorf("got (+) and want (-) differ:\n%s", diff)
			}
		})
	}
}

func TestAReplayDoesNotDependOnHowTheReaderCutsTheFile(t *testing.T) {
	want := sample()
	file, _ := record(t, want)
	for name, r := range map[string]io.Reader{
		"byte by byte":  iotest.OneByteReader(bytes.NewReader(file)),
		"half and half": iotest.HalfReader(bytes.NewReader(file)),
		"data with EOF": iotest.DataErrReader(bytes.NewReader(file)),
	} {
		var got []any
		if err := Replay(r, keep(&got)); err != nil {
			t.Errorf("%s: got error %v, want none", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: got (+) and want (-) differ:\n%s", name, diff)
		}
	}
}

// A run that is killed leaves a file that ends anywhere.
func TestAFileThatIsCutAnywhereGivesAllThatIsWhole(t *testing.T) {
	calls := sample()
	file, borders := record(t, calls)
	for cut := range len(file) + 1 {
		whole, atBorder := 0, false
		for i, border := range borders {
			if border <= cut {
				whole, atBorder = i, border == cut
			}
		}
		wantErr := io.ErrUnexpectedEOF
		switch {
		case cut < borders[0]:
			wantErr = ErrFormat // too short to tell what it is
		case atBorder:
			wantErr = nil
		}
		var got []any
		err := Replay(bytes.NewReader(file[:cut]), keep(&got))
		if !errors.Is(err, wantErr) {
			t.Errorf("cut at %d: got error %v, want %v", cut, err, wantErr)
		}
		if diff := cmp.Diff(calls[:whole:whole], append([]any{}, got...)); diff != "" {
			t.Errorf("cut at %d: got (+) and want (-) differ:\n%s", cut, diff)
		}
	}
}

func TestReplayRefusesWhatIsNoRecording(t *testing.T) {
	good, borders := record(t, sample())
	changed := func(at int, b byte) []byte {
		f := bytes.Clone(good)
		f[at] = b
		return f
	}
	header := good[:borders[0]:borders[0]]
	for _, tt := range []struct {
		name string
		in   []byte
		want string
	}{
		{"nothing", nil, "not a tcptrace recording"},
		{"text", []byte("{\"type\":\"transition\"}\n"), "not a tcptrace recording"},
		{"another magic", changed(0, 't'), "not a tcptrace recording"},
		{"a later version", changed(8, 200), "it has version 200"},
		{"a much later version", changed(11, 1), fmt.Sprintf("it has version %d", version+1<<24)},
		{"the version before", changed(8, version-1), fmt.Sprintf("it has version %d", version-1)},
		{"frame type 0", append(header, 0, 0, 0), "type 0"},
		{"frame type 99", append(header, 99, 2, 0, 1, 2), "type 99 with 2 bytes"},
		{"a clock that is too short", append(header, byte(frameClock), 1, 0, 1), "with 1 bytes"},
		{"books that are too long", append(append(header, byte(frameBooks), 41, 0), make([]byte, 41)...), "with 41 bytes"},
		{"details that are too short", append(append(header, byte(frameDetails), 15, 0), make([]byte, 15)...), "with 15 bytes"},
		{"thresholds that are too short", append(append(header, byte(frameThresholds), 31, 0), make([]byte, 31)...), "with 31 bytes"},
		{"a network that is too long", append(append(header, byte(frameNetwork), 200, 0), make([]byte, 200)...), "with 200 bytes"},
		{"a scan with what is not said of one", append(header, byte(frameScanned), 1, 0, 8), "with 1 bytes"},
		{"a scan without its verdict", append(header, byte(frameScanned), 0, 0), "with 0 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []any
			err := Replay(bytes.NewReader(tt.in), keep(&got))
			if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want ErrFormat with %q", err, tt.want)
			}
			if len(got) > 0 {
				t.Errorf("got calls %v, want none", got)
			}
		})
	}
}

func TestAReplayEndsWithTheSinksError(t *testing.T) {
	calls := sample()
	file, _ := record(t, calls)
	for n := range calls {
		want := errors.New("enough")
		got := 0
		err := Replay(bytes.NewReader(file), sinkFunc(func(any) error {
			if got++; got > n {
				return want
			}
			return nil
		}))
		if !errors.Is(err, want) || got != n+1 {
			t.Errorf("error at call %d: got error %v after %d calls, want %v after %d", n, err, got, want, n+1)
		}
	}
}

// A disk that fails is not a recording that was cut: its user can do something.
func TestAReplayEndsWithTheReadersError(t *testing.T) {
	file, _ := record(t, sample())
	for cut := range file {
		want := errors.New("input/output error")
		err := Replay(io.MultiReader(bytes.NewReader(file[:cut]), iotest.ErrReader(want)), sinkFunc(func(any) error { return nil }))
		if !errors.Is(err, want) {
			t.Fatalf("error at byte %d: got %v, want %v", cut, err, want)
		}
	}
}

// fullDisk takes so many bytes, and no more.
type fullDisk int

func (f *fullDisk) Write(b []byte) (int, error) {
	if len(b) > int(*f) {
		return 0, errors.New("no space")
	}
	*f -= fullDisk(len(b))
	return len(b), nil
}

func TestAWriterSaysThatTheDiskIsFull(t *testing.T) {
	disk := fullDisk(100)
	w, err := NewWriter(&disk)
	check(t, err)
	check(t, w.Event(make([]byte, 128)))
	if err := w.Flush(); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("got error %v, want no space", err)
	}
	if err := w.Event(nil); err == nil {
		t.Error("got no error of a call after the first error, want the same again")
	}
}

// FuzzReplay: no file brings Replay down, and what it reads from one is what a
// recording of it would hold.
func FuzzReplay(f *testing.F) {
	file, borders := record(f, sample())
	f.Add([]byte{})
	f.Add(file)
	f.Add(file[:len(file)-1])
	for _, b := range borders {
		f.Add(append(file[:b:b], "\xff\xff\xff"...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got []any
		err := Replay(bytes.NewReader(b), keep(&got))
		if err != nil && !errors.Is(err, ErrFormat) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("got error %v, want ErrFormat or io.ErrUnexpectedEOF", err)
		}
		again, _ := record(t, got)
		if diff := cmp.Diff(got, replayed(t, again)); diff != "" {
			t.Errorf("a recording of the replay: got (+) and want (-) differ:\n%s", diff)
		}
	})
}

func BenchmarkReplay(b *testing.B) {
	calls := make([]any, 10_000)
	for i := range calls {
		calls[i] = eventCall{strings.Repeat("x", 128)}
	}
	file, _ := record(b, calls)
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		if err := Replay(bytes.NewReader(file), nothing{}); err != nil {
			b.Fatal(err)
		}
	}
}

// nothing is a Sink that costs nothing.
type nothing struct{}

func (nothing) Event([]byte) error                 { return nil }
func (nothing) Clock(uint64, int64) error          { return nil }
func (nothing) Scanned(events.Scan) error          { return nil }
func (nothing) Thresholds(events.Thresholds) error { return nil }
func (nothing) Network(events.Network) error       { return nil }
func (nothing) Summarize() error                   { return nil }
func (nothing) Books(events.Books) error           { return nil }
func (nothing) Details(*events.Details) error      { return nil }
func (nothing) Container(*events.Container) error  { return nil }
func (nothing) Probe(string, string) error         { return nil }
