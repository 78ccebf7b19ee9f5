package tui

import (
	"fmt"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

func stripped(s string) string { return ansi.Strip(s) }

func (m *model) drawConnections(c *canvas, h int) {
	v, rows := m.frame.View, m.connRows()
	all := ""
	switch {
	case v.Query.Scope != m.query.Scope && m.paused:
		all = ": paused, Space goes on"
	case v.Query.Scope != m.query.Scope:
		all = ": …"
	case v.AllConnections > len(rows):
		all = fmt.Sprintf(": %s of %s, / finds the others", number(len(rows)), number(v.AllConnections))
	default:
		all = ": " + number(len(rows))
	}
	c.put(c.paint(bold, "Connections of "+m.of+all))
	what, last := "OWNER", 13 // of a process, it is known
	if m.ofProcess {
		what = "VERDICT"
	}
	if c.w >= 110 {
		last = 31
	}
	ends := max((c.w-1-11-1-8-1-1-1-last)/2, 12)
	cols := []column{
		{"STATE", 12, false}, {"AGE", 7, true}, {"LADDR:LPORT", ends, false}, {"RADDR:RPORT", ends, false}, {what, last, false},
	}
	sorted := map[aggregate.Order]string{aggregate.ByAge: "AGE", aggregate.ByState: "STATE", aggregate.ByPeer: "RADDR:RPORT"}[m.query.Connections]
	c.put(c.paint(focused, cell(titles(cols, sorted), c.w, false)))
	draw := func(i int, mark string) []string {
		r := &rows[i]
		about := process(r.Owner.Pid, &r.Owner.Comm)
		if m.ofProcess {
			about = verdict(r.Verdict)
		}
		line := row(mark, cols, []string{
			r.State.String(), age(r.Age, r.Exact), endpoint(&r.Laddr, r.Lport), endpoint(&r.Raddr, r.Rport), about,
		})
		if r.State == events.CloseWait || r.State == events.Close {
			line = c.paint(alarm, line)
		}
		return []string{line}
	}
	from, to := m.conns.window(max(h-len(c.lines), 0), len(rows))
	for i := from; i < to; i++ {
		m.putRow(c, draw, i, i == m.conns.at)
	}
}

// inOrder are the states in the order in which a connection may come through them.
var inOrder = [...]events.State{
	events.SynSent, events.SynRecv, events.Established, events.FinWait1, events.FinWait2,
	events.Closing, events.TimeWait, events.CloseWait, events.LastAck,
}

// step is a state of a connection's time line.
type step struct {
	state events.State
	from  time.Duration // since the start; Unknown if not all before it is known
	took  time.Duration // or Unknown
	exact bool
	now   bool
}

// steps is the story of a connection so far.
func steps(v *aggregate.ConnView) []step {
	var all []step
	from := time.Duration(0)
	if v.Start == 0 {
		from = aggregate.Unknown
	}
	add := func(s step) {
		s.from = from
		if from != aggregate.Unknown && s.took != aggregate.Unknown {
			from += s.took
		} else {
			from = aggregate.Unknown
		}
		all = append(all, s)
	}
	for _, st := range inOrder {
		if took, visited := v.Times.In(st); visited && st != v.State {
			add(step{state: st, took: took, exact: true})
		}
	}
	add(step{state: v.State, took: v.Age, exact: v.Exact, now: true})
	return all
}

func (m *model) drawConnection(c *canvas) {
	v := m.conn
	if v == nil {
		switch {
		case m.paused:
			c.put("Paused; Space goes on.")
		case m.frame.View.Query.Conn == m.query.Conn:
			c.put("It is over.")
		default:
			c.put("…")
		}
		return
	}
	to := "->"
	if v.Role == aggregate.Server {
		to = "<-"
	}
	c.put(c.paint(bold, endpoint(&v.Laddr, v.Lport)+" "+to+" "+endpoint(&v.Raddr, v.Rport)))
	if m.frame.View.Query.Conn == m.query.Conn && m.frame.View.Conn == nil {
		c.put(c.paint(warning, "It is over; this is the last that was seen of it."))
	}
	field := func(label, value string) {
		if value != "" {
			c.put("  " + cell(label, 10, false) + value)
		}
	}
	owner := process(v.Owner.Pid, &v.Owner.Comm)
	if s := v.Owner.Source.String(); s != "" {
		owner += ", known by " + s
	}
	field("owner", owner)
	if v.Container.ID != "" {
		field("container", container(&v.Container))
	}
	field("role", v.Role.String())
	if v.Cookie != 0 {
		field("cookie", fmt.Sprintf("%x", v.Cookie))
	}
	field("netns", fmt.Sprint(v.Netns))
	if s := v.Closer.String(); s != "" {
		field("closer", s)
	}
	field("call", v.Call.String())
	if v.Looked {
		eof := "end-of-file is read"
		if v.Unread > 0 {
			eof = fmt.Sprintf("%s bytes and end-of-file are not read", number(int(v.Unread)-1))
		}
		field("reading", eof)
	}
	if v.Verdict != aggregate.VerdictNone {
		field("verdict", c.paint(alarm, v.Verdict.String()))
	}
	if v.Gap {
		field("gap", c.paint(warning, "transitions were missed"))
	}
	c.put("")
	m.drawTimeLine(c, v)
	c.put("")
	m.drawHolders(c, v)
}

func (m *model) drawTimeLine(c *canvas, v *aggregate.ConnView) {
	all := steps(v)
	total := time.Duration(0)
	for _, s := range all {
		total += max(s.took, 0)
	}
	head := "Time line"
	if v.Start != 0 {
		head += ", from " + m.at(v.Start).Format("15:04:05.000000")
	} else {
		head += ": its beginning was not seen"
	}
	c.put(c.paint(bold, head))
	w := max(c.w-34, 0)
	for _, s := range all {
		took := exactly(s.took)
		if s.took != aggregate.Unknown && !s.exact {
			took = age(s.took, false)
		}
		// A state with a place in time is drawn there; else nothing is.
		line := ""
		if s.from != aggregate.Unknown && s.took != aggregate.Unknown && total > 0 {
			lead := min(int(float64(s.from)/float64(total)*float64(w)), w-1)
			n := max(int(float64(s.took)/float64(total)*float64(w)), 1)
			line = strings.Repeat(" ", max(lead, 0)) + strings.Repeat("█", max(min(n, w-lead), 0))
		}
		mark := "  "
		if s.now {
			mark = "> "
		}
		c.put(mark + cell(s.state.String(), 12, false) + cell(took, 16, true) + "  " + c.paint(stateStyle(s.state, 1), line))
	}
	if v.Mini && v.State == events.TimeWait {
		c.put(fmt.Sprintf("  The kernel ends it in %s.", age(v.Expires, true)))
	}
}

func (m *model) drawHolders(c *canvas, v *aggregate.ConnView) {
	head := "Holders"
	if v.HeldAt != 0 && !v.Mini {
		head += ", as of " + m.at(v.HeldAt).Format("15:04:05")
	}
	c.put(c.paint(bold, head))
	switch {
	case v.Mini:
		c.put("  None: the kernel alone has it.")
	case v.HeldAt == 0 && m.frame.Replay != "":
		c.put("  Not known: when this was recorded nobody had asked for them.")
	case v.HeldAt == 0:
		c.put("  Not looked for yet.")
	case len(v.Holders) == 0:
		c.put("  No visible process has a descriptor of it.")
	}
	for i := range v.Holders {
		h := &v.Holders[i]
		c.put(fmt.Sprintf("  %s fd %d", process(h.Pid, &h.Comm), h.Fd))
	}
}

func (m *model) drawFinding(c *canvas) {
	f := m.about
	word, st := severity(f.Severity)
	c.put(c.paint(st, word) + " " + c.paint(bold, f.Kind.String()))
	c.put("")
	c.wrap(2, name([]byte(f.Message)), plain)
	c.wrap(2, name([]byte(f.Advice)), calm)
	c.put("")
	field := func(label, value string) { c.put("  " + cell(label, 10, false) + value) }
	field("id", f.ID)
	field("process", process(f.Pid, &f.Comm))
	if f.Exe != "" {
		field("exe", name([]byte(f.Exe)))
	}
	if f.Container.ID != "" {
		field("container", container(&f.Container))
	}
	field("sockets", number(f.Count))
	field("as of", m.at(f.Ktime).Format("15:04:05"))
	if v := m.frame.View; f.Kind != aggregate.NeverClosed && v.Query.Finding == f.ID && v.Finding == nil {
		field("now", c.paint(calm, "it is over"))
	}
	if len(f.Holders) > 0 {
		c.put("")
		c.put(c.paint(bold, "Holders of the oldest"))
	}
	for i := range f.Holders {
		h := &f.Holders[i]
		line := fmt.Sprintf("  %s fd %d", process(h.Pid, &h.Comm), h.Fd)
		if h.Cookie != 0 {
			line += fmt.Sprintf("  cookie %x", h.Cookie)
		}
		c.put(line)
	}
}

// helpText is docs/top.md in short, for 80 columns.
const helpText = `Keys
  Up Down PgUp PgDn Home End  select a row (also k j g G)
  Tab, 1 2 3                  another list
  Enter                       a process or a destination: its connections;
                              a connection: its time line, who holds it;
                              a finding: all of it
  Esc                         back; takes a filter off first
  s                           sort by another column
  /                           filter: a name, a PID, an address, a state
  Space                       pause the screen; tracing goes on
  f                           freeze: write what is shown to a new file
  q, Ctrl-C                   quit
Columns
  CLOSE_WAIT  sockets whose peer has closed, and whose process has not
  DEAD        connections that are over, with a descriptor still open
  OLDEST      of these two; 75s+ is at least 75 s: it began before tracing did
  +/MIN       growth of CLOSE_WAIT in the last half a minute
  VERDICT     what the process has failed to do, after --close-wait-after
  PORTS LEFT  for connect() to this destination; 9+ is at least 9: some in
              TIME_WAIT may be taken again (tcp_tw_reuse)
  here, ...   connections to this host, which has closed them first`

func drawHelp(c *canvas) {
	for line := range strings.Lines(helpText) {
		line = strings.TrimRight(line, "\n")
		if !strings.HasPrefix(line, " ") {
			line = c.paint(bold, line)
		}
		c.put(line)
	}
}
