package jsonl

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// kept is an aggregate.Output that keeps the last connection and the last finding.
type kept struct {
	last    aggregate.Connection
	finding aggregate.Finding
}

func (*kept) Transition(*aggregate.Transition) bool { return true }
func (*kept) Socket(*aggregate.Socket) bool         { return true }
func (*kept) Summary(*aggregate.Summary)            {}
func (k *kept) Finding(f *aggregate.Finding) bool {
	k.finding = *f
	return true
}
func (k *kept) Connection(c *aggregate.Connection) bool {
	spent := *c.Spent
	k.last = *c
	k.last.Spent = &spent
	return true
}

// step is a transition, and when it happened.
type step struct {
	ktime    uint64
	old, new events.State
}

// connection returns the record that a tracker makes of the steps, because
// nothing but a tracker can fill a Spent.
func connection(t testing.TB, steps ...step) *aggregate.Connection {
	t.Helper()
	var k kept
	tracker := aggregate.NewTracker(&k, &aggregate.Filter{}, 10, events.DefaultThresholds)
	for _, s := range steps {
		tracker.Observe(&events.Event{
			Kind: events.Transition, Ktime: s.ktime, Skaddr: 1, Cookie: 0xdeadbeef01, Netns: 4026531840,
			Old: s.old, New: s.new, Laddr: addr("10.0.0.1"), Lport: 40000, Raddr: addr("192.0.2.7"), Rport: 443,
		})
	}
	if k.last.Spent == nil {
		t.Fatalf("got no connection of %v, want one", steps)
	}
	k.last.Ends = ends()
	return &k.last
}

const ms = 1_000_000

// The active close of RFC 9293, figure 5, without its TIME_WAIT.
func activeClose(t testing.TB) *aggregate.Connection {
	return connection(t,
		step{1 * ms, events.Close, events.SynSent},
		step{2 * ms, events.SynSent, events.Established},
		step{102 * ms, events.Established, events.FinWait1},
		step{105*ms + 1000, events.FinWait1, events.FinWait2},
		step{205 * ms, events.FinWait2, events.Close},
	)
}

