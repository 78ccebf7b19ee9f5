package jsonl

import (
	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// The states of sockets that there are: one in CLOSE is none that ss shows.
var countedStates = [...]events.State{
	events.Listen, events.SynSent, events.SynRecv, events.Established, events.FinWait1, events.FinWait2,
	events.TimeWait, events.CloseWait, events.LastAck, events.Closing,
}

// Summary appends s as one line.
func (e *Encoder) Summary(b []byte, s *aggregate.Summary) []byte {
	b = e.appendHead(b, "summary", s.Ktime)
	b = append(b, `,"interval_ms":`...)
	b = appendMs(b, s.Interval)
	b = append(b, `,"netns":`...)
	b = appendUint(b, uint64(s.Netns))
	b = append(b, `,"states":{`...)
	for _, st := range countedStates {
		var unseen bool
		switch st {
		case events.Listen, events.SynSent: // only a process has one
		case events.SynRecv:
			unseen = !s.Requests
		case events.TimeWait, events.FinWait2:
			unseen = !s.Minis || !s.Whole
		default: // it may be in an accept queue, or an orphan
			unseen = !s.Whole
		}
		if unseen {
			b = append(appendMember(b, st.String()), "null"...)
			continue
		}
		b = appendInt(b, st.String(), s.States[st])
	}
	b = append(b, '}')
	b = appendInt(b, "dead", s.Dead)
	b = appendInt(b, "opened", s.Opened)
	b = appendInt(b, "closed", s.Closed)
	b = append(b, `,"processes":[`...)
	for i := range s.Processes {
		p := &s.Processes[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"pid":`...)
		b = appendUint(b, uint64(p.Pid))
		b = append(b, `,"comm":`...)
		b = appendString(b, p.Comm.Bytes())
		b = appendInt(b, "close_wait", p.CloseWait)
		b = appendInt(b, "time_wait", p.TimeWait)
		b = append(b, `,"oldest_close_wait_ms":`...)
		b = appendMs(b, p.Oldest)
		b = appendInt(b, "close_wait_entered", p.Entered)
		b = append(appendInt(b, "close_wait_closed", p.Closed), '}')
	}
	return append(b, ']', '}', '\n')
}
