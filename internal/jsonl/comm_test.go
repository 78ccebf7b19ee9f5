package jsonl

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// nasty are command names that a process can give itself with prctl(2).
var nasty = []string{
	"", "nginx", `"`, `\`, `\"`, `\u0041`, "a\nb", "\r\n\t\b\f", "\x1b[2J\x1b[H", "\x7f", "\xff\xfe", "\xc3",
	"\xc3\x28", "\xe2\x82", "\xf0\x9f\x92", "\xed\xa0\x80", "\xc0\x80", "\xf4\x90\x80\x80", "\u0080\u009b2J", "\u2028\u2029",
	"\ufffd", "\u00a0", "\U0001F600", "</script>", "a\x00hidden", "\x00hidden", "0123456789abcde", "0123456789abcdef",
	"{\"pid\":1}", "null", "\u202emoc", "e\u0301",
}

// FuzzComm: whatever a process calls itself, its records stay one line of valid
// JSON each, and the name arrives as encoding/json would deliver it.
func FuzzComm(f *testing.F) {
	for _, s := range nasty {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var comm events.Comm
		copy(comm[:], in)
		name, _, _ := bytes.Cut(comm[:], []byte{0})
		want := roundTrip(t, string(name))

		tr := aggregate.Transition{Ends: ends(), Old: events.Close, New: events.SynSent}
		tr.Owner.Comm = comm
		s := aggregate.Socket{Ends: tr.Ends, State: events.Listen, Holders: []aggregate.Holder{{Pid: 1, Comm: comm, Fd: 3}}}
		c := aggregate.Connection{Ends: tr.Ends, Spent: &aggregate.Spent{}}
		// A path and a sentence may be longer than a name. An empty path is none.
		long := append([]byte("/"), in...)
		f := aggregate.Finding{
			Pid: 1, Comm: comm, Exe: string(long), Message: string(long),
			Container: events.Container{ID: string(long), Name: string(long), Pod: string(long), Namespace: string(long)},
			Holders:   []aggregate.SocketHolder{{Holder: s.Holders[0]}},
		}
		f.Evidence.Verdicts[aggregate.NotAccepted] = 1
		f.Evidence.Listeners = f.Holders
		f.Evidence.History = &aggregate.History{}
		e := Encoder{Wall: wall}
		for _, line := range [][]byte{e.Transition(nil, &tr), e.Connection(nil, &c), e.Socket(nil, &s), e.Finding(nil, &f)} {
			checkPlain(t, line)
			var got struct {
				Type                    string
				Comm                    string
				Exe, Container, Message string
				Pod, Namespace          string
				ContainerName           string `json:"container_name"`
				Holders                 []struct{ Comm string }
				Evidence                struct{ Listeners []struct{ Comm string } }
			}
			if err := json.Unmarshal(line, &got); err != nil {
				t.Fatalf("not JSON: %v in %q", err, line)
			}
			if got.Comm != want {
				t.Errorf("comm: got %q, want %q in %q", got.Comm, want, line)
			}
			for _, h := range append(got.Holders, got.Evidence.Listeners...) {
				if h.Comm != want {
					t.Errorf("comm of a holder: got %q, want %q in %q", h.Comm, want, line)
				}
			}
			if got.Type != "finding" {
				continue
			}
			want := roundTrip(t, string(long))
			if len(got.Holders) != 1 || len(got.Evidence.Listeners) != 1 || got.Exe != want || got.Container != want || got.Message != want ||
				got.Pod != want || got.Namespace != want || got.ContainerName != want {
				t.Errorf("got %+v, want one holder, one listener, and %q for exe, container, its names and message", got, want)
			}
		}
	})
}

// roundTrip is what is left of s after a trip through encoding/json: a byte that
// is not part of valid UTF-8 becomes U+FFFD.
func roundTrip(t *testing.T, s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back string
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	return back
}

// checkPlain fails if the line could do anything to a terminal or to a reader of
// lines: it is valid UTF-8 with one newline, at its end, and no other control
// character or line separator.
func checkPlain(t *testing.T, line []byte) {
	t.Helper()
	body, ok := bytes.CutSuffix(line, []byte("\n"))
	if !ok {
		t.Errorf("got %q, want a newline at its end", line)
	}
	if !utf8.Valid(body) {
		t.Errorf("got %q, want valid UTF-8", line)
	}
	for _, r := range string(body) {
		if unicode.IsControl(r) || unicode.In(r, unicode.Zl, unicode.Zp) {
			t.Errorf("got character %U in %q, want it escaped", r, line)
		}
	}
}
