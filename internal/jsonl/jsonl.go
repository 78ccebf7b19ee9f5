// Package jsonl encodes records as JSON Lines: one record, one line, whatever
// bytes a command name holds. docs/schema.md describes the fields.
//
// The encoders append to a buffer and allocate nothing else, which
// encoding/json cannot.
package jsonl

import (
	"strconv"
	"time"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// An Encoder turns records into lines. It belongs to one goroutine.
type Encoder struct {
	// Wall is what to add to the kernel's clock (CLOCK_BOOTTIME, ns) to get
	// nanoseconds of Unix time.
	Wall int64

	second int64    // of the last time that was encoded
	prefix [21]byte // and its form, up to the point: `"2006-01-02T15:04:05.`

	recent [64]socket // by cookie
}

// socket is the fields of a socket, and their form: several records in a row are about the same.
type socket struct {
	ends aggregate.Ends
	text []byte
}

func appendPort(b []byte, port uint16) []byte {
	if port == 0 {
		return append(b, "null"...)
	}
	return appendUint(b, uint64(port))
}

func (e *Encoder) appendHead(b []byte, kind string, ktime uint64) []byte {
	b = append(b, `{"type":"`...)
	b = append(b, kind...)
	b = append(b, `","time":`...)
	return e.appendTime(b, ktime)
}

func (e *Encoder) appendEnds(b []byte, s *aggregate.Ends) []byte {
	r := &e.recent[s.Cookie%uint64(len(e.recent))]
	if r.ends != *s || r.text == nil {
		r.ends = *s
		r.text = appendEnds(r.text[:0], s)
	}
	return append(b, r.text...)
}

func appendEnds(b []byte, s *aggregate.Ends) []byte {
	b = appendCookie(b, s.Cookie)
	b = append(b, `,"netns":`...)
	b = appendUint(b, uint64(s.Netns))
	if s.Is4() {
		b = append(b, `,"family":"ipv4","laddr":"`...)
	} else {
		b = append(b, `,"family":"ipv6","laddr":"`...)
	}
	b = appendIP(b, &s.Laddr)
	b = append(b, `","lport":`...)
	b = appendPort(b, s.Lport)
	b = append(b, `,"raddr":`...)
	b = appendAddr(b, &s.Raddr)
	b = append(b, `,"rport":`...)
	b = appendPort(b, s.Rport)
	if s.Owner.Pid == 0 {
		return append(b, `,"pid":null,"comm":null,"owner_source":null`...)
	}
	b = append(b, `,"pid":`...)
	b = appendUint(b, uint64(s.Owner.Pid))
	b = append(b, `,"comm":`...)
	b = appendString(b, s.Owner.Comm.Bytes())
	b = append(b, `,"owner_source":`...)
	return appendName(b, s.Owner.Source.String())
}

func appendCookie(b []byte, cookie uint64) []byte {
	return appendCookieOnly(append(b, `,"cookie":`...), cookie)
}

func appendCookieOnly(b []byte, cookie uint64) []byte {
	if cookie == 0 {
		return append(b, "null"...)
	}
	b = appendHex(append(b, '"'), cookie)
	return append(b, '"')
}

func appendAddr(b []byte, a *events.Addr) []byte {
	if a.IsUnspecified() {
		return append(b, "null"...)
	}
	b = appendIP(append(b, '"'), a)
	return append(b, '"')
}

func appendContainer(b []byte, c *events.Container) []byte {
	if c.ID == "" {
		return b
	}
	b = append(b, `,"container":`...)
	b = appendString(b, c.ID)
	if c.Pod == "" {
		return b
	}
	b = append(b, `,"pod":`...)
	b = appendString(b, c.Pod)
	b = append(b, `,"namespace":`...)
	b = appendString(b, c.Namespace)
	b = append(b, `,"container_name":`...)
	return appendString(b, c.Name)
}

// appendHolder leaves the object open.
func appendHolder(b []byte, h *aggregate.Holder) []byte {
	b = append(b, `{"pid":`...)
	b = appendUint(b, uint64(h.Pid))
	b = append(b, `,"comm":`...)
	b = appendString(b, h.Comm.Bytes())
	b = append(b, `,"fd":`...)
	return strconv.AppendInt(b, int64(h.Fd), 10)
}

func appendMarks(b []byte, gap bool, unprinted uint32) []byte {
	if gap {
		b = append(b, `,"gap":true`...)
	}
	if unprinted > 0 {
		b = append(b, `,"unprinted":`...)
		b = appendUint(b, uint64(unprinted))
	}
	return append(b, '}', '\n')
}

// Transition appends t as one line.
func (e *Encoder) Transition(b []byte, t *aggregate.Transition) []byte {
	b = e.appendHead(b, "transition", t.Ktime)
	b = e.appendEnds(b, &t.Ends)
	b = append(b, `,"oldstate":`...)
	b = appendName(b, t.Old.String())
	b = append(b, `,"newstate":`...)
	b = appendName(b, t.New.String())
	b = append(b, `,"dwell_ms":`...)
	b = appendMs(b, t.Dwell)
	if t.Mini {
		b = append(b, `,"source":"timewait"`...)
	} else {
		b = append(b, `,"source":"tracepoint"`...)
	}
	b = appendContainer(b, &t.Container)
	return appendMarks(b, t.Gap, t.Unprinted)
}

// The states in the order in which a connection can go through them.
var inOrder = [...]events.State{
	events.SynSent, events.SynRecv, events.Established, events.FinWait1, events.FinWait2,
	events.Closing, events.TimeWait, events.CloseWait, events.LastAck, events.Close,
}

// Connection appends c as one line.
func (e *Encoder) Connection(b []byte, c *aggregate.Connection) []byte {
	b = e.appendHead(b, "connection", c.Ktime)
	b = e.appendEnds(b, &c.Ends)
	b = append(b, `,"role":`...)
	b = appendName(b, c.Role.String())
	b = append(b, `,"start":`...)
	if c.Start == 0 {
		b = append(b, "null"...)
	} else {
		b = e.appendTime(b, c.Start)
	}
	duration := aggregate.Unknown
	if c.Start != 0 && c.Ended {
		duration = time.Duration(max(c.Ktime, c.Start) - c.Start)
	}
	b = append(b, `,"duration_ms":`...)
	b = appendMs(b, duration)
	b = append(b, `,"states_ms":{`...)
	first := true
	for _, st := range inOrder {
		d, ok := c.Spent.In(st)
		if !ok {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = appendName(b, st.String())
		b = append(b, ':')
		b = appendMs(b, d)
	}
	b = append(b, `},"closer":`...)
	b = appendName(b, c.Closer.String())
	b = append(b, `,"end":`...)
	b = appendName(b, c.End.String())
	b = append(b, `,"close_call":`...)
	b = appendName(b, c.CloseCall.String())
	if c.Payload {
		b = append(b, `,"sent_bytes":`...)
		b = appendUint(b, c.Sent)
		b = append(b, `,"received_bytes":`...)
		b = appendUint(b, c.Received)
	} else {
		b = append(b, `,"sent_bytes":null,"received_bytes":null`...)
	}
	b = append(b, `,"time_wait_end":`...)
	b = appendName(b, c.TimeWaitEnd.String())
	b = appendContainer(b, &c.Container)
	return appendMarks(b, c.Gap, c.Unprinted)
}

// Socket appends s as one line.
func (e *Encoder) Socket(b []byte, s *aggregate.Socket) []byte {
	b = e.appendHead(b, "socket", s.Ktime)
	b = e.appendEnds(b, &s.Ends)
	b = append(b, `,"state":`...)
	b = appendName(b, s.State.String())
	b = append(b, `,"age_ms":`...)
	b = appendMs(b, s.Age)
	if s.Age < 0 {
		b = append(b, `,"age_bound":null`...)
	} else {
		b = append(b, `,"age_bound":"at_least"`...)
	}
	b = append(b, `,"holders":[`...)
	for i := range s.Holders {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendHolder(b, &s.Holders[i]), '}')
	}
	b = append(b, ']')
	if s.State == events.CloseWait {
		// The FIN counts as one byte until it is read.
		b = append(b, `,"eof_read":`...)
		b = strconv.AppendBool(b, s.Unread == 0)
		b = append(b, `,"unread_bytes":`...)
		b = appendUint(b, uint64(max(s.Unread, 1)-1))
	}
	if s.Mini && s.State != events.SynRecv {
		b = append(b, `,"expires_ms":`...)
		b = appendMs(b, s.Expires)
	}
	if s.Verdict != aggregate.VerdictNone {
		b = append(b, `,"verdict":`...)
		b = appendName(b, s.Verdict.String())
	}
	b = appendContainer(b, &s.Container)
	return append(b, '}', '\n')
}

// Stats appends s as one line.
func (e *Encoder) Stats(b []byte, s *aggregate.Stats) []byte {
	field := func(name string, n uint64) {
		b = append(b, name...)
		b = appendUint(b, n)
	}
	b = e.appendHead(b, "stats", s.Ktime)
	field(`,"seen":`, s.Seen)
	field(`,"delivered":`, s.Delivered)
	field(`,"filtered":`, s.Filtered)
	field(`,"lost":{"ring_full":`, s.Lost.RingFull)
	field(`,"nested":`, s.Lost.Nested)
	field(`,"table_full":`, s.Lost.TableFull)
	field(`,"decode":`, s.Lost.Decode)
	field(`},"records_lost":`, s.RecordsLost)
	field(`,"records":{"transition":`, s.Records.Transition)
	field(`,"connection":`, s.Records.Connection)
	field(`,"socket":`, s.Records.Socket)
	field(`,"finding":`, s.Records.Finding)
	field(`,"summary":`, s.Records.Summary)
	field(`,"stats":`, s.Records.Stats)
	field(`},"unprinted":`, s.Unprinted)
	field(`,"sockets_tracked":`, uint64(s.Tracked))
	if s.Evicted > 0 {
		field(`,"sockets_evicted":`, s.Evicted)
	}
	field(`,"hidden_processes":`, uint64(s.Hidden))
	if s.Exported != nil {
		field(`,"otlp_sent":`, s.Exported.Sent)
		field(`,"otlp_unsent":`, s.Exported.Unsent)
	}
	b = append(b, `,"probes":{`...)
	for i, p := range s.Probes {
		if i > 0 {
			b = append(b, ',')
		}
		// Of a recording, these may be anything.
		b = appendString(b, p.Facility)
		b = append(b, ':')
		if p.Variant == "" {
			b = append(b, "null"...)
		} else {
			b = appendString(b, p.Variant)
		}
	}
	return append(b, '}', '}', '\n')
}
