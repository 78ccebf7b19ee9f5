package text

import (
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// cells splits a line of the table by its columns. The last holds all that is left.
func cells(t *testing.T, header, line string) map[string]string {
	t.Helper()
	line, ok := strings.CutSuffix(line, "\n")
	if !ok || strings.Contains(line, "\n") {
		t.Fatalf("got %q, want one line", line)
	}
	names := strings.Fields(header)
	runes, got := []rune(line), map[string]string{}
	for n, name := range names {
		at, end := strings.Index(header, name), len(runes)
		if n+1 < len(names) {
			end = strings.Index(header, names[n+1])
		}
		cell := string(runes[at:end])
		if strings.HasPrefix(cell, " ") || n+1 < len(names) && !strings.HasSuffix(cell, " ") {
			t.Errorf("column %s: got %q, want it to begin where the header does and end before the next:\n%s%s", name, cell, header, line)
		}
		got[name] = strings.TrimRight(cell, " ")
	}
	return got
}

func TestASocketOfASnapshotStandsUnderItsHeader(t *testing.T) {
	nobody := ends("0.0.0.0", "0.0.0.0", 0, "")
	nobody.Owner = aggregate.Owner{}
	holders := []aggregate.Holder{
		{Pid: 7, Comm: events.MakeComm("a b"), Fd: 3}, {Pid: 4194304, Comm: events.MakeComm("c\x1b[2J"), Fd: 1048575},
	}
	for _, tt := range []struct {
		name string
		in   aggregate.Socket
		want map[string]string
	}{
		{
			"nothing known",
			aggregate.Socket{Ends: nobody, State: events.Listen, Age: aggregate.Unknown},
			map[string]string{
				"STATE": "LISTEN", "AGE": "-", "VERDICT": "-", "LADDR:LPORT": "*:*", "RADDR:RPORT": "*:*",
				"PID": "-", "COMM": "-", "UNREAD": "-", "HOLDERS": "-",
			},
		},
		{
			"everything, and as long as it gets",
			aggregate.Socket{
				Ends:  ends("255.255.255.254", "255.255.255.253", 65535, "fifteen-bytes-x"),
				State: events.CloseWait, Age: 75 * time.Second, Verdict: aggregate.NotAccepted, Unread: 1000, Holders: holders,
			},
			map[string]string{
				"STATE": "CLOSE_WAIT", "AGE": "1m15s+", "VERDICT": "not_accepted",
				"LADDR:LPORT": "255.255.255.254:65535", "RADDR:RPORT": "255.255.255.253:65535",
				"PID": "4194304", "COMM": "fifteen-bytes-x", "UNREAD": "999", "HOLDERS": `a b[7]:3 c\x1b[2J[4194304]:1048575`,
			},
		},
		{
			"dead, with its descriptor open",
			aggregate.Socket{Ends: ends("1.1.1.1", "2.2.2.2", 1, "äöü"), State: events.Close, Age: time.Minute, Verdict: aggregate.Dead},
			map[string]string{"STATE": "CLOSE", "AGE": "1m0s+", "VERDICT": "reset_fd_leak", "COMM": "äöü", "UNREAD": "-"},
		},
		{ // The FIN counts as a byte until it is read.
			"in CLOSE_WAIT, all but the FIN read",
			aggregate.Socket{Ends: ends("1.1.1.1", "2.2.2.2", 1, "a"), State: events.CloseWait, Unread: 1},
			map[string]string{"STATE": "CLOSE_WAIT", "AGE": "0s+", "UNREAD": "0"},
		},
		{
			"in CLOSE_WAIT, all read",
			aggregate.Socket{Ends: ends("1.1.1.1", "2.2.2.2", 1, "a"), State: events.CloseWait},
			map[string]string{"UNREAD": "0"},
		},
		{
			"the state with the longest name",
			aggregate.Socket{Ends: ends("1.1.1.1", "2.2.2.2", 1, "a"), State: events.Established, Age: 99 * 24 * time.Hour},
			map[string]string{"STATE": "ESTABLISHED", "AGE": "2376h0m+"},
		},
	} {
		e := NewSnapshot(Screen{})
		got := cells(t, string(e.Begin(nil)), string(e.Socket(nil, &tt.in)))
		for column, want := range tt.want {
			if got[column] != want {
				t.Errorf("%s, column %s: got %q, want %q", tt.name, column, got[column], want)
			}
		}
	}
}

// A lower bound must not become more than it is.
func TestAnAgeIsCutNotRounded(t *testing.T) {
	for _, tt := range []struct {
		in   time.Duration
		want string
	}{
		{0, "0s"},
		{999 * time.Microsecond, "0s"},
		{1999 * time.Microsecond, "1ms"},
		{9999*time.Millisecond + 999*time.Microsecond, "9.999s"},
		{10*time.Second + 999*time.Millisecond, "10s"},
		{59*time.Minute + 59*time.Second + 999*time.Millisecond, "59m59s"},
		{time.Hour, "1h0m"},
		{time.Hour + 59*time.Minute + 59*time.Second, "1h59m"},
		{1000 * time.Hour, "1000h0m"},
	} {
		if got := roughly(tt.in); got != tt.want {
			t.Errorf("%d ns: got %q, want %q", tt.in, got, tt.want)
		}
	}
}

func TestAFindingStandsBelowTheTableWithWhatToDo(t *testing.T) {
	e := NewSnapshot(Screen{})
	f := &aggregate.Finding{
		Kind: aggregate.CloseWaitLeak, Severity: aggregate.Warning, Message: "nginx[7] keeps 3 connections", Advice: "Close them.",
	}
	want := "\nWARNING close_wait_leak: nginx[7] keeps 3 connections\n    Close them.\n"
	if got := string(e.Finding([]byte("x"), f)); got != "x"+want {
		t.Errorf("got %q, want %q appended", got, want)
	}
}

func TestNoNameReachesTheTableRaw(t *testing.T) {
	for _, name := range nasty {
		s := ends("1.1.1.1", "2.2.2.2", 1, name)
		e := NewSnapshot(Screen{})
		line := string(e.Socket(nil, &aggregate.Socket{
			Ends: s, State: events.CloseWait, Holders: []aggregate.Holder{{Pid: 1, Comm: s.Owner.Comm, Fd: 7}},
		}))
		body, ok := strings.CutSuffix(line, "\n")
		if !ok {
			t.Errorf("got %q, want a newline at its end", line)
		}
		checkPrintable(t, body)
	}
}
