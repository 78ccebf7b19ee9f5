// Package recording keeps what the kernel side hands over in a file, and plays
// it back: the same calls with the same bytes in the same order.
//
// A file is a header (magic, version) and frames: type (1 byte), length (2
// bytes, little-endian), payload. The payload of an event is the record as
// bpf/tcptrace.h lays it out, so the version changes with that file.
package recording

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// Magic is what a recording begins with.
const Magic = "TCPTRACE"

const version = 3

type frame byte

const (
	frameEvent frame = iota + 1
	frameClock
	frameScanned
	frameBooks
	frameProbe
	frameDetails
	frameThresholds
	frameNetwork
	frameSummarize
	frameContainer
)

// What a frame has place for.
const maxWalked = 1 << 13

// A Sink takes what a run consists of. The tracing pipeline is one, and a Writer.
type Sink interface {
	// Event takes one record of the kernel side. It does not keep raw.
	Event(raw []byte) error
	// Clock lets time pass: ktime is the kernel's clock (CLOCK_BOOTTIME, ns),
	// wall what to add to it for nanoseconds of Unix time.
	Clock(ktime uint64, wall int64) error
	// Scanned ends a scan.
	Scanned(events.Scan) error
	// Books takes the kernel side's counters.
	Books(events.Books) error
	// Probe names the variant in use for a facility; "" is none.
	Probe(facility, variant string) error
	// Thresholds say what is a finding. They come before all events.
	Thresholds(events.Thresholds) error
	// Network takes what a network namespace allows.
	Network(events.Network) error
	// Summarize makes summaries.
	Summarize() error
	// Details takes what /proc says of a process. It does not keep d.
	Details(d *events.Details) error
	// Container takes the names of a container. It does not keep c.
	Container(c *events.Container) error
}

// A Writer is a Sink that writes to a file. It belongs to one goroutine.
type Writer struct {
	w   *bufio.Writer
	buf []byte
}

// NewWriter begins a recording on w.
func NewWriter(w io.Writer) (*Writer, error) {
	rw := &Writer{w: bufio.NewWriterSize(w, 1<<18)}
	h := binary.LittleEndian.AppendUint32([]byte(Magic), version)
	_, err := rw.w.Write(h)
	return rw, err
}

func (w *Writer) frame(f frame, payload []byte) error {
	head := [3]byte{byte(f)}
	binary.LittleEndian.PutUint16(head[1:], uint16(len(payload)))
	w.buf = append(append(w.buf[:0], head[:]...), payload...)
	_, err := w.w.Write(w.buf)
	return err
}

// Event implements Sink.
func (w *Writer) Event(raw []byte) error { return w.frame(frameEvent, raw) }

// Clock implements Sink.
func (w *Writer) Clock(ktime uint64, wall int64) error {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], ktime)
	binary.LittleEndian.PutUint64(b[8:], uint64(wall))
	return w.frame(frameClock, b[:])
}

