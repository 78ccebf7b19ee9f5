package text

import (
	"fmt"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
)

var severities = [...]string{aggregate.Info: cyan, aggregate.Warning: alarm, aggregate.Critical: red}

// finding appends a finding below a line that begins with head.
func (s Screen) finding(b []byte, head string, f *aggregate.Finding) []byte {
	style := severities[f.Severity]
	if f.Status == aggregate.Resolved {
		style = green
	}
	line := s.fold(nil, 0, head+" "+Printable([]byte(f.Message)))
	b = append(s.paint(b, style, line), '\n')
	if f.Status == aggregate.Resolved {
		return b
	}
	for _, line := range []string{f.Advice, holders(f)} {
		if line != "" {
			b = append(s.fold(append(b, indent...), len(indent), line), '\n')
		}
	}
	return b
}

// holders says who holds the sockets of a finding: each process once, in the order of its oldest.
func holders(f *aggregate.Finding) (line string) {
	for i := range f.Holders {
		first := f.Holders[i].Holder
		if seen(f.Holders[:i], first.Pid) {
			continue
		}
		line += fmt.Sprintf(", %s[%d] fd", Printable(first.Comm.Bytes()), first.Pid)
		for _, h := range f.Holders[i:] {
			if h.Pid == first.Pid {
				line += fmt.Sprintf(" %d", h.Fd)
			}
		}
	}
	if line == "" {
		return ""
	}
	if line = "Held by " + line[2:]; len(f.Holders) < f.Count || len(f.Holders) == aggregate.MaxFindingHolders {
		line += ", and so on"
	}
	return line
}

func seen(hs []aggregate.SocketHolder, pid uint32) bool {
	for i := range hs {
		if hs[i].Pid == pid {
			return true
		}
	}
	return false
}
