package aggregate

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

func TestAFindingIsToldAgainWhenItsAgeHasDoubled(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	row := holds(server, "CW", 1, "srv", 4)
	s.scan(row)
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=60000 eof_read 1/4:5")
	for _, rounds := range []int{30, 60, 120} {
		for range rounds - 1 {
			s.pass(2000)
			s.scan(row)
		}
		s.finds()
		s.pass(2000)
		s.scan(row)
		s.finds(fmt.Sprintf("#1 close_wait_leak update warning srv(1) n=1 oldest=%d eof_read 1/4:5", 2*2000*rounds))
	}
}

// An update says what is so, as an opening does: it waits for the next scan.
func TestAFindingIsNotToldAgainBetweenScans(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 1, "srv", 4))
	s.said = nil
	s.pass(minute + 1500) // scans that cost much are made rarely
	s.tick()
	s.finds()
	s.scan(holds(server, "CW", 1, "srv", 4))
	s.finds("#1 close_wait_leak update warning srv(1) n=1 oldest=121500 eof_read 1/4:5")
}

func TestAFindingIsToldAgainWhenItsCountHasDoubled(t *testing.T) {
	s := newStory(t, Filter{})
	for n := range 6 {
		s.leave(nth(n), 1, "srv")
		s.pass(1000)
	}
	s.pass(minute - 6000)
	var rows []look
	for n, want := range []string{
		"open warning srv(1) n=1 oldest=60000", "update warning srv(1) n=2 oldest=61000", "",
		"update warning srv(1) n=4 oldest=63000", "", "",
	} {
		rows = append(rows, holds(nth(n), "CW", 1, "srv", int32(n)))
		s.scan(rows...)
		got := s.lines("#")
		s.said = nil
		if want == "" && len(got) > 0 || want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], "#1 close_wait_leak "+want+" ")) {
			t.Errorf("with %d sockets: got %q, want %q", n+1, got, want)
		}
		s.pass(1000)
	}
}

// Half of the descriptors of the process: soon it can accept no more.
func TestAFindingIsToldAgainWhenItBecomesCritical(t *testing.T) {
	s := newStory(t, Filter{})
	for n := range 5 {
		s.leave(nth(n), 1, "srv")
		s.pass(1000)
	}
	s.pass(minute - 5000)
	s.details(events.Details{Pid: 1, OpenFiles: 6, FileLimit: 10})
	var rows []look
	for n := range 4 {
		rows = append(rows, holds(nth(n), "CW", 1, "srv", int32(n)))
		s.scan(rows...)
		s.said = nil
		s.pass(1000)
	}
	s.scan(append(rows, holds(nth(4), "CW", 1, "srv", 4))...)
	got := s.lines("#1 close_wait_leak update critical srv(1) n=5 ")
	if len(got) != 1 {
		t.Errorf("with 5 of 10 descriptors: got %q, want an update that is critical", s.said)
	}
	if e := s.found().Evidence; e.OpenFiles != 6 || e.FileLimit != 10 {
		t.Errorf("got %d of %d descriptors, want 6 of 10", e.OpenFiles, e.FileLimit)
	}
}

// The agent asks for the details of a process between the end of the scan and the
// record.
func TestDetailsAreWantedOfWhatIsAboutToBeTold(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(nth(0), 1, "srv")
	s.leave(nth(1), 2, "other")
	s.pass(minute)
	row := holds(nth(0), "CW", 1, "srv", 4)
	row(s)
	bare(nth(1), "CW")(s)
	s.tick()
	s.tr.Scanned(events.Scan{Complete: true, Every: true})
	if got := s.tr.Wanted(); !slices.Equal(got, []uint32{1}) {
		t.Errorf("got %v, want process 1 only: nobody knows whose the other is", got)
	}
	s.details(events.Details{Pid: 1, Exe: "/bin/srv", Container: "abc", OpenFiles: 7, FileLimit: 1024})
	s.tick()
	if got := s.tr.Wanted(); len(got) != 0 {
		t.Errorf("after the record: got %v, want none", got)
	}
	f := s.findings[0]
	if f.Exe != "/bin/srv" || f.Container.ID != "abc" || f.Evidence.OpenFiles != 7 || f.Evidence.FileLimit != 1024 {
		t.Errorf("got %+v, want what Details said", f)
	}
	s.pass(2000)
	s.scan(row, bare(nth(1), "CW"))
	if got := s.tr.Wanted(); len(got) != 0 {
		t.Errorf("when there is no news: got %v, want none", got)
	}
}

