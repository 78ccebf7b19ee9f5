package probe

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// Sets of states, for the scans.
const (
	everyState = math.MaxUint32
	// Of these is what a process has failed to close: an ended connection is in
	// CLOSE for as long as its descriptor is open; and the listeners in whose
	// queues some wait.
	suspectStates = 1<<events.CloseWait | 1<<events.Close | 1<<events.Listen
)

// Scan calls f with a Socket record for every TCP socket that exists: one for
// each descriptor of a socket, then one for each socket, held or not. Between
// them come the records of the ring buffer, in the order of time. It says which network
// namespaces it has walked.
func (p *Probe) Scan(f func(raw []byte) error) (s events.Scan, err error) {
	if err := p.descriptors(everyState, f); err != nil {
		return s, err
	}
	var all bool
	if p.paths, all, err = p.home.others(); err != nil {
		return s, err
	}
	s.Every, s.All = true, true
	var gone []uint32
	s.Walked, gone, s.Complete, err = p.sockets(everyState, slices.Collect(maps.Keys(p.paths)), f)
	s.Walked = append(s.Walked, gone...) // with their sockets
	s.Complete = s.Complete && (all || p.paths[p.netns] != "")
	return s, err
}

// Descriptors calls f with a Socket record for every descriptor of a TCP socket,
// in all network namespaces, of the processes in our PID namespace; and with the
// records of the ring buffer between them, as Scan does.
func (p *Probe) Descriptors(f func(raw []byte) error) error {
	return p.descriptors(everyState, f)
}

// Suspects does so for the descriptors of sockets in CLOSE_WAIT, CLOSE and LISTEN.
func (p *Probe) Suspects(f func(raw []byte) error) error {
	return p.descriptors(suspectStates, f)
}

// SuspectsIn calls f with a Socket record for every socket in CLOSE_WAIT of these
// network namespaces, held or not. It reports whether, after Suspects or
// Descriptors, all has been found that is there.
func (p *Probe) SuspectsIn(netns map[uint32]bool, f func(raw []byte) error) (complete bool, err error) {
	complete = p.files != nil
	if len(netns) == 0 {
		return complete, nil
	}
	_, gone, ok, err := p.sockets(1<<events.CloseWait, slices.Collect(maps.Keys(netns)), f)
	return complete && ok && len(gone) == 0, err
}

func (p *Probe) want(states uint32) error {
	if err := p.core.Maps[tcptraceMapWanted].Put(uint32(0), states); err != nil {
		return fmt.Errorf("set wanted states: %w", err)
	}
	return nil
}

func (p *Probe) descriptors(states uint32, f func(raw []byte) error) error {
	if p.files == nil {
		return nil
	}
	if p.byPid {
		// Of those who have a socket, the one that is asked for may come last: so that no
		// row is missing, the first walk makes none.
		if err := p.want(0); err != nil {
			return err
		}
		if err := p.readRows(p.files, f); err != nil {
			return err
		}
	}
	if err := p.want(states); err != nil {
		return err
	}
	return p.readRows(p.files, f)
}

// sockets reads the sockets of these network namespaces. It returns those that it has
// read, those that nothing leads to any more, and whether it could enter all others.
func (p *Probe) sockets(states uint32, inodes []uint32, f func(raw []byte) error) (walked, gone []uint32, complete bool, err error) {
	if p.tcp == nil {
		return nil, nil, false, nil
	}
	if err := p.want(states); err != nil {
		return nil, nil, false, err
	}
	complete = true
	for _, inode := range inodes {
		if p.netns != 0 && inode != p.netns {
			continue
		}
		switch err := p.within(inode, func() error { return p.readRows(p.tcp, f) }); {
		case err == nil:
			walked = append(walked, inode)
		case errors.Is(err, errGone):
			gone = append(gone, inode)
		case errors.Is(err, errMoved), errors.Is(err, os.ErrPermission), errors.Is(err, unix.ENOSYS): // seccomp filters answer one or the other
			complete = false
		default:
			return nil, nil, false, err
		}
	}
	return walked, gone, complete, nil
}

func (p *Probe) readRows(it *link.Iter, f func(raw []byte) error) error {
	r, err := it.Open()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	var rows [len(tcptraceSocketRows{}.At) * events.SocketSize]byte
	for {
		n, err := r.Read(rows[:])
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read iterator: %w", err)
		}
		for row := range slices.Chunk(rows[:n], events.SocketSize) {
			if events.Ktime(row) == 0 {
				continue // let_read has ended the wait for a row
			}
			if err := p.readUntil(events.Ktime(row), f); err != nil {
				return err
			}
			if err := f(row); err != nil {
				return err
			}
		}
		// The next row is not made yet, and may be long in coming.
		now, _ := Clock()
		if err := p.readUntil(now, f); err != nil {
			return err
		}
		p.pause()
	}
}

// Clock returns the kernel's clock (CLOCK_BOOTTIME, ns), and what to add to it
// for nanoseconds of Unix time.
func Clock() (ktime uint64, wall int64) {
	var boot, real, after unix.Timespec
	for range 10 {
		// No clock can fail (clock_gettime(2)).
		_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot)
		_ = unix.ClockGettime(unix.CLOCK_REALTIME, &real)
		_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &after)
		// What came in between on a busy machine is no distance of the clocks.
		if after.Nano()-boot.Nano() < int64(100*time.Microsecond) {
			break
		}
	}
	return uint64(boot.Nano()), real.Nano() - boot.Nano()
}
