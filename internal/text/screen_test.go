package text

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// cell is how many columns of a terminal r takes. Of the characters in these tests: as the East
// Asian Width of Unicode has it (W: two), and of a mark that combines, none.
func cell(t *testing.T, r rune) int {
	switch {
	case unicode.Is(unicode.Mn, r):
		return 0
	case unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Hangul), r == 'ー':
		return 2
	case r < 0x250:
		return 1
	}
	t.Fatalf("%U: how wide is it?", r)
	return 0
}

// grid is a line as a terminal shows it: what begins at which column.
func grid(t *testing.T, line string) map[int]rune {
	at, n := map[int]rune{}, 0
	for _, r := range line {
		w := cell(t, r)
		if w > 0 {
			at[n] = r
		}
		n += w
	}
	return at
}

func displayed(t *testing.T, line string) (n int) {
	for _, r := range line {
		n += cell(t, r)
	}
	return n
}

// Names of the same width are what the columns are for; these are of different ones.
var widths = []string{"a", "nginx", "äöü", "日本語", "サーバ", "e\u0301te\u0301", "웹"}

func TestColumnsStandUnderTheirHeaderWhateverIsInThem(t *testing.T) {
	all := []aggregate.Ends{}
	for _, name := range widths {
		for _, a := range []string{"127.0.0.1", "255.255.255.254", "::1", "2001:db8::1", "fe80::1234:5678:9abc:def0", "ffff:eeee:dddd:cccc:bbbb:aaaa:9999:8888", "1.1.1.1"} {
			all = append(all, ends(a, a, 65535, name))
		}
	}
	for _, columns := range []int{0, 80} {
		for name, e := range map[string]interface {
			Begin([]byte) []byte
			Socket([]byte, *aggregate.Socket) []byte
		}{"run": newEncoder(Screen{Columns: columns}), "snapshot": NewSnapshot(Screen{Columns: columns})} {
			header := string(e.Begin(nil))
			headers := 1
			for i := range all {
				out := string(e.Socket(nil, &aggregate.Socket{Ends: all[i], State: events.CloseWait, Age: time.Minute}))
				line, rest, _ := strings.Cut(out, "\n")
				if strings.HasPrefix(line, "TIME") || strings.HasPrefix(line, "STATE") {
					header = line + "\n"
					headers++
					line, _, _ = strings.Cut(rest, "\n")
				}
				for part := range strings.Lines(rest) {
					if n := displayed(t, strings.TrimSuffix(part, "\n")); columns > 0 && n > columns {
						t.Errorf("%s, %d columns: a line of %d:\n%s", name, columns, n, part)
					}
				}
				if columns > 0 && len(endpoint(all[i].Raddr, all[i].Rport)) > 28 {
					continue // what follows it is moved
				}
				shown := grid(t, line)
				for _, m := range regexp.MustCompile(`\S+`).FindAllStringIndex(strings.TrimSuffix(header, "\n"), -1) {
					if r, before := shown[m[0]], shown[m[0]-1]; r == 0 || r == ' ' || m[0] > 0 && before != ' ' && before != 0 {
						t.Errorf("%s, %d columns: %s does not begin at %d:\n%s%s", name, columns, header[m[0]:m[1]], m[0], header, line)
					}
				}
			}
			// Each width of an address once, and two or three of the other columns.
			if headers > 10 {
				t.Errorf("%s, %d columns: %d headers for %d lines", name, columns, headers, len(all))
			}
		}
	}
}

