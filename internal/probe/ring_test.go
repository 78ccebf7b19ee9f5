package probe

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fakeRing is a ring in ordinary memory, and the kernel's side of it.
type fakeRing struct {
	*ring
	producer uint64
	consumer uint64
}

const fakeSize = 256

func newFakeRing() *fakeRing {
	f := &fakeRing{}
	f.ring = &ring{records: make([]byte, 2*fakeSize), mask: fakeSize - 1, consumer: &f.consumer}
	f.ring.producer = &f.producer
	return f
}

// write makes a record, as bpf_ringbuf_reserve and _submit do; false if there is no room.
func (f *fakeRing) write(record string, flags uint32) bool {
	whole := make([]byte, (ringHeader+len(record)+7)&^7)
	binary.LittleEndian.PutUint32(whole, uint32(len(record))|flags)
	copy(whole[ringHeader:], record)
	if f.producer+uint64(len(whole))-f.consumer > fakeSize-1 {
		return false
	}
	for i, b := range whole {
		at := (f.producer + uint64(i)) & f.mask
		f.records[at], f.records[at+fakeSize] = b, b // mapped twice
	}
	f.producer += uint64(len(whole))
	return true
}

func TestARingGivesEachRecordOnceInOrderAndWhole(t *testing.T) {
	f := newFakeRing()
	var want, got []string
	for n := range 1000 {
		record := fmt.Sprintf("%0*d", 1+n%40, n)
		discard := n%7 == 3
		for !f.write(record, map[bool]uint32{true: unix.BPF_RINGBUF_DISCARD_BIT}[discard]) {
			read := len(got)
			for raw := f.peek(); raw != nil; raw = f.peek() {
				got = append(got, string(raw))
				f.take()
			}
			f.release()
			if len(got) == read && f.consumer != f.producer {
				t.Fatalf("record %d: the ring is full, and there is nothing to be read", n)
			}
		}
		if !discard {
			want = append(want, record)
		}
	}
	for raw := f.peek(); raw != nil; raw = f.peek() {
		got = append(got, string(raw))
		f.take()
	}
	if !slices.Equal(got, want) {
		t.Errorf("read %d records, want %d: the first %.5q, want %.5q", len(got), len(want), got, want)
	}
	if !f.empty() {
		t.Error("not empty after the last record")
	}
}

// The programs must not write where a record is being looked at.
func TestARecordsPlaceIsGivenBackAfterIt(t *testing.T) {
	f := newFakeRing()
	for f.write("a record", 0) {
	}
	for raw := f.peek(); raw != nil; raw = f.peek() {
		if f.consumer > f.pos {
			t.Fatalf("at %d everything before %d has been given back", f.pos, f.consumer)
		}
		f.take()
		if f.pos-f.consumer > fakeSize/16+16 {
			t.Fatalf("at %d only what is before %d has been given back: the ring fills up", f.pos, f.consumer)
		}
	}
	f.release()
	if f.consumer != f.producer {
		t.Errorf("given back up to %d, want %d", f.consumer, f.producer)
	}
}

// What a program is writing is waited for, and it comes before what is complete behind it; but a program whose
// CPU has stopped is not waited for without end.
func TestARecordThatIsBeingWrittenIsWaitedFor(t *testing.T) {
	f := newFakeRing()
	f.write("first", unix.BPF_RINGBUF_BUSY_BIT)
	f.write("second", 0)
	if raw := f.peek(); raw != nil || f.empty() {
		t.Fatalf("got %q, want nothing yet, and a ring that is not empty", raw)
	}
	header := (*uint32)(unsafe.Pointer(&f.records[0]))
	go func() {
		time.Sleep(time.Millisecond)
		atomic.StoreUint32(header, atomic.LoadUint32(header)&^unix.BPF_RINGBUF_BUSY_BIT)
	}()
	for _, want := range []string{"first", "second"} {
		raw := f.peek()
		for raw == nil {
			raw = f.peek()
		}
		if string(raw) != want {
			t.Fatalf("got %q, want %q", raw, want)
		}
		f.take()
	}
}
