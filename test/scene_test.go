package livetest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A scenario is traffic whose truth is known.
type scenario struct {
	name string
	// play makes the traffic and says what must be seen of it: every socket of
	// the scene except listeners, which are checked for all scenes alike.
	play func(s *scene) []expect
	// also checks what expect cannot say. May be nil.
	also func(t *testing.T, run traced)
}

// A scene is what a scenario plays in.
type scene struct {
	t      *testing.T
	ns     *netns
	tr     *tracer // the first of the tracers
	all    []*tracer
	agents []*agent
	file   string // for the raw events
	short  bool   // the stream did not come to what was awaited
	long   bool   // it lasts so long that transitions of others say nothing about the load

	outlasted bool // its minisockets have ended by themselves
}

func runScenarios(t *testing.T, scenarios []scenario) {
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			t.Parallel()
			runScenario(t, sc)
		})
	}
}

func runScenario(t *testing.T, sc scenario) {
	var wants []expect
	s, runs := playComplete(t, func(s *scene) {
		wants = sc.play(s)
		s.settle(wants)
	})
	checkAll(s, runs[0], wants)
	if sc.also != nil {
		sc.also(t, runs[0])
	}
}

// playComplete plays in a new scene and traces it, and does so again if an event
// was lost: on some hosts the kernel skips programs now and then, and does not
// always count it. What comes out, one run per tracer, has lost nothing, or
// fails the test.
func playComplete(t *testing.T, play func(*scene)) (*scene, []traced) {
	t.Helper()
	for attempt := 0; ; attempt++ {
		s := &scene{t: t, ns: newNetns(t), file: strings.ReplaceAll(filepath.Base(t.Name()), " ", "-") + ".rec"}
		play(s)
		var runs []traced
		again := ""
		if s.short && attempt < 2 {
			again = "records that never came"
		}
		for _, tr := range s.all {
			run := tr.stop()
			runs = append(runs, run)
			if why, repeats := run.lossy(s.long); attempt < repeats {
				again = why
			}
		}
		if again == "" {
			for _, run := range runs {
				run.checkNothingLost(t)
			}
			return s, runs
		}
		t.Logf("once more: %s", again)
		for _, a := range s.agents {
			a.kill() // the next scene has others of the same names
		}
	}
}

// agent starts a process in the scene.
func (s *scene) agent(name string, files ...*os.File) *agent {
	s.t.Helper()
	a := startAgent(s.t, s.ns, name, files...)
	s.agents = append(s.agents, a)
	return a
}

// spawn starts a child of an agent.
func (s *scene) spawn(parent *agent, name string, inherited ...*sock) *agent {
	s.t.Helper()
	a := parent.spawn(name, inherited...)
	s.agents = append(s.agents, a)
	return a
}

// agents2 starts the two agents of most scenes.
func (s *scene) agents2() (cli, srv *agent) {
	s.t.Helper()
	return s.agent("cli"), s.agent("srv")
}

// trace starts a tracer of the scene's namespace. What was made before it is
// pre-existing.
func (s *scene) trace(flags ...string) *tracer {
	s.t.Helper()
	if *recordDir != "" && s.tr == nil {
		flags = append(flags, "--record", filepath.Join(*recordDir, s.file))
	}
	return s.add(startTracer(s.t, append([]string{"--netns", fmt.Sprint(s.ns.inode)}, flags...)...))
}

// add takes a tracer into the scene.
func (s *scene) add(tr *tracer) *tracer {
	if s.tr == nil {
		s.tr = tr
	}
	s.all = append(s.all, tr)
	return tr
}

// await waits until done says so of the first tracer's records. It gives up
// without a word: the test's checks say better what is missing.
func (s *scene) await(done func([]record) bool) {
	s.short = !s.tr.waitFor(done) || s.short
}

// settle waits until the stream has as much as is expected, and then ends the
// minisockets, of which a test cannot await the end each time.
func (s *scene) settle(wants []expect) {
	s.t.Helper()
	has := func(connections func(*expect) int) func([]record) bool {
		return func(records []record) bool {
			for i := range wants {
				id := wants[i].id(records)
				if len(transitionsOf(records, id)) < wants[i].transitions() ||
					len(connectionsOf(records, id)) < connections(&wants[i]) {
					return false
				}
			}
			return true
		}
	}
	s.await(has(func(e *expect) int {
		if e.lives() {
			return len(e.conn) - 1
		}
		return len(e.conn)
	}))
	if slices.ContainsFunc(wants, func(e expect) bool { return e.lives() }) {
		s.endMinisockets()
		s.await(has(func(e *expect) int { return len(e.conn) }))
	}
}
