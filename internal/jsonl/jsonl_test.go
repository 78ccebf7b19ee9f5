package jsonl

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

var (
	inPod       = events.Container{ID: "abc123", Name: "web", Pod: "cart-0", Namespace: "shop"}
	objectInPod = object{"container": "abc123", "pod": "cart-0", "namespace": "shop", "container_name": "web"}
)

// object is a JSON object as encoding/json sees it, with numbers as they are written.
type object = map[string]any

// num is a JSON number that is written exactly so.
func num(s string) json.Number { return json.Number(s) }

// parse reads a record as a consumer does, and fails unless it is exactly one
// line with one object, in which no name stands twice.
func parse(t testing.TB, line []byte) object {
	t.Helper()
	if n := bytes.Count(line, []byte("\n")); n != 1 || line[len(line)-1] != '\n' {
		t.Fatalf("got %d newlines in %q, want one, at its end", n, line)
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.UseNumber()
	var got object
	if err := dec.Decode(&got); err != nil {
		t.Fatalf("not JSON: %v in %s", err, line)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		t.Fatalf("got more than one value in %s", line)
	}
	if repeated := repeatedName(line); repeated != "" {
		t.Fatalf("got name %q twice in one object of %s", repeated, line)
	}
	return got
}

// repeatedName returns a name that stands twice in one object of valid JSON, or
// "". encoding/json would take the last of them without a word.
func repeatedName(line []byte) string {
	type level struct {
		names map[string]bool // nil in an array
		value bool            // the next token of an object is a value
	}
	dec := json.NewDecoder(bytes.NewReader(line))
	var open []level
	for {
		tok, err := dec.Token()
		if err != nil {
			return ""
		}
		var in *level
		if len(open) > 0 {
			in = &open[len(open)-1]
		}
		if d, ok := tok.(json.Delim); ok && (d == '}' || d == ']') {
			open = open[:len(open)-1]
			continue
		}
		if in != nil && in.names != nil {
			if name, ok := tok.(string); ok && !in.value {
				if in.names[name] {
					return name
				}
				in.names[name] = true
			}
			in.value = !in.value
		}
		switch tok {
		case json.Delim('{'):
			open = append(open, level{names: map[string]bool{}})
		case json.Delim('['):
			open = append(open, level{})
		}
	}
}

func addr(s string) events.Addr { return events.Addr(netip.MustParseAddr(s).As16()) }

// wall is a moment in the past for ktime 0, with nanoseconds that carry.
const wall = int64(1_700_000_000_999_999_000)

// at is the time of ktime as the contract wants it, by the time package.
func at(ktime uint64) string {
	return time.Unix(0, wall+int64(ktime)).UTC().Format("2006-01-02T15:04:05.000000000Z")
}

// ends has every field known.
func ends() aggregate.Ends {
	return aggregate.Ends{
		Cookie: 0xdeadbeef01, Netns: 4026531840, Lport: 40000, Rport: 443,
		Laddr: addr("10.0.0.1"), Raddr: addr("192.0.2.7"),
		Owner: aggregate.Owner{Pid: 4711, Comm: events.MakeComm("nginx"), Source: aggregate.SourceConnect},
	}
}

// endsObject is what ends must look like.
func endsObject(kind string, ktime uint64) object {
	return object{
		"type": kind, "time": at(ktime),
		"cookie": "deadbeef01", "netns": num("4026531840"), "family": "ipv4",
		"laddr": "10.0.0.1", "lport": num("40000"), "raddr": "192.0.2.7", "rport": num("443"),
		"pid": num("4711"), "comm": "nginx", "owner_source": "connect",
	}
}

// with returns o with other fields; a value of nil is JSON's null.
func with(o object, fields object) object {
	for k, v := range fields {
		o[k] = v
	}
	return o
}

func check(t *testing.T, line []byte, want object) {
	t.Helper()
	if diff := cmp.Diff(want, parse(t, line)); diff != "" {
		t.Errorf("got (+) and want (-) differ:\n%s", diff)
	}
}

func TestATransitionHasTheFieldsOfTheContract(t *testing.T) {
	base := object{
		"oldstate": "FIN_WAIT1", "newstate": "FIN_WAIT2", "dwell_ms": num("500.220"), "source": "tracepoint",
	}
	for _, tt := range []struct {
		name   string
		change func(*aggregate.Transition)
		want   object
	}{
		{"all known", func(*aggregate.Transition) {}, nil},
		{"no cookie", func(tr *aggregate.Transition) { tr.Cookie = 0 }, object{"cookie": nil}},
		{"the largest cookie", func(tr *aggregate.Transition) { tr.Cookie = math.MaxUint64 }, object{"cookie": "ffffffffffffffff"}},
		{
			"of a minisocket", func(tr *aggregate.Transition) { tr.Old, tr.New, tr.Mini = events.FinWait2, events.TimeWait, true },
			object{"oldstate": "FIN_WAIT2", "newstate": "TIME_WAIT", "source": "timewait"},
		},
		{"no local port yet", func(tr *aggregate.Transition) { tr.Lport = 0 }, object{"lport": nil}},
		{"the largest ports", func(tr *aggregate.Transition) { tr.Lport, tr.Rport = 65535, 65535 }, object{"lport": num("65535"), "rport": num("65535")}},
		{"no peer", func(tr *aggregate.Transition) { tr.Raddr, tr.Rport = addr("0.0.0.0"), 0 }, object{"raddr": nil, "rport": nil}},
		{
			"an IPv6 listener",
			func(tr *aggregate.Transition) { tr.Laddr, tr.Raddr, tr.Rport = addr("::"), addr("::"), 0 },
			object{"family": "ipv6", "laddr": "::", "raddr": nil, "rport": nil},
		},
		{
			"IPv6",
			func(tr *aggregate.Transition) { tr.Laddr, tr.Raddr = addr("2001:db8::1"), addr("fe80::2") },
			object{"family": "ipv6", "laddr": "2001:db8::1", "raddr": "fe80::2"},
		},
		{
			"IPv4-mapped addresses are IPv4",
			func(tr *aggregate.Transition) {
				tr.Laddr, tr.Raddr = addr("::ffff:127.0.0.1"), addr("::ffff:127.0.0.2")
			},
			object{"family": "ipv4", "laddr": "127.0.0.1", "raddr": "127.0.0.2"},
		},
		{
			"no owner",
			func(tr *aggregate.Transition) { tr.Owner = aggregate.Owner{} },
			object{"pid": nil, "comm": nil, "owner_source": nil},
		},
		{"no dwell time", func(tr *aggregate.Transition) { tr.Dwell = aggregate.Unknown }, object{"dwell_ms": nil}},
		{"in a container", func(tr *aggregate.Transition) { tr.Container.ID = "abc123" }, object{"container": "abc123"}},
		{"in a pod", func(tr *aggregate.Transition) { tr.Container = inPod }, objectInPod},
		{"a gap", func(tr *aggregate.Transition) { tr.Gap = true }, object{"gap": true}},
		{"records before it were shed", func(tr *aggregate.Transition) { tr.Unprinted = 3 }, object{"unprinted": num("3")}},
		{
			"both marks",
			func(tr *aggregate.Transition) { tr.Gap, tr.Unprinted = true, math.MaxUint32 },
			object{"gap": true, "unprinted": num("4294967295")},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tr := aggregate.Transition{
				Ends: ends(), Ktime: 123, Old: events.FinWait1, New: events.FinWait2,
				Dwell: 500*time.Millisecond + 220*time.Microsecond,
			}
			tt.change(&tr)
			e := Encoder{Wall: wall}
			check(t, e.Transition(nil, &tr), with(with(endsObject("transition", 123), base), tt.want))
		})
	}
}

