package tui

import (
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"charm.land/lipgloss/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/tcptrace/tcptrace/internal/text"
	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// The terminal's own sixteen colours: they are readable on whatever background it has.
var (
	plain    = lipgloss.NewStyle()
	bold     = plain.Bold(true)
	faint    = plain.Faint(true)
	heading  = plain.Underline(true)
	focused  = plain.Bold(true).Underline(true).Foreground(lipgloss.Color("6"))
	badge    = plain.Bold(true).Reverse(true)
	selected = plain.Reverse(true)
	alarm    = plain.Bold(true).Foreground(lipgloss.Color("1"))
	warning  = plain.Foreground(lipgloss.Color("3"))
	calm     = plain.Foreground(lipgloss.Color("6"))
)

// A canvas is lines of a width. A plain one is without colours, for a file.
type canvas struct {
	w     int
	plain bool
	lines []string
}

func (c *canvas) put(s string) { c.lines = append(c.lines, ansi.Truncate(s, c.w, "…")) }

func (c *canvas) paint(st lipgloss.Style, s string) string {
	if c.plain || s == "" {
		return s
	}
	return st.Render(s)
}

// wrap puts a text in as many lines as it takes, each after an indent.
func (c *canvas) wrap(indent int, s string, st lipgloss.Style) {
	lead := strings.Repeat(" ", indent)
	for line := range strings.Lines(ansi.Wrap(s, max(c.w-indent, 10), "")) {
		c.put(lead + c.paint(st, strings.TrimRight(line, "\n")))
	}
}

// A column is one of a list. The one with width 0 takes the room that the others leave.
type column struct {
	title string
	w     int
	right bool
}

// fill gives the flexible column its width: at least so many cells.
func fill(w, least int, cols []column) []column {
	left, at := w-1, -1 // the mark of the selected row
	for i, c := range cols {
		left -= c.w
		if i > 0 {
			left--
		}
		if c.w == 0 {
			at = i
		}
	}
	if at >= 0 {
		cols[at].w = max(left, least)
	}
	return cols
}

// row sets cells into columns.
func row(mark string, cols []column, cells []string) string {
	var b strings.Builder
	b.WriteString(mark)
	for i, c := range cols {
		if i > 0 {
			b.WriteByte(' ')
		}
		s := cells[i]
		if c.right && len(s) > c.w {
			s = strings.ReplaceAll(s, ",", "") // no digit is to be cut
		}
		b.WriteString(cell(s, c.w, c.right))
	}
	return strings.TrimRight(b.String(), " ")
}

// titles is the head of a list; that of the column that it is sorted by has an arrow.
func titles(cols []column, sorted string) string {
	cells := make([]string, len(cols))
	for i, c := range cols {
		cells[i] = c.title
		if c.title == sorted {
			cells[i] += "▾"
		}
	}
	return row(" ", cols, cells)
}

// cell makes s exactly w wide.
func cell(s string, w int, right bool) string {
	if ansi.StringWidth(s) > w {
		s = ansi.Truncate(s, w, "…")
	}
	space := strings.Repeat(" ", max(w-ansi.StringWidth(s), 0)) // a wide character may not have fitted
	if right {
		return space + s
	}
	return s + space
}

// name makes bytes that anybody may choose safe to show. Of characters that join into one, or
// have no width, terminals do not agree how wide they are: such a name is shown by its bytes.
func name(b []byte) string {
	s := text.Printable(b)
	w := 0
	for _, r := range s {
		one := ansi.StringWidth(string(r))
		if one == 0 || unicode.Is(unicode.M, r) || ansi.StringWidthWc(string(r)) != one {
			w = -1
			break
		}
		w += one
	}
	if w == ansi.StringWidth(s) {
		return s
	}
	var escaped strings.Builder
	for i := range len(s) {
		if s[i] < utf8.RuneSelf {
			escaped.WriteByte(s[i])
		} else {
			escaped.WriteString(`\x` + strconv.FormatUint(uint64(s[i]), 16))
		}
	}
	return escaped.String()
}

// number groups digits by threes.
func number[T int | uint64](n T) string {
	s := strconv.FormatInt(int64(n), 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// orDash is for what is 0 most of the time.
func orDash(n int) string {
	if n == 0 {
		return "-"
	}
	return number(n)
}

// age has the two units that an eye wants. It cuts: an age may be a lower bound, "75s+".
func age(d time.Duration, exact bool) string {
	if d < 0 {
		return "-"
	}
	var s string
	switch {
	case d < 10*time.Second:
		s = strconv.FormatFloat(float64(d/(100*time.Millisecond))/10, 'f', 1, 64) + "s"
	case d < time.Hour:
		s = d.Truncate(time.Second).String()
	case d < 100*time.Hour:
		s = strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
	case d < 100*24*time.Hour:
		s = strconv.Itoa(int(d/(24*time.Hour))) + "d" + strconv.Itoa(int(d%(24*time.Hour)/time.Hour)) + "h"
	default:
		s = strconv.Itoa(int(d/(24*time.Hour))) + "d"
	}
	if !exact {
		s += "+"
	}
	return s
}

// exactly is a time that was measured.
func exactly(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d < time.Second:
		return strconv.FormatFloat(float64(d/time.Microsecond)/1000, 'f', 3, 64) + " ms"
	}
	return d.Truncate(time.Millisecond).String()
}

func endpoint(a *events.Addr, port uint16) string {
	ip, p := a.Netip(), "*"
	if port != 0 {
		p = strconv.Itoa(int(port))
	}
	switch {
	case ip.IsUnspecified():
		return "*:" + p
	case ip.Is6():
		return "[" + ip.String() + "]:" + p
	}
	return ip.String() + ":" + p
}

// process is how findings name one, too.
func process(pid uint32, comm *events.Comm) string {
	if pid == 0 {
		return "-"
	}
	return name(comm.Bytes()) + "[" + strconv.FormatUint(uint64(pid), 10) + "]"
}

func container(c *events.Container) string {
	switch {
	case c.Pod != "":
		return name([]byte(c.Namespace + "/" + c.Pod))
	case c.ID != "":
		return name([]byte(c.ID[:min(len(c.ID), 12)]))
	}
	return "-"
}

// bar is n of most as a share of w cells: one at least if there is anything.
func bar(n, most, w int) string {
	if n <= 0 || most <= 0 || w <= 0 {
		return ""
	}
	return strings.Repeat("█", min(max(n*w/most, 1), w))
}

func verdict(v aggregate.Verdict) string {
	if v == aggregate.VerdictNone {
		return "-"
	}
	return v.String()
}
