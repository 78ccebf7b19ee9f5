package probe

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ring reads a BPF ring buffer (Documentation/bpf/ringbuf.rst). At a million records it costs less than the reader of
// cilium/ebpf: a record is not copied, its place is given back together with those around it, and wait sleeps even if
// there is something to be read. It belongs to one goroutine.
type ring struct {
	control []byte   // the page with the consumer's position, the only one that may be written
	data    []byte   // the page with the producer's position, and twice the buffer: so no record is torn
	file    *os.File // to wait for a program that wakes the reader
	conn    syscall.RawConn

	consumer, producer *uint64
	records            []byte // of data
	mask               uint64
	pos                uint64 // of the next record
	published          uint64 // the consumer's position, as the kernel knows it
	next               uint64 // position after the record that peek has returned
}

// What the kernel writes before each record (struct bpf_ringbuf_hdr).
const ringHeader = 8

func openRing(m *ebpf.Map) (_ *ring, err error) {
	size := int(m.MaxEntries())
	r := &ring{mask: uint64(size - 1)}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	page := os.Getpagesize()
	if r.control, err = unix.Mmap(m.FD(), 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map consumer page: %w", err)
	}
	if r.data, err = unix.Mmap(m.FD(), int64(page), page+2*size, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return nil, fmt.Errorf("map records: %w", err)
	}
	r.records = r.data[page:]
	r.consumer = (*uint64)(unsafe.Pointer(&r.control[0]))
	r.producer = (*uint64)(unsafe.Pointer(&r.data[0]))
	r.pos = atomic.LoadUint64(r.consumer)
	r.published = r.pos

	// Go's poller waits for edges: that there are records is none, that a program wakes the reader is.
	fd, err := unix.FcntlInt(uintptr(m.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("set O_NONBLOCK: %w", err)
	}
	r.file = os.NewFile(uintptr(fd), "ring buffer")
	if r.conn, err = r.file.SyscallConn(); err != nil {
		return nil, err
	}
	return r, nil
}

// wait sleeps for so long, or until a program wakes the reader.
func (r *ring) wait(d time.Duration) error {
	if err := r.file.SetReadDeadline(time.Now().Add(d)); err != nil {
		return err
	}
	slept := false
	err := r.conn.Read(func(uintptr) bool {
		slept = !slept
		return !slept
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// A program that is writing a record is done with it at once, unless the hypervisor or a debugger stops its
// CPU: so often it is looked after, and then every so long.
const (
	busyLooks = 1 << 12
	busyFor   = 100 * time.Microsecond
)

// peek returns the next record, nil if there is none, or none that is complete. It is valid until take.
func (r *ring) peek() []byte {
	for looks := 0; r.pos != atomic.LoadUint64(r.producer); {
		at := r.pos & r.mask
		// The kernel writes it last, so that all of the record is there.
		header := atomic.LoadUint32((*uint32)(unsafe.Pointer(&r.records[at])))
		if header&unix.BPF_RINGBUF_BUSY_BIT != 0 {
			if looks++; looks == busyLooks {
				return nil
			}
			continue
		}
		size := uint64(header &^ unix.BPF_RINGBUF_DISCARD_BIT)
		r.next = r.pos + (ringHeader+size+7)&^7
		if header&unix.BPF_RINGBUF_DISCARD_BIT == 0 {
			return r.records[at+ringHeader:][:size:size]
		}
		r.pos = r.next
	}
	return nil
}

// take is done with the record that peek has returned. Its place is given back later, with others.
func (r *ring) take() {
	if r.pos = r.next; r.pos-r.published > (r.mask+1)/16 {
		r.release()
	}
}

// release gives the places of all records taken back to the programs.
func (r *ring) release() {
	if r.published != r.pos {
		r.published = r.pos
		atomic.StoreUint64(r.consumer, r.pos)
	}
}

// empty reports whether the programs have handed over nothing more.
func (r *ring) empty() bool { return r.pos == atomic.LoadUint64(r.producer) }

func (r *ring) close() {
	if r.file != nil {
		_ = r.file.Close()
	}
	if r.data != nil {
		_ = unix.Munmap(r.data)
	}
	if r.control != nil {
		_ = unix.Munmap(r.control)
	}
}
