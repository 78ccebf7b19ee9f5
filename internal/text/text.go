// Package text encodes records for eyes: one aligned line each, in the manner of
// ss and tcpstates.
package text

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// Header names the columns that all lines share.
const Header = "TIME            PID     COMM             LADDR:LPORT           RADDR:RPORT           WHAT\n"

// An Encoder turns records into lines. It belongs to one goroutine.
type Encoder struct {
	// Wall is what to add to the kernel's clock to get Unix time, in ns.
	Wall int64
}

func (e *Encoder) appendHead(b []byte, ktime uint64, s *aggregate.Ends) []byte {
	b = time.Unix(0, int64(ktime)+e.Wall).AppendFormat(b, "15:04:05.000000")
	pid, comm := owner(&s.Owner)
	return fmt.Appendf(b, " %-7s %-16s %-21s %-21s ", pid, comm,
		endpoint(s.Laddr, s.Lport), endpoint(s.Raddr, s.Rport))
}

func owner(o *aggregate.Owner) (pid, comm string) {
	if o.Pid == 0 {
		return "-", "-"
	}
	return strconv.FormatUint(uint64(o.Pid), 10), Printable(o.Comm.Bytes())
}

func endpoint(a events.Addr, port uint16) string {
	ip := a.Netip()
	switch {
	case port == 0 && ip.IsUnspecified():
		return "*:*"
	case port == 0:
		return strings.TrimSuffix(netip.AddrPortFrom(ip, 0).String(), "0") + "*"
	}
	return netip.AddrPortFrom(ip, port).String()
}

// Printable returns a command name in which every byte that is not part of a
// printable character is shown as \xNN, so that it can move no cursor; and so is
// a backslash, so that no name can pass for another.
func Printable(comm []byte) string {
	var b []byte
	for i := 0; i < len(comm); {
		r, n := utf8.DecodeRune(comm[i:])
		if r == utf8.RuneError && n == 1 || !unicode.IsPrint(r) || r == '\\' {
			for _, c := range comm[i : i+n] {
				b = fmt.Appendf(b, `\x%02x`, c)
			}
		} else {
			b = append(b, comm[i:i+n]...)
		}
		i += n
	}
	return string(b)
}

func ms(d time.Duration) string {
	if d < 0 {
		return "-"
	}
	return strconv.FormatFloat(float64(d/time.Microsecond)/1000, 'f', 3, 64)
}

func appendMarks(b []byte, gap bool, unprinted uint32) []byte {
	if gap {
		b = append(b, " (transitions missed)"...)
	}
	if unprinted > 0 {
		b = fmt.Appendf(b, " (%d records not printed)", unprinted)
	}
	return append(b, '\n')
}

// Transition appends t as one line.
func (e *Encoder) Transition(b []byte, t *aggregate.Transition) []byte {
	b = e.appendHead(b, t.Ktime, &t.Ends)
	b = fmt.Appendf(b, "%-11s -> %-11s %s ms", t.Old, t.New, ms(t.Dwell))
	return appendMarks(b, t.Gap, t.Unprinted)
}

// Connection appends c as one line.
func (e *Encoder) Connection(b []byte, c *aggregate.Connection) []byte {
	b = e.appendHead(b, c.Ktime, &c.Ends)
	b = append(b, "connection"...)
	for _, s := range []string{c.Role.String(), "end=" + c.End.String(), "closer=" + c.Closer.String()} {
		if s != "" && s[len(s)-1] != '=' {
			b = append(append(b, ' '), s...)
		}
	}
	if c.Start != 0 && c.Ended {
		b = fmt.Appendf(b, " %s ms", ms(time.Duration(max(c.Ktime, c.Start)-c.Start)))
	}
	if c.TimeWaitEnd != aggregate.TimeWaitEndUnknown {
		b = fmt.Appendf(b, " time_wait_end=%s", c.TimeWaitEnd)
	}
	if c.Payload {
		b = fmt.Appendf(b, " sent=%d received=%d", c.Sent, c.Received)
	}
	return appendMarks(b, c.Gap, c.Unprinted)
}

// Socket appends s as one line.
func (e *Encoder) Socket(b []byte, s *aggregate.Socket) []byte {
	b = e.appendHead(b, s.Ktime, &s.Ends)
	b = fmt.Appendf(b, "socket %s", s.State)
	if s.Age >= 0 {
		b = fmt.Appendf(b, " for at least %s ms", ms(s.Age))
	}
	for i := range s.Holders {
		h := &s.Holders[i]
		b = fmt.Appendf(b, " %s[%d] fd=%d", Printable(h.Comm.Bytes()), h.Pid, h.Fd)
	}
	if s.Verdict != aggregate.VerdictNone {
		b = fmt.Appendf(b, " %s", s.Verdict)
	}
	return append(b, '\n')
}

// Finding appends f as one line.
func (e *Encoder) Finding(b []byte, f *aggregate.Finding) []byte {
	b = time.Unix(0, int64(f.Ktime)+e.Wall).AppendFormat(b, "15:04:05.000000")
	return fmt.Appendf(b, " finding %s %s %s: %s\n", f.Status, f.Severity, f.Kind, Printable([]byte(f.Message)))
}

// Summary appends s as one line, and one for each process.
func (e *Encoder) Summary(b []byte, s *aggregate.Summary) []byte {
	at := time.Unix(0, int64(s.Ktime)+e.Wall).Format("15:04:05.000000")
	b = fmt.Appendf(b, "%s summary netns=%d opened=%d closed=%d", at, s.Netns, s.Opened, s.Closed)
	for st, n := range s.States {
		if n > 0 {
			b = fmt.Appendf(b, " %s=%d", events.State(st), n)
		}
	}
	b = append(b, '\n')
	for i := range s.Processes {
		p := &s.Processes[i]
		b = fmt.Appendf(b, "%s summary netns=%d %s[%d] close_wait=%d time_wait=%d entered=%d closed=%d",
			at, s.Netns, Printable(p.Comm.Bytes()), p.Pid, p.CloseWait, p.TimeWait, p.Entered, p.Closed)
		if p.Oldest >= 0 {
			b = fmt.Appendf(b, " oldest=%s ms", ms(p.Oldest))
		}
		b = append(b, '\n')
	}
	return b
}

// Stats appends s as one line.
func (e *Encoder) Stats(b []byte, s *aggregate.Stats) []byte {
	b = time.Unix(0, int64(s.Ktime)+e.Wall).AppendFormat(b, "15:04:05.000000")
	b = fmt.Appendf(b, " stats seen=%d delivered=%d filtered=%d lost=%d unprinted=%d sockets=%d",
		s.Seen, s.Delivered, s.Filtered, s.Lost.Sum(), s.Unprinted, s.Tracked)
	if s.Evicted > 0 {
		b = fmt.Appendf(b, " evicted=%d", s.Evicted)
	}
	return append(b, '\n')
}
