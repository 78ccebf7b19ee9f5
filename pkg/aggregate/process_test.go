package aggregate

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// The exit of the old process says nothing, and its sockets may outlive it in
// another's hands: only fork() tells that the PID is another's.
func TestAPidThatIsGivenAgainStartsANewHistory(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(nth(1), 1, "old")
	s.pass(minute)
	s.scan(holds(nth(1), "CW", 1, "old", 4))
	s.said = nil
	s.fork(9, 1, "new")
	if s.tr.Knows(1) {
		t.Error("the new process: known, want it to be asked for")
	}
	s.leave(nth(2), 1, "new")
	s.checkHistory(1, 1, 0, 1)
	if q := s.process(1); q.comm != events.MakeComm("new") || q.owned != 1 {
		t.Errorf("got %s with %d sockets, want new with 1", q.comm.Bytes(), q.owned)
	}
	audit(t, s.tr)

	// The old one's finding is about the old one until it is over.
	s.step(nth(1), "CW>C", with(events.HasSocket|events.Done), failed(32))
	s.destroy(nth(1))
	s.tick()
	s.finds("#1 close_wait_leak resolved warning old(1) n=0 oldest=?")
	audit(t, s.tr)
	if n := len(s.tr.procs.byPid); n != 1 {
		t.Errorf("%d processes with a PID, want 1: the old one is forgotten", n)
	}
}

func TestForgettingProcessesKeepsThoseInUse(t *testing.T) {
	s := newStory(t, Filter{})
	s.open(nth(0)) // process 1 owns it
	s.leave(nth(1), 2, "leak")
	s.leave(nth(2), 3, "exits")
	s.pass(minute)
	s.scan(holds(nth(1), "CW", 4, "heir", 4)) // a finding about process 4
	s.exits(nth(2), 3, "exits")
	s.step(nth(2), "LA>C", with(orphan|events.Done), shut(3))
	s.destroy(nth(2)) // process 3 owns nothing any more, and is still to be told of
	want := map[uint32]uint32{}
	for _, pid := range []uint32{1, 3, 4} {
		want[pid] = s.tr.procs.byPid[pid]
	}
	for pid := range uint32(3 * manyProcesses) {
		s.details(events.Details{Pid: 100 + pid, Container: "c"})
	}
	if n := len(s.tr.procs.byPid); n > 2*manyProcesses || len(s.tr.procs.all) > 2*manyProcesses {
		t.Errorf("knows %d processes, with place for %d; want at most %d", n, len(s.tr.procs.all), 2*manyProcesses)
	}
	for pid, n := range want {
		if got := s.tr.procs.byPid[pid]; got != n || s.tr.procs.all[n].pid != pid {
			t.Errorf("process %d: has number %d, want %d", pid, got, n)
		}
	}
	audit(t, s.tr)
	s.said = nil
	s.settle()
	s.finds("#2 never_closed open warning exits(3) n=1 oldest=60000")
}

// containers collects the container of every transition.
func containers(s *story) *[]string {
	var got []string
	s.tr.out = take{transition: func(r *Transition) { got = append(got, r.Container.ID) }}
	return &got
}

func TestAChildIsInItsParentsContainerUntilMoreIsKnown(t *testing.T) {
	s := newStory(t, Filter{})
	got := containers(s)
	s.details(events.Details{Pid: 1, Container: "aaa"})
	s.step(nth(1), "C>SS", by(1, "runc"))
	s.fork(1, 2, "runc")
	s.step(nth(2), "C>SS", by(2, "runc"))
	s.details(events.Details{Pid: 2}) // gone, or its cgroup cannot be read
	s.step(nth(3), "C>SS", by(2, "runc"))
	s.details(events.Details{Pid: 2, Container: "bbb"}) // it starts another container
	s.step(nth(4), "C>SS", by(2, "app"))
	s.fork(3, 4, "sh") // not in a container
	s.step(nth(5), "C>SS", by(4, "sh"))
	s.step(nth(6), "C>SS", by(1, "runc"))
	if want := []string{"aaa", "aaa", "aaa", "bbb", "", "aaa"}; !slices.Equal(*got, want) {
		t.Errorf("got %q, want %q", *got, want)
	}
	audit(t, s.tr)
}

// Nobody has accepted it yet: it is where its listener is.
func TestASocketInAnAcceptQueueIsInItsListenersContainer(t *testing.T) {
	s := newStory(t, Filter{})
	got := containers(s)
	s.details(events.Details{Pid: 1, Container: "aaa"})
	s.step(listen, "C>L", by(1, "srv"))
	s.step(server, "L>SR", from(listen.cookie))
	s.step(nth(1), "L>SR") // of a listener that is not known
	s.step(server, "SR>E")
	s.accept(server, 2, "worker") // which is in none
	s.step(server, "E>CW", with(events.HasSocket|events.Done))
	if want := []string{"aaa", "aaa", "", "aaa", ""}; !slices.Equal(*got, want) {
		t.Errorf("got %q, want %q", *got, want)
	}
}