// Scanned implements Sink.
func (w *Writer) Scanned(s events.Scan) error {
	b := []byte{bit(s.Complete) | bit(s.Every)<<1 | bit(s.All)<<2}
	for _, inode := range s.Walked[:min(len(s.Walked), maxWalked)] {
		b = binary.LittleEndian.AppendUint32(b, inode)
	}
	return w.frame(frameScanned, b)
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// Thresholds implements Sink.
func (w *Writer) Thresholds(t events.Thresholds) error {
	b, err := binary.Append(nil, binary.LittleEndian, &t)
	if err != nil {
		return err
	}
	return w.frame(frameThresholds, b)
}

// Network implements Sink.
func (w *Writer) Network(n events.Network) error {
	b, err := binary.Append(nil, binary.LittleEndian, &n)
	if err != nil {
		return err
	}
	return w.frame(frameNetwork, b)
}

// Books implements Sink.
func (w *Writer) Books(k events.Books) error {
	var b []byte
	for _, n := range []uint64{k.Seen, k.Filtered, k.RingFull, k.Skipped, k.Rescued, k.RecordsLost} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return w.frame(frameBooks, b)
}

// Probe implements Sink.
func (w *Writer) Probe(facility, variant string) error {
	return w.frame(frameProbe, []byte(facility+"="+variant))
}

// Details implements Sink.
func (w *Writer) Details(d *events.Details) error {
	b := binary.LittleEndian.AppendUint32([]byte{bit(d.Gone)}, d.Pid)
	b = binary.LittleEndian.AppendUint32(b, d.OpenFiles)
	b = binary.LittleEndian.AppendUint64(b, d.FileLimit)
	return w.frame(frameDetails, append(b, d.Container+"\x00"+d.Exe...))
}

// Container implements Sink. What is in c has no byte 0.
func (w *Writer) Container(c *events.Container) error {
	return w.frame(frameContainer, []byte(strings.Join([]string{c.ID, c.Name, c.Pod, c.Namespace}, "\x00")))
}

// Summarize implements Sink.
func (w *Writer) Summarize() error { return w.frame(frameSummarize, nil) }

// Flush hands everything to the underlying writer.
func (w *Writer) Flush() error { return w.w.Flush() }

// ErrFormat is the error of a file that is not a recording, or one of a version
// that this build does not read.
var ErrFormat = errors.New("not a tcptrace recording")

// Replay reads a recording from r and makes its calls on s. A recording that
// ends within a frame, as one of a run that was killed does, gives
// io.ErrUnexpectedEOF after all that is whole.
func Replay(r io.Reader, s Sink) error {
	br := bufio.NewReaderSize(r, 1<<18)
	head := make([]byte, len(Magic)+4)
	_, err := io.ReadFull(br, head)
	switch {
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return err
	case err != nil || string(head[:len(Magic)]) != Magic:
		return ErrFormat
	}
	if v := binary.LittleEndian.Uint32(head[len(Magic):]); v != version {
		return fmt.Errorf("%w of version %d: it has version %d", ErrFormat, version, v)
	}
	buf := make([]byte, 1<<16)
	for {
		if _, err := io.ReadFull(br, head[:3]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		payload := buf[:binary.LittleEndian.Uint16(head[1:])]
		if _, err := io.ReadFull(br, payload); errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
		if err := play(frame(head[0]), payload, s); err != nil {
			return err
		}
	}
}

func play(f frame, b []byte, s Sink) error {
	le := binary.LittleEndian
	switch {
	case f == frameEvent:
		return s.Event(b)
	case f == frameClock && len(b) == 16:
		return s.Clock(le.Uint64(b), int64(le.Uint64(b[8:])))
	case f == frameScanned && len(b)%4 == 1 && b[0] < 8:
		scan := events.Scan{Complete: b[0]&1 != 0, Every: b[0]&2 != 0, All: b[0]&4 != 0}
		for n := 1; n < len(b); n += 4 {
			scan.Walked = append(scan.Walked, le.Uint32(b[n:]))
		}
		return s.Scanned(scan)
	case f == frameThresholds && len(b) == binary.Size(events.Thresholds{}):
		var t events.Thresholds
		_, err := binary.Decode(b, le, &t) // of this size, it cannot fail
		return errors.Join(err, s.Thresholds(t))
	case f == frameNetwork && len(b) == binary.Size(events.Network{}):
		var n events.Network
		_, err := binary.Decode(b, le, &n)
		return errors.Join(err, s.Network(n))
	case f == frameBooks && len(b) == 48:
		return s.Books(events.Books{
			Seen: le.Uint64(b), Filtered: le.Uint64(b[8:]), RingFull: le.Uint64(b[16:]),
			Skipped: le.Uint64(b[24:]), Rescued: le.Uint64(b[32:]), RecordsLost: le.Uint64(b[40:]),
		})
	case f == frameSummarize && len(b) == 0:
		return s.Summarize()
	case f == frameProbe:
		facility, variant, _ := strings.Cut(string(b), "=")
		return s.Probe(facility, variant)
	case f == frameDetails && len(b) >= 17 && b[0] < 2:
		d := events.Details{Gone: b[0] == 1, Pid: le.Uint32(b[1:]), OpenFiles: le.Uint32(b[5:]), FileLimit: le.Uint64(b[9:])}
		d.Container, d.Exe, _ = strings.Cut(string(b[17:]), "\x00")
		return s.Details(&d)
	case f == frameContainer && bytes.Count(b, []byte{0}) == 3:
		names := strings.Split(string(b), "\x00")
		return s.Container(&events.Container{ID: names[0], Name: names[1], Pod: names[2], Namespace: names[3]})
	}
	return fmt.Errorf("%w: frame of type %d with %d bytes", ErrFormat, f, len(b))
}
