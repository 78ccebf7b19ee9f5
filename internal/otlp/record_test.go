package otlp

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"

	"github.com/tcptrace/tcptrace/internal/jsonl"
	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

func address(s string) events.Addr { return events.Addr(netip.MustParseAddr(s).As16()) }

const wall = 1_000_000_000_000_000_000

// connection is the n-th of those that a client makes to a server here.
func connection(n int) *aggregate.Connection {
	return &aggregate.Connection{
		Ends: aggregate.Ends{
			Cookie: 0x1000 + uint64(n), Netns: 4026531840, Laddr: address("10.0.0.1"), Lport: 8080,
			Raddr: address("10.0.0.2"), Rport: uint16(40000 + n%20000),
			Owner: aggregate.Owner{Pid: 4711, Comm: events.MakeComm("web\xff"), Source: aggregate.SourceAccept},
		},
		Ktime: 3_000_000_000, Start: 2_500_000_000, Ended: true, Role: aggregate.Server, Closer: aggregate.CloserRemote,
		End: aggregate.EndFin, CloseCall: aggregate.CallClose, Spent: &aggregate.Spent{}, Payload: true, Sent: 17, Received: 4,
	}
}

func finding(id string) *aggregate.Finding {
	return &aggregate.Finding{
		Ktime: 3_000_000_000, ID: id, Kind: aggregate.CloseWaitLeak, Severity: aggregate.Critical, Pid: 4711,
		Comm: events.MakeComm("web"), Exe: "/usr/bin/web", Count: 2, Oldest: 61 * time.Second,
		Container: events.Container{ID: "3f1c", Pod: "shop-1", Namespace: "prod", Name: "web"},
		Holders:   []aggregate.SocketHolder{{Holder: aggregate.Holder{Pid: 4711, Comm: events.MakeComm("web"), Fd: 5}, Cookie: 0x1001}},
		Evidence: aggregate.Evidence{
			Verdict: aggregate.EOFRead, Ends: aggregate.CommonEnds{Lport: 8080}, History: &aggregate.History{},
		},
		Message: "web[4711] keeps 2 connections", Advice: "Close them.",
	}
}

// said is a log record as a collector would show it.
func said(r log.Record) map[string]any {
	out := map[string]any{
		"event": r.EventName(), "time": r.Timestamp().UTC().Format(time.RFC3339Nano),
		"severity": fmt.Sprint(r.Severity(), " ", r.SeverityText()), "body": r.Body().String(),
	}
	r.WalkAttributes(func(kv attribute.KeyValue) bool {
		if _, twice := out[string(kv.Key)]; twice {
			panic(kv.Key)
		}
		out[string(kv.Key)] = kv.Value.AsInterface()
		return true
	})
	return out
}

