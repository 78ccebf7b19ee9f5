package otlp

import (
	"bytes"
	"encoding/json"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// What OpenTelemetry has no name for is named as in docs/schema.md, below this.
const own = "tcptrace."

// item is a record that waits: a connection, or a finding as a line of JSON. There may be
// many connections, few findings.
type item struct {
	conn    aggregate.Connection
	spent   aggregate.Spent // of conn, which points to one that will be another's
	wall    int64
	finding []byte // nil: it is a connection
}

func (it *item) record() log.Record {
	if it.finding != nil {
		return findingRecord(it.finding)
	}
	it.conn.Spent = &it.spent
	return connectionRecord(&it.conn, it.wall)
}

func connectionRecord(c *aggregate.Connection, wall int64) log.Record {
	var r log.Record
	r.SetEventName(own + "connection")
	r.SetTimestamp(at(c.Ktime, wall))
	r.SetSeverity(log.SeverityInfo)
	a := make(attributes, 0, 40) // more than there can be
	a.add(semconv.NetworkTransportTCP)
	if c.Is4() {
		a.add(semconv.NetworkTypeIPv4)
	} else {
		a.add(semconv.NetworkTypeIPv6)
	}
	laddr, raddr := ip(&c.Laddr), ip(&c.Raddr)
	a.end(semconv.NetworkLocalAddressKey, laddr, semconv.NetworkLocalPortKey, c.Lport)
	a.end(semconv.NetworkPeerAddressKey, raddr, semconv.NetworkPeerPortKey, c.Rport)
	switch c.Role {
	case aggregate.Client:
		a.end(semconv.ClientAddressKey, laddr, semconv.ClientPortKey, c.Lport)
		a.end(semconv.ServerAddressKey, raddr, semconv.ServerPortKey, c.Rport)
	case aggregate.Server:
		a.end(semconv.ClientAddressKey, raddr, semconv.ClientPortKey, c.Rport)
		a.end(semconv.ServerAddressKey, laddr, semconv.ServerPortKey, c.Lport)
	}
	if c.Owner.Pid != 0 {
		a.number(semconv.ProcessPIDKey, uint64(c.Owner.Pid))
		a.text(own+"comm", string(c.Owner.Comm.Bytes()))
		a.text(own+"owner_source", c.Owner.Source.String())
	}
	if c.Container.ID != "" {
		a.text(semconv.ContainerIDKey, c.Container.ID)
		a.text(semconv.K8SPodNameKey, c.Container.Pod)
		a.text(semconv.K8SNamespaceNameKey, c.Container.Namespace)
		a.text(semconv.K8SContainerNameKey, c.Container.Name)
	}
	if c.Cookie != 0 {
		a.text(own+"cookie", strconv.FormatUint(c.Cookie, 16))
	}
	a.number(own+"netns", uint64(c.Netns))
	a.text(own+"role", c.Role.String())
	if c.Start != 0 {
		a.text(own+"start", at(c.Start, wall).Format("2006-01-02T15:04:05.000000000Z07:00"))
		if c.Ended {
			a.ms(own+"duration_ms", time.Duration(max(c.Ktime, c.Start)-c.Start))
		}
	}
	for st := range events.State(events.NumStates) {
		if d, ok := c.Spent.In(st); ok {
			a.ms(own+"states_ms."+attribute.Key(st.String()), d)
		}
	}
	a.text(own+"closer", c.Closer.String())
	a.text(own+"end", c.End.String())
	a.text(own+"close_call", c.CloseCall.String())
	a.text(own+"time_wait_end", c.TimeWaitEnd.String())
	if c.Payload {
		a.number(own+"sent_bytes", c.Sent)
		a.number(own+"received_bytes", c.Received)
	}
	if c.Gap {
		a.add(attribute.Bool(own+"gap", true))
	}
	if c.Unprinted > 0 {
		a.number(own+"unprinted", uint64(c.Unprinted))
	}
	r.AddAttributes(a...)
	return r
}

func at(ktime uint64, wall int64) time.Time { return time.Unix(0, int64(ktime)+wall).UTC() }

// ip is an address as netip writes it; "" if it is not known.
func ip(a *events.Addr) string {
	if a.IsUnspecified() {
		return ""
	}
	return a.Netip().String()
}

// attributes of a record. What is unknown is none: text that is empty, a port that is 0, a duration below 0.
type attributes []attribute.KeyValue

func (a *attributes) add(kv attribute.KeyValue) { *a = append(*a, kv) }

func (a *attributes) text(key attribute.Key, s string) {
	if s != "" {
		a.add(key.String(valid(s)))
	}
}

func (a *attributes) number(key attribute.Key, n uint64) { a.add(key.Int64(int64(n))) }

func (a *attributes) ms(key attribute.Key, d time.Duration) {
	if d >= 0 {
		a.add(key.Float64(float64(d/time.Microsecond) / 1000)) // cut to microseconds, as everywhere
	}
}

func (a *attributes) end(addr attribute.Key, ip string, port attribute.Key, n uint16) {
	a.text(addr, ip)
	if n != 0 {
		a.number(port, uint64(n))
	}
}

// valid is s with U+FFFD for each byte that is not valid UTF-8: one such byte, and the
// request could not be encoded.
func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}