func TestANewProcessWithAnOldPidIsNotInTheOldContainer(t *testing.T) {
	s := newStory(t, Filter{})
	got := containers(s)
	s.details(events.Details{Pid: 1, Container: "aaa"})
	s.step(nth(1), "C>SS", by(1, "old"))
	s.fork(9, 1, "new")
	s.step(nth(2), "C>SS", by(1, "new"))
	s.step(nth(1), "SS>E") // still the old one's
	if want := []string{"aaa", "", "aaa"}; !slices.Equal(*got, want) {
		t.Errorf("got %q, want %q", *got, want)
	}
	audit(t, s.tr)
}

func TestEveryRecordTellsTheContainer(t *testing.T) {
	s := &story{t: t, ms: 500_000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	out := &records{}
	s.tr.out = out
	s.details(events.Details{Pid: 1, Container: "aaa"})
	s.scan(holds(server, "CW", 1, "srv", 4, quiet(minute)))
	s.closes(server, 1, "srv")
	s.step(server, "LA>C", with(orphan|events.Done), shut(3))
	if got := out.containers; len(got) != 5 || slices.ContainsFunc(got, func(c string) bool { return c != "aaa" }) {
		t.Errorf("got %q, want aaa for a socket, a finding, two transitions and a connection", got)
	}
}

// records is an Output that keeps the container of every record.
type records struct{ containers []string }

func (o *records) Transition(r *Transition) bool { return o.keep(r.Container.ID) }
func (o *records) Connection(r *Connection) bool { return o.keep(r.Container.ID) }
func (o *records) Socket(r *Socket) bool         { return o.keep(r.Container.ID) }
func (o *records) Finding(r *Finding) bool       { return o.keep(r.Container.ID) }

func (*records) Summary(*Summary) {}

func (o *records) keep(c string) bool {
	o.containers = append(o.containers, c)
	return true
}

var web = events.Container{ID: "aaa", Name: "web", Pod: "cart-0", Namespace: "shop"}

// The runtime's answer comes when it comes: until then the id is known.
func TestTheNamesOfAContainerAreThoseOfAllProcessesInIt(t *testing.T) {
	s := newStory(t, Filter{})
	var got []string
	s.tr.out = take{transition: func(r *Transition) {
		got = append(got, fmt.Sprintf("%d %s %s/%s/%s", r.Owner.Pid, r.Container.ID, r.Container.Namespace, r.Container.Pod, r.Container.Name))
	}}
	wants := func(want bool) {
		t.Helper()
		if got := s.tr.WantsNames("aaa"); got != want {
			t.Errorf("the names are wanted: %v, want %v", got, want)
		}
	}
	s.tr.Container(&web) // nobody is in it
	wants(false)
	s.details(events.Details{Pid: 1, Container: "aaa"})
	s.details(events.Details{Pid: 3, Container: "bbb"})
	wants(true)
	s.fork(1, 2, "worker")
	s.step(nth(1), "C>SS", by(2, "worker"))
	s.tr.Container(&web)
	wants(false)
	s.step(nth(1), "SS>E")
	s.step(nth(2), "C>SS", by(1, "srv"))
	s.step(nth(3), "C>SS", by(3, "other"))
	s.details(events.Details{Pid: 4, Container: "aaa"})
	s.step(nth(4), "C>SS", by(4, "exec"))
	want := []string{
		"2 aaa //", "2 aaa shop/cart-0/web", "1 aaa shop/cart-0/web", "3 bbb //", "4 aaa shop/cart-0/web",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	audit(t, s.tr)
}

func TestAFindingThatIsToldAgainOnlyWhenItIsOverHasItsNamesThen(t *testing.T) {
	s := newStory(t, Filter{})
	s.details(events.Details{Pid: 1, Container: "aaa"})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 1, "srv", 4))
	s.found()
	s.tr.Container(&web)
	s.closes(server, 1, "srv")
	s.tick()
	if f := s.found(); f.Status != Resolved || f.Container != web {
		t.Errorf("got %s of %+v, want it resolved, and the names", f.Status, f.Container)
	}
}

// A finding that was made before its names are known has them as soon as it is told
// again, and keeps them when the process has moved.
func TestAFindingSaysInWhichPodItIs(t *testing.T) {
	s := newStory(t, Filter{})
	s.details(events.Details{Pid: 1, Container: "aaa"})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 1, "srv", 4))
	if f := s.found(); f.Container.ID != "aaa" || f.Container.Pod != "" || strings.Contains(f.Message, "pod") {
		t.Errorf("without names: got %+v, message %q; want the id only", f.Container, f.Message)
	}
	s.tr.Container(&web)
	s.pass(minute)
	s.scan(holds(server, "CW", 1, "srv", 4))
	if f := s.found(); f.Container != web || !strings.HasPrefix(f.Message, "srv[1] in pod shop/cart-0 (container web) keeps 1 connection") {
		t.Errorf("got %+v, message %q; want the names in both", f.Container, f.Message)
	}
	s.details(events.Details{Pid: 1, Container: "bbb"})
	s.closes(server, 1, "srv")
	s.tick()
	if f := s.found(); f.Status != Resolved || f.Container != web || !strings.HasPrefix(f.Message, "srv[1] in pod shop/cart-0 ") {
		t.Errorf("resolved: got %s of %+v, message %q; want it resolved where it was", f.Status, f.Container, f.Message)
	}
}