func TestMostLinesOfIPv4Fit80Columns(t *testing.T) {
	web := ends("10.0.12.34", "10.0.12.35", 65535, "nginx")
	web.Owner.Pid = 12345
	e, once := newEncoder(Screen{Columns: 80}), NewSnapshot(Screen{Columns: 80})
	for from := range events.NumStates {
		for _, d := range []time.Duration{aggregate.Unknown, 53 * time.Microsecond, 5*time.Millisecond + 321*time.Microsecond, 999 * time.Millisecond, 60*time.Second + 408*time.Millisecond, time.Hour} {
			for _, line := range []string{
				string(e.Begin(nil)),
				string(e.Transition(nil, &aggregate.Transition{Ends: web, Old: events.State(from), New: events.CloseWait, Dwell: d})),
				string(e.Transition(nil, &aggregate.Transition{Ends: web, Old: events.SynRecv, New: events.Established, Dwell: d})),
				string(once.Begin(nil)),
				string(once.Socket(nil, &aggregate.Socket{
					Ends: web, State: events.State(from), Age: d, Verdict: aggregate.NotAccepted,
					Holders: []aggregate.Holder{{Pid: 12345, Comm: events.MakeComm("nginx"), Fd: 1024}},
				})),
			} {
				for part := range strings.Lines(line) {
					if n := len([]rune(part)) - 1; n > 80 {
						t.Errorf("%d columns:\n%s", n, part)
					}
				}
			}
		}
	}
}

// What is left out for want of room is not needed to tell connections of one host apart.
func TestANarrowLineHasTheLocalPort(t *testing.T) {
	s := ends("10.0.0.1", "10.0.0.2", 8080, "nginx")
	s.Rport = 40000
	line := string(newEncoder(Screen{Columns: 80}).Transition(nil, &aggregate.Transition{Ends: s, Old: events.CloseWait, New: events.LastAck, Dwell: 500 * time.Millisecond}))
	for _, want := range []string{" 8080 ", " 10.0.0.2:40000 ", "CLOSE_WAIT -> LAST_ACK 500ms\n"} {
		if !strings.Contains(line, want) {
			t.Errorf("got %q, want %q in it", line, want)
		}
	}
	if strings.Contains(line, "10.0.0.1") {
		t.Errorf("got %q, want no local address", line)
	}
}

func TestABriefTimeIsCutNotRounded(t *testing.T) {
	for _, tt := range []struct {
		in   time.Duration
		want string
	}{
		{0, "0s"},
		{999, "0s"},
		{53999, "53µs"},
		{1239 * time.Microsecond, "1.23ms"},
		{99*time.Millisecond + 990*time.Microsecond, "99.9ms"},
		{999*time.Millisecond + 999*time.Microsecond, "999ms"},
		{9999 * time.Millisecond, "9.99s"},
		{60*time.Second + 408*time.Millisecond, "1m0.4s"},
		{100*time.Second + 900*time.Millisecond, "1m40s"},
		{25 * time.Hour, "25h0m"},
	} {
		if got := brief(tt.in); got != tt.want {
			t.Errorf("%d ns: got %q, want %q", tt.in, got, tt.want)
		}
	}
}

var sgr = regexp.MustCompile("\x1b\\[[0-9;]*m")

// each appends one record of every kind, with a name of a process's choice.
func each(e encoder, name string) (out []byte) {
	s := ends("1.1.1.1", "2001:db8::1", 1, name)
	comm := events.MakeComm(name)
	out = e.Transition(out, &aggregate.Transition{Ends: s, Gap: true})
	out = e.Connection(out, &aggregate.Connection{Ends: s, Unprinted: 1})
	out = e.Socket(out, &aggregate.Socket{Ends: s, State: events.CloseWait, Verdict: aggregate.EOFRead, Holders: []aggregate.Holder{{Pid: 7, Comm: comm, Fd: 3}}})
	for status := aggregate.Open; status <= aggregate.Resolved; status++ {
		for severity := aggregate.Info; severity <= aggregate.Critical; severity++ {
			out = e.Finding(out, &aggregate.Finding{
				Kind: aggregate.CloseWaitLeak, Status: status, Severity: severity, Count: 1, Message: name + " keeps", Advice: "Close it.",
				Holders: []aggregate.SocketHolder{{Holder: aggregate.Holder{Pid: 7, Comm: comm, Fd: 3}}},
			})
		}
	}
	out = e.Summary(out, &aggregate.Summary{Processes: []aggregate.ProcessSummary{{Comm: comm}}})
	return e.Stats(out, &aggregate.Stats{Unprinted: 1})
}

