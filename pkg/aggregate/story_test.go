package aggregate

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// A story is what the kernel side says, told by a test: each call of a method is
// one event, and time only passes when the test says so. What the tracker says
// to it is kept as lines.
type story struct {
	t    *testing.T
	tr   *Tracker
	ms   float64
	said []string
	refu bool // the output refuses records
}

func newStory(t *testing.T, f Filter) *story {
	s := &story{t: t, ms: 1000}
	s.tr = NewTracker(s, &f, 1000, time.Minute)
	s.tick()
	s.tr.Scanned(true)
	return s
}

func (s *story) Transition(r *Transition) bool {
	if s.refu {
		return false
	}
	s.said = append(s.said, fmt.Sprintf("%x %s %s>%s %s%s", r.Cookie, owner(&r.Owner), short(r.Old), short(r.New),
		inMs(r.Dwell), marks(r.Gap, r.Unprinted)))
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
	s.said = append(s.said, line)
	return true
}

func (s *story) Finding(r *Finding) bool {
	if s.refu {
		return false
	}
	e := &r.Evidence
	line := fmt.Sprintf("finding %s %s %s %s %s(%d) n=%d oldest=%s", r.ID, r.Kind, r.Status, r.Severity, r.Comm.Bytes(), r.Pid, r.Count, inMs(r.Oldest))
	if e.Verdict != VerdictNone {
		line += " " + e.Verdict.String()
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
	"L": events.Listen, "CG": events.Closing,
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

// lines returns what the tracker has said and what contains part.
func (s *story) lines(part string) (out []string) {
	for _, l := range s.said {
		if strings.Contains(l, part) {
			out = append(out, l)
		}
	}
	return out
}