func TestAFilterByContainerTakesItsProcessesAndOnlyThose(t *testing.T) {
	for _, tt := range []struct {
		prefix string
		want   []string
	}{
		{"abc", []string{"501 a(1,connect) C>SS ?"}},
		{"abcdef0123", []string{"501 a(1,connect) C>SS ?"}},
		{"ab", []string{"501 a(1,connect) C>SS ?", "502 b(2,connect) C>SS ?"}},
		{"bc", nil},
		{"abcdef01234", nil},
	} {
		s := newStory(t, Filter{Container: tt.prefix})
		s.details(events.Details{Pid: 1, Container: "abcdef0123"})
		s.details(events.Details{Pid: 2, Container: "abd"})
		s.details(events.Details{Pid: 3})
		s.step(nth(1), "C>SS", by(1, "a"))
		s.step(nth(2), "C>SS", by(2, "b"))
		s.step(nth(3), "C>SS", by(3, "c"))
		s.step(nth(4), "C>SS", by(4, "d")) // never heard of
		got := s.said
		if !slices.Equal(got, tt.want) {
			t.Errorf("--container %s: got %q, want %q", tt.prefix, got, tt.want)
		}
	}
}

// A process that is started and connects at once: it may be gone before anybody
// looks where it ran.
func TestAFilterByContainerTakesAChildBeforeItIsLookedAt(t *testing.T) {
	s := newStory(t, Filter{Container: "abc"})
	s.details(events.Details{Pid: 1, Container: "abc"})
	s.fork(1, 2, "app")
	s.fork(2, 3, "app")
	s.step(nth(1), "C>SS", by(3, "app"))
	s.tells("501 app(3,connect) C>SS ?")
}

// With --follow, also those that leave it: docker's shim starts containers.
func TestFollowTakesAChildInAnotherContainer(t *testing.T) {
	for _, follow := range []bool{false, true} {
		s := newStory(t, Filter{Container: "abc", Follow: follow})
		s.details(events.Details{Pid: 1, Container: "abc"})
		s.fork(1, 2, "app")
		s.details(events.Details{Pid: 2, Container: "def"})
		s.step(nth(1), "C>SS", by(2, "app"))
		if got := len(s.said) > 0; got != follow {
			t.Errorf("follow %v: told %q", follow, s.said)
		}
	}
}

func TestAFilterByContainerTellsItsLeaks(t *testing.T) {
	s := newStory(t, Filter{Container: "abc"})
	s.details(events.Details{Pid: 1, Container: "abcdef"})
	s.details(events.Details{Pid: 2, Container: "def"})
	s.leave(nth(1), 1, "srv")
	s.leave(nth(2), 2, "srv")
	s.pass(minute)
	s.scan(holds(nth(1), "CW", 1, "srv", 4), holds(nth(2), "CW", 2, "srv", 4))
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=60000 eof_read 1/4:501")
	if got := s.found().Container.ID; got != "abcdef" {
		t.Errorf("container: got %q, want abcdef", got)
	}
}

// Of these only the number is told: their sockets have no pid.
func TestProcessesThatOurPidNamespaceDoesNotShowAreCounted(t *testing.T) {
	s := newStory(t, Filter{})
	hidden := func(host uint32) func(*events.Event) {
		return func(ev *events.Event) {
			ev.Flags |= events.Owned
			ev.Proc = events.Proc{Hidden: host}
		}
	}
	s.step(nth(1), "C>SS", hidden(71))
	s.step(nth(2), "C>SS", hidden(72))
	s.step(nth(3), "C>SS", hidden(71))
	s.step(nth(4), "C>SS", by(1, "visible"))
	if got := s.tr.Counts().Hidden; got != 2 {
		t.Errorf("got %d hidden processes, want 2", got)
	}
}

func TestDetailsThatAreNotKnownLeaveWhatIsKnown(t *testing.T) {
	s := newStory(t, Filter{})
	s.details(events.Details{}) // of nobody
	full := events.Details{Pid: 1, OpenFiles: 3, FileLimit: 9, Exe: "/bin/a", Container: "abc"}
	s.details(full)
	s.details(events.Details{Pid: 1})
	if got := s.process(1).details; got.Exe != full.Exe || s.process(1).container().ID != full.Container || got.OpenFiles != 3 || got.FileLimit != 9 {
		t.Errorf("got %+v, want %+v", got, full)
	}
	s.details(events.Details{Pid: 1, Exe: "/bin/b", FileLimit: 8}) // execve(), and no descriptor left
	if got := s.process(1).details; got.Exe != "/bin/b" || got.OpenFiles != 0 || got.FileLimit != 8 {
		t.Errorf("got %+v, want /bin/b, 0 of 8", got)
	}
	if !s.tr.Knows(1) || s.tr.Knows(2) || s.tr.Knows(0) {
		t.Errorf("knows processes 0, 1, 2: %v, %v, %v; want 1 only", s.tr.Knows(0), s.tr.Knows(1), s.tr.Knows(2))
	}
	audit(t, s.tr)
}
