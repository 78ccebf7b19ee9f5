package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	check(t, err)
	t.Cleanup(func() {
		_ = r.Close()
		_ = w.Close()
	})
	return r, w
}

// line is the nth line of a test, of a length that differs from its neighbours'.
func line(n int) []byte { return fmt.Appendf(nil, "%d %s\n", n, bytes.Repeat([]byte("x"), n%997)) }

// fill puts lines until one is refused, and returns all that were taken.
func fill(t *testing.T, s *sink) []byte {
	t.Helper()
	return fillTo(t, s, math.MaxInt)
}

// fillTo does so until there are so many bytes.
func fillTo(t *testing.T, s *sink, enough int) []byte {
	t.Helper()
	var taken []byte
	for n := 0; ; n++ {
		if len(taken) >= enough {
			return taken
		}
		b, ok := s.room()
		if !ok {
			return taken
		}
		s.put(append(b, line(n)...))
		taken = append(taken, line(n)...)
		if len(taken) > 10*chunks*chunkBytes {
			t.Fatalf("took %d bytes that nobody reads, want at most about %d", len(taken), chunks*chunkBytes)
		}
	}
}

// crowd puts lines ahead of others until one is refused, and returns all that were taken.
func crowd(t *testing.T, s *sink) []byte {
	t.Helper()
	var taken []byte
	for n := 0; ; n++ {
		urgent := fmt.Appendf(nil, "{\"type\":\"urgent\",\"pid\":%d}\n", n)
		if !s.first(urgent) {
			return taken
		}
		if taken = append(taken, urgent...); len(taken) > 2*reserve*chunkBytes {
			t.Fatalf("took %d bytes ahead of others, want at most about %d", len(taken), reserve*chunkBytes)
		}
	}
}

// drain reads r to its end.
func drain(r *os.File) <-chan []byte {
	all := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(r)
		all <- b
	}()
	return all
}