// The kernel's names without TCP_ (include/net/tcp_states.h), as the contract
// lists them.
func TestStatesHaveTheKernelsNames(t *testing.T) {
	names := map[events.State]string{
		1: "ESTABLISHED", 2: "SYN_SENT", 3: "SYN_RECV", 4: "FIN_WAIT1", 5: "FIN_WAIT2", 6: "TIME_WAIT",
		7: "CLOSE", 8: "CLOSE_WAIT", 9: "LAST_ACK", 10: "LISTEN", 11: "CLOSING",
	}
	for from, oldstate := range names {
		for to, newstate := range names {
			e := Encoder{Wall: wall}
			got := parse(t, e.Transition(nil, &aggregate.Transition{Ends: ends(), Old: from, New: to}))
			if got["oldstate"] != oldstate || got["newstate"] != newstate {
				t.Errorf("%d -> %d: got %v -> %v, want %s -> %s", from, to, got["oldstate"], got["newstate"], oldstate, newstate)
			}
		}
	}
}

func TestOwnerSourcesHaveTheNamesOfTheContract(t *testing.T) {
	for source, want := range map[aggregate.Source]any{
		aggregate.SourceNone: nil, aggregate.SourceConnect: "connect", aggregate.SourceListen: "listen",
		aggregate.SourceAccept: "accept", aggregate.SourceClose: "close", aggregate.SourceFd: "fd",
		aggregate.SourceListener: "listener",
	} {
		tr := aggregate.Transition{Ends: ends(), Old: events.Close, New: events.SynSent}
		tr.Owner.Source = source
		e := Encoder{Wall: wall}
		if got := parse(t, e.Transition(nil, &tr))["owner_source"]; got != want {
			t.Errorf("source %d: got %v, want %v", source, got, want)
		}
	}
}

