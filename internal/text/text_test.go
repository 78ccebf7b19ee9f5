package text

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

const wall = int64(1_700_000_000_123_456_789)

func addr(s string) events.Addr { return events.Addr(netip.MustParseAddr(s).As16()) }

func ends(laddr, raddr string, port uint16, comm string) aggregate.Ends {
	return aggregate.Ends{
		Laddr: addr(laddr), Lport: port, Raddr: addr(raddr), Rport: port,
		Owner: aggregate.Owner{Pid: 4194304, Comm: events.MakeComm(comm), Source: aggregate.SourceAccept},
	}
}

func newEncoder(s Screen) *Encoder {
	e := NewEncoder(s)
	e.Wall = wall
	return e
}

// encoder is what an Encoder and a Snapshot have in common.
type encoder interface {
	Transition([]byte, *aggregate.Transition) []byte
	Connection([]byte, *aggregate.Connection) []byte
	Socket([]byte, *aggregate.Socket) []byte
	Finding([]byte, *aggregate.Finding) []byte
	Summary([]byte, *aggregate.Summary) []byte
	Stats([]byte, *aggregate.Stats) []byte
}

// lines are one record of each type that has the columns.
func lines(s aggregate.Ends) map[string]string {
	e := newEncoder(Screen{})
	return map[string]string{
		"transition": string(e.Transition(nil, &aggregate.Transition{Ends: s, Old: events.FinWait1, New: events.FinWait2, Dwell: time.Second})),
		"connection": string(e.Connection(nil, &aggregate.Connection{Ends: s, Role: aggregate.Server, End: aggregate.EndFin})),
		"socket": string(e.Socket(nil, &aggregate.Socket{
			Ends: s, State: events.CloseWait, Age: time.Minute,
			Holders: []aggregate.Holder{{Pid: 1, Comm: s.Owner.Comm, Fd: 7}},
		})),
	}
}

func TestIPv4LinesStandUnderTheirHeader(t *testing.T) {
	header, starts := string(newEncoder(Screen{}).Begin(nil)), map[string]int{}
	for _, name := range []string{"TIME", "PID", "COMM", "LADDR:LPORT", "RADDR:RPORT", "WHAT"} {
		starts[name] = strings.Index(header, name)
	}
	unknown := ends("0.0.0.0", "0.0.0.0", 0, "")
	unknown.Owner = aggregate.Owner{}
	for _, tt := range []struct {
		name string
		ends aggregate.Ends
		want map[string]string // column -> what it begins with
	}{
		{
			"the shortest", ends("1.1.1.1", "2.2.2.2", 1, "a"),
			map[string]string{"PID": "4194304 ", "COMM": "a ", "LADDR:LPORT": "1.1.1.1:1 ", "RADDR:RPORT": "2.2.2.2:1 "},
		},
		{
			"the longest", ends("255.255.255.254", "255.255.255.253", 65535, "fifteen-bytes-x"),
			map[string]string{
				"COMM":        "fifteen-bytes-x ",
				"LADDR:LPORT": "255.255.255.254:65535 ", "RADDR:RPORT": "255.255.255.253:65535 ",
			},
		},
		{
			"nothing known", unknown,
			map[string]string{"PID": "- ", "COMM": "- ", "LADDR:LPORT": "*:* ", "RADDR:RPORT": "*:* "},
		},
		{
			"a name of characters of several bytes", ends("1.1.1.1", "2.2.2.2", 1, "äöüß"),
			map[string]string{"COMM": "äöüß ", "LADDR:LPORT": "1.1.1.1:1 "},
		},
	} {
		for kind, line := range lines(tt.ends) {
			cells := []rune(line)
			for column, at := range starts {
				if cells[at] == ' ' || at > 0 && cells[at-1] != ' ' {
					t.Errorf("%s, %s: column %s does not begin at %d:\n%s%s", tt.name, kind, column, at, header, line)
				}
				if want := tt.want[column]; !strings.HasPrefix(string(cells[at:]), want) {
					t.Errorf("%s, %s, column %s: got %q, want %q", tt.name, kind, column, string(cells[at:]), want)
				}
			}
		}
	}
}

