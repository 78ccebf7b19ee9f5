package probe

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// The structs that bpf2go made from the compiler's own layout of tcptrace.h are
// the oracle here: what they marshal to is what the kernel side writes.
func marshal(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

var addr = func(last byte) [16]uint8 { return [16]uint8{0x20, 0x01, 0x0d, 0xb8, 15: last} }

func wireTransition(kind uint8) (w tcptraceTransition) {
	w.Ev.KtimeNs, w.Ev.Skaddr, w.Ev.Cookie, w.Ev.Netns = 1<<40+1, 1<<63+2, 1<<41+3, 4
	w.Ev.Kind, w.Ev.Oldstate, w.Ev.Newstate, w.Ev.Flags = kind, 5, 6, 0xa7
	w.Proc.Pid, w.Proc.Hidden, w.Proc.Comm = 8, 9, [16]uint8{'n', 'g', 'i', 'n', 'x'}
	w.Family, w.Lport, w.Rport, w.Shutdown, w.More = 10, 11, 12, 3, 1
	w.Laddr, w.Raddr = addr(1), addr(2)
	w.Listener, w.Err, w.Unread, w.Sent, w.Received = 1<<42+13, 14, 15, 1<<43+16, 1<<44+17
	return w
}

func decodedTransition(kind events.Kind) events.Event {
	return events.Event{
		Ktime: 1<<40 + 1, Skaddr: 1<<63 + 2, Cookie: 1<<41 + 3, Netns: 4,
		Kind: kind, Old: 5, New: 6, Flags: 0xa7,
		Proc:     events.Proc{Pid: 8, Hidden: 9, Comm: events.MakeComm("nginx")},
		Lport:    11,
		Rport:    12,
		Shutdown: 3,
		Linger2:  true,
		Laddr:    addr(1),
		Raddr:    addr(2),
		Listener: 1<<42 + 13, Err: 14, Unread: 15, Sent: 1<<43 + 16, Received: 1<<44 + 17,
		Fd: -1,
	}
}

func TestDecodeReadsWhatTheCompilerLaysOut(t *testing.T) {
	destroy := tcptraceEvent{Kind: 2, Cookie: 3, Flags: 4}

	var accept tcptraceAccept
	accept.Ev.Kind, accept.Ev.Skaddr, accept.Proc.Pid = 3, 5, 6

	row := tcptraceSocketRow{Tr: wireTransition(4), QuietNs: 1<<45 + 18, UnsentNs: 1<<46 + 19, Fd: 20, Queued: 21, Kernel: 1, Mini: 1, Thread: 1, Fresh: 1, ExpiresNs: 1<<47 + 22}
	decodedRow := decodedTransition(events.Socket)
	decodedRow.Quiet, decodedRow.Unsent, decodedRow.Fd = 1<<45+18, 1<<46+19, 20
	decodedRow.Queued, decodedRow.Kernel, decodedRow.Mini, decodedRow.Left = 21, true, true, 1<<47+22
	decodedRow.Thread, decodedRow.Fresh = true, true

	// Fields that are the only one set find those that are mixed up.
	guarded, stamped := tcptraceSocketRow{Fd: -1, Guarded: 1}, tcptraceSocketRow{Fd: -1, Stamped: 1}
	taken := tcptraceSocketRow{Fd: -1}
	taken.Tr.More = 2
	for _, r := range []*tcptraceSocketRow{&guarded, &stamped, &taken} {
		r.Tr.Ev.Kind, r.Tr.Ev.Oldstate, r.Tr.Ev.Newstate = 4, 6, 6
	}

	var over tcptraceTimewait
	over.Ev.KtimeNs, over.Ev.Skaddr, over.Ev.Cookie, over.Ev.Netns = 1<<40+1, 1<<63+2, 1<<41+3, 4
	over.Ev.Kind, over.Ev.Oldstate, over.Ev.Newstate = 6, 6, 7
	over.LeftNs, over.Family, over.Lport, over.Rport, over.Why, over.Stamped = -5, 10, 6, 7, 2, 1
	over.Laddr, over.Raddr = addr(1), addr(2)

	var process tcptraceProcess
	process.Ev.Kind, process.Ev.KtimeNs, process.Proc.Pid, process.Parent.Pid = 5, 7, 20, 21
	process.Parent.Comm = [16]uint8{'s', 'h'}

	for _, tt := range []struct {
		name string
		wire any
		want events.Event
	}{
		{"transition", wireTransition(1), decodedTransition(events.Transition)},
		{"destroy", destroy, events.Event{Kind: events.Destroy, Cookie: 3, Flags: 4, Fd: -1}},
		{"accept", accept, events.Event{Kind: events.Accept, Skaddr: 5, Proc: events.Proc{Pid: 6}, Fd: -1}},
		{"socket", row, decodedRow},
		{"guarded socket", guarded, events.Event{Kind: events.Socket, Old: 6, New: 6, Fd: -1, Guarded: true}},
		{"stamped socket", stamped, events.Event{Kind: events.Socket, Old: 6, New: 6, Fd: -1, Stamped: true}},
		{"socket that was taken", taken, events.Event{Kind: events.Socket, Old: 6, New: 6, Fd: -1, Taken: true}},
		{"minisocket", over, events.Event{
			Ktime: 1<<40 + 1, Skaddr: 1<<63 + 2, Cookie: 1<<41 + 3, Netns: 4, Kind: events.Minisocket,
			Old: events.TimeWait, New: events.Close, Left: -5, Lport: 6, Rport: 7, Why: events.WhySyn, Stamped: true,
			Laddr: addr(1), Raddr: addr(2), Fd: -1,
		}},
		{"process", process, events.Event{
			Kind: events.Fork, Ktime: 7, Proc: events.Proc{Pid: 20},
			Parent: events.Proc{Pid: 21, Comm: events.MakeComm("sh")}, Fd: -1,
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got events.Event
			if err := events.Decode(marshal(t, tt.wire), &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("decoded (-want +got):\n%s", diff)
			}
		})
	}
}

// enum timewait_why, which no struct shows.
func TestTheReasonsAreNumberedAsInTheHeader(t *testing.T) {
	header, err := os.ReadFile("../../bpf/tcptrace.h")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]events.Why{
		"TW_CONNECT": events.WhyConnect, "TW_SYN": events.WhySyn, "TW_RESET": events.WhyReset,
		"TW_KILLED": events.WhyKilled, "TW_OTHER": events.WhyOther, "TW_AGAIN": events.WhyAgain,
	} {
		if line := fmt.Sprintf("%s = %d,", name, want); !bytes.Contains(header, []byte(line)) {
			t.Errorf("bpf/tcptrace.h: want %q in it", line)
		}
	}
}

func TestAppendForkWritesWhatTheCompilerLaysOut(t *testing.T) {
	var want tcptraceProcess
	want.Ev.Kind, want.Ev.KtimeNs = 5, 1<<40
	want.Proc.Pid, want.Proc.Comm = 2, [16]uint8{'a'}
	want.Parent.Hidden, want.Parent.Comm = 4, [16]uint8{'b'}

	got := events.AppendFork(nil, 1<<40,
		events.Proc{Pid: 2, Comm: events.MakeComm("a")},
		events.Proc{Hidden: 4, Comm: events.MakeComm("b")})
	if diff := cmp.Diff(marshal(t, want), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
