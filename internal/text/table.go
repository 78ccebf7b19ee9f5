package text

import (
	"fmt"
	"strings"

	"github.com/clipperhouse/displaywidth"
)

// A Screen is what the lines are to be shown on. The zero value is a file or a pipe: nothing of
// the line is left out there, and nothing in it is not a character to read.
type Screen struct {
	Columns int  // of a terminal; 0: it is none, or does not say
	Color   bool // it takes escape sequences, and its user wants colour
}

// A screen of fewer columns than the lines of IPv4 connections may want, with a descriptor or two,
// gets the narrow layout: most of them fit 80 columns there.
const wide = 132

// What goes on from the line above begins with it.
const indent = "    "

func (s Screen) narrow() bool { return s.Columns > 0 && s.Columns < wide }

// The styles, as the parameters of SGR.
const (
	bold   = "1"
	red    = "1;31"
	green  = "32"
	yellow = "33"
	alarm  = "1;33"
	cyan   = "36"
)

// paint appends a line in a style, if the screen shows any. It is the only one here to write an
// escape sequence.
func (s Screen) paint(b []byte, style string, line []byte) []byte {
	if !s.Color || style == "" {
		return append(b, line...)
	}
	b = append(append(append(b, "\x1b["...), style...), 'm')
	return append(append(b, line...), "\x1b[0m"...)
}

// fold appends text, which follows used columns of a line, with a line end and the indent instead of
// a space wherever a terminal would break it anywhere.
func (s Screen) fold(b []byte, used int, text string) []byte {
	if s.Columns == 0 {
		return append(b, text...)
	}
	for n, word := range strings.Split(text, " ") {
		space := min(n, 1)
		w := displaywidth.String(word)
		if used+space+w > s.Columns && used > len(indent) {
			b = append(append(b, '\n'), indent...)
			used, space = len(indent), 0
		}
		b = append(append(b, " "[:space]...), word...)
		used += space + w
	}
	return b
}

// A column is as wide as the first of its widths that all cells so far have needed. A cell that is
// longer than the last moves what follows in its own line, and nothing else: it may be of somebody's
// choice.
type column struct {
	name   string
	widths []int
}

// A table is lines of cells under a header. The header comes again when a column becomes wider:
// few widths, so that this is seldom.
type table struct {
	Screen
	columns []column // without the last, which is as wide as it is
	last    string
	line    []byte // is being put together
}

func (t *table) header(b []byte) []byte {
	var line []byte
	for _, c := range t.columns {
		line = fmt.Appendf(line, "%-*s ", c.widths[0], c.name)
	}
	b = t.paint(b, bold, append(line, t.last...))
	return append(b, '\n')
}

// row appends a line, after the header if that has changed. What a terminal has no room for goes
// on in the next, below an indent.
func (t *table) row(b []byte, style string, last string, cells ...string) []byte {
	wider := false
	for i, cell := range cells {
		c := &t.columns[i]
		for len(c.widths) > 1 && displaywidth.String(cell) > c.widths[0] {
			c.widths, wider = c.widths[1:], true
		}
	}
	if wider {
		b = t.header(b)
	}
	used := 0
	t.line = t.line[:0]
	for i, cell := range cells {
		n := displaywidth.String(cell)
		if t.Columns > 0 && n > t.columns[i].widths[0] && used+n > t.Columns {
			t.line = append(append(t.line, '\n'), indent...)
			used = len(indent)
		}
		t.line = append(t.line, cell...)
		for ; n < t.columns[i].widths[0]; n++ {
			t.line = append(t.line, ' ')
		}
		t.line = append(t.line, ' ')
		used += n + 1
	}
	t.line = t.fold(t.line, used, last)
	return append(t.paint(b, style, t.line), '\n')
}

// The widths of an address with its port: of IPv4 on most networks, and at most; of IPv6 whose last
// half is one number; at most.
var (
	narrowEnds = []int{16, 21, 28}
	wideEnds   = []int{21, 28, 47}
)
