package events

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
)

// record returns a zero record of the kind, of its right size.
func record(kind Kind) []byte {
	b := make([]byte, sizes[kind])
	b[28] = byte(kind)
	b[29], b[30] = byte(Established), byte(CloseWait)
	if kind == Minisocket {
		b[29], b[30] = byte(FinWait2), byte(TimeWait)
	}
	return b
}

func TestDecodeRefusesWhatTheKernelSideNeverWrites(t *testing.T) {
	for _, tt := range []struct {
		name string
		in   []byte
		want string
	}{
		{"nothing", nil, "shorter than its header"},
		{"half a header", record(Transition)[:31], "shorter than its header"},
		{"kind 0", make([]byte, 128), "unknown kind 0"},
		{"a kind that does not exist", append(make([]byte, 28), 99, 0, 0, 0), "unknown kind 99"},
		{"a transition cut short", record(Transition)[:127], "127 bytes, want 128"},
		{"an accept that is too long", append(record(Accept), 0), "57 bytes, want 56"},
		{"old state 0", func() []byte { b := record(Transition); b[29] = 0; return b }(), "states 0 and 8"},
		{"new state 13", func() []byte { b := record(Socket); b[30] = 13; return b }(), "states 1 and 13"},
		{"a minisocket cut short", record(Minisocket)[:79], "79 bytes, want 80"},
		{"a minisocket that is too long", append(record(Minisocket), 0), "81 bytes, want 80"},
		{"the first kind that does not exist", func() []byte { b := record(Minisocket); b[28]++; return b }(), "unknown kind 7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var ev Event
			err := Decode(tt.in, &ev)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got error %v, want one with %q", err, tt.want)
			}
		})
	}
}

// A minisocket begins, or is prolonged, in the states that it can have, and ends from
// them.
func TestDecodeTakesAMinisocketInItsTwoStatesOnly(t *testing.T) {
	for old := range 256 {
		for next := range 256 {
			b := record(Minisocket)
			b[29], b[30] = byte(old), byte(next)
			var ev Event
			err := Decode(b, &ev)
			was := State(old) == FinWait2 || State(old) == TimeWait
			is := State(next) == FinWait2 || State(next) == TimeWait
			if want := is || State(next) == Close && was; want != (err == nil) {
				t.Fatalf("states %d and %d: got error %v, want it taken: %v", old, next, err, want)
			}
		}
	}
}

// Every field where bpf/tcptrace.h has it, and nothing of the fields that only other
// kinds have.
func TestAMinisocketIsReadFromWhereItLies(t *testing.T) {
	b := record(Minisocket)
	for i := range b {
		if i < 28 || i > 30 {
			b[i] = byte(i)
		}
	}
	var ev Event
	if err := Decode(b, &ev); err != nil {
		t.Fatal(err)
	}
	want := Event{
		Ktime: 0x0706050403020100, Skaddr: 0x0f0e0d0c0b0a0908, Cookie: 0x1716151413121110, Netns: 0x1b1a1918,
		Kind: Minisocket, Old: FinWait2, New: TimeWait, Flags: 0x1f, Fd: -1,
		Left: 0x2726252423222120, Lport: 0x2b2a, Rport: 0x2d2c, Why: 0x2e, Stamped: true,
	}
	for i := range 16 {
		want.Laddr[i], want.Raddr[i] = byte(0x30+i), byte(0x40+i)
	}
	if ev != want {
		t.Errorf("got  %+v\nwant %+v", ev, want)
	}
}

// A timer may be late: its time is up, and more than that.
func TestTheTimeThatAMinisocketHasLeftMayBeNegative(t *testing.T) {
	b := record(Minisocket)
	for i := 32; i < 40; i++ {
		b[i] = 0xff
	}
	var ev Event
	if err := Decode(b, &ev); err != nil || ev.Left != -1 {
		t.Errorf("got %d ns, error %v; want -1", ev.Left, err)
	}
}

func TestDecodeLeavesNothingOfTheEventBefore(t *testing.T) {
	b := record(Transition)
	for i := 32; i < len(b); i++ {
		b[i] = 0xff
	}
	var ev Event
	if err := Decode(b, &ev); err != nil {
		t.Fatal(err)
	}
	if err := Decode(record(Destroy), &ev); err != nil {
		t.Fatal(err)
	}
	want := Event{Kind: Destroy, Old: Established, New: CloseWait, Fd: -1}
	if ev != want {
		t.Errorf("got %+v, want %+v", ev, want)
	}
}

