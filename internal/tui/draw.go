package tui

import (
	"fmt"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// View implements tea.Model.
func (m *model) View() tea.View {
	c := canvas{w: m.w}
	m.draw(&c, m.h-2)
	for len(c.lines) < m.h-2 {
		c.lines = append(c.lines, "")
	}
	c.lines = c.lines[:max(m.h-2, 0)]
	m.drawFoot(&c)
	v := tea.NewView(strings.Join(c.lines[max(len(c.lines)-m.h, 0):], "\n"))
	v.AltScreen = true
	return v
}

// draw puts the page into at most h lines.
func (m *model) draw(c *canvas, h int) {
	m.drawHead(c)
	switch {
	case m.help && !c.plain:
		drawText(c, h, new(int), drawHelp)
	case m.page() == overview:
		m.drawOverview(c, h)
	case m.page() == connections:
		m.drawConnections(c, h)
	case m.page() == connection:
		drawText(c, h, &m.scroll, m.drawConnection)
	default:
		drawText(c, h, &m.scroll, m.drawFinding)
	}
}

// drawText puts what may be longer than the screen from the line to which it was scrolled.
func drawText(c *canvas, h int, scroll *int, draw func(*canvas)) {
	text := canvas{w: c.w, plain: c.plain}
	draw(&text)
	left := max(h-len(c.lines), 0)
	from := max(min(*scroll, len(text.lines)-left), 0)
	*scroll = from
	c.lines = append(c.lines, text.lines[from:min(from+left, len(text.lines))]...)
}

// now is the time of the frame.
func (m *model) now() time.Time { return m.at(m.frame.View.Ktime) }

func (m *model) at(ktime uint64) time.Time { return time.Unix(0, int64(ktime)+m.frame.Wall) }

func (m *model) drawHead(c *canvas) {
	f := m.frame
	sockets := f.View.Dead
	for _, n := range f.View.Census.States {
		sockets += n
	}
	parts := []string{c.paint(bold, "tcptrace top")}
	if m.paused {
		parts = append(parts, c.paint(badge, " PAUSED "))
	}
	parts = append(parts, fmt.Sprintf("%s transitions/s", rate(f.PerSecond)), counted(sockets, "socket"))
	if f.Lost > 0 {
		parts = append(parts, c.paint(alarm, number(f.Lost)+" lost"))
	} else {
		parts = append(parts, "0 lost")
	}
	switch n := &f.View.Counts; {
	case n.Evicted > 0:
		parts = append(parts, c.paint(alarm, number(n.Evicted)+" not tracked"))
	case n.NoPlace > 0:
		parts = append(parts, c.paint(alarm, "some not tracked")) // how many, nobody has counted
	}
	parts = append(parts, m.now().Format("15:04:05"))
	switch {
	case f.Played:
		parts = append(parts, c.paint(warning, "end of "+name([]byte(f.Replay))))
	case f.Replay != "":
		parts = append(parts, c.paint(warning, "playing "+name([]byte(f.Replay))))
	}
	c.put(strings.Join(parts, "   "))
}

func counted(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return number(n) + " " + what
}

func rate(perSecond float64) string {
	if perSecond > 0 && perSecond < 10 {
		return fmt.Sprintf("%.1f", perSecond)
	}
	return number(int(perSecond))
}

// drawFoot is what the last key has done, and the keys that there are.
func (m *model) drawFoot(c *canvas) {
	status := ""
	switch {
	case m.typing:
		status = "filter: " + name([]byte(m.found())) + c.paint(selected, " ") + c.paint(faint, "  Enter keeps it, Esc clears it")
	case m.note != "":
		status = c.paint(calm, name([]byte(m.note)))
	case m.page() <= connections && m.found() != "":
		status = c.paint(calm, "filter: "+name([]byte(m.found()))) + c.paint(faint, "  Esc clears it")
	default:
		status = c.paint(faint, name([]byte(m.frame.Note)))
	}
	keys := "Tab list  Enter open  s sort  / filter  Space pause  f freeze  ? help  q quit"
	switch m.page() {
	case connections:
		keys = "Enter open  s sort  / filter  Esc back  Space pause  f freeze  ? help  q quit"
	case connection, finding:
		keys = "Up Down scroll  Esc back  Space pause  f freeze  ? help  q quit"
	}
	c.put(status)
	c.put(c.paint(bold, keys))
}

// The states in two columns, in the order of a connection's life.
var shown = [][2]events.State{
	{events.Listen, events.Established},
	{events.SynSent, events.SynRecv},
	{events.FinWait1, events.CloseWait},
	{events.FinWait2, events.LastAck},
	{events.TimeWait, events.Closing},
}

// drawStates is a bar for each state; in one line without bars where there is little room.
func (m *model) drawStates(c *canvas, h int) {
	n := &m.frame.View.Census.States
	if h < 16 {
		var parts []string
		for _, pair := range shown {
			for _, st := range pair {
				if n[st] > 0 {
					parts = append(parts, c.paint(stateStyle(st, n[st]), st.String()+" "+number(n[st])))
				}
			}
		}
		c.put(strings.Join(parts, "  "))
		return
	}
	most := 0
	for _, k := range n {
		most = max(most, k)
	}
	half := c.w / 2
	for _, pair := range shown {
		line := ""
		for i, st := range pair {
			const head = 24
			w := half - head
			note := ""
			if st == events.FinWait2 && m.frame.View.Orphans > 0 {
				note = number(m.frame.View.Orphans) + " orphaned"
				w -= len(note) + 1
			}
			b := bar(n[st], most, w)
			if note != "" {
				b += " " + note
			}
			s := " " + cell(st.String(), 11, false) + " " + cell(number(n[st]), 9, true) + " " + b
			line += c.paint(stateStyle(st, n[st]), cell(s, half, false))
			if i == 1 {
				line = strings.TrimRight(line, " ")
			}
		}
		c.put(line)
	}
}

func stateStyle(st events.State, n int) lipgloss.Style {
	switch {
	case n == 0:
		return faint
	case st == events.CloseWait:
		return alarm
	case st == events.TimeWait, st == events.FinWait2:
		return warning
	}
	return calm
}

// section is a list of the overview: a head, and rows of so many lines.
type section struct {
	head string
	n    int
	tall int
	draw func(i int, mark string) []string
	none string
}

func (m *model) drawOverview(c *canvas, h int) {
	m.drawStates(c, h)
	sections := [numSections]section{m.processSection(c), m.destinationSection(c), m.findingSection(c)}
	fit, left := m.share(&sections, h-len(c.lines))
	for i, s := range sections {
		if fit[i] < 0 {
			continue
		}
		if left >= numSections {
			c.put("")
		}
		st := heading
		if i == m.focus {
			st = focused
		}
		c.put(c.paint(st, cell(s.head, c.w, false)))
		if s.n == 0 && fit[i] > 0 {
			c.put(c.paint(faint, "  "+s.none))
		}
		from, to := m.sections[i].window(fit[i], s.n)
		for k := from; k < to; k++ {
			m.putRow(c, s.draw, k, i == m.focus && k == m.sections[i].at)
		}
	}
}

// putRow puts a row, marked if it is the selected one.
func (m *model) putRow(c *canvas, draw func(int, string) []string, i int, marked bool) {
	mark := " "
	if marked && !c.plain {
		mark = ">"
	}
	for n, line := range draw(i, mark) {
		if marked && n == 0 && !c.plain {
			// Colours within the line would end the selection's.
			line = c.paint(selected, cell(stripped(line), c.w, false))
		}
		c.put(line)
	}
}

// share divides so many lines among the sections, and returns how many rows each may have: -1
// for one that has no room for its head; and the lines that are left. The focused one is served
// first, and twice.
func (m *model) share(sections *[numSections]section, lines int) (fit [numSections]int, left int) {
	order := []int{m.focus, processes, destinations, findings}
	seen := [numSections]bool{}
	for i := range fit {
		fit[i] = -1
	}
	for _, i := range order {
		if !seen[i] && lines >= 2 {
			seen[i] = true
			fit[i], lines = 0, lines-1
		}
	}
	for gave := true; gave; {
		gave = false
		for _, i := range order {
			s := &sections[i]
			if fit[i] >= 0 && fit[i] < max(s.n, 1) && lines >= s.tall {
				fit[i]++
				lines -= s.tall
				gave = true
			}
		}
	}
	return fit, lines
}

func (m *model) processSection(c *canvas) section {
	v := m.frame.View
	cols := []column{
		{"PID", 7, false},
		{"COMM", 15, false},
		{"CLOSE_WAIT", 11, true},
		{"DEAD", 5, true},
		{"OLDEST", 7, true},
		{"+/MIN", 6, true},
		{"VERDICT", 13, false},
		{"SOCKETS", 8, true},
	}
	if c.w >= 90 {
		cols = append(cols, column{"TIME_WAIT", 9, true})
	}
	if c.w >= 110 {
		cols = fill(c.w, 12, append(cols, column{"CONTAINER", 0, false}))
	}
	if v.AllProcesses > len(v.Processes) {
		cols[1].title += of(v.AllProcesses)
	}
	sorted := map[aggregate.Order]string{
		aggregate.ByCloseWait: "CLOSE_WAIT", aggregate.ByOldest: "OLDEST", aggregate.ByGrowth: "+/MIN", aggregate.BySockets: "SOCKETS",
	}[m.query.Processes]
	return section{
		head: titles(cols, sorted), n: len(v.Processes), tall: 1, none: "no process with TCP sockets" + m.butFiltered(),
		draw: func(i int, mark string) []string {
			r := &v.Processes[i]
			pid, comm := "-", "-"
			if r.Pid != 0 {
				pid, comm = fmt.Sprint(r.Pid), name(r.Comm.Bytes())
			}
			growth, timeWait := "-", "-"
			if v.Traced {
				timeWait = number(r.TimeWait)
			}
			if r.Measured {
				growth = fmt.Sprintf("%+.0f", r.PerMinute)
			}
			line := row(mark, cols, []string{
				pid, comm, orDash(r.CloseWait), orDash(r.Dead), age(r.Oldest, r.Exact), growth, verdict(r.Verdict), number(r.Sockets),
				timeWait, container(&r.Container),
			}[:len(cols)])
			switch {
			case r.Verdict != aggregate.VerdictNone:
				line = c.paint(alarm, line)
			case r.CloseWait+r.Dead > 0:
				line = c.paint(warning, line)
			}
			return []string{line}
		},
	}
}

// of says in the head of a list that it has not all rows.
func of(all int) string { return " (of " + number(all) + ")" }

func (m *model) butFiltered() string {
	if m.query.Find == "" {
		return ""
	}
	return " that the filter lets through"
}

func destination(r *aggregate.DestinationRow) string {
	if r.Ours {
		return "here, " + endpoint(&r.Near, r.Port)
	}
	return endpoint(&r.Far, r.Port)
}

func (m *model) destinationSection(c *canvas) section {
	v := m.frame.View
	cols := []column{
		{"TIME_WAIT TO", 0, false},
		{"TIME_WAIT", 10, true},
		{"LIVE", 7, true},
		{"PORTS LEFT", 11, true},
		{"OF", 7, true},
	}
	if c.w >= 120 {
		cols = append(cols, column{"FROM", 39, false})
	}
	cols = fill(c.w, 21, cols)
	if v.AllDestinations > len(v.Destinations) {
		cols[0].title += of(v.AllDestinations)
	}
	sorted := map[aggregate.Order]string{
		aggregate.ByTimeWait: "TIME_WAIT", aggregate.ByPortsLeft: "PORTS LEFT", aggregate.ByLive: "LIVE",
	}[m.query.Destinations]
	none := "nothing in TIME_WAIT" + m.butFiltered()
	if !v.Traced {
		none = "TIME_WAIT is not traced: where these went is not known"
	}
	return section{
		head: titles(cols, sorted), n: len(v.Destinations), tall: 1, none: none,
		draw: func(i int, mark string) []string {
			r := &v.Destinations[i]
			timeWait, left, of, live, from := "-", "-", "-", "-", "-"
			if v.Traced {
				timeWait = number(r.TimeWait)
			}
			if r.Ports > 0 {
				left, of = number(r.Left), number(r.Ports)
				if r.AtLeast {
					left += "+"
				}
			}
			if !r.Ours {
				live, from = number(r.Live), r.Near.Netip().String()
			}
			line := row(mark, cols, []string{destination(r), timeWait, live, left, of, from}[:len(cols)])
			switch {
			case r.Ports > 0 && r.Left*10 < r.Ports:
				line = c.paint(alarm, line)
			case r.Ports > 0 && r.Left*4 < r.Ports:
				line = c.paint(warning, line)
			}
			return []string{line}
		},
	}
}

func severity(s aggregate.Severity) (string, lipgloss.Style) {
	switch s {
	case aggregate.Critical:
		return "CRIT", alarm
	case aggregate.Warning:
		return "WARN", warning
	}
	return "info", calm
}

func (m *model) findingSection(c *canvas) section {
	fs := m.findings()
	return section{
		head: fmt.Sprintf(" FINDINGS (%d)", len(fs)+m.frame.View.AllFindings-len(m.frame.View.Findings)), n: len(fs), tall: 2, none: "none" + m.butFiltered(),
		draw: func(i int, mark string) []string {
			f := fs[i]
			word, st := severity(f.Severity)
			return []string{
				mark + c.paint(st, word) + " " + name([]byte(f.Message)),
				c.paint(faint, "      "+name([]byte(f.Advice))),
			}
		},
	}
}
