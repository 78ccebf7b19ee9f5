package aggregate

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// A story is what the kernel side says, told by a test: each call of a method is
// one event, and time only passes when the test says so. What the tracker says
// to it is kept as lines.
type story struct {
	t    testing.TB
	tr   *Tracker
	ms   float64
	said []string
	refu bool // the output refuses records

	serves int // established connections of process 1

	findings []Finding // as they were told
	ids      []string  // of findings, in the order in which they came up
}

// thresholds are the default ones, with another time that a process has to close; and
// with a minute for the peer, so that it is not for its sake that a scan is wanted.
func thresholds(closeWaitAfter time.Duration) events.Thresholds {
	th := events.DefaultThresholds
	th.CloseWaitAfter, th.FinWait2After = closeWaitAfter, time.Minute
	return th
}

func newStory(t *testing.T, f Filter) *story {
	s := &story{t: t, ms: 1000}
	s.tr = NewTracker(s, &f, 1000, thresholds(time.Minute))
	s.tick()
	s.tr.Scanned(events.Scan{Complete: true, Every: true})
	return s
}

func (s *story) Transition(r *Transition) bool {
	if s.refu {
		return false
	}
	source := ""
	if r.Mini {
		source = " mini"
	}
	s.said = append(s.said, fmt.Sprintf("%x %s %s>%s %s%s%s", r.Cookie, owner(&r.Owner), short(r.Old), short(r.New),
		inMs(r.Dwell), source, marks(r.Gap, r.Unprinted)))
	return true
}

func (s *story) Connection(r *Connection) bool {
	if s.refu {
		return false
	}
	var spent []string
	for st := events.State(1); int(st) < events.NumStates; st++ {
		if d, ok := r.Spent.In(st); ok {
			spent = append(spent, short(st)+"="+inMs(d))
		}
	}
	life := "?"
	if r.Start != 0 && r.Ended {
		life = inMs(time.Duration(r.Ktime - r.Start))
	}
	if r.TimeWaitEnd != TimeWaitEndUnknown {
		spent = append(spent, r.TimeWaitEnd.String())
	}
	s.said = append(s.said, fmt.Sprintf("%x %s connection role=%s life=%s closer=%s end=%s call=%s %s%s", r.Cookie,
		owner(&r.Owner), r.Role, life, r.Closer, r.End, r.CloseCall, strings.Join(spent, " "), marks(r.Gap, r.Unprinted)))
	return true
}

func (s *story) Socket(r *Socket) bool {
	if s.refu {
		return false
	}
	line := fmt.Sprintf("%x %s socket %s age=%s", r.Cookie, owner(&r.Owner), short(r.State), inMs(r.Age))
	for _, h := range r.Holders {
		line += fmt.Sprintf(" %d/%d", h.Pid, h.Fd)
	}
	if r.Verdict != VerdictNone {
		line += " " + r.Verdict.String()
	}
	s.said = append(s.said, line)
	return true
}

func (s *story) Summary(*Summary) {}

// Finding shows an id as the place in which it came up first: #1 is the first
// problem of the story, whatever its name.
func (s *story) Finding(r *Finding) bool {
	if s.refu {
		return false
	}
	f := *r
	f.Holders = slices.Clone(r.Holders)
	f.Evidence.Listeners = slices.Clone(r.Evidence.Listeners)
	s.findings = append(s.findings, f)
	if !slices.Contains(s.ids, r.ID) {
		s.ids = append(s.ids, r.ID)
	}
	line := fmt.Sprintf("#%d %s %s %s %s(%d) n=%d oldest=%s", slices.Index(s.ids, r.ID)+1, r.Kind, r.Status, r.Severity,
		r.Comm.Bytes(), r.Pid, r.Count, inMs(r.Oldest))
	if r.Evidence.Verdict != VerdictNone && r.Status != Resolved {
		line += " " + r.Evidence.Verdict.String()
	}
	for _, h := range r.Holders {
		line += fmt.Sprintf(" %d/%d:%x", h.Pid, h.Fd, h.Cookie)
	}
	s.said = append(s.said, line)
	return true
}

func owner(o *Owner) string {
	if o.Source == SourceNone {
		return "-"
	}
	return fmt.Sprintf("%s(%d,%s)", o.Comm.Bytes(), o.Pid, o.Source)
}

func inMs(d time.Duration) string {
	if d == Unknown {
		return "?"
	}
	return fmt.Sprintf("%g", float64(d)/1e6)
}

