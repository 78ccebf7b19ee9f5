// Package text encodes records for eyes: aligned lines, in the manner of ss and tcpstates.
//
// What a process has chosen, its name, can do nothing to a terminal: see Printable. How wide it
// is shown is what a terminal makes of it, as far as Unicode says.
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

// An Encoder turns the records of a run into lines. It belongs to one goroutine.
type Encoder struct {
	// Wall is what to add to the kernel's clock to get Unix time, in ns.
	Wall int64
	t    table
	line []byte // the last cell of a row
}

// NewEncoder returns an encoder for a screen.
func NewEncoder(s Screen) *Encoder {
	t := table{Screen: s, last: "WHAT"}
	if s.narrow() {
		t.columns = []column{{"TIME", []int{8}}, {"PID", []int{5, 7}}, {"COMM", []int{8, 16}}, {"LPORT", []int{5}}, {"RADDR:RPORT", narrowEnds}}
	} else {
		t.columns = []column{{"TIME", []int{15}}, {"PID", []int{7}}, {"COMM", []int{16}}, {"LADDR:LPORT", wideEnds}, {"RADDR:RPORT", wideEnds}}
	}
	return &Encoder{t: t}
}

// Begin appends what stands above the lines.
func (e *Encoder) Begin(b []byte) []byte { return e.t.header(b) }

func (e *Encoder) clock(ktime uint64) string {
	layout := "15:04:05.000000"
	if e.t.narrow() {
		layout = "15:04:05"
	}
	return time.Unix(0, int64(ktime)+e.Wall).Format(layout)
}

