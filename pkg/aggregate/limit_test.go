package aggregate

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// serving is a story in which process 1 has n established connections.
func serving(t *testing.T, f Filter, n int) *story {
	t.Helper()
	s := newStory(t, f)
	for k := range n {
		s.open(nth(k))
	}
	s.serves = n
	return s
}

// limit tells how many descriptors process 1 has, all sockets of serving among
// them, and lets the tracker report.
func (s *story) limit(open uint32, limit uint64) {
	for k := range s.serves {
		s.row(nth(k), "E", 1, "srv", int32(k+3))
	}
	s.tr.Scanned(events.Scan{Complete: true, Every: true})
	s.details(events.Details{Pid: 1, OpenFiles: open, FileLimit: limit})
	s.tick()
}

func TestAProcessThatRunsOutOfDescriptorsIsAFinding(t *testing.T) {
	for _, tt := range []struct {
		name    string
		sockets int
		open    uint32
		limit   uint64
		want    string
	}{
		{"79 percent", 50, 79, 100, ""},
		{"80 percent", 50, 80, 100, "warning"},
		{"94 percent", 50, 94, 100, "warning"},
		{"95 percent", 50, 95, 100, "critical"},
		{"all", 50, 100, 100, "critical"},
		{"more than the limit, which was lowered", 50, 100, 60, "critical"},
		// A process full of files or pipes is not our business.
		{"half of them sockets", 40, 80, 100, "warning"},
		{"less than half of them sockets", 39, 80, 100, ""},
		{"no limit", 50, 80, math.MaxUint64, ""},
		{"not known", 50, 0, 0, ""},
		{"a limit as large as they come", 50, 80, 1 << 30, ""},
	} {
		s := serving(t, Filter{}, tt.sockets)
		s.limit(tt.open, tt.limit)
		got := s.lines("#")
		if tt.want == "" && len(got) > 0 || tt.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], "#1 fd_limit open "+tt.want+" srv(1) ")) {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
			continue
		}
		if tt.want == "" {
			continue
		}
		e := s.found().Evidence
		if e.OpenFiles != tt.open || e.FileLimit != tt.limit || e.Sockets != tt.sockets || e.CloseWait != 0 {
			t.Errorf("%s: got %d of %d, %d sockets, %d in CLOSE_WAIT; want %d of %d, %d, 0", tt.name, e.OpenFiles, e.FileLimit, e.Sockets, e.CloseWait, tt.open, tt.limit, tt.sockets)
		}
		if s.found().Oldest != Unknown {
			t.Errorf("%s: oldest: got %v, want it unknown: it is about no socket's age", tt.name, s.found().Oldest)
		}
		audit(t, s.tr)
	}
}

func TestALimitIsToldAgainWhenItBecomesCriticalAndWhenItIsOver(t *testing.T) {
	s := serving(t, Filter{}, 50)
	for _, step := range []struct {
		open uint32
		want string
	}{
		{79, ""},
		{80, "#1 fd_limit open warning srv(1) n=50 oldest=?"},
		{85, ""},
		{95, "#1 fd_limit update critical srv(1) n=50 oldest=?"},
		{99, ""},
		{94, ""},
		{76, ""}, // not yet: it would come and go
		{75, ""},
		{74, "#1 fd_limit resolved"},
		{79, ""},
		{80, "#2 fd_limit open warning srv(1) n=50 oldest=?"},
	} {
		s.pass(5000)
		s.limit(step.open, 100)
		got := s.lines("#")
		s.said = nil
		if step.want == "" && len(got) > 0 || step.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], step.want)) {
			t.Errorf("%d of 100: got %q, want %q", step.open, got, step.want)
		}
	}
}

func TestALimitThatIsNotReachedAnyMoreTellsItsPeak(t *testing.T) {
	s := serving(t, Filter{}, 50)
	s.limit(80, 100)
	s.limit(70, 100)
	f := s.found()
	if f.Status != Resolved || f.Evidence.PeakCount != 50 || f.Evidence.PeakOldest != Unknown {
		t.Errorf("got %s, peaks %d, %v; want resolved, 50, unknown", f.Status, f.Evidence.PeakCount, f.Evidence.PeakOldest)
	}
}

// Of a process that has gone nothing more is heard.
func TestALimitEndsWithItsProcess(t *testing.T) {
	s := serving(t, Filter{}, 50)
	s.limit(80, 100)
	s.said = nil
	for n := range 50 {
		s.step(nth(n), "E>F1", by(1, "srv"), with(events.HasSocket|events.Exiting), shut(3))
		s.step(nth(n), "F1>C", with(orphan))
		s.destroy(nth(n))
	}
	s.details(events.Details{Pid: 1, Gone: true})
	s.tick()
	got := s.lines("#")
	if len(got) != 1 || !strings.HasPrefix(got[0], "#1 fd_limit resolved ") {
		t.Errorf("got %q, want it resolved", got)
	}
	auditEmpty(t, s.tr)
}

// Of a child that is shown under the same PID, the new details count.
func TestALimitIsOfTheProcessAndNotOfItsPid(t *testing.T) {
	s := serving(t, Filter{}, 50)
	s.limit(80, 100)
	s.said = nil
	s.fork(9, 1, "newcomer")
	s.serves = 0
	s.limit(90, 100) // of the newcomer, which has no socket
	s.finds("#1 fd_limit resolved warning srv(1) n=0 oldest=?")
	audit(t, s.tr)
}