// enough waits for room: there is a reader.
func enough(t *testing.T, s *sink) []byte {
	t.Helper()
	for range 1000 {
		if b, ok := s.room(); ok {
			return b
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("got no room within 10 s, want some")
	return nil
}

func TestASinkRefusesInsteadOfBlockingAndLosesNothingThatItTook(t *testing.T) {
	guard(t)
	r, w := pipe(t)
	s := newSink(w)
	want := fill(t, s)
	if len(want) > chunks*chunkBytes {
		t.Errorf("took %d bytes that nobody reads, want at most %d", len(want), chunks*chunkBytes)
	}
	if b, ok := s.room(); ok {
		t.Errorf("got room of %d bytes after a refusal with nothing read, want none", len(b))
	}
	s.flush() // with nothing to flush

	last := []byte("the last\n")
	s.put(append(s.last(), last...)) // is never refused
	got := drain(r)
	check(t, s.close())
	check(t, w.Close())
	if b := <-got; !bytes.Equal(b, append(want, last...)) {
		t.Errorf("got %d bytes, want the %d that were put, in their order", len(b), len(want)+len(last))
	}
}

func TestASinkHasRoomAgainOnceItsReaderHasRead(t *testing.T) {
	guard(t)
	r, w := pipe(t)
	s := newSink(w)
	want := fill(t, s)
	got := drain(r)
	for range 3 {
		s.put(append(enough(t, s), "on\n"...))
		want = append(want, "on\n"...)
		if _, ok := s.room(); !ok {
			t.Error("got no room in a buffer that is not full, want some")
		}
		s.flush()
	}
	check(t, s.close())
	check(t, w.Close())
	if b := <-got; !bytes.Equal(b, want) {
		t.Errorf("got %d bytes, want the %d that were put, in their order", len(b), len(want))
	}
}

// What goes ahead waits for nothing but what the writer is at, and comes in its own order.
func TestWhatGoesFirstPassesAllThatWaits(t *testing.T) {
	guard(t)
	r, w := pipe(t)
	s := newSink(w)
	usual := fill(t, s)
	ahead := crowd(t, s)
	if least := reserve * chunkBytes * 9 / 10; len(ahead) < least {
		t.Errorf("took %d bytes ahead of others, want %d at the least", len(ahead), least)
	}
	if !s.crowded() {
		t.Error("crowded, with lines that wait to go ahead: got false, want true")
	}
	if b, ok := s.room(); ok {
		t.Errorf("got room of %d bytes after a refusal with nothing read, want none", len(b))
	}

	got := drain(r)
	check(t, s.close())
	check(t, w.Close())
	all := <-got
	at := bytes.Index(all, ahead)
	if at < 0 {
		t.Fatalf("the %d bytes that went ahead are not in one piece among the %d that were written", len(ahead), len(all))
	}
	if at > 2*chunkBytes {
		t.Errorf("what went first came after %d bytes, want at most the %d that the writer and the pipe had", at, 2*chunkBytes)
	}
	if rest := append(all[:at:at], all[at+len(ahead):]...); !bytes.Equal(rest, usual) {
		t.Errorf("got %d other bytes, want the %d that were put, in their order", len(rest), len(usual))
	}
}

// Where nothing waits, or whoever is asked is patient, there is nothing to pass.
func TestWhatGoesFirstStaysInOrderWhereNothingWaits(t *testing.T) {
	guard(t)
	r, w := pipe(t)
	s := newSink(w)
	s.put(append(enough(t, s), "before\n"...))
	for !s.writerWaits() {
		time.Sleep(time.Millisecond)
	}
	if !s.first([]byte("first\n")) {
		t.Error("first: got a refusal, want none")
	}
	s.put(append(enough(t, s), "after\n"...))
	patient := make(chan struct{})
	s.patience = patient
	usual := fillTo(t, s, (chunks-reserve)*chunkBytes/2)
	if !s.first([]byte("patient\n")) {
		t.Error("first: got a refusal of one who is patient, want none")
	}
	got := drain(r)
	check(t, s.close())
	check(t, w.Close())
	want := append([]byte("before\nfirst\nafter\n"), append(usual, "patient\n"...)...)
	if b := <-got; !bytes.Equal(b, want) {
		t.Errorf("got %d bytes, want the %d that were put, in their order", len(b), len(want))
	}
}

// writerWaits reports whether the writer has nothing to do.
func (s *sink) writerWaits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.idle
}

// A few lines now and then must not take a buffer each: a reader who pauses is sent what one
// holds together.
func TestFlushesWhileTheReaderPausesUseNoBufferEach(t *testing.T) {
	guard(t)
	r, w := pipe(t)
	s := newSink(w)
	var want []byte
	for n := range 4 * chunks {
		b, ok := s.room()
		if !ok {
			t.Fatalf("got no room after %d short lines, each of them flushed, want some", n)
		}
		short := fmt.Appendf(nil, "%d %s\n", n, bytes.Repeat([]byte("x"), 300)) // 300 KiB in all
		s.put(append(b, short...))
		want = append(want, short...)
		s.flush()
	}
	got := drain(r)
	check(t, s.close())
	check(t, w.Close())
	if b := <-got; !bytes.Equal(b, want) {
		t.Errorf("got %d bytes, want the %d that were put, in their order", len(b), len(want))
	}
}

// However lines and flushes alternate, a file gets the lines as they are.
func TestWhatIsFlushedArrivesByteForByte(t *testing.T) {
	guard(t)
	for _, every := range []int{1, 7, 1000, 1 << 30} {
		f, err := os.Create(filepath.Join(t.TempDir(), "out"))
		check(t, err)
		s := newSink(f)
		var want []byte
		for n := range 3000 {
			s.put(append(enough(t, s), line(n)...))
			want = append(want, line(n)...)
			if n%every == 0 {
				s.flush()
			}
		}
		check(t, s.close())
		got, err := os.ReadFile(f.Name())
		check(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("a flush every %d lines: got %d bytes, want %d, equal", every, len(got), len(want))
		}
		check(t, f.Close())
	}
}

func TestALineThatIsLargerThanABufferArrives(t *testing.T) {
	guard(t)
	r, w := pipe(t)
	got := drain(r)
	s := newSink(w)
	want := append(bytes.Repeat([]byte("x"), 3*chunkBytes), '\n')
	s.put(append(enough(t, s), want...))
	check(t, s.close())
	check(t, w.Close())
	if b := <-got; !bytes.Equal(b, want) {
		t.Errorf("got %d bytes, want %d, equal", len(b), len(want))
	}
}

func TestAReaderThatHasGoneIsNoErrorAndBlocksNobody(t *testing.T) {
	guard(t)
	r, w := pipe(t)
	check(t, r.Close())
	s := newSink(w)
	for n := range 4 * chunks { // more than all buffers
		s.put(append(enough(t, s), bytes.Repeat([]byte("x"), chunkBytes)...))
		if n == 0 {
			s.flush()
		}
	}
	if err := s.close(); err != nil {
		t.Errorf("close: got error %v, want none", err)
	}
	if !s.broken() {
		t.Error("broken: got false, want true")
	}
}

func TestAFullDiskIsAnError(t *testing.T) {
	guard(t)
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	check(t, err)
	defer f.Close()
	s := newSink(f)
	if s.broken() {
		t.Error("broken before anything is written: got true, want false")
	}
	s.put(append(enough(t, s), "x\n"...))
	if err := s.close(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("close: got error %v, want %v", err, unix.ENOSPC)
	}
	if !s.broken() {
		t.Error("broken after a write has failed: got false, want true")
	}
}

// On a quiet host nothing is written that could fail.
func TestASinkNoticesThatItsReaderHasGoneThoughNothingIsWritten(t *testing.T) {
	guard(t)
	r, w := pipe(t)
	s := newSink(w)
	if s.broken() {
		t.Error("with a reader: got true, want false")
	}
	check(t, r.Close())
	if !s.broken() {
		t.Error("without: got false, want true")
	}
	check(t, s.close())
}

func TestAFileAndASinkholeAreNotBroken(t *testing.T) {
	guard(t)
	for _, name := range []string{"/dev/null", filepath.Join(t.TempDir(), "out")} {
		f, err := os.Create(name)
		check(t, err)
		s := newSink(f)
		if s.broken() {
			t.Errorf("%s: got true, want false", name)
		}
		check(t, s.close())
		check(t, f.Close())
	}
}

func TestAReaderThatHasStoppedKeepsNoRunFromItsEnd(t *testing.T) {
	t.Parallel() // it waits
	guard(t)
	_, w := pipe(t)
	s := newSink(w)
	taken := fill(t, s)
	s.put(append(s.last(), "the last\n"...))
	if err := s.close(); !errors.Is(err, errStuck) {
		t.Errorf("close: got error %v, want %v", err, errStuck)
	}
	// The writer has its first buffer in its hands still, which is larger than a pipe.
	if got, want := s.waiting(), uint64(bytes.Count(taken, []byte("\n"))+1); got != want {
		t.Errorf("got %d lines that wait, want the %d that were put", got, want)
	}
}

func TestAPatientSinkWaitsForItsReaderUntilItIsToldNotTo(t *testing.T) {
	guard(t)
	r, w := pipe(t)
	s := newSink(w)
	want := fill(t, s)
	stop := make(chan struct{})
	s.patience = stop
	got := drain(r)
	b, ok := s.room()
	if !ok {
		t.Fatal("got no room from a sink that has a reader, want some")
	}
	s.put(append(b, "on\n"...))
	check(t, s.close())
	check(t, w.Close())
	if b := <-got; !bytes.Equal(b, append(want, "on\n"...)) {
		t.Errorf("got %d bytes, want %d", len(b), len(want)+3)
	}

	_, w = pipe(t)
	s = newSink(w)
	fill(t, s)
	s.patience = stop
	close(stop)
	if b, ok := s.room(); ok {
		t.Errorf("got room of %d bytes, want none", len(b))
	}
}

// What goes first keeps its order, also while others fill what was about to be written.
func TestWhatGoesFirstKeepsItsOrder(t *testing.T) {
	r, w := pipe(t)
	s := newSink(w)
	for !s.writerWaits() {
		time.Sleep(time.Millisecond)
	}
	if !s.first([]byte("open\n")) {
		t.Fatal("refused")
	}
	fillTo(t, s, 2*chunkBytes) // as one Read brings them in a storm, before the flush that follows it
	if !s.first([]byte("resolved\n")) {
		t.Fatal("refused")
	}
	s.flush()
	got := drain(r)
	check(t, s.close())
	check(t, w.Close())
	all := <-got
	if a, b := bytes.Index(all, []byte("open\n")), bytes.Index(all, []byte("resolved\n")); a > b {
		t.Errorf("resolved at byte %d, open at byte %d", b, a)
	}
}

// As `tcptrace snapshot | less`: the reader takes a screenful, and then thinks for longer than a stopped
// one is given.
func TestAPatientSinkIsPatientAtTheEnd(t *testing.T) {
	t.Parallel() // it waits
	r, w := pipe(t)
	s := newSink(w)
	s.patience = make(chan struct{})
	want := fillTo(t, s, 1<<20)
	got := make(chan []byte)
	go func() {
		time.Sleep(stuckAfter * 4 / 3)
		got <- <-drain(r)
	}()
	check(t, s.close())
	check(t, w.Close())
	if b := <-got; !bytes.Equal(b, want) {
		t.Errorf("got %d bytes, want %d", len(b), len(want))
	}
}

// A reader who reads all the time, 40 KB a second, is none that has stopped.
func TestASlowReaderIsNoneThatHasStopped(t *testing.T) {
	t.Parallel() // it takes its time
	r, w := pipe(t)
	s := newSink(w)
	fillTo(t, s, 2*chunkBytes)
	over := make(chan struct{})
	go func() {
		defer close(over)
		b := make([]byte, 1<<10)
		for {
			if _, err := r.Read(b); err != nil {
				return
			}
			time.Sleep(25 * time.Millisecond)
		}
	}()
	check(t, s.close())
	check(t, w.Close())
	<-over
}