// row appends a line: the cells that all have, and e.line.
func (e *Encoder) row(b []byte, ktime uint64, s *aggregate.Ends, style string) []byte {
	pid, comm := owner(&s.Owner)
	local := endpoint(s.Laddr, s.Lport)
	if e.t.narrow() {
		local = port(s.Lport)
	}
	return e.t.row(b, style, string(e.line), e.clock(ktime), pid, comm, local, endpoint(s.Raddr, s.Rport))
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

func port(p uint16) string {
	if p == 0 {
		return "*"
	}
	return strconv.FormatUint(uint64(p), 10)
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

// span is a time as a cell shows it: tcpstates' milliseconds, or where there is little room as many
// digits as an eye wants.
func (e *Encoder) span(d time.Duration) string {
	switch {
	case d < 0 && e.t.narrow():
		return "-"
	case d < 0:
		return "- ms"
	case e.t.narrow():
		return brief(d)
	}
	return strconv.FormatFloat(float64(d/time.Microsecond)/1000, 'f', 3, 64) + " ms"
}

// brief cuts d to three digits, or to the second.
func brief(d time.Duration) string {
	for unit := time.Microsecond; unit < time.Second; unit *= 10 {
		if d < 1000*unit {
			return d.Truncate(unit).String()
		}
	}
	return roughly(d)
}

// mark appends what is missing of a record, and returns the style that this wants.
func (e *Encoder) mark(gap bool, unprinted uint32) (style string) {
	if gap {
		e.line, style = append(e.line, " (transitions missed)"...), yellow
	}
	if unprinted > 0 {
		e.line, style = fmt.Appendf(e.line, " (%d records not printed)", unprinted), yellow
	}
	return style
}

// Transition appends t as one line.
func (e *Encoder) Transition(b []byte, t *aggregate.Transition) []byte {
	format := "%-11s -> %-11s %s"
	if e.t.narrow() {
		format = "%s -> %s %s"
	}
	e.line = fmt.Appendf(e.line[:0], format, t.Old, t.New, e.span(t.Dwell))
	return e.row(b, t.Ktime, &t.Ends, e.mark(t.Gap, t.Unprinted))
}

// Connection appends c as one line.
func (e *Encoder) Connection(b []byte, c *aggregate.Connection) []byte {
	e.line = append(e.line[:0], "connection"...)
	for _, s := range []string{c.Role.String(), "end=" + c.End.String(), "closer=" + c.Closer.String()} {
		if s != "" && s[len(s)-1] != '=' {
			e.line = append(append(e.line, ' '), s...)
		}
	}
	if c.Start != 0 && c.Ended {
		e.line = fmt.Appendf(e.line, " %s", e.span(time.Duration(max(c.Ktime, c.Start)-c.Start)))
	}
	if c.TimeWaitEnd != aggregate.TimeWaitEndUnknown {
		e.line = fmt.Appendf(e.line, " time_wait_end=%s", c.TimeWaitEnd)
	}
	if c.Payload {
		e.line = fmt.Appendf(e.line, " sent=%d received=%d", c.Sent, c.Received)
	}
	return e.row(b, c.Ktime, &c.Ends, e.mark(c.Gap, c.Unprinted))
}

// Socket appends s as one line.
func (e *Encoder) Socket(b []byte, s *aggregate.Socket) []byte {
	e.line = fmt.Appendf(e.line[:0], "socket %s", s.State)
	if s.Age >= 0 {
		e.line = fmt.Appendf(e.line, " for at least %s", e.span(s.Age))
	}
	for i := range s.Holders {
		h := &s.Holders[i]
		e.line = fmt.Appendf(e.line, " %s[%d] fd=%d", Printable(h.Comm.Bytes()), h.Pid, h.Fd)
	}
	style := ""
	if s.Verdict != aggregate.VerdictNone {
		e.line, style = fmt.Appendf(e.line, " %s", s.Verdict), yellow
	}
	return e.row(b, s.Ktime, &s.Ends, style)
}

// Finding appends f: a line with what is wrong, and unless that is over one with what to do, and
// one with who holds the sockets.
func (e *Encoder) Finding(b []byte, f *aggregate.Finding) []byte {
	head := fmt.Sprintf("%s finding %s %s %s:", e.clock(f.Ktime), f.Status, f.Severity, f.Kind)
	return e.t.finding(b, head, f)
}

// Summary appends s as one line, and one for each process.
func (e *Encoder) Summary(b []byte, s *aggregate.Summary) []byte {
	at := e.clock(s.Ktime)
	line := fmt.Sprintf("%s summary netns=%d opened=%d closed=%d", at, s.Netns, s.Opened, s.Closed)
	for st, n := range s.States {
		if n > 0 {
			line += fmt.Sprintf(" %s=%d", events.State(st), n)
		}
	}
	b = append(e.t.fold(b, 0, line), '\n')
	for i := range s.Processes {
		p := &s.Processes[i]
		line := fmt.Sprintf("%s summary netns=%d %s[%d] close_wait=%d time_wait=%d entered=%d closed=%d",
			at, s.Netns, Printable(p.Comm.Bytes()), p.Pid, p.CloseWait, p.TimeWait, p.Entered, p.Closed)
		if p.Oldest >= 0 {
			line += " oldest=" + e.span(p.Oldest)
		}
		b = append(e.t.fold(b, 0, line), '\n')
	}
	return b
}

// Stats appends s as one line.
func (e *Encoder) Stats(b []byte, s *aggregate.Stats) []byte {
	line := fmt.Sprintf("%s stats seen=%d delivered=%d filtered=%d lost=%d unprinted=%d sockets=%d",
		e.clock(s.Ktime), s.Seen, s.Delivered, s.Filtered, s.Lost.Sum(), s.Unprinted, s.Tracked)
	if s.Evicted > 0 {
		line += fmt.Sprintf(" evicted=%d", s.Evicted)
	}
	style := ""
	if s.Lost.Sum()+s.Unprinted+s.Evicted > 0 {
		style = yellow
	}
	if s.Exported != nil {
		line += fmt.Sprintf(" otlp_sent=%d otlp_unsent=%d", s.Exported.Sent, s.Exported.Unsent)
		if s.Exported.Unsent > 0 {
			style = yellow
		}
	}
	return append(e.t.paint(b, style, e.t.fold(nil, 0, line)), '\n')
}
