package main

import (
	"errors"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	chunkBytes = 128 << 10
	chunks     = 64 // 8 MiB between the tracker and a reader that is slow
	stuckAfter = 3 * time.Second
)

// sink writes lines to a file that may block, a pipe to a slow reader, without
// ever blocking the one who makes them: what finds no room is refused.
type sink struct {
	file *os.File
	full chan []byte
	free chan []byte // nil: not made yet
	cur  []byte
	over chan struct{} // closed when the writer has stopped
	err  error         // of the writer, once over is closed
	bad  atomic.Bool   // a write has failed
	done atomic.Uint64 // buffers that were written

	patience <-chan struct{} // if set, room waits instead of refusing, until this is closed
}

func newSink(f *os.File) *sink {
	s := &sink{
		file: f,
		full: make(chan []byte, chunks),
		free: make(chan []byte, chunks),
		over: make(chan struct{}),
	}
	for range chunks {
		s.free <- nil
	}
	go s.write()
	return s
}

// write is the one goroutine that may block on the file.
func (s *sink) write() {
	defer close(s.over)
	for b := range s.full {
		if s.err == nil {
			if _, err := s.file.Write(b); err != nil {
				s.err = err
				s.bad.Store(true)
			}
		}
		s.done.Add(1)
		s.free <- b[:0]
	}
}

// room returns a buffer to append a line to, for put; or false if there is none.
func (s *sink) room() ([]byte, bool) {
	if s.cur != nil {
		return s.cur, true
	}
	select {
	case s.cur = <-s.free:
	default:
		if s.patience == nil {
			return nil, false
		}
		select {
		case s.cur = <-s.free:
		case <-s.patience:
			return nil, false
		}
	}
	if s.cur == nil {
		s.cur = make([]byte, 0, chunkBytes)
	}
	return s.cur, true
}

// put takes the buffer back, with a line appended.
func (s *sink) put(b []byte) {
	s.cur = b
	if len(b) > chunkBytes*3/4 {
		s.flush()
	}
}

// flush hands what there is to the writer.
func (s *sink) flush() {
	if len(s.cur) > 0 {
		s.full <- s.cur // never blocks: it has a place for every buffer
		s.cur = nil
	}
}

// last is room for a record that must not be shed; or false if the reader has
// stopped reading.
func (s *sink) last() ([]byte, bool) {
	if s.cur == nil && s.stuck(func() bool { return len(s.free) > 0 }) {
		return nil, false
	}
	return s.room()
}

// stuck waits for done, for as long as something is being written. A reader that
// is slow gets all there is; one that has stopped must not keep a run from its
// end.
func (s *sink) stuck(done func() bool) bool {
	const step = 10 * time.Millisecond
	written, idle := s.done.Load(), time.Duration(0)
	for !done() {
		if idle >= stuckAfter {
			return true
		}
		time.Sleep(step)
		idle += step
		if n := s.done.Load(); n != written {
			written, idle = n, 0
		}
	}
	return false
}

var errStuck = errors.New("stdout takes no more: its reader has stopped reading")

// close waits until everything is written, and returns the error of the file:
// errStuck if it cannot be. That the reader has gone is none.
func (s *sink) close() error {
	s.flush()
	close(s.full)
	if s.stuck(func() bool {
		select {
		case <-s.over:
			return true
		default:
			return false
		}
	}) {
		return errStuck
	}
	if errors.Is(s.err, unix.EPIPE) {
		return nil
	}
	return s.err
}

// broken reports whether nothing more can be written: the disk is full, or the
// reader has gone.
func (s *sink) broken() bool {
	if s.bad.Load() {
		return true
	}
	// On a quiet host nothing is written, so that no write would tell.
	fds := []unix.PollFd{{Fd: int32(s.file.Fd())}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}