func TestADurationHasMicrosecondDigits(t *testing.T) {
	for _, tt := range []struct {
		in   time.Duration
		want string
	}{
		{0, "0.000"},
		{999 * time.Nanosecond, "0.000"}, // cut, not rounded
		{time.Microsecond, "0.001"},
		{999_999 * time.Nanosecond, "0.999"},
		{time.Millisecond, "1.000"},
		{500*time.Millisecond + 220*time.Microsecond, "500.220"},
		{60 * time.Second, "60000.000"},
		{24 * time.Hour, "86400000.000"},
		{math.MaxInt64, "9223372036854.775"},
		{aggregate.Unknown, "null"},
	} {
		if got := string(appendMs([]byte("x"), tt.in)); got != "x"+tt.want {
			t.Errorf("%d ns: got %q, want %q", tt.in, got, "x"+tt.want)
		}
	}
}

// One encoder takes all of them in turn, so that what it remembers of the last
// second would show in the next.
func TestTheTimeIsThatOfTheKernelPlusWall(t *testing.T) {
	var e Encoder
	for _, tt := range []struct {
		name  string
		ktime uint64
		wall  int64
	}{
		{"before the wall clock is known", 5_000_000_001, 0},
		{"the first second of 1970", 7, 0},
		{"the last nanosecond of a second", 999, wall - 999},
		{"one later", 1000, wall - 999},
		{"back, as when the clock is set", 0, wall - 3600_000_000_000},
		{"a second without nanoseconds", 0, 1_700_000_000_000_000_000},
		{"one nanosecond", 1, 1_700_000_000_000_000_000},
		{"trailing zeros", 120_000_000, 1_700_000_000_000_000_000},
		{"the last second of a leap day", 86_399_000_000_000, 1709164800_000_000_000},
		{"the end of a year", 0, 1735689599_999_999_999},
		{"the next", 1, 1735689599_999_999_999},
		{"before 1970, as a host without a clock may say", 500, -1_000_000_000},
		{"a second before 1970", 0, -1_000_000_000},
	} {
		e.Wall = tt.wall
		got := parse(t, e.Transition(nil, &aggregate.Transition{Ends: ends(), Ktime: tt.ktime}))["time"]
		moment := time.Unix(0, int64(tt.ktime)+tt.wall).UTC()
		if want := moment.Format("2006-01-02T15:04:05.000000000Z"); got != want {
			t.Errorf("%s: got %v, want %s", tt.name, got, want)
		}
		if parsed, err := time.Parse(time.RFC3339Nano, fmt.Sprint(got)); err != nil || !parsed.Equal(moment) {
			t.Errorf("%s: time.Parse makes %v (error %v) of %v, want %v", tt.name, parsed, err, got, moment)
		}
	}
}