func TestAnEndOfIPv6CanBeToldFromItsPort(t *testing.T) {
	for _, tt := range []struct {
		addr string
		port uint16
		want string
	}{
		{"::1", 80, "[::1]:80"}, // as netip.ParseAddrPort reads it
		{"::1", 0, "[::1]:*"},
		{"::", 80, "[::]:80"},
		{"::", 0, "*:*"},
		{"127.0.0.1", 0, "127.0.0.1:*"},
		{"0.0.0.0", 80, "0.0.0.0:80"},
		{"::ffff:127.0.0.1", 80, "127.0.0.1:80"},
	} {
		if got := endpoint(addr(tt.addr), tt.port); got != tt.want {
			t.Errorf("%s port %d: got %q, want %q", tt.addr, tt.port, got, tt.want)
		}
	}
}

func TestALineSaysWhatHappened(t *testing.T) {
	s := ends("10.0.0.1", "10.0.0.2", 80, "nginx")
	e := newEncoder(Screen{})
	const dwell = 500*time.Millisecond + 220*time.Microsecond
	for _, tt := range []struct {
		name string
		line []byte
		want []string
		not  string
	}{
		{
			"a transition", e.Transition(nil, &aggregate.Transition{Ends: s, Old: events.SynSent, New: events.Established, Dwell: dwell}),
			[]string{"SYN_SENT", "-> ESTABLISHED", "500.220 ms"}, "missed",
		},
		{
			"a transition after a gap", e.Transition(nil, &aggregate.Transition{Ends: s, Old: events.CloseWait, New: events.LastAck, Dwell: aggregate.Unknown, Gap: true}),
			[]string{"CLOSE_WAIT", "-> LAST_ACK", "- ms", "missed"}, "0.000",
		},
		{
			"a connection", e.Connection(nil, &aggregate.Connection{
				Ends: s, Ktime: 3e9, Start: 1e9, Role: aggregate.Client, Closer: aggregate.CloserRemote,
				End: aggregate.EndResetReceived, Ended: true, Payload: true, Sent: 12, Received: 34,
			}),
			[]string{"connection client", "end=reset_received", "closer=remote", "2000.000 ms", "sent=12", "received=34"}, "time_wait",
		},
		{
			"a connection that was in TIME_WAIT", e.Connection(nil, &aggregate.Connection{Ends: s, End: aggregate.EndFin, TimeWaitEnd: aggregate.Reused}),
			[]string{"end=fin", "time_wait_end=reused"}, "sent",
		},
		{
			"a transition that the tracepoint does not show",
			e.Transition(nil, &aggregate.Transition{Ends: s, Old: events.FinWait2, New: events.TimeWait, Dwell: dwell, Mini: true}),
			[]string{"FIN_WAIT2", "-> TIME_WAIT", "500.220 ms"}, "missed",
		},
		{
			"a connection of which nothing is known", e.Connection(nil, &aggregate.Connection{Ends: s}),
			[]string{"connection"}, "=",
		},
		{
			"a socket", e.Socket(nil, &aggregate.Socket{
				Ends: s, State: events.CloseWait, Age: 1500 * time.Millisecond,
				Holders: []aggregate.Holder{{Pid: 7, Comm: events.MakeComm("a"), Fd: 3}, {Pid: 8, Comm: events.MakeComm("b"), Fd: 4}},
			}),
			[]string{"socket CLOSE_WAIT", "at least 1500.000 ms", "a[7] fd=3", "b[8] fd=4"}, "",
		},
		{
			"a socket of unknown age", e.Socket(nil, &aggregate.Socket{Ends: s, State: events.Listen, Age: aggregate.Unknown}),
			[]string{"socket LISTEN"}, "least",
		},
		{
			"a socket that its process has left", e.Socket(nil, &aggregate.Socket{
				Ends: s, State: events.CloseWait, Age: time.Hour, Verdict: aggregate.EOFUnread,
			}),
			[]string{"socket CLOSE_WAIT", "3600000.000 ms", "eof_unread"}, "",
		},
		{
			"a finding", e.Finding(nil, &aggregate.Finding{
				Kind: aggregate.ResetFdLeak, Status: aggregate.Update, Severity: aggregate.Critical, Message: "nginx[7] keeps 3",
			}),
			[]string{" finding update critical reset_fd_leak: nginx[7] keeps 3"}, "",
		},
		{
			"the books", e.Stats(nil, &aggregate.Stats{
				Seen: 100, Delivered: 60, Filtered: 30, Lost: aggregate.Lost{RingFull: 1, Nested: 2, TableFull: 3, Decode: 4}, Unprinted: 5, Tracked: 6, Evicted: 7,
			}),
			[]string{"stats", "seen=100", "delivered=60", "filtered=30", "lost=10", "unprinted=5", "sockets=6", "evicted=7"}, "",
		},
	} {
		line := string(tt.line)
		for _, want := range tt.want {
			if !strings.Contains(line, want) {
				t.Errorf("%s: got %q, want %q in it", tt.name, line, want)
			}
		}
		if tt.not != "" && strings.Contains(line, tt.not) {
			t.Errorf("%s: got %q, want no %q in it", tt.name, line, tt.not)
		}
		if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") {
			t.Errorf("%s: got %q, want one line", tt.name, line)
		}
	}
}

