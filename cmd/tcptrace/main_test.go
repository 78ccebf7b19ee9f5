package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// The test binary, called by the name tcptrace, is the command.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tcptrace": main})
}

// guard ends the tests with all stacks if the test has not ended after far more
// time than it can need: something blocks that must not.
func guard(t *testing.T) {
	t.Helper()
	name := t.Name()
	timer := time.AfterFunc(5*time.Minute, func() { panic(name + ": still not over after five minutes") })
	t.Cleanup(func() { timer.Stop() })
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wire is struct socket_row of bpf/tcptrace.h. Its beginning is struct
// transition; an accept begins like it too.
type wire struct {
	Ktime, Skaddr, Cookie uint64
	Netns                 uint32
	Kind, Old, New, Flags uint8
	Pid, Hidden           uint32
	Comm                  events.Comm
	Family, Lport, Rport  uint16
	Shutdown, _           uint8
	Laddr, Raddr          events.Addr
	Listener              uint64
	Err, Unread           uint32
	Sent, Received        uint64
	Quiet, Unsent         uint64
	Fd                    int32
	Queued                uint32
	Kernel, Mini          uint8
	_                     [6]uint8
	Expires               uint64
}

// raw returns the record as the kernel side writes it.
func (w wire) raw() []byte {
	size := map[events.Kind]int{events.Transition: 128, events.Destroy: 32, events.Accept: 56, events.Socket: events.SocketSize}
	b, err := binary.Append(nil, binary.LittleEndian, &w)
	if err != nil {
		panic(err)
	}
	return b[:size[events.Kind(w.Kind)]]
}

func addr(s string) events.Addr { return events.Addr(netip.MustParseAddr(s).As16()) }

// sock is a socket that a test writes the story of.
type sock struct {
	wire
	at uint64 // Ktime of the last event
}

// client returns a socket of process alpha, with a peer.
func client(n uint64) *sock {
	return &sock{at: 1e9, wire: wire{
		Skaddr: n, Cookie: n, Netns: 4026531840, Pid: 100, Comm: events.MakeComm("alpha"), Family: 2,
		Laddr: addr("10.0.0.1"), Lport: uint16(40000 + n%20000), Raddr: addr("192.0.2.1"), Rport: 443,
	}}
}

// step is the record of a transition a millisecond after the last event.
func (s *sock) step(old, next events.State, flags events.Flags) []byte {
	s.at += 1e6
	w := s.wire
	w.Ktime, w.Kind, w.Old, w.New, w.Flags = s.at, uint8(events.Transition), uint8(old), uint8(next), uint8(flags)
	if flags&events.Owned == 0 {
		w.Pid, w.Comm = 0, events.Comm{}
	}
	return w.raw()
}

// other is the record of an event that is no transition.
func (s *sock) other(kind events.Kind) []byte {
	s.at += 1e6
	w := s.wire
	w.Ktime, w.Kind = s.at, uint8(kind)
	return w.raw()
}

// row is what a scan finds of it: a descriptor of its process. It has sent nothing
// for an hour.
func (s *sock) row(at uint64, state events.State, fd int32) []byte {
	w := s.wire
	w.Ktime, w.Kind, w.Old, w.New, w.Flags = at, uint8(events.Socket), uint8(state), uint8(state), uint8(events.HasSocket)
	w.Unsent, w.Fd = 3600e9, fd
	return w.raw()
}

// activeClose is all that a client's connection does, its side closing first.
func (s *sock) activeClose() [][]byte {
	open := s.step(events.Close, events.SynSent, events.Owned|events.HasSocket)
	established := s.step(events.SynSent, events.Established, events.HasSocket)
	s.Shutdown, s.Sent = 3, 17
	wait1 := s.step(events.Established, events.FinWait1, events.Owned|events.HasSocket)
	wait2 := s.step(events.FinWait1, events.FinWait2, events.Dead)
	s.Received = 6 // 5 bytes and the FIN
	return [][]byte{open, established, wait1, wait2, s.step(events.FinWait2, events.Close, events.Dead|events.Done)}
}

// passiveClose is all that a server's connection does, the peer closing first;
// the listener comes with it.
func passiveClose(s *sock) [][]byte {
	listener := *s
	listener.Skaddr, listener.Cookie = s.Skaddr+1, s.Cookie+1
	listener.Raddr, listener.Rport = events.Addr{}, 0
	out := [][]byte{listener.step(events.Close, events.Listen, events.Owned|events.HasSocket)}
	s.at, s.Listener = listener.at, listener.Cookie
	out = append(out,
		s.step(events.Listen, events.SynRecv, 0),
		s.step(events.SynRecv, events.Established, 0),
		s.other(events.Accept))
	s.Received = 1
	out = append(out, s.step(events.Established, events.CloseWait, events.HasSocket|events.Done))
	s.Shutdown = 3
	return append(out,
		s.step(events.CloseWait, events.LastAck, events.Owned|events.HasSocket|events.Done),
		s.step(events.LastAck, events.Close, events.Dead|events.Done))
}

// sample is a recording of two connections: alpha (PID 100) as a client on IPv4,
// beta (PID 200) as a server on IPv6. It has 5 and 6 transitions, that of the
// listener included.
func sample(t testing.TB) []byte {
	beta := client(2)
	beta.Pid, beta.Comm, beta.Family = 200, events.MakeComm("beta"), 10
	beta.Laddr, beta.Lport, beta.Raddr, beta.Rport, beta.Netns = addr("2001:db8::1"), 8080, addr("2001:db8::2"), 50000, 4026532000
	all := append(client(1).activeClose(), passiveClose(beta)...)
	return record(t, func(w *recording.Writer) error {
		for _, raw := range all {
			if err := w.Event(raw); err != nil {
				return err
			}
		}
		return w.Books(events.Books{Seen: uint64(len(all) - 1)}) // one is an accept
	})
}

// leaks is a recording of a minute in which processes do what the kinds of findings
// are about: gamma (PID 300) leaves a socket in CLOSE_WAIT, delta (400) exits with
// one, epsilon (500) keeps one that was reset, zeta (600) has nine of ten descriptors
// open. With "over", gamma closes in the end.
func leaks(t testing.TB, what ...string) []byte {
	server := func(n uint64, pid uint32, comm string) *sock {
		s := client(n)
		s.Pid, s.Comm = pid, events.MakeComm(comm)
		s.Lport, s.Rport = 8080, s.Lport
		return s
	}
	const scanned = 62e9
	var before, rows, after [][]byte
	var details []events.Details
	accepted := func(s *sock) {
		before = append(before, s.step(events.Listen, events.SynRecv, 0), s.step(events.SynRecv, events.Established, 0), s.other(events.Accept))
	}
	fin := func(s *sock) {
		before = append(before, s.step(events.Established, events.CloseWait, events.HasSocket|events.Done))
	}
	for _, w := range what {
		switch w {
		case "close_wait_leak", "over":
			s := server(10, 300, "gamma")
			accepted(s)
			fin(s)
			rows = append(rows, s.row(scanned, events.CloseWait, 7))
			details = append(details, events.Details{Pid: 300, Exe: "/usr/bin/gamma", Container: "c0ffee", OpenFiles: 8, FileLimit: 1024})
			if w == "over" {
				s.at, s.Shutdown = scanned+1e9, 3
				after = append(after, s.step(events.CloseWait, events.LastAck, events.Owned|events.HasSocket|events.Done))
			}
		case "never_closed":
			s := server(20, 400, "delta")
			accepted(s)
			fin(s)
			s.at, s.Shutdown = scanned+1e9, 3
			after = append(after, s.step(events.CloseWait, events.LastAck, events.Owned|events.HasSocket|events.Done|events.Exiting))
		case "reset_fd_leak":
			s := server(30, 500, "epsilon")
			accepted(s)
			s.Err = 104
			before = append(before, s.step(events.Established, events.Close, events.HasSocket))
			s.Err = 0
			rows = append(rows, s.row(scanned, events.Close, 8))
		case "fd_limit":
			for n := range uint64(8) {
				s := server(40+n, 600, "zeta")
				accepted(s)
				rows = append(rows, s.row(scanned, events.Established, int32(n+1)))
			}
			details = append(details, events.Details{Pid: 600, OpenFiles: 9, FileLimit: 10})
		default:
			t.Fatalf("leaks: no such thing as %q", w)
		}
	}
	const wall = 1_700_000_000e9
	return recordUntil(t, scanned+10e9, func(w *recording.Writer) error {
		play := func(all [][]byte) {
			for _, raw := range all {
				check(t, w.Event(raw))
			}
		}
		// As the agent does: where a process runs comes before its first event, the
		// rest when it is needed.
		for _, d := range details {
			check(t, w.Details(&events.Details{Pid: d.Pid, Container: d.Container}))
			check(t, w.Container(&events.Container{ID: "c0ffee", Name: "web", Pod: "cart-0", Namespace: "shop"}))
		}
		play(before)
		check(t, w.Clock(scanned, wall))
		play(rows)
		check(t, w.Clock(scanned, wall))
		check(t, w.Scanned(events.Scan{Complete: true, Every: true}))
		for _, d := range details {
			check(t, w.Details(&d))
		}
		check(t, w.Clock(scanned, wall))
		play(after)
		check(t, w.Clock(scanned+5e9, wall))
		seen := 0
		for _, raw := range append(before, after...) {
			if events.Kind(raw[28]) == events.Transition {
				seen++
			}
		}
		return w.Books(events.Books{Seen: uint64(seen)})
	})
}

// record returns a recording that begins as a live run does.
func record(t testing.TB, write func(*recording.Writer) error) []byte {
	t.Helper()
	return recordUntil(t, 10e9, write)
}

// recordUntil is record, of a run that ends at that time.
func recordUntil(t testing.TB, end uint64, write func(*recording.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := recording.NewWriter(&b)
	check(t, err)
	check(t, w.Probe("transitions", "tp_btf"))
	check(t, w.Probe("clock", ""))
	check(t, w.Clock(1e9, 1_700_000_000e9))
	check(t, w.Scanned(events.Scan{Complete: true, Every: true}))
	check(t, write(w))
	check(t, w.Clock(end, 1_700_000_000e9))
	check(t, w.Flush())
	return b.Bytes()
}

// printed is what the tests look at in a record.
type printed struct {
	Type      string
	Cookie    string
	Newstate  string
	Pid       uint32
	Comm      string
	Lport     uint16
	Rport     uint16
	Role      string
	Closer    string
	End       string
	Unprinted uint64

	Seen, Delivered, Filtered uint64
	Lost                      map[string]uint64
	Records                   map[string]uint64
}

// records parses a stream, every line of which must be a JSON object.
func records(t testing.TB, stream []byte) []printed {
	t.Helper()
	var all []printed
	for line := range bytes.Lines(stream) {
		var p printed
		if err := json.Unmarshal(line, &p); err != nil {
			t.Fatalf("not a record: %v in %q", err, line)
		}
		all = append(all, p)
	}
	return all
}