func TestAConnectionHasTheConventionalNames(t *testing.T) {
	got := said(connectionRecord(connection(1), wall))
	want := map[string]any{
		"event": "tcptrace.connection", "time": "2001-09-09T01:46:43Z", "severity": "INFO ", "body": "",
		"network.transport": "tcp", "network.type": "ipv4",
		"network.local.address": "10.0.0.1", "network.local.port": int64(8080),
		"network.peer.address": "10.0.0.2", "network.peer.port": int64(40001),
		"server.address": "10.0.0.1", "server.port": int64(8080), "client.address": "10.0.0.2", "client.port": int64(40001),
		"process.pid": int64(4711), "tcptrace.comm": "web\ufffd", "tcptrace.owner_source": "accept",
		"tcptrace.cookie": "1001", "tcptrace.netns": int64(4026531840), "tcptrace.role": "server",
		"tcptrace.start": "2001-09-09T01:46:42.500000000Z", "tcptrace.duration_ms": 500.0,
		"tcptrace.closer": "remote", "tcptrace.end": "fin", "tcptrace.close_call": "close",
		"tcptrace.sent_bytes": int64(17), "tcptrace.received_bytes": int64(4),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

func TestWhatIsUnknownIsNoAttribute(t *testing.T) {
	c := connection(1)
	c.Owner, c.Role, c.End, c.Start, c.Payload, c.Raddr, c.Rport = aggregate.Owner{}, aggregate.RoleUnknown, aggregate.EndUnknown, 0, false, events.Addr{}, 0
	got := said(connectionRecord(c, wall))
	for _, name := range []string{
		"process.pid", "tcptrace.comm", "tcptrace.owner_source", "tcptrace.role", "tcptrace.end", "tcptrace.start", "tcptrace.duration_ms",
		"tcptrace.sent_bytes", "network.peer.address", "network.peer.port", "client.address", "client.port", "server.address", "server.port",
	} {
		if v, ok := got[name]; ok {
			t.Errorf("%s is %v, want it absent", name, v)
		}
	}
	if got["network.local.port"] != int64(8080) {
		t.Errorf("network.local.port is %v, want 8080", got["network.local.port"])
	}
}

func TestAFindingSaysWhatItsRecordSays(t *testing.T) {
	enc := jsonl.Encoder{Wall: wall}
	line := enc.Finding(nil, finding("close_wait_leak-4711-1"))
	got := said(findingRecord(line))
	for name, want := range map[string]any{
		"event": "tcptrace.finding", "time": "2001-09-09T01:46:43Z", "severity": "ERROR critical", "body": "web[4711] keeps 2 connections",
		"process.pid": int64(4711), "process.executable.path": "/usr/bin/web", "process.executable.name": "web", "container.id": "3f1c",
		"k8s.pod.name": "shop-1", "k8s.namespace.name": "prod", "k8s.container.name": "web", "tcptrace.advice": "Close them.",
		"tcptrace.oldest_ms": 61000.0, "tcptrace.evidence.lport": int64(8080), "tcptrace.evidence.verdict": "eof_read",
	} {
		if diff := cmp.Diff(want, got[name]); diff != "" {
			t.Errorf("%s: want (-), got (+):\n%s", name, diff)
		}
	}
	// Nothing that the line knows is missing, under one name or another.
	var fields map[string]any
	if err := json.Unmarshal(line, &fields); err != nil {
		t.Fatal(err)
	}
	known := 0
	var count func(any)
	count = func(v any) {
		switch v := v.(type) {
		case nil:
		case map[string]any:
			for _, v := range v {
				count(v)
			}
		default:
			known++
		}
	}
	count(fields)
	// The type is in the event's name; exe is told twice.
	if len(got) != known+1 {
		t.Errorf("%d fields and attributes, want %d:\n%v\n%s", len(got), known+1, got, line)
	}
	if _, ok := got["tcptrace.evidence.raddr"]; ok {
		t.Error("the evidence has a raddr, want none: it is null")
	}
}

func TestAnEndpointIsCheckedBeforeItIsUsed(t *testing.T) {
	for endpoint, good := range map[string]bool{
		"http://127.0.0.1:4317": true, "https://collector.example:4317": true, "http://[::1]:4317/": true,
		"127.0.0.1:4317": false, "localhost:4317": false, "http://127.0.0.1": false, "http://:4317": false, "grpc://127.0.0.1:4317": false,
		"http://127.0.0.1:4318/v1/logs": false, "http://127.0.0.1:70000": false, "https://user:word@collector:4317": false,
		"http://a b:4317": false, "http://127.0.0.1:0": false, "unix:///run/otel.sock": false,
	} {
		if err := Check(endpoint); (err == nil) != good {
			t.Errorf("Check(%q): %v, want an error: %v", endpoint, err, !good)
		}
	}
}

// What a connection costs the goroutine that sends, the request aside.
func BenchmarkRecord(b *testing.B) {
	c := connection(1)
	for b.Loop() {
		connectionRecord(c, wall)
	}
}

// What it costs the goroutine that traces.
func BenchmarkHandOver(b *testing.B) {
	e := &Exporter{connections: backlog{most: maxConnections}, wake: make(chan struct{}, 1), full: make(chan struct{}, 1)}
	c := connection(1)
	for b.Loop() {
		if e.Connection(c); len(e.connections.pending) == maxConnections {
			e.connections.pending = e.connections.pending[:0]
		}
	}
}
