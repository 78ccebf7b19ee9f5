package text

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// A Snapshot is an Encoder whose sockets are a table, in the manner of ss.
type Snapshot struct{ Encoder }

// NewSnapshot returns an encoder of snapshots for a screen.
func NewSnapshot(s Screen) *Snapshot {
	t := table{Screen: s, last: "HOLDERS"}
	if s.narrow() {
		t.columns = []column{{"STATE", []int{11}}, {"AGE", []int{7, 10}}, {"VERDICT", []int{7, 13}}, {"LPORT", []int{5}}, {"RADDR:RPORT", narrowEnds}}
	} else {
		t.columns = []column{
			{"STATE", []int{11}}, {"AGE", []int{10}}, {"VERDICT", []int{13}}, {"LADDR:LPORT", wideEnds}, {"RADDR:RPORT", wideEnds},
			{"PID", []int{7}}, {"COMM", []int{16}}, {"UNREAD", []int{6}},
		}
	}
	return &Snapshot{Encoder{t: t}}
}

// Socket appends s as one line. An age is a lower bound: "75s+". In the narrow layout an owner who
// holds no descriptor stands among the holders, without one.
func (e *Snapshot) Socket(b []byte, s *aggregate.Socket) []byte {
	age, verdict, unread, style := "-", "-", "-", ""
	if s.Age >= 0 {
		age = roughly(s.Age) + "+"
	}
	if s.Verdict != aggregate.VerdictNone {
		verdict, style = s.Verdict.String(), yellow
	}
	if s.State == events.CloseWait {
		unread = strconv.FormatUint(uint64(max(s.Unread, 1)-1), 10)
	}
	var hs []string
	for i := range s.Holders {
		h := &s.Holders[i]
		hs = append(hs, fmt.Sprintf("%s[%d]:%d", Printable(h.Comm.Bytes()), h.Pid, h.Fd))
	}
	pid, comm := owner(&s.Owner)
	if len(hs) == 0 {
		hs = []string{"-"}
		if e.t.narrow() && s.Owner.Pid != 0 {
			hs[0] = fmt.Sprintf("%s[%s]", comm, pid)
		}
	}
	state, raddr := s.State.String(), endpoint(s.Raddr, s.Rport)
	last := strings.Join(hs, " ")
	if e.t.narrow() {
		return e.t.row(b, style, last, state, age, verdict, port(s.Lport), raddr)
	}
	return e.t.row(b, style, last, state, age, verdict, endpoint(s.Laddr, s.Lport), raddr, pid, comm, unread)
}

// Finding appends f under the table.
func (e *Snapshot) Finding(b []byte, f *aggregate.Finding) []byte {
	return e.t.finding(append(b, '\n'), fmt.Sprintf("%s %s:", strings.ToUpper(f.Severity.String()), f.Kind), f)
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
