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
		b = appendUint(b, uint64(f.Pid))
		b = append(b, `,"comm":`...)
		b = appendString(b, f.Comm.Bytes())
	}
	b = append(b, `,"exe":`...)
	if f.Exe == "" {
		b = append(b, "null"...)
	} else {
		b = appendString(b, f.Exe)
	}
	b = appendContainer(b, &f.Container)
	b = appendInt(b, "count", f.Count)
	b = append(b, `,"oldest_ms":`...)
	b = appendMs(b, f.Oldest)
	b = append(b, `,"holders":`...)
	b = appendHolders(b, f.Holders)
	b = append(b, `,"evidence":{`...)
	b = appendEvidence(b, f)
	b = append(b, `},"message":`...)
	b = appendString(b, f.Message)
	b = append(b, `,"advice":`...)
	b = appendString(b, f.Advice)
	return append(b, '}', '\n')
}

func appendInt[T int | uint32 | uint64](b []byte, name string, n T) []byte {
	return appendUint(appendMember(b, name), uint64(n))
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
	case f.Kind == aggregate.FinWait2Stuck:
		return appendPeer(b, e.Peer)
	case f.Kind == aggregate.TimeWaitPorts:
		return appendPorts(b, e.Ports)
	case f.Kind == aggregate.TimeWaitOverflow:
		b = appendInt(b, "tcp_max_tw_buckets", e.Network.MaxTimeWait)
		b = appendInt(b, "netns", e.Network.Netns)
		return appendMakers(b, "processes", e.Makers)
	case f.Kind == aggregate.ShortLived:
		return appendChurn(b, e.Churn)
	case f.Kind == aggregate.HalfOpen:
		return appendCommon(b, &e.Ends)
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
	b = appendCommon(b, &e.Ends)
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

// appendMember appends the name of a member of an object.
func appendMember(b []byte, name string) []byte {
	if b[len(b)-1] != '{' { // the first follows no other
		b = append(b, ',')
	}
	return append(appendName(b, name), ':')
}

func appendCommon(b []byte, e *aggregate.CommonEnds) []byte {
	b = appendPort(appendMember(b, "lport"), e.Lport)
	b = appendAddr(appendMember(b, "raddr"), &e.Raddr)
	return appendPort(appendMember(b, "rport"), e.Rport)
}

func appendRate(b []byte, name string, perSecond float64) []byte {
	return strconv.AppendFloat(appendMember(b, name), perSecond, 'f', 1, 64)
}

// appendMakers appends processes and how many sockets each has to do with.
func appendMakers(b []byte, name string, ms []aggregate.Maker) []byte {
	b = append(appendMember(b, name), '[')
	for i := range ms {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, `{"pid":`...)
		b = appendUint(b, uint64(ms[i].Pid))
		b = append(b, `,"comm":`...)
		b = appendString(b, ms[i].Comm.Bytes())
		b = append(appendInt(b, "count", ms[i].Count), '}')
	}
	return append(b, ']')
}

func appendPeer(b []byte, p *aggregate.PeerEvidence) []byte {
	b = appendAddr(appendMember(b, "raddr"), &p.Raddr)
	b = appendPort(appendMember(b, "rport"), p.Rport)
	b = appendInt(b, "held", p.Held)
	b = appendInt(b, "orphans", p.Orphans)
	b = appendMember(b, "tcp_fin_timeout")
	if p.FinTimeout == 0 {
		b = append(b, "null"...)
	} else {
		b = appendUint(b, uint64(p.FinTimeout))
	}
	b = appendMakers(b, "closed_by", p.Closers)
	b = appendMakers(b, "peers", p.Peers)
	b = append(appendMember(b, "pairs"), '[')
	for i := range p.Pairs {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '{')
		b = appendCookieOnly(appendMember(b, "cookie"), p.Pairs[i].Cookie)
		b = appendCookieOnly(appendMember(b, "peer_cookie"), p.Pairs[i].Peer)
		b = appendMember(b, "peer_pid")
		if p.Pairs[i].Owner.Pid == 0 {
			b = append(b, "null"...)
		} else {
			b = appendUint(b, uint64(p.Pairs[i].Owner.Pid))
		}
		b = append(b, '}')
	}
	return append(b, ']')
}

func appendPorts(b []byte, p *aggregate.PortsEvidence) []byte {
	b = appendInt(b, "netns", p.Network.Netns)
	side, far := "client", "rport"
	if p.Ours {
		side, far = "server", "lport"
	}
	b = appendName(appendMember(b, "side"), side)
	b = appendAddr(appendMember(b, "laddr"), &p.Laddr)
	b = appendAddr(appendMember(b, "raddr"), &p.Raddr)
	b = appendPort(appendMember(b, far), p.Port)
	b = appendInt(b, "ports", p.Total)
	b = appendInt(b, "time_wait", p.TimeWait)
	if !p.Ours {
		b = appendInt(b, "live", p.Live)
	}
	b = append(appendMember(b, "ip_local_port_range"), '[')
	b = appendUint(b, uint64(p.Network.PortLow))
	b = append(b, ',')
	b = appendUint(b, uint64(p.Network.PortHigh))
	b = append(b, ']')
	b = appendInt(b, "reserved_ports", uint32(p.Network.Reserved))
	b = appendInt(b, "tcp_tw_reuse", uint32(p.Network.ReusePolicy))
	b = appendInt(b, "tcp_timestamps", uint32(p.Network.Timestamps))
	b = strconv.AppendBool(appendMember(b, "reusable"), p.Reuses)
	b = appendRate(b, "connections_per_second", p.PerSecond)
	b = appendRate(b, "sustainable_per_second", float64(p.Total)/60)
	b = appendMs(appendMember(b, "exhausted_in_ms"), p.Exhausted)
	return appendMakers(b, "processes", p.Makers)
}

func appendChurn(b []byte, c *aggregate.ChurnEvidence) []byte {
	b = appendAddr(appendMember(b, "raddr"), &c.Raddr)
	b = appendPort(appendMember(b, "rport"), c.Rport)
	b = appendRate(b, "connections_per_second", c.PerSecond)
	b = appendMs(appendMember(b, "life_p50_ms"), c.MedianLife)
	b = appendMs(appendMember(b, "window_ms"), c.Over)
	return appendInt(b, "connections", c.Connections)
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
