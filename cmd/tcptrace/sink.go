package main

import (
	"errors"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	chunkBytes = 128 << 10
	chunks     = 64 // 8 MiB between the tracker and a reader that is slow
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

	patient bool // room waits instead of refusing
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
		s.free <- b[:0]
	}
}

// room returns a buffer to append a line to, for put; or false if there is none.
func (s *sink) room() ([]byte, bool) {
	if s.cur != nil || s.patient {
		return s.wait(), true
	}
	select {
	case s.cur = <-s.free:
		if s.cur == nil {
			s.cur = make([]byte, 0, chunkBytes)
		}
		return s.cur, true
	default:
		return nil, false
	}
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

// wait is room for a record that must not be shed.
func (s *sink) wait() []byte {
	if s.cur == nil {
		if s.cur = <-s.free; s.cur == nil {
			s.cur = make([]byte, 0, chunkBytes)
		}
	}
	return s.cur
}

// close waits until everything is written, and returns the error of the file.
// That the reader has gone is none.
func (s *sink) close() error {
	s.flush()
	close(s.full)
	<-s.over
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