// include/net/tcp_states.h, and the names that ss and tcpstates users know.
func TestStatesAreNumberedAndNamedAsTheKernelDoes(t *testing.T) {
	for n, name := range map[uint8]string{
		1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT",
		7: "CLOSE", 8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING", 12: "NEW_SYN_RECV",
	} {
		if got := State(n).String(); got != name || !State(n).Valid() {
			t.Errorf("state %d: got %q, valid %v; want %q, true", n, got, State(n).Valid(), name)
		}
	}
	for _, n := range []uint8{0, 13, 255} {
		if State(n).Valid() || State(n).String() != "" {
			t.Errorf("state %d: got %q, valid %v; want none", n, State(n), State(n).Valid())
		}
	}
}

func TestAddrTellsIPv4FromIPv6AsNetipDoes(t *testing.T) {
	for _, s := range []string{"127.0.0.1", "0.0.0.0", "255.255.255.255", "::", "::1", "2001:db8::1", "::127.0.0.1", "fe80::1"} {
		ip := netip.MustParseAddr(s)
		a := Addr(ip.As16())
		if a.Netip() != ip || a.Is4() != ip.Is4() || a.IsUnspecified() != ip.IsUnspecified() {
			t.Errorf("%s: got %s, Is4 %v, IsUnspecified %v", s, a.Netip(), a.Is4(), a.IsUnspecified())
		}
	}
	mapped := Addr(netip.MustParseAddr("::ffff:10.1.2.3").As16())
	if got := mapped.Netip().String(); got != "10.1.2.3" {
		t.Errorf("an IPv4-mapped address: got %s, want 10.1.2.3", got)
	}
}

func TestCommEndsAtItsFirstNUL(t *testing.T) {
	full := Comm([]byte("0123456789abcdef"))
	for _, tt := range []struct {
		comm Comm
		want string
	}{
		{MakeComm("nginx"), "nginx"},
		{MakeComm("a-name-longer-than-the-kernel-keeps"), "a-name-longer-t"},
		{Comm{}, ""},
		{Comm{'a', 0, 'b'}, "a"},
		{full, "0123456789abcdef"},
	} {
		if got := string(tt.comm.Bytes()); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for k := Transition; k <= Minisocket; k++ {
		f.Add(record(k))
	}
	over := record(Minisocket)
	over[29], over[30] = byte(TimeWait), byte(Close)
	f.Add(over)
	f.Fuzz(func(t *testing.T, b []byte) {
		before := bytes.Clone(b)
		var ev Event
		err := Decode(b, &ev)
		if !bytes.Equal(b, before) {
			t.Error("Decode changed its input")
		}
		if err != nil {
			return
		}
		if len(b) != sizes[ev.Kind] {
			t.Errorf("took %d bytes for a record of kind %d", len(b), ev.Kind)
		}
		if (ev.Kind == Transition || ev.Kind == Socket) && (ev.Old.String() == "" || ev.New.String() == "") {
			t.Errorf("took states %d and %d", ev.Old, ev.New)
		}
		if ev.Kind == Minisocket && ev.New != FinWait2 && ev.New != TimeWait && ev.New != Close {
			t.Errorf("took a minisocket in state %d", ev.New)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	raw := record(Transition)
	var ev Event
	b.ReportAllocs()
	for b.Loop() {
		if err := Decode(raw, &ev); err != nil {
			b.Fatal(err)
		}
	}
}

func TestPidIsThatOfWhoDoesSomethingWithASocket(t *testing.T) {
	for kind, want := range map[Kind]uint32{Transition: 0x04030201, Accept: 0x04030201, Socket: 0x04030201, Fork: 0, Destroy: 0, Minisocket: 0} {
		b := record(kind)
		copy(b[headerSize:], []byte{1, 2, 3, 4})
		if got := Pid(b); got != want {
			t.Errorf("kind %d: got %#x, want %#x", kind, got, want)
		}
	}
	// One that was cut is not refused here, but by Decode.
	if got := Pid(record(Transition)[:headerSize+procSize-1]); got != 0 {
		t.Errorf("cut short: got %#x, want 0", got)
	}
}

// What was there before a name that is shorter is no part of it.
func TestANameEndsAtItsNUL(t *testing.T) {
	for in, want := range map[string]string{
		"curl\x00ad-of-tests\x00": "curl",
		"sixteen-no-NUL--":        "sixteen-no-NUL--",
		"\x00old":                 "",
	} {
		b := record(Accept)
		copy(b[40:56], in)
		var ev Event
		if err := Decode(b, &ev); err != nil {
			t.Fatal(err)
		}
		var name Comm
		copy(name[:], want)
		if ev.Proc.Comm != name {
			t.Errorf("%q: got %q, want %q", in, ev.Proc.Comm, name)
		}
	}
}
