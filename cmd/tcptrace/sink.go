package main

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	chunkBytes = 128 << 10 // after which other lines may go ahead
	pieceBytes = 16 << 10  // of one write to whoever may read slowly
	lineBytes  = 8 << 10   // nearly all lines are shorter; one that is not makes its buffer grow
	chunks     = 256       // 32 MiB between the tracker and a reader that is slow,
	reserve    = 8         // 1 MiB of them for lines that go ahead
	worthwhile = 8         // so many full ones are worth waking the writer before it is told to flush
	stuckAfter = 3 * time.Second
)

// sink writes lines to a file that may block, a pipe to a slow reader, without ever blocking the
// one who makes them: what finds no room is refused.
//
// Lines that are few and matter go ahead of all that wait, and have buffers in reserve: they are
// neither late nor shed because of the many.
type sink struct {
	file    *os.File
	regular bool   // nobody reads it meanwhile, or ever stops to
	cur     []byte // is being filled; nil: none. It belongs to the one who makes the lines

	mu     sync.Mutex
	work   sync.Cond // the writer waits for something to do
	idle   bool      // it does wait, and nothing has woken it
	inHand []byte    // what it is writing
	queue  [][]byte  // full, oldest first
	ahead  [][]byte  // likewise, and what passes the queue
	spare  [][]byte  // written. The last is taken first: so no more are used than it takes
	made   int       // buffers that there are
	closed bool

	freed chan struct{} // a buffer has become spare
	over  chan struct{} // closed when the writer has stopped
	err   error         // of the writer, once over is closed
	bad   atomic.Bool   // a write has failed
	done  atomic.Uint64 // writes

	patience <-chan struct{} // if set, room waits instead of refusing, until this is closed
}

func newSink(f *os.File) *sink {
	s := &sink{file: f, freed: make(chan struct{}, 1), over: make(chan struct{})}
	s.work.L = &s.mu
	if st, err := f.Stat(); err == nil {
		s.regular = st.Mode().IsRegular()
	}
	go s.write()
	return s
}

// write is the one goroutine that may block on the file.
func (s *sink) write() {
	defer close(s.over)
	size := pieceBytes
	if s.regular {
		size = chunkBytes
	}
	for b := s.next(); b != nil; b = s.next() {
		for piece := range slices.Chunk(b, size) {
			if s.err == nil {
				if _, err := s.file.Write(piece); err != nil {
					s.err = err
					s.bad.Store(true)
				}
			}
			s.done.Add(1)
		}
	}
}

// next takes back the buffer that was written last, and waits for the one to write now: nil if
// there will be none.
func (s *sink) next() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inHand != nil {
		s.spare = append(s.spare, s.inHand[:0])
		s.inHand = nil
		select {
		case s.freed <- struct{}{}:
		default:
		}
	}
	for len(s.ahead) == 0 && len(s.queue) == 0 {
		if s.closed {
			return nil
		}
		s.idle = true
		s.work.Wait()
	}
	from := &s.queue
	if len(s.ahead) > 0 {
		from = &s.ahead
	}
	s.inHand = (*from)[0]
	*from = (*from)[:copy(*from, (*from)[1:])]
	return s.inHand
}

// take returns a buffer that nobody uses, if there are more than kept; else nil.
func (s *sink) take(kept int) []byte {
	last := len(s.spare) - 1
	switch {
	case chunks-s.made+len(s.spare) <= kept:
		return nil
	case last < 0:
		s.made++
		return make([]byte, 0, chunkBytes)
	}
	b := s.spare[last]
	s.spare = s.spare[:last]
	return b
}

// room returns a buffer to append a line to, for put; or false if there is none.
func (s *sink) room() ([]byte, bool) {
	for s.cur == nil {
		s.mu.Lock()
		s.cur = s.take(reserve)
		s.mu.Unlock()
		if s.cur != nil {
			break
		}
		if s.patience == nil {
			return nil, false
		}
		select {
		case <-s.freed:
		case <-s.patience:
			return nil, false
		}
	}
	return s.cur, true
}

// put takes the buffer back, with a line appended.
func (s *sink) put(b []byte) {
	s.cur = b
	if len(b) > chunkBytes-lineBytes {
		s.mu.Lock()
		s.enqueue()
		if len(s.queue) >= worthwhile {
			s.wake()
		}
		s.mu.Unlock()
	}
}

func (s *sink) enqueue() {
	if len(s.cur) > 0 {
		s.queue = append(s.queue, s.cur)
		s.cur = nil
	}
}

// flush has the writer write what there is. While it is busy the lines stay together, so that a
// reader who is slow is not sent a buffer for every few of them: it is to be called again soon.
func (s *sink) flush() {
	s.mu.Lock()
	if s.idle {
		s.enqueue()
		if len(s.queue) > 0 {
			s.wake()
		}
	}
	s.mu.Unlock()
}

func (s *sink) wake() {
	s.idle = false
	s.work.Signal()
}

// first takes a line that is not to wait for others that the writer has not come to yet; or
// refuses it, if too many such lines wait already. Who is patient gets all lines in their order,
// and so does everybody while nothing waits.
func (s *sink) first(line []byte) bool {
	if s.patience != nil {
		b, ok := s.room()
		if ok {
			s.put(append(b, line...))
		}
		return ok
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.idle && len(s.queue) == 0 && len(s.cur) > 0 {
		// It would be written now. And no such line may come to stand in the queue, where
		// the next one would pass it.
		s.ahead = append(s.ahead, s.cur)
		s.cur = nil
		s.wake()
	}
	return s.pass(line)
}

// pass appends a line to what goes ahead.
func (s *sink) pass(line []byte) bool {
	last := len(s.ahead) - 1
	if last < 0 || len(s.ahead[last])+len(line) > chunkBytes {
		b := s.take(0)
		if b == nil {
			return false
		}
		s.ahead = append(s.ahead, b)
		last++
	}
	s.ahead[last] = append(s.ahead[last], line...)
	s.wake()
	return true
}

// crowded reports whether lines wait that were to go ahead.
func (s *sink) crowded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ahead) > 0
}

// last is room for the line that ends a run, after all others: it must not be refused.
func (s *sink) last() []byte {
	if b, ok := s.room(); ok {
		return b
	}
	return make([]byte, 0, lineBytes)
}

var errStuck = errors.New("stdout takes no more: its reader has stopped reading")

// close waits until everything is written, and returns the error of the file. That the reader
// has gone is none. One that is slow gets all there is; one that has stopped must not keep a run from
// its end: errStuck. A disk is waited for, and so is everybody if there is patience.
func (s *sink) close() error {
	s.mu.Lock()
	s.enqueue()
	s.closed = true
	s.wake()
	s.mu.Unlock()
	for written := s.done.Load(); ; written = s.done.Load() {
		select {
		case <-s.over:
			if errors.Is(s.err, unix.EPIPE) {
				return nil
			}
			return s.err
		case <-time.After(stuckAfter):
			if s.done.Load() == written && !s.regular && !s.waits() {
				return errStuck
			}
		}
	}
}

// waits reports whether there is patience, and it has not come to its end.
func (s *sink) waits() bool {
	select {
	case <-s.patience:
		return false
	default:
		return s.patience != nil
	}
}

// waiting counts the lines that are not written: after errStuck, that never will be. Of those in
// the writer's hands some may have been.
func (s *sink) waiting() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, b := range slices.Concat([][]byte{s.inHand}, s.ahead, s.queue) {
		n += bytes.Count(b, []byte{'\n'})
	}
	return uint64(n)
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