func TestAConnectionHasTheFieldsOfTheContract(t *testing.T) {
	states := object{
		"SYN_SENT": num("1.000"), "ESTABLISHED": num("100.000"), "FIN_WAIT1": num("3.001"), "FIN_WAIT2": num("99.999"),
	}
	for _, tt := range []struct {
		name   string
		change func(*aggregate.Connection)
		want   object
	}{
		{"all known", func(*aggregate.Connection) {}, nil},
		{
			"there before tcptrace", func(c *aggregate.Connection) { c.Start = 0 },
			object{"start": nil, "duration_ms": nil},
		},
		{
			"over as soon as it began", func(c *aggregate.Connection) { c.Start = c.Ktime },
			object{"start": at(205 * ms), "duration_ms": num("0.000")},
		},
		{
			"nothing known", func(c *aggregate.Connection) {
				*c = aggregate.Connection{Ktime: c.Ktime, Spent: &aggregate.Spent{}}
				c.Netns, c.Laddr, c.Raddr = 4026531840, addr("10.0.0.1"), addr("0.0.0.0")
			},
			object{
				"cookie": nil, "lport": nil, "raddr": nil, "rport": nil, "pid": nil, "comm": nil, "owner_source": nil,
				"role": nil, "start": nil, "duration_ms": nil, "states_ms": object{}, "closer": nil, "end": nil,
				"close_call": nil, "sent_bytes": nil, "received_bytes": nil, "time_wait_end": nil,
			},
		},
		{
			"its end was missed", func(c *aggregate.Connection) { c.Ended = false },
			object{"duration_ms": nil},
		},
		{
			"its last transition was missed", func(c *aggregate.Connection) { c.Payload = false },
			object{"sent_bytes": nil, "received_bytes": nil},
		},
		{"a server", func(c *aggregate.Connection) { c.Role = aggregate.Server }, object{"role": "server"}},
		{"closed by the peer", func(c *aggregate.Connection) { c.Closer = aggregate.CloserRemote }, object{"closer": "remote"}},
		{"closed by both", func(c *aggregate.Connection) { c.Closer = aggregate.CloserBoth }, object{"closer": "both"}},
		{"a reset came", func(c *aggregate.Connection) { c.End = aggregate.EndResetReceived }, object{"end": "reset_received"}},
		{"a reset went", func(c *aggregate.Connection) { c.End = aggregate.EndResetSent }, object{"end": "reset_sent"}},
		{"timed out", func(c *aggregate.Connection) { c.End = aggregate.EndTimeout }, object{"end": "timeout"}},
		{"refused", func(c *aggregate.Connection) { c.End = aggregate.EndRefused }, object{"end": "refused"}},
		{"aborted", func(c *aggregate.Connection) { c.End = aggregate.EndAborted }, object{"end": "aborted"}},
		{"TIME_WAIT ran out", func(c *aggregate.Connection) { c.TimeWaitEnd = aggregate.Expired }, object{"time_wait_end": "expired"}},
		{"another took its place", func(c *aggregate.Connection) { c.TimeWaitEnd = aggregate.Reused }, object{"time_wait_end": "reused"}},
		{"TIME_WAIT was killed", func(c *aggregate.Connection) { c.TimeWaitEnd = aggregate.Killed }, object{"time_wait_end": "killed"}},
		{"shut down", func(c *aggregate.Connection) { c.CloseCall = aggregate.CallShutdown }, object{"close_call": "shutdown"}},
		{"closed by exit", func(c *aggregate.Connection) { c.CloseCall = aggregate.CallExit }, object{"close_call": "exit"}},
		{
			"nothing sent", func(c *aggregate.Connection) { c.Sent, c.Received = 0, 0 },
			object{"sent_bytes": num("0"), "received_bytes": num("0")},
		},
		{"in a container", func(c *aggregate.Connection) { c.Container.ID = "abc123" }, object{"container": "abc123"}},
		{"in a pod", func(c *aggregate.Connection) { c.Container = inPod }, objectInPod},
		{"a gap", func(c *aggregate.Connection) { c.Gap = true }, object{"gap": true}},
		{"records were shed", func(c *aggregate.Connection) { c.Unprinted = 2 }, object{"unprinted": num("2")}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := activeClose(t)
			c.Role, c.Closer, c.End, c.CloseCall = aggregate.Client, aggregate.CloserLocal, aggregate.EndFin, aggregate.CallClose
			c.Payload, c.Sent, c.Received, c.Ended = true, 1<<40, 5, true
			want := with(endsObject("connection", 205*ms), object{
				"role": "client", "start": at(1 * ms), "duration_ms": num("204.000"), "states_ms": states,
				"closer": "local", "end": "fin", "close_call": "close",
				"sent_bytes": num("1099511627776"), "received_bytes": num("5"), "time_wait_end": nil,
			})
			tt.change(c)
			e := Encoder{Wall: wall}
			check(t, e.Connection(nil, c), with(want, tt.want))
		})
	}
}

func TestTheTimeInAStateWhoseBeginningWasMissedIsNull(t *testing.T) {
	// Found in ESTABLISHED: since when, nobody knows.
	c := connection(t,
		step{10 * ms, events.Established, events.CloseWait},
		step{30 * ms, events.CloseWait, events.LastAck},
		step{31 * ms, events.LastAck, events.Close},
	)
	e := Encoder{Wall: wall}
	got := parse(t, e.Connection(nil, c))
	want := object{"ESTABLISHED": nil, "CLOSE_WAIT": num("20.000"), "LAST_ACK": num("1.000")}
	if diff := cmp.Diff(any(want), got["states_ms"]); diff != "" {
		t.Errorf("states_ms: got (+) and want (-) differ:\n%s", diff)
	}
}

