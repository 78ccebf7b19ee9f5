package jsonl

import (
	"math"
	"strconv"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
)

// Finding appends f as one line.
func (e *Encoder) Finding(b []byte, f *aggregate.Finding) []byte {
	b = e.appendHead(b, "finding", f.Ktime)
	b = append(b, `,"id":`...)
	b = appendName(b, f.ID)
	b = append(b, `,"kind":`...)
	b = appendName(b, f.Kind.String())
	b = append(b, `,"status":`...)
	b = appendName(b, f.Status.String())
	b = append(b, `,"severity":`...)
	b = appendName(b, f.Severity.String())
	if f.Pid == 0 {
		b = append(b, `,"pid":null,"comm":null`...)
	} else {
		b = append(b, `,"pid":`...)
		b = strconv.AppendUint(b, uint64(f.Pid), 10)
		b = append(b, `,"comm":`...)
		b = appendString(b, f.Comm.Bytes())
	}
	b = append(b, `,"exe":`...)
	if f.Exe == "" {
		b = append(b, "null"...)
	} else {
		b = appendString(b, []byte(f.Exe))
	}
	b = appendContainer(b, f.Container)
	b = appendInt(b, "count", f.Count)
	b = append(b, `,"oldest_ms":`...)
	b = appendMs(b, f.Oldest)
	b = append(b, `,"holders":`...)
	b = appendHolders(b, f.Holders)
	b = append(b, `,"evidence":{`...)
	b = appendEvidence(b, f)
	b = append(b, `},"message":`...)
	b = appendString(b, []byte(f.Message))
	b = append(b, `,"advice":`...)
	b = appendString(b, []byte(f.Advice))
	return append(b, '}', '\n')
}

func appendInt[T int | uint32 | uint64](b []byte, name string, n T) []byte {
	// The first of an object follows no other.
	if b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	b = appendName(b, name)
	b = append(b, ':')
	return strconv.AppendUint(b, uint64(n), 10)
}

func appendHolders(b []byte, hs []aggregate.SocketHolder) []byte {
	b = append(b, '[')
	for i := range hs {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendHolder(b, &hs[i].Holder)
		b = append(appendCookie(b, hs[i].Cookie), '}')
	}
	return append(b, ']')
}

// appendEvidence appends the members that the finding's kind has.
func appendEvidence(b []byte, f *aggregate.Finding) []byte {
	e := &f.Evidence
	if f.Status == aggregate.Resolved {
		b = appendInt(b, "peak_count", e.PeakCount)
		b = append(b, `,"peak_oldest_ms":`...)
		b = appendMs(b, e.PeakOldest)
	}
	switch {
	case f.Status == aggregate.Resolved && (f.Kind != aggregate.CloseWaitLeak || f.Pid == 0):
		return b
	case f.Status == aggregate.Resolved:
		return appendHistory(b, e.History)
	case f.Kind == aggregate.FdLimit:
		return appendLimit(b, e)
	case f.Kind == aggregate.CloseWaitLeak:
		b = append(b, `"verdict":`...)
		b = appendName(b, e.Verdict.String())
	}
	if f.Kind == aggregate.ResetFdLeak {
		b = append(b, `"ended":{`...)
		known := 0
		for _, end := range [...]aggregate.End{
			aggregate.EndResetReceived, aggregate.EndTimeout, aggregate.EndAborted, aggregate.EndFin,
		} {
			b = appendInt(b, end.String(), e.Ended[end])
			known += e.Ended[end]
		}
		b = append(appendInt(b, "unknown", f.Count-known), '}')
	} else {
		for v := aggregate.EOFRead; v <= aggregate.NotAccepted; v++ {
			b = appendInt(b, v.String(), e.Verdicts[v])
		}
		b = appendInt(b, "unread_bytes", e.Unread)
	}
	if e.Exact {
		b = append(b, `,"age_bound":"exact"`...)
	} else {
		b = append(b, `,"age_bound":"at_least"`...)
	}
	b = append(b, `,"lport":`...)
	b = appendPort(b, e.Ends.Lport)
	b = append(b, `,"raddr":`...)
	b = appendAddr(b, &e.Ends.Raddr)
	b = append(b, `,"rport":`...)
	b = appendPort(b, e.Ends.Rport)
	if f.Kind == aggregate.CloseWaitLeak {
		b = appendInt(b, "no_descriptor", e.NoDescriptor)
		if e.Verdicts[aggregate.NotAccepted] > 0 {
			b = append(b, `,"listeners":`...)
			b = appendHolders(b, e.Listeners)
		}
	}
	if f.Kind != aggregate.NeverClosed && e.FileLimit != 0 {
		b = appendFiles(b, e)
	}
	if f.Kind == aggregate.ResetFdLeak || f.Pid == 0 {
		return b // the history is one of CLOSE_WAIT, and of one process
	}
	return appendHistory(b, e.History)
}

func appendHistory(b []byte, h *aggregate.History) []byte {
	b = appendInt(b, "peer_closed_first", h.PeerClosed)
	b = appendInt(b, "closed", h.Closed)
	b = appendInt(b, "held", h.Held)
	b = append(b, `,"fin_to_close_p50_ms":`...)
	b = appendMs(b, h.FinToClose(0.50))
	b = append(b, `,"fin_to_close_p99_ms":`...)
	return appendMs(b, h.FinToClose(0.99))
}

func appendFiles(b []byte, e *aggregate.Evidence) []byte {
	b = appendInt(b, "open_fds", e.OpenFiles)
	if e.FileLimit == math.MaxUint64 { // unlimited
		return append(b, `,"limit":null`...)
	}
	return appendInt(b, "limit", e.FileLimit)
}

func appendLimit(b []byte, e *aggregate.Evidence) []byte {
	b = appendFiles(b, e)
	b = appendInt(b, "sockets", e.Sockets)
	b = appendInt(b, "close_wait", e.CloseWait)
	b = append(b, `,"close_wait_per_minute":`...)
	if e.Measured {
		b = strconv.AppendFloat(b, e.PerMinute, 'f', 1, 64)
	} else {
		b = append(b, "null"...)
	}
	b = append(b, `,"emfile_in_ms":`...)
	return appendMs(b, e.Exhausted)
}