func TestTheTimeOfALineIsTheReaders(t *testing.T) {
	for _, ktime := range []uint64{0, 1, 876_543_211, 3600_000_000_000} {
		e := newEncoder(Screen{})
		want := time.Unix(0, wall+int64(ktime)).Local().Format("15:04:05.000000")
		tr := e.Transition(nil, &aggregate.Transition{Ends: ends("1.1.1.1", "2.2.2.2", 1, "a"), Ktime: ktime})
		stats := e.Stats(nil, &aggregate.Stats{Ktime: ktime})
		finding := e.Finding(nil, &aggregate.Finding{Ktime: ktime})
		for _, line := range [][]byte{tr, stats, finding} {
			if got, _, _ := strings.Cut(string(line), " "); got != want {
				t.Errorf("ktime %d: got %s, want %s", ktime, got, want)
			}
		}
	}
}

var escape = regexp.MustCompile(`\\x[0-9a-f]{2}`)

// unescape gives back the bytes that Printable was given.
func unescape(s string) string {
	return escape.ReplaceAllStringFunc(s, func(x string) string {
		n, _ := strconv.ParseUint(x[2:], 16, 8)
		return string([]byte{byte(n)})
	})
}

var nasty = []string{
	"", "nginx", "a b", "\x1b[2J", "\x1b]0;title\x07", "a\nb\r\t\v", "\x7f\u0080\u009b2J", "\xff\xfe", "\xc3\x28", "\xe2\x82",
	"\u2028\u2029", "\u202emoc", "\u200b", "\ufffd", "\u00a0", "\xed\xa0\x80", "\U0001F600", `\x1b`, `\`, `\\`, "\x00",
}

// FuzzPrintable: no name can do anything to a terminal, and none can pass for
// another: the bytes can be told from what is shown.
func FuzzPrintable(f *testing.F) {
	for _, s := range nasty {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, comm []byte) {
		got := Printable(comm)
		checkPrintable(t, got)
		if back := unescape(got); back != string(comm) {
			t.Errorf("%q is shown as %s, which stands for %q", comm, got, back)
		}
	})
}

func checkPrintable(t *testing.T, s string) {
	t.Helper()
	if !utf8.ValidString(s) {
		t.Errorf("got %q, want valid UTF-8", s)
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			t.Errorf("got %U in %q, want printable characters only", r, s)
		}
	}
}

func TestNoNameReachesTheTerminalRaw(t *testing.T) {
	for _, name := range nasty {
		for kind, line := range lines(ends("1.1.1.1", "2.2.2.2", 1, name)) {
			body, ok := strings.CutSuffix(line, "\n")
			if !ok {
				t.Errorf("%s: got %q, want a newline at its end", kind, line)
			}
			checkPrintable(t, body)
		}
	}
}

// All that a finding says of a process may be of its choice.
func TestNoFindingReachesTheTerminalRaw(t *testing.T) {
	for _, name := range nasty {
		f := &aggregate.Finding{
			Kind: aggregate.CloseWaitLeak, Pid: 7, Comm: events.MakeComm(name), Exe: name, Container: events.Container{ID: name}, Count: 1, Message: name + "[7] keeps",
			Holders: []aggregate.SocketHolder{{Holder: aggregate.Holder{Pid: 7, Comm: events.MakeComm(name), Fd: 3}}},
		}
		for _, e := range []encoder{newEncoder(Screen{}), NewSnapshot(Screen{})} {
			text := string(e.Finding(nil, f))
			if !strings.HasSuffix(text, "\n") {
				t.Errorf("%T: got %q, want a newline at its end", e, text)
			}
			for line := range strings.Lines(text) {
				checkPrintable(t, strings.TrimSuffix(line, "\n"))
			}
			if !strings.Contains(text, Printable([]byte(name))+"[7] keeps") {
				t.Errorf("%T: got %q, want the message in it", e, text)
			}
		}
	}
}
