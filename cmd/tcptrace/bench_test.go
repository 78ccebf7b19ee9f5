package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// lives makes the raw events of n connections, both ends of each, as the kernel
// side lays them out: ten transitions, an accept and two destroys a connection.
func lives(n int) (raw []byte, transitions int) {
	var b bytes.Buffer
	w, err := recording.NewWriter(&b)
	if err != nil {
		panic(err)
	}
	le := binary.LittleEndian
	ktime := uint64(1e9)
	event := func(kind events.Kind, size int, sk, cookie uint64, old, next events.State, flags events.Flags, pid uint32) {
		r := make([]byte, size)
		ktime += 1000
		le.PutUint64(r, ktime)
		le.PutUint64(r[8:], sk)
		le.PutUint64(r[16:], cookie)
		le.PutUint32(r[24:], 4026531840)
		r[28], r[29], r[30], r[31] = byte(kind), byte(old), byte(next), byte(flags)
		if kind != events.Destroy {
			le.PutUint32(r[32:], pid)
			copy(r[40:], "storm")
		}
		if kind == events.Transition {
			transitions++
			le.PutUint16(r[56:], 2)
			le.PutUint16(r[58:], uint16(40000+sk%2))
			le.PutUint16(r[60:], 80)
			r[62] = 3
			copy(r[64:], []byte{10: 0xff, 11: 0xff, 12: 127, 15: 1})
			copy(r[80:], []byte{10: 0xff, 11: 0xff, 12: 127, 15: 2})
		}
		if err := w.Event(r); err != nil {
			panic(err)
		}
	}
	tr := func(sk, cookie uint64, old, next events.State, flags events.Flags) {
		event(events.Transition, 128, sk, cookie, old, next, flags, 7*uint32(flags&events.Owned))
	}
	if err := w.Clock(ktime, 0); err != nil {
		panic(err)
	}
	for i := range uint64(n) {
		// Addresses are used again, cookies are not.
		c, s := 0xffff888000000000+i%1000*0x1000, 0xffff888000000800+i%1000*0x1000
		cc, cs := 2*i+1, 2*i+2
		tr(c, cc, events.Close, events.SynSent, events.Owned)
		tr(c, cc, events.SynSent, events.Established, events.HasSocket)
		tr(s, cs, events.Listen, events.SynRecv, 0)
		tr(s, cs, events.SynRecv, events.Established, 0)
		event(events.Accept, 56, s, cs, 0, 0, 0, 7)
		tr(c, cc, events.Established, events.FinWait1, events.Owned|events.HasSocket)
		tr(s, cs, events.Established, events.CloseWait, events.HasSocket|events.Done)
		tr(c, cc, events.FinWait1, events.FinWait2, events.Dead)
		tr(c, cc, events.FinWait2, events.Close, events.Dead)
		event(events.Destroy, 32, c, cc, 0, 0, 0, 0)
		tr(s, cs, events.CloseWait, events.LastAck, events.Owned|events.HasSocket|events.Done)
		tr(s, cs, events.LastAck, events.Close, events.Dead|events.Done)
		event(events.Destroy, 32, s, cs, 0, 0, 0, 0)
	}
	if err := w.Flush(); err != nil {
		panic(err)
	}
	return b.Bytes(), transitions
}

// The whole line from a recording to a file: replay, decode, tracker, JSON.
func BenchmarkReplay(b *testing.B) {
	raw, transitions := lives(20_000)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	cfg, err := parse("--close-wait-after", "1ns")
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		out := newSink(null)
		out.patience = b.Context().Done()
		p := newPipeline(cfg, out)
		if err := recording.Replay(bytes.NewReader(raw), &player{pipeline: p, ctx: b.Context()}); err != nil {
			b.Fatal(err)
		}
		if err := out.close(); err != nil {
			b.Fatal(err)
		}
		if c := p.tracker.Counts(); c.Delivered != uint64(transitions) || c.Missed != 0 || p.records.Connection != 40_000 {
			b.Fatalf("the replay is not whole: %+v, %+v", c, p.records)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(transitions), "ns/transition")
}