// All states that a connection can be in (RFC 9293, 3.3.2), on the paths that lead
// through them, each for a millisecond.
func TestEveryStateThatAConnectionWasInIsThere(t *testing.T) {
	path := func(states ...events.State) (steps []step) {
		for i := 1; i < len(states); i++ {
			steps = append(steps, step{uint64(i) * ms, states[i-1], states[i]})
		}
		return steps
	}
	one := num("1.000")
	for _, tt := range []struct {
		name  string
		steps []step
		want  object
	}{
		{
			"a passive open, closed by the peer",
			path(events.Listen, events.SynRecv, events.Established, events.CloseWait, events.LastAck, events.Close),
			object{"SYN_RECV": one, "ESTABLISHED": one, "CLOSE_WAIT": one, "LAST_ACK": one},
		},
		{
			"a simultaneous open and close",
			path(events.Close, events.SynSent, events.SynRecv, events.Established, events.FinWait1, events.Closing, events.TimeWait, events.Close),
			object{"SYN_SENT": one, "SYN_RECV": one, "ESTABLISHED": one, "FIN_WAIT1": one, "CLOSING": one, "TIME_WAIT": one},
		},
		{
			"an active close with its TIME_WAIT",
			path(events.Close, events.SynSent, events.Established, events.FinWait1, events.FinWait2, events.TimeWait, events.Close),
			object{"SYN_SENT": one, "ESTABLISHED": one, "FIN_WAIT1": one, "FIN_WAIT2": one, "TIME_WAIT": one},
		},
	} {
		e := Encoder{Wall: wall}
		got := parse(t, e.Connection(nil, connection(t, tt.steps...)))
		if diff := cmp.Diff(any(tt.want), got["states_ms"]); diff != "" {
			t.Errorf("%s: got (+) and want (-) differ:\n%s", tt.name, diff)
		}
	}
}

// benchTransition is the record that a busy server writes most.
func benchTransition() *aggregate.Transition {
	return &aggregate.Transition{Ends: ends(), Ktime: 1, Old: events.SynRecv, New: events.Established, Dwell: 41_000}
}

func TestEncodingAllocatesNothing(t *testing.T) {
	e := Encoder{Wall: wall}
	buf := make([]byte, 0, 4096)
	tr, c := benchTransition(), activeClose(t)
	v6 := benchTransition()
	v6.Laddr, v6.Raddr = addr("2001:db8::1"), addr("2001:db8::2")
	hostile := benchTransition()
	hostile.Owner.Comm = events.Comm([]byte("\xff\"\\\n\x1b[2J\xe2\x80\xa8\xc3\x28abc")[:events.CommLen])
	contained := benchTransition()
	contained.Container = inPod
	contained.Container.ID = strings.Repeat("0123456789abcdef", 4)
	s := &aggregate.Socket{Ends: ends(), State: events.CloseWait, Holders: make([]aggregate.Holder, 4)}
	for _, tt := range []struct {
		name   string
		encode func()
	}{
		{"an IPv4 transition", func() { buf = e.Transition(buf[:0], tr) }},
		{"an IPv6 transition", func() { buf = e.Transition(buf[:0], v6) }},
		{"a transition of a hostile name", func() { buf = e.Transition(buf[:0], hostile) }},
		{"a transition in a pod", func() { buf = e.Transition(buf[:0], contained) }},
		{"a connection", func() { buf = e.Connection(buf[:0], c) }},
		{"a socket", func() { buf = e.Socket(buf[:0], s) }},
		{"a transition a second after the last", func() { tr.Ktime += 1e9; buf = e.Transition(buf[:0], tr) }},
	} {
		if got := testing.AllocsPerRun(100, tt.encode); got != 0 {
			t.Errorf("%s: got %v allocations, want 0", tt.name, got)
		}
	}
}

// The encoder remembers the sockets that it wrote last.
func BenchmarkTransition(b *testing.B) {
	for name, others := range map[string]uint64{"of the same socket": 0, "of another socket each time": 1} {
		b.Run(name, func(b *testing.B) {
			e := Encoder{Wall: wall}
			tr := benchTransition()
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				tr.Ktime += 1000
				tr.Cookie += others
				buf = e.Transition(buf[:0], tr)
			}
			b.SetBytes(int64(len(buf)))
		})
	}
}

func BenchmarkConnection(b *testing.B) {
	e := Encoder{Wall: wall}
	c := activeClose(b)
	c.End, c.Role, c.Closer = aggregate.EndFin, aggregate.Client, aggregate.CloserLocal
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		c.Cookie++
		buf = e.Connection(buf[:0], c)
	}
	b.SetBytes(int64(len(buf)))
}
