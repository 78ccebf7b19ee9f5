package text

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// SnapshotHeader names the columns of a Snapshot.
const SnapshotHeader = "STATE       AGE        VERDICT       LADDR:LPORT           RADDR:RPORT           PID     COMM             UNREAD HOLDERS\n"

// A Snapshot is an Encoder whose sockets are a table, in the manner of ss.
type Snapshot struct{ Encoder }

// Socket appends s as one line. An age is a lower bound: "75s+".
func (e *Snapshot) Socket(b []byte, s *aggregate.Socket) []byte {
	age, verdict, unread := "-", "-", "-"
	if s.Age >= 0 {
		age = roughly(s.Age) + "+"
	}
	if s.Verdict != aggregate.VerdictNone {
		verdict = s.Verdict.String()
	}
	if s.State == events.CloseWait {
		unread = strconv.FormatUint(uint64(max(s.Unread, 1)-1), 10)
	}
	pid, comm := owner(&s.Owner)
	holders := "-"
	if len(s.Holders) > 0 {
		var hs []string
		for i := range s.Holders {
			h := &s.Holders[i]
			hs = append(hs, fmt.Sprintf("%s[%d]:%d", Printable(h.Comm.Bytes()), h.Pid, h.Fd))
		}
		holders = strings.Join(hs, " ")
	}
	return fmt.Appendf(b, "%-11s %-10s %-13s %-21s %-21s %-7s %-16s %-6s %s\n", s.State, age, verdict,
		endpoint(s.Laddr, s.Lport), endpoint(s.Raddr, s.Rport), pid, comm, unread, holders)
}

// Finding appends f as two lines, under the table.
func (e *Snapshot) Finding(b []byte, f *aggregate.Finding) []byte {
	b = fmt.Appendf(b, "\n%s %s: %s\n", strings.ToUpper(f.Severity.String()), f.Kind, Printable([]byte(f.Message)))
	return fmt.Appendf(b, "    %s\n", f.Advice)
}

// roughly is d with as many digits as an eye wants.
func roughly(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Truncate(time.Millisecond).String()
	case d < time.Hour:
		return d.Truncate(time.Second).String()
	}
	return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
}