// Colour is all that a terminal that takes it gets more, whatever the names: no other escape sequence,
// and each line ends in the style in which it began.
func TestColourIsAllThatIsAdded(t *testing.T) {
	for _, name := range nasty {
		for _, columns := range []int{80, 200} {
			for n := range 2 {
				encode := func(color bool) string {
					s := Screen{Columns: columns, Color: color}
					if n == 0 {
						return string(each(newEncoder(s), name))
					}
					return string(each(NewSnapshot(s), name))
				}
				plain, coloured := encode(false), encode(true)
				if strings.ContainsRune(plain, '\x1b') {
					t.Errorf("%q: got %q, want no escape sequence", name, plain)
				}
				if got := sgr.ReplaceAllString(coloured, ""); got != plain {
					t.Errorf("%q: got without colour\n%q\nwant\n%q", name, got, plain)
				}
				if !strings.Contains(coloured, "\x1b[1;31m") {
					t.Errorf("%q: got %q, want what is critical in red", name, coloured)
				}
				if strings.Count(coloured, "\x1b[0m")*2 != strings.Count(coloured, "\x1b") {
					t.Errorf("%q: got %q, want each style to end", name, coloured)
				}
			}
		}
	}
}

func TestAFindingSaysWhoHoldsItsSocketsAndWhatToDo(t *testing.T) {
	holder := func(pid uint32, name string, fd int32) aggregate.SocketHolder {
		return aggregate.SocketHolder{Holder: aggregate.Holder{Pid: pid, Comm: events.MakeComm(name), Fd: fd}}
	}
	f := &aggregate.Finding{
		Kind: aggregate.CloseWaitLeak, Severity: aggregate.Warning, Count: 3, Message: "web[7] keeps 3", Advice: "Close them.",
		Holders: []aggregate.SocketHolder{holder(7, "web", 4), holder(8, "b\tc", 4), holder(7, "web", 5)},
	}
	text := string(newEncoder(Screen{}).Finding(nil, f))
	_, below, _ := strings.Cut(text, "\n")
	if want := "    Close them.\n    Held by web[7] fd 4 5, b\\x09c[8] fd 4\n"; below != want {
		t.Errorf("got %q, want %q below the message", below, want)
	}
	f.Count = 300
	if text := string(newEncoder(Screen{}).Finding(nil, f)); !strings.HasSuffix(text, "fd 4, and so on\n") {
		t.Errorf("got %q, want it to say that there are more", text)
	}
	f.Count, f.Holders = 10, nil // each with two holders, of which there is no room for all
	for i := range int32(aggregate.MaxFindingHolders) {
		f.Holders = append(f.Holders, holder(7+uint32(i%2), "web", 4+i/2))
	}
	if text := string(newEncoder(Screen{}).Finding(nil, f)); !strings.HasSuffix(text, ", and so on\n") {
		t.Errorf("got %q, want it to say that there are more", text)
	}
	f.Status = aggregate.Resolved
	if text := string(newEncoder(Screen{}).Finding(nil, f)); strings.Count(text, "\n") != 1 {
		t.Errorf("got %q, want one line of what is over", text)
	}
}

func TestATerminalBreaksNoWord(t *testing.T) {
	f := &aggregate.Finding{Kind: aggregate.CloseWaitLeak, Message: strings.Repeat("日本 word ", 40) + strings.Repeat("x", 100), Advice: strings.Repeat("do ", 60) + "it."}
	for columns := 40; columns < 90; columns++ {
		out := string(newEncoder(Screen{Columns: columns}).Finding(nil, f))
		if got, want := strings.Fields(out)[5:], strings.Fields(f.Message+" "+f.Advice); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%d columns: got words\n%q\nwant\n%q", columns, got, want)
		}
		for line := range strings.Lines(out) {
			if n := displayed(t, strings.TrimSuffix(line, "\n")); n > columns && !strings.Contains(line, "xxx") {
				t.Errorf("%d columns: a line of %d: %q", columns, n, line)
			}
		}
	}
}