// conventional are the fields of a finding that OpenTelemetry has a name for.
var conventional = map[string]attribute.Key{
	"pid":            semconv.ProcessPIDKey,
	"exe":            semconv.ProcessExecutablePathKey,
	"container":      semconv.ContainerIDKey,
	"pod":            semconv.K8SPodNameKey,
	"namespace":      semconv.K8SNamespaceNameKey,
	"container_name": semconv.K8SContainerNameKey,
}

// severities: a critical finding says that connections will fail, which is an error.
var severities = map[string]log.Severity{
	"info": log.SeverityInfo, "warning": log.SeverityWarn, "critical": log.SeverityError,
}

// findingRecord makes the attributes of the JSON, since the evidence of each kind is another.
func findingRecord(line []byte) log.Record {
	var fields map[string]any
	d := json.NewDecoder(bytes.NewReader(line))
	d.UseNumber()
	if err := d.Decode(&fields); err != nil {
		panic(err) // jsonl has made it
	}
	take := func(name string) string {
		s, _ := fields[name].(string)
		delete(fields, name)
		return s
	}
	var r log.Record
	r.SetEventName(own + take("type"))
	if t, err := time.Parse(time.RFC3339Nano, take("time")); err == nil {
		r.SetTimestamp(t)
	}
	severity := take("severity")
	r.SetSeverity(severities[severity])
	r.SetSeverityText(severity)
	r.SetBody(attribute.StringValue(take("message")))
	if exe, ok := fields["exe"].(string); ok {
		r.AddAttributes(semconv.ProcessExecutableName(path.Base(exe)))
	}
	for field, key := range conventional {
		if v := value(fields[field]); v.Type() != attribute.EMPTY {
			r.AddAttributes(attribute.KeyValue{Key: key, Value: v})
		}
		delete(fields, field)
	}
	r.AddAttributes(flat(own, fields)...)
	return r
}

// flat turns fields into attributes, in the order of their names. The fields of an object
// are attributes of their own.
func flat(prefix string, fields map[string]any) []attribute.KeyValue {
	out := make([]attribute.KeyValue, 0, len(fields))
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if object, ok := fields[name].(map[string]any); ok {
			out = append(out, flat(prefix+name+".", object)...)
		} else if v := value(fields[name]); v.Type() != attribute.EMPTY {
			out = append(out, attribute.KeyValue{Key: attribute.Key(prefix + name), Value: v})
		}
	}
	return out
}

// value is what a field says; empty if that is null.
func value(v any) attribute.Value {
	switch v := v.(type) {
	case string:
		return attribute.StringValue(v)
	case bool:
		return attribute.BoolValue(v)
	case json.Number:
		if strings.Contains(v.String(), ".") {
			f, _ := v.Float64()
			return attribute.Float64Value(f)
		}
		n, _ := v.Int64()
		return attribute.Int64Value(n)
	case []any:
		values := make([]attribute.Value, len(v))
		for i := range v {
			values[i] = value(v[i])
		}
		return attribute.SliceValue(values...)
	case map[string]any:
		return attribute.MapValue(flat("", v)...)
	}
	return attribute.Value{}
}