func TestAFindingIsResolvedOnceAndTheNextIsAnother(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 1, "srv", 4))
	s.pass(5000)
	s.tick()
	s.said = nil
	s.closes(server, 1, "srv")
	s.tick()
	s.finds("#1 close_wait_leak resolved warning srv(1) n=0 oldest=?")
	s.step(server, "LA>C", with(orphan|events.Done), shut(3))
	s.destroy(server)
	s.pass(5000)
	s.tick()
	s.scan()
	s.finds()

	s.leave(nth(1), 1, "srv")
	s.pass(minute)
	s.scan(holds(nth(1), "CW", 1, "srv", 4))
	s.finds("#2 close_wait_leak open warning srv(1) n=1 oldest=60000 eof_read 1/4:501")
}

func TestALeakThatEndsBeforeItIsToldIsNotTold(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	holds(server, "CW", 1, "srv", 4)(s)
	s.tick()
	s.tr.Scanned(events.Scan{Complete: true, Every: true})
	s.closes(server, 1, "srv")
	s.tick()
	s.finds()
	// And it leaves nothing behind that the next one would be mixed with.
	s.leave(nth(1), 1, "srv")
	s.pass(minute)
	s.scan(holds(nth(1), "CW", 1, "srv", 4))
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=60000 eof_read 1/4:501")
}

// However it ends: at its worst it was one socket, a minute old.
func TestAResolvedFindingTellsItsPeaks(t *testing.T) {
	row := func(pid uint32, opts ...func(*events.Event)) look { return holds(server, "CW", pid, "srv", 4, opts...) }
	for _, tt := range []struct {
		name string
		end  func(*story)
	}{
		{"closed", func(s *story) { s.closes(server, 1, "srv") }},
		{"reset", func(s *story) { s.step(server, "CW>C", with(events.HasSocket|events.Done), shut(1), failed(32)) }},
		{"destroyed, and its end missed", func(s *story) { s.destroy(server) }},
		{"its end missed but for the last step", func(s *story) { s.step(server, "LA>C", with(orphan|events.Done), shut(3)) }},
		{"in use again", func(s *story) { s.scan(row(1, unsent(1))) }},
		{"passed on", func(s *story) { s.scan(row(9)) }},
		{"gone, nobody knows how", func(s *story) { s.scan(); s.scan() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStory(t, Filter{})
			s.leave(server, 1, "srv")
			s.pass(minute)
			s.scan(row(1))
			s.pass(2000)
			s.tick()
			s.findings = nil
			tt.end(s)
			s.tick()
			for _, f := range s.findings {
				if f.Status != Resolved {
					continue // about another process
				}
				e := f.Evidence
				if e.PeakCount != 1 || e.PeakOldest < minute*time.Millisecond || e.PeakOldest > (minute+2000)*time.Millisecond {
					t.Errorf("got peaks %d, %v; want 1, 1m0s to 1m2s", e.PeakCount, e.PeakOldest)
				}
				if len(f.Holders) != 0 || f.Count != 0 || f.Oldest != Unknown {
					t.Errorf("got %d holders, count %d, oldest %v; want none, 0, unknown", len(f.Holders), f.Count, f.Oldest)
				}
				return
			}
			t.Errorf("got %q, want a resolved finding", s.lines("#"))
		})
	}
}

func TestThePeakIsTheMostThatThereWereToldOrNot(t *testing.T) {
	s := newStory(t, Filter{})
	var rows []look
	for n := range 3 {
		s.leave(nth(n), 1, "srv")
		rows = append(rows, holds(nth(n), "CW", 1, "srv", int32(n)))
		s.pass(500)
	}
	s.pass(minute - 1000)
	s.scan(rows[:2]...)
	s.pass(2000)
	s.scan(rows...) // three are not twice two: no record
	s.closes(nth(0), 1, "srv")
	s.closes(nth(1), 1, "srv")
	s.pass(2000)
	s.scan(rows[2])
	s.closes(nth(2), 1, "srv")
	s.tick()
	f := s.found()
	if f.Status != Resolved || f.Evidence.PeakCount != 3 || f.Evidence.PeakOldest != (minute+3500)*time.Millisecond {
		t.Errorf("got %s with peaks %d, %v; want resolved with 3, 1m3.5s", f.Status, f.Evidence.PeakCount, f.Evidence.PeakOldest)
	}
}

func TestALeakThatIsPassedOnIsResolvedForOneAndOpenForTheOther(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 10, "srv")
	s.pass(minute)
	s.scan(holds(server, "CW", 10, "srv", 4), holds(server, "CW", 11, "child", 4))
	s.said = nil
	s.pass(2000)
	s.scan(holds(server, "CW", 11, "child", 4)) // the parent's close() makes no event
	s.finds(
		"#1 close_wait_leak resolved warning srv(10) n=0 oldest=?",
		"#2 close_wait_leak open warning child(11) n=1 oldest=62000 eof_read 11/4:5",
	)
}

