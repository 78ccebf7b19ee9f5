package livetest

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// containerID is one as container runtimes make them.
func containerID() string {
	var random [32]byte
	rand.Read(random[:])
	return hex.EncodeToString(random[:])
}

// newContainer makes a cgroup that is named as Docker names those of containers
// under systemd, and removes it when the test is over.
func newContainer(t *testing.T) (id, dir string) {
	t.Helper()
	id = containerID()
	root := t.TempDir()
	// A mount of its own: that of the host may be read-only, or elsewhere.
	if err := unix.Mount("none", root, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mount cgroup2: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", root, err)
		}
	})
	dir = filepath.Join(root, "docker-"+id+".scope")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// It is busy until the last process in it has been reaped.
		var err error
		for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
			if err = os.Remove(dir); err == nil {
				return
			}
		}
		t.Errorf("remove the cgroup: %v", err)
	})
	return id, dir
}

// enter moves the agent into the container.
func (a *agent) enter(container string) {
	a.t.Helper()
	if err := os.WriteFile(filepath.Join(container, "cgroup.procs"), []byte(fmt.Sprint(a.pid)), 0); err != nil {
		a.t.Fatalf("move agent %s into a container: %v", a.name, err)
	}
}

func TestAContainerIsKnownByItsProcesses(t *testing.T) {
	t.Parallel()
	live(t)
	id, dir := newContainer(t)
	var want leak
	wanted := map[string]string{}
	_, runs := playComplete(t, func(s *scene) {
		cli, srv := s.agents2()
		boxed := s.agent("boxed")
		boxed.enter(dir)
		l, other := boxed.listen(anyPort4), srv.listen(anyPort4)
		before, beforeAt := pair(cli, l)
		pair(cli, other)
		after := closeWaitAfter.String()
		s.trace("--container", id[:12], "--close-wait-after", after)
		s.trace("--close-wait-after", after)
		before.close()
		beforeAt.read("")
		beforeAt.close()
		c, d := pair(cli, l)
		c2, d2 := pair(boxed, other) // of which only one end is in the container
		leakOf(c2, d2, "eof_unread") // a leak outside, which must not be shown
		one := leakOf(c, d, "eof_unread")
		s.prove([]leaked{one})
		clear(wanted)
		for _, in := range []*sock{l, beforeAt, d, c2} {
			wanted[in.id()] = "in the container"
		}
		want = closeWaitLeak(boxed.process(), []leaked{one}, true)
		// That which was there before, it has closed.
		want.evidence["peer_closed_first"], want.evidence["closed"] = 2.0, 1.0
		delete(want.evidence, "fin_to_close_p50_ms")
		delete(want.evidence, "fin_to_close_p99_ms")
		want.never = true
		s.awaitFindings([]leak{want})
		time.Sleep(lag)
	})
	filtered, all := runs[0].records, runs[1].records
	checkFindings(t, filtered, []leak{want})
	for i := range filtered {
		r := &filtered[i]
		if r.Type == "stats" {
			continue
		}
		if r.Type != "finding" && wanted[orNull(r.Cookie)] == "" {
			t.Errorf("--container: a record of a socket outside: %s", r.summary())
		}
		if orNull(r.Container) != id {
			t.Errorf("--container: %s record with container %s, want %s: %s", r.Type, orNull(r.Container), id, r.summary())
		}
	}
	seen := map[string]bool{}
	for _, r := range filtered {
		seen[r.Type] = true
	}
	for _, kind := range []string{"transition", "connection", "socket", "finding"} {
		if !seen[kind] {
			t.Errorf("--container: no %s record, want some", kind)
		}
	}
	for i := range all {
		r := &all[i]
		inside := r.Type == "finding" && want.about(r) || wanted[orNull(r.Cookie)] != ""
		// Who owns a child is not always known before it is accepted.
		if (r.Container != nil) != inside && r.Pid != nil {
			t.Errorf("container %s, but in the container: %v: %s", orNull(r.Container), inside, r.summary())
		}
	}
}

// In a container, only what is in it can be named: of a leak outside there is
// evidence, and no name.
func TestInAPIDNamespaceALeakOutsideIsNobodys(t *testing.T) {
	t.Parallel()
	var inside, outside leaked
	var who process
	_, runs := playComplete(t, func(s *scene) {
		out, outWrite := newPipe(t)
		log, logWrite := newPipe(t)
		first := startInit(t, s.ns, "init", outWrite, logWrite)
		outWrite.Close()
		logWrite.Close()
		srv := s.spawn(first, "srv")
		cli, stranger := s.agent("cli"), s.agent("stranger")
		s.add(tracerUnder(t, first, out, log, "--netns", fmt.Sprint(s.ns.inode), "--close-wait-after", closeWaitAfter.String()))
		c, d := pair(cli, srv.listen(anyPort4))
		c2, d2 := pair(cli, stranger.listen(anyPort4))
		inside, outside = leakOf(c, d, "eof_unread"), leakOf(c2, d2, "eof_unread")
		who = process{srv.pid, srv.name, stranger.process().exe}
		s.awaitFindings([]leak{closeWaitLeak(who, []leaked{inside}, true)})
		time.Sleep(closeWaitAfter)
	})
	records := runs[0].records
	outside.holders = nil // that are visible
	named, nameless := closeWaitLeak(who, []leaked{inside}, true), closeWaitLeak(process{}, []leaked{outside}, true)
	named.never, nameless.never = true, true
	for _, fact := range []string{"peer_closed_first", "closed", "held", "fin_to_close_p50_ms", "fin_to_close_p99_ms"} {
		delete(nameless.evidence, fact) // the history is one of a process
	}
	checkFindings(t, records, []leak{named, nameless})
	for i := range records {
		if r := &records[i]; orNull(r.Lport) == portOf(outside.local) && (r.Pid != nil || len(r.Holders) > 0) {
			t.Errorf("a process outside is named: %s, holders %v", r.summary(), r.Holders)
		}
	}
	if stats := lastStats(records); stats != nil && stats.Hidden == 0 {
		t.Error("hidden_processes 0, want those outside of the PID namespace")
	}
}

// It may be about to start; but it may be a slip of the pen too.
func TestAContainerThatNoProcessIsInIsSaidAndNoError(t *testing.T) {
	t.Parallel()
	live(t)
	run := startTracer(t, "--container", strings.Repeat("0", 64)).stop()
	if want := "no process is in the container"; !strings.Contains(run.stderr, want) {
		t.Errorf("stderr %q, want %q in it", run.stderr, want)
	}
	for _, r := range run.records {
		if r.Type != "stats" {
			t.Errorf("got %s, want nothing of a container that does not exist", r.summary())
		}
	}
}