func marks(gap bool, unprinted uint32) (m string) {
	if gap {
		m = " gap"
	}
	if unprinted > 0 {
		m += fmt.Sprintf(" unprinted=%d", unprinted)
	}
	return m
}

var abbreviations = map[string]events.State{
	"E": events.Established, "SS": events.SynSent, "SR": events.SynRecv, "F1": events.FinWait1,
	"F2": events.FinWait2, "C": events.Close, "CW": events.CloseWait, "LA": events.LastAck,
	"L": events.Listen, "CG": events.Closing, "TW": events.TimeWait,
}

func short(st events.State) string {
	for s, v := range abbreviations {
		if v == st {
			return s
		}
	}
	return st.String()
}

// sock is a socket of a story. Its address can be that of another one before it.
type sock struct {
	addr, cookie uint64
	lport, rport uint16
	netns        uint32
	raddr        string
}

func (s *story) event(k sock, kind events.Kind) events.Event {
	if k.raddr == "" {
		k.raddr = "10.0.0.2"
	}
	if k.netns == 0 {
		k.netns = 1
	}
	return events.Event{
		Kind: kind, Ktime: uint64(s.ms * 1e6), Skaddr: k.addr, Cookie: k.cookie, Netns: k.netns,
		Laddr: netip.MustParseAddr("10.0.0.1").As16(), Raddr: netip.MustParseAddr(k.raddr).As16(),
		Lport: k.lport, Rport: k.rport, Fd: -1,
	}
}

// step is one transition, such as "E>CW". Every option says one thing more about
// it, in the words of kernel fields.
func (s *story) step(k sock, change string, opts ...func(*events.Event)) {
	s.t.Helper()
	from, to, _ := strings.Cut(change, ">")
	ev := s.event(k, events.Transition)
	ev.Old, ev.New = abbreviations[from], abbreviations[to]
	if !ev.Old.Valid() || !ev.New.Valid() {
		s.t.Fatalf("no such transition: %q", change)
	}
	if ev.New == events.Listen || ev.Old == events.Listen && ev.New == events.Close {
		ev.Rport, ev.Raddr = 0, events.Addr{10: 0xff, 11: 0xff}
	}
	for _, o := range opts {
		o(&ev)
	}
	s.tr.Observe(&ev)
}

// steps are several transitions, a millisecond apart.
func (s *story) steps(k sock, changes string, opts ...func(*events.Event)) {
	s.t.Helper()
	for c := range strings.FieldsSeq(changes) {
		s.step(k, c, opts...)
		s.pass(1)
	}
}

func by(pid uint32, comm string) func(*events.Event) {
	return func(ev *events.Event) {
		ev.Flags |= events.Owned
		ev.Proc = events.Proc{Pid: pid, Comm: events.MakeComm(comm)}
	}
}

func with(f events.Flags) func(*events.Event) {
	return func(ev *events.Event) { ev.Flags |= f }
}

func shut(n uint8) func(*events.Event) {
	return func(ev *events.Event) { ev.Shutdown = n }
}

func failed(err uint32) func(*events.Event) {
	return func(ev *events.Event) { ev.Err = err }
}

func from(listener uint64) func(*events.Event) {
	return func(ev *events.Event) { ev.Listener = listener }
}

func unread(n uint32) func(*events.Event) {
	return func(ev *events.Event) { ev.Unread = n }
}

func sent(n uint64) func(*events.Event) {
	return func(ev *events.Event) { ev.Sent = n }
}

// quiet and unsent are the ages, in ms, that an iterator reads off a socket.
func quiet(ms float64) func(*events.Event) {
	return func(ev *events.Event) { ev.Quiet = uint64(ms * 1e6) }
}

func unsent(ms float64) func(*events.Event) {
	return func(ev *events.Event) { ev.Unsent = uint64(ms * 1e6) }
}

func queued(n uint32) func(*events.Event) {
	return func(ev *events.Event) { ev.Queued = n }
}

// kernels is the mark of a socket of the kernel's own.
func kernels(ev *events.Event) { ev.Kernel = true }

// unaccepted is what a socket in an accept queue has: no struct socket.
func unaccepted(ev *events.Event) { ev.Flags &^= events.HasSocket }

func (s *story) accept(k sock, pid uint32, comm string) {
	ev := s.event(k, events.Accept)
	by(pid, comm)(&ev)
	s.tr.Observe(&ev)
}