func TestAnOutputThatHasNoRoomGetsTheFindingLater(t *testing.T) {
	s := newStory(t, Filter{})
	s.leave(server, 1, "srv")
	s.pass(minute)
	s.refu = true
	row := holds(server, "CW", 1, "srv", 4)
	s.scan(row)
	s.pass(100)
	s.tick()
	s.refu = false
	s.pass(100)
	s.tick()
	s.finds("#1 close_wait_leak open warning srv(1) n=1 oldest=60200 eof_read 1/4:5")
	s.tick()
	s.finds()

	s.pass(minute - 200)
	s.refu = true
	s.scan(row)
	s.refu = false
	s.tick()
	s.finds() // the age at the record was 60.2 s
	s.pass(400)
	s.refu = true
	s.scan(row)
	s.refu = false
	s.tick()
	s.finds("#1 close_wait_leak update warning srv(1) n=1 oldest=120400 eof_read 1/4:5")

	s.closes(server, 1, "srv")
	s.refu = true
	s.tick()
	s.tick()
	s.refu = false
	s.tick()
	s.tick()
	s.finds("#1 close_wait_leak resolved warning srv(1) n=0 oldest=?")
}

// The name is the process's own choice: the encoders must be able to rely on what
// is around it.
func TestMessageAndAdviceAreSentencesOfOneLine(t *testing.T) {
	s := newStory(t, Filter{})
	s.step(listen, "C>L", by(1, "srv"))
	s.leave(nth(0), 1, "srv")
	s.wait(nth(1))
	s.leave(nth(2), 2, "dead")
	s.step(nth(2), "CW>C", with(events.HasSocket|events.Done), failed(32))
	s.leave(nth(3), 3, "nobody")
	s.leave(nth(4), 4, "gone")
	for n := range 16 {
		s.step(nth(10+n), "L>SR")
		s.step(nth(10+n), "SR>E")
		s.accept(nth(10+n), 5, "full")
	}
	s.pass(minute)
	s.exits(nth(4), 4, "gone")
	s.pass(1000)
	rows := []look{
		holds(listen, "L", 1, "srv", 3), holds(nth(0), "CW", 1, "srv", 4), bare(nth(1), "CW", unaccepted),
		holds(nth(2), "C", 2, "dead", 4), bare(nth(3), "CW"),
	}
	for n := range 16 {
		rows = append(rows, holds(nth(10+n), "E", 5, "full", int32(3+n)))
	}
	s.scan(rows...)
	s.details(events.Details{Pid: 5, OpenFiles: 32, FileLimit: 33})
	s.tick()
	s.checkTexts(CloseWaitLeak, NeverClosed, ResetFdLeak, FdLimit)

	s = newMiniStory(t, Filter{})
	network := events.Network{Netns: 1, PortLow: 40000, PortHigh: 40009, Timestamps: 1, MaxTimeWait: 5, FinTimeout: 60}
	s.tr.Network(&network)
	for n := range 9 {
		k := nth(n)
		k.lport, k.rport = 40000+uint16(n), 80
		s.waits(k)
	}
	stuck := nth(20)
	stuck.lport, stuck.rport = 40009, 81
	s.orphaned(stuck)
	idle := nth(21)
	s.step(idle, "L>SR")
	s.step(idle, "SR>E")
	s.accept(idle, 5, "idle")
	for range 25_000 {
		s.churns(nth(22))
		s.pass(1)
		if int(s.ms)%100 == 0 {
			s.tick()
		}
	}
	s.pass(minute)
	s.tick()
	network.TimeWaitSkipped = 3
	s.tr.Network(&network)
	s.pass(3 * 60 * minute)
	s.scan(holds(idle, "E", 5, "idle", 4, quiet(3*60*minute)))
	s.checkTexts(FinWait2Stuck, TimeWaitPorts, TimeWaitOverflow, ShortLived, HalfOpen)
}

// checkTexts checks what was found: findings of all these kinds, at the least.
func (s *story) checkTexts(want ...Kind) {
	t := s.t
	t.Helper()
	kinds := map[Kind]bool{}
	for _, f := range s.findings {
		kinds[f.Kind] = true
		for _, text := range []string{f.Message, f.Advice} {
			if text == "" || strings.ContainsAny(text, "\n\t") || strings.Contains(text, "%!") {
				t.Errorf("%s: got %q, want one line", f.Kind, text)
			}
		}
		about := f.Kind < FinWait2Stuck || f.Kind == ShortLived || f.Kind == HalfOpen || f.Status == Resolved
		if f.Pid != 0 && about && !strings.HasPrefix(f.Message, fmt.Sprintf("%s[%d]", f.Comm.Bytes(), f.Pid)) {
			t.Errorf("%s: got %q, want it to begin with %s[%d]", f.Kind, f.Message, f.Comm.Bytes(), f.Pid)
		}
	}
	for _, k := range want {
		if !kinds[k] {
			t.Errorf("got findings of kinds %v, want one %s", kinds, k)
		}
	}
}