func TestASocketHasTheFieldsOfTheContract(t *testing.T) {
	holders := []aggregate.Holder{
		{Pid: 4711, Comm: events.MakeComm("nginx"), Fd: 0},
		{Pid: 4194304, Comm: events.MakeComm(`a "b" \c`), Fd: 1048575},
	}
	for _, tt := range []struct {
		name   string
		change func(*aggregate.Socket)
		want   object
	}{
		{"held by nobody", func(*aggregate.Socket) {}, nil},
		{"held by two", func(s *aggregate.Socket) { s.Holders = holders }, object{"holders": []any{
			object{"pid": num("4711"), "comm": "nginx", "fd": num("0")},
			object{"pid": num("4194304"), "comm": `a "b" \c`, "fd": num("1048575")},
		}}},
		{"of unknown age", func(s *aggregate.Socket) { s.Age = aggregate.Unknown }, object{"age_ms": nil, "age_bound": nil}},
		{
			"in CLOSE_WAIT, all read", func(s *aggregate.Socket) { s.State = events.CloseWait },
			object{"state": "CLOSE_WAIT", "eof_read": true, "unread_bytes": num("0")},
		},
		{ // The FIN counts as a byte until it is read.
			"in CLOSE_WAIT, all but the FIN read", func(s *aggregate.Socket) { s.State, s.Unread = events.CloseWait, 1 },
			object{"state": "CLOSE_WAIT", "eof_read": false, "unread_bytes": num("0")},
		},
		{
			"in CLOSE_WAIT with data", func(s *aggregate.Socket) { s.State, s.Unread = events.CloseWait, 1001 },
			object{"state": "CLOSE_WAIT", "eof_read": false, "unread_bytes": num("1000")},
		},
		{
			"that its process has left in CLOSE_WAIT",
			func(s *aggregate.Socket) { s.State, s.Verdict = events.CloseWait, aggregate.EOFRead },
			object{"state": "CLOSE_WAIT", "eof_read": true, "unread_bytes": num("0"), "verdict": "eof_read"},
		},
		{
			"that is dead and open", func(s *aggregate.Socket) { s.State, s.Verdict = events.Close, aggregate.Dead },
			object{"state": "CLOSE", "verdict": "reset_fd_leak"},
		},
		{
			"in TIME_WAIT", func(s *aggregate.Socket) {
				s.State, s.Mini, s.Expires = events.TimeWait, true, 57956*time.Millisecond
			},
			object{"state": "TIME_WAIT", "expires_ms": num("57956.000")},
		},
		{
			"in FIN_WAIT2, whose timer is late",
			func(s *aggregate.Socket) { s.State, s.Mini = events.FinWait2, true },
			object{"state": "FIN_WAIT2", "expires_ms": num("0.000")},
		},
		{
			"that is being accepted", func(s *aggregate.Socket) { s.State, s.Mini = events.SynRecv, true },
			object{"state": "SYN_RECV"},
		},
		{"in a container", func(s *aggregate.Socket) { s.Container.ID = "abc123" }, object{"container": "abc123"}},
		{"in a pod", func(s *aggregate.Socket) { s.Container = inPod }, objectInPod},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := aggregate.Socket{Ends: ends(), Ktime: 99, State: events.Established, Age: 1500 * time.Microsecond}
			tt.change(&s)
			want := with(endsObject("socket", 99), object{
				"state": "ESTABLISHED", "age_ms": num("1.500"), "age_bound": "at_least", "holders": []any{},
			})
			e := Encoder{Wall: wall}
			check(t, e.Socket(nil, &s), with(want, tt.want))
		})
	}
}

func TestStatsHaveTheFieldsOfTheContract(t *testing.T) {
	e := Encoder{Wall: wall}
	check(t, e.Stats(nil, &aggregate.Stats{
		Ktime: 1, Seen: math.MaxUint64, Delivered: 2, Filtered: 3,
		Lost: aggregate.Lost{RingFull: 4, Nested: 5, TableFull: 6, Decode: 7}, RecordsLost: 8,
		Records:   aggregate.Records{Transition: 9, Connection: 10, Socket: 11, Stats: 12, Finding: 15, Summary: 16},
		Unprinted: 13, Tracked: 14, Evicted: 17, Hidden: 16,
		Probes: []aggregate.Probe{{Facility: "accept", Variant: "fexit"}, {Facility: "clock"}},
	}), object{
		"type": "stats", "time": at(1), "seen": num("18446744073709551615"), "delivered": num("2"), "filtered": num("3"),
		"lost":         object{"ring_full": num("4"), "nested": num("5"), "table_full": num("6"), "decode": num("7")},
		"records_lost": num("8"),
		"records":      object{"transition": num("9"), "connection": num("10"), "socket": num("11"), "finding": num("15"), "summary": num("16"), "stats": num("12")},
		"unprinted":    num("13"), "sockets_tracked": num("14"), "sockets_evicted": num("17"), "hidden_processes": num("16"),
		"probes": object{"accept": "fexit", "clock": nil},
	})
	check(t, e.Stats(nil, &aggregate.Stats{Ktime: 2}), object{
		"type": "stats", "time": at(2), "seen": num("0"), "delivered": num("0"), "filtered": num("0"),
		"lost":         object{"ring_full": num("0"), "nested": num("0"), "table_full": num("0"), "decode": num("0")},
		"records_lost": num("0"),
		"records":      object{"transition": num("0"), "connection": num("0"), "socket": num("0"), "finding": num("0"), "summary": num("0"), "stats": num("0")},
		"unprinted":    num("0"), "sockets_tracked": num("0"), "hidden_processes": num("0"), "probes": object{},
	})
}

func TestARecordIsAppendedToWhatTheBufferHolds(t *testing.T) {
	e := Encoder{Wall: wall}
	tr := aggregate.Transition{Ends: ends(), Old: events.Close, New: events.SynSent}
	line := e.Transition(nil, &tr)
	both := e.Transition(append([]byte{}, line...), &tr)
	if want := string(line) + string(line); string(both) != want {
		t.Errorf("got %q, want %q", both, want)
	}
}