func (s *story) destroy(k sock) {
	ev := s.event(k, events.Destroy)
	s.tr.Observe(&ev)
}

func (s *story) fork(parent, child uint32, comm string) {
	s.tr.Observe(&events.Event{
		Kind:   events.Fork,
		Parent: events.Proc{Pid: parent, Comm: events.MakeComm(comm)},
		Proc:   events.Proc{Pid: child, Comm: events.MakeComm(comm)},
	})
}

func (s *story) row(k sock, state string, pid uint32, comm string, fd int32, opts ...func(*events.Event)) {
	ev := s.event(k, events.Socket)
	ev.Old, ev.New, ev.Fd = abbreviations[state], abbreviations[state], fd
	ev.Flags = events.HasSocket
	ev.Proc = events.Proc{Pid: pid, Comm: events.MakeComm(comm)}
	for _, o := range opts {
		o(&ev)
	}
	s.tr.Observe(&ev)
}

// A look is a row of a scan. One that says nothing of data sent comes from a
// socket that has sent none for an hour.
type look func(*story)

func holds(k sock, state string, pid uint32, comm string, fd int32, opts ...func(*events.Event)) look {
	return func(s *story) {
		s.row(k, state, pid, comm, fd, append([]func(*events.Event){unsent(3600e3)}, opts...)...)
	}
}

// bare is a row without a descriptor, as the iterator over all sockets makes it.
func bare(k sock, state string, opts ...func(*events.Event)) look {
	return holds(k, state, 0, "", -1, opts...)
}

// scan does what the agent does when it looks at the sockets: it reads the rows,
// lets time catch up, ends the scan, and lets the tracker report.
func (s *story) scan(rows ...look) { s.scanned(true, rows...) }

func (s *story) scanned(complete bool, rows ...look) {
	for _, r := range rows {
		r(s)
	}
	s.tick()
	s.tr.Scanned(events.Scan{Complete: complete, Every: true})
	s.tick()
}

func (s *story) details(d events.Details) { s.tr.Details(&d) }

// leave tells of a server's socket that pid accepts, and whose peer closes now.
func (s *story) leave(k sock, pid uint32, comm string, opts ...func(*events.Event)) {
	s.t.Helper()
	s.step(k, "L>SR", from(listen.cookie))
	s.step(k, "SR>E")
	s.accept(k, pid, comm)
	s.step(k, "E>CW", append([]func(*events.Event){with(events.HasSocket | events.Done), shut(1), unread(1)}, opts...)...)
}

// closes tells of a close() in CLOSE_WAIT.
func (s *story) closes(k sock, pid uint32, comm string, opts ...func(*events.Event)) {
	s.t.Helper()
	s.step(k, "CW>LA", append([]func(*events.Event){by(pid, comm), with(events.HasSocket | events.Done), shut(3)}, opts...)...)
}

// exits is the close() that the exit of the process does.
func (s *story) exits(k sock, pid uint32, comm string, opts ...func(*events.Event)) {
	s.t.Helper()
	s.closes(k, pid, comm, append([]func(*events.Event){with(events.Exiting)}, opts...)...)
}

// nth is a server's nth socket, from one client to one port.
func nth(n int) sock {
	return sock{addr: 0x5000 + uint64(n)<<4, cookie: 0x500 + uint64(n), lport: 80, rport: 40000 + uint16(n)}
}

func (s *story) pass(ms float64) { s.ms += ms }

func (s *story) tick() { s.tr.Tick(uint64(s.ms * 1e6)) }

// tells checks what the tracker has said since the last call.
func (s *story) tells(want ...string) {
	s.t.Helper()
	got := s.said
	s.said = nil
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		s.t.Errorf("want:\n%s\ngot:\n%s", w, g)
	}
}

// finds checks which findings the tracker has told since the last call, and
// forgets the rest.
func (s *story) finds(want ...string) {
	s.t.Helper()
	got := s.lines("#")
	s.said = nil
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		s.t.Errorf("want:\n%s\ngot:\n%s", w, g)
	}
}

// found returns the last finding that was told.
func (s *story) found() *Finding {
	s.t.Helper()
	if len(s.findings) == 0 {
		s.t.Fatal("want a finding, got none")
	}
	return &s.findings[len(s.findings)-1]
}

// lines returns what the tracker has said and what contains part.
func (s *story) lines(part string) (out []string) {
	for _, l := range s.said {
		if strings.Contains(l, part) {
			out = append(out, l)
		}
	}
	return out
}