func TestLimitsBeforeTheFirstScanAreNoFindings(t *testing.T) {
	s := &story{t: t, ms: 1000}
	s.tr = NewTracker(s, &Filter{}, 1000, thresholds(time.Minute))
	for n := range 50 {
		s.open(nth(n))
	}
	s.details(events.Details{Pid: 1, OpenFiles: 80, FileLimit: 100}) // how many sockets there are is not known yet
	s.tick()
	s.finds()
	s.serves = 50
	s.limit(80, 100)
	s.finds("#1 fd_limit open warning srv(1) n=50 oldest=?")
}

func TestAFilterByProcessTellsOnlyItsOwnLimits(t *testing.T) {
	s := serving(t, pids(2), 50)
	s.limit(80, 100)
	s.finds()

	s = serving(t, pids(1), 50)
	s.limit(80, 100)
	s.finds("#1 fd_limit open warning srv(1) n=50 oldest=?")
}

func TestALimitForWhichTheOutputHasNoRoomIsToldLater(t *testing.T) {
	s := serving(t, Filter{}, 50)
	s.refu = true
	s.limit(80, 100)
	s.tick()
	s.refu = false
	s.tick()
	s.tick()
	s.finds("#1 fd_limit open warning srv(1) n=50 oldest=?")
}

// leaking lets process 1 gain so many sockets in CLOSE_WAIT between looks that are
// five seconds apart, and returns what the look says that finds it full.
func leaking(t *testing.T, gains ...int) Evidence {
	t.Helper()
	s := newStory(t, Filter{})
	n := 0
	for _, gain := range gains {
		for range gain {
			s.leave(nth(n), 1, "srv")
			n++
		}
		for range -gain {
			n--
			s.closes(nth(n), 1, "srv")
		}
		s.limit(1, 100)
		s.pass(5000)
		s.tick()
	}
	for k := range 50 { // now it is full
		s.open(nth(100 + k))
	}
	s.serves = 50
	s.limit(80, 100)
	return s.found().Evidence
}

func TestTheGrowthOfCloseWaitTellsWhenTheDescriptorsAreUsedUp(t *testing.T) {
	for _, tt := range []struct {
		name      string
		gains     []int
		perMinute float64       // negative: not known
		exhausted time.Duration // of the 20 that are left
	}{
		{"never looked at before", nil, -1, Unknown},
		{"five a look", []int{5, 5, 5}, 40, 30 * time.Second}, // ten in the 15 s from the first look to the last
		{"no growth", []int{5, 0, 0}, 0, Unknown},
		{"only long ago", []int{1, 9, 0, 0, 0, 0, 0, 0, 0, 0}, 0, Unknown},
	} {
		e := leaking(t, tt.gains...)
		if e.Measured != (tt.perMinute >= 0) || e.Measured && math.Abs(e.PerMinute-tt.perMinute) > 1e-9 {
			t.Errorf("%s: got %g a minute, known: %v; want %g", tt.name, e.PerMinute, e.Measured, tt.perMinute)
		}
		if (e.Exhausted-tt.exhausted).Abs() > time.Millisecond || e.Exhausted < 0 != (tt.exhausted < 0) {
			t.Errorf("%s: used up in %v, want %v", tt.name, e.Exhausted, tt.exhausted)
		}
	}

	// It gets better: that is no growth either.
	e := leaking(t, 9, -3, -3)
	if !e.Measured || e.PerMinute >= 0 || e.Exhausted != Unknown {
		t.Errorf("fewer each time: got %g a minute, used up in %v; want a negative number, unknown", e.PerMinute, e.Exhausted)
	}
}

func TestLooksThatAreTooCloseTellNoGrowth(t *testing.T) {
	s := serving(t, Filter{}, 50)
	for n := range 4 {
		s.leave(nth(100+n), 1, "srv")
		s.limit(1, 100)
		s.pass(1249.5) // four times: 4.998 s
		s.tick()
	}
	s.limit(80, 100)
	if e := s.found().Evidence; e.Measured || e.Exhausted != Unknown {
		t.Errorf("after 4.998 s: got %g a minute, used up in %v; want both unknown", e.PerMinute, e.Exhausted)
	}
	if got := s.found().Evidence.CloseWait; got != 4 {
		t.Errorf("in CLOSE_WAIT: got %d, want 4", got)
	}
}

// A process is looked at if it has many sockets, or a finding.
func TestProcessesWithManySocketsOrAFindingAreWatched(t *testing.T) {
	s := serving(t, Filter{}, 8)
	for n := range 7 {
		s.step(nth(100+n), "L>SR")
		s.step(nth(100+n), "SR>E")
		s.accept(nth(100+n), 2, "few")
	}
	s.leave(server, 3, "leak")
	s.pass(minute)
	s.scan(holds(server, "CW", 3, "leak", 4))
	got := map[uint32]bool{}
	for _, pid := range s.tr.Watched() {
		got[pid] = true
	}
	if len(got) != 2 || !got[1] || !got[3] {
		t.Errorf("got %v, want processes 1 and 3", got)
	}
}

// Its descriptors are counted, and before the scan is over it has gone and its PID is
// another's.
func TestAProcessThatGoesWhileItIsCountedHasNoFinding(t *testing.T) {
	s := newStory(t, Filter{})
	var rows []look
	for n := range 16 {
		s.step(nth(n), "L>SR")
		s.step(nth(n), "SR>E")
		s.accept(nth(n), 5, "full")
		rows = append(rows, holds(nth(n), "E", 5, "full", int32(3+n)))
	}
	s.pass(minute)
	s.tick()
	s.details(events.Details{Pid: 5, OpenFiles: 32, FileLimit: 33})
	rows = append(rows, func(s *story) { s.fork(9, 5, "new") })
	s.scan(rows...)
	s.finds()
	audit(t, s.tr)
}
