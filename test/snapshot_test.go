package livetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// runCommand runs tcptrace until it ends by itself.
func runCommand(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, tcptraceBin, args...)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	err := cmd.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		t.Fatalf("tcptrace %q: %v, %v:\n%s", args, err, ctx.Err(), log.String())
	}
	return out.String(), log.String(), cmd.ProcessState.ExitCode()
}

// runForRecords runs it and checks its exit status.
func runForRecords(t *testing.T, status int, args ...string) (records []record) {
	t.Helper()
	stdout, stderr, got := runCommand(t, args...)
	if got != status {
		t.Errorf("tcptrace %q: exit status %d, want %d; stderr:\n%s", args, got, status, stderr)
	}
	for line := range strings.Lines(stdout) {
		r, err := parseRecord([]byte(line))
		if err != nil {
			t.Errorf("%v: %q", err, line)
		}
		records = append(records, r)
	}
	return records
}

func typesOf(records []record) (out []string) {
	for _, r := range records {
		if !slices.Contains(out, r.Type) {
			out = append(out, r.Type)
		}
	}
	slices.Sort(out)
	return out
}

// A museum is all leaks at once, beside processes that leak nothing: what
// tcptrace finds when it comes later.
type museum struct {
	leaks   []leak
	sockets []leaked
}

// startMuseum makes every leak there is, all of them older than the threshold
// when it returns.
func startMuseum(s *scene) (m museum) {
	s.t.Helper()
	peer := s.agent("peer")
	shapes := append(possibleLeaks(),
		leakShape{name: "nearly out of descriptors", program: "c limit", open: 62, verdict: "eof_unread"},
		leakShape{name: "held by parent and child", program: "c both", copies: 2, verdict: "eof_unread"})
	for _, shape := range shapes {
		if shape.casts && !castsPointers() {
			continue // no leak to tcptrace: TestEachLeakIsFoundNamedAndProven
		}
		// Apart by more than the tick by which the kernel remembers, so that the
		// order of their ages is known; and a reset comes after a long silence, of
		// which an age must not speak.
		idle := lag
		if shape.reset {
			idle = closeWaitAfter
		}
		l, sockets := shape.start(s, peer, idle)
		for _, want := range shape.wants(l, sockets, false) {
			want.never = true
			m.leaks = append(m.leaks, want)
		}
		m.sockets = append(m.sockets, sockets...)
	}
	// No leaks: one that still sends, one that is only quiet, and sockets that
	// never had a connection.
	stream := s.startLeaker(peer, "py stream")
	peer.dial(stream.at).shutdownWrite()
	innocent := s.agent("innocent")
	pair(peer, innocent.listen(anyPort4))
	innocent.socket(anyPort4).bind(anyPort4)
	innocent.socket(anyPort4)
	time.Sleep(closeWaitAfter + ageTolerance)
	return m
}

// Not parallel: there is a bar on the time that it takes.
func TestLeaksThatWereThereBefore(t *testing.T) {
	var m museum
	soon := 2 * time.Second
	if testing.Short() {
		soon *= 2 // the start alone takes that long there
	}
	_, runs := playComplete(t, func(s *scene) {
		m = startMuseum(s)
		netns, after := fmt.Sprint(s.ns.inode), closeWaitAfter.String()
		t.Run("snapshot", func(t *testing.T) {
			records := runForRecords(t, 3, "snapshot", "--netns", netns, "--close-wait-after", after, "--fail-on", "any")
			checkFindings(t, records, m.leaks)
			m.checkSockets(t, records)
			if got, want := typesOf(records), []string{"finding", "socket", "stats"}; !slices.Equal(got, want) {
				t.Errorf("records of types %v, want %v", got, want)
			}
			checkBooks(t, lastStats(records))
			traced{records: records}.checkCounts(t)
		})
		t.Run("snapshot with a long threshold", func(t *testing.T) {
			records := runForRecords(t, 0, "snapshot", "--netns", netns, "--close-wait-after", "1h",
				"--fail-on", "close_wait_leak,reset_fd_leak,never_closed")
			checkFindings(t, records, slices.DeleteFunc(slices.Clone(m.leaks), func(l leak) bool { return l.kind != "fd_limit" }))
		})
		t.Run("snapshot of findings only", func(t *testing.T) {
			records := runForRecords(t, 0, "snapshot", "--netns", netns, "--close-wait-after", after,
				"--events", "finding", "--fail-on", "never_closed")
			checkFindings(t, records, m.leaks)
			if got, want := typesOf(records), []string{"finding"}; !slices.Equal(got, want) {
				t.Errorf("records of types %v, want %v", got, want)
			}
		})
		t.Run("snapshot as text", func(t *testing.T) {
			stdout, _, _ := runCommand(t, "snapshot", "--netns", netns, "--close-wait-after", after, "-o", "text")
			m.checkText(t, stdout)
		})
		started := time.Now()
		s.trace("--close-wait-after", after)
		s.awaitFindings(m.leaks)
		took := time.Since(started)
		t.Logf("%d findings %v after the start", len(m.leaks), took)
		if took > soon {
			t.Errorf("all leaks were reported %v after the start, want %v at the most", took, soon)
		}
	})
	checkFindings(t, runs[0].records, m.leaks)
	m.checkSockets(t, runs[0].records)
}

// checkSockets checks the socket records: one for each leaked socket, with its
// verdict, its holders and its age, and none of a socket without a connection.
func (m museum) checkSockets(t *testing.T, records []record) {
	t.Helper()
	found := map[string]*record{}
	for i := range records {
		if r := &records[i]; r.Type == "socket" {
			found[orNull(r.Cookie)] = r
			if r.Rport == nil && r.State != "LISTEN" {
				t.Errorf("a socket record of what has no connection: %s", r.summary())
			}
		}
	}
	suspects := map[string]bool{}
	for _, s := range m.sockets {
		suspects[s.cookie] = true
		r := found[s.cookie]
		if r == nil {
			t.Errorf("no socket record of %s (%s), want one", s.cookie, s.verdict)
			continue
		}
		s.checkRecord(t, r)
	}
	for id, r := range found {
		if r.Verdict != nil && !suspects[id] {
			t.Errorf("socket %s: verdict %s, want none", id, *r.Verdict)
		}
	}
}

func (s *leaked) checkRecord(t *testing.T, r *record) {
	t.Helper()
	where := "socket " + s.cookie
	state, verdict := "CLOSE_WAIT", s.verdict
	if verdict == "" {
		state, verdict = "CLOSE", "reset_fd_leak"
	}
	if r.State != state || orNull(r.Verdict) != verdict {
		t.Errorf("%s: %s with verdict %s, want %s with %s", where, r.State, orNull(r.Verdict), state, verdict)
	}
	var got []holder
	for _, h := range r.Holders {
		h.Cookie = s.cookie
		got = append(got, h)
	}
	slices.SortFunc(got, byHolder)
	if diff := gocmp.Diff(s.holders, got); diff != "" {
		t.Errorf("%s: holders (-want +got):\n%s", where, diff)
	}
	if r.AgeMs == nil {
		if state != "CLOSE" {
			t.Errorf("%s: age_ms null, want one", where)
		}
		return
	}
	since := *s
	if state == "CLOSE" {
		since.after = r.Time // how long ago it was reset cannot be known
	}
	checkSince(t, where+": age_ms", r.Time, *r.AgeMs, since)
}

// checkText looks for a line of each socket: what people need of it is the
// state, the process and the ports.
func (m museum) checkText(t *testing.T, text string) {
	t.Helper()
	for _, s := range m.sockets {
		words := []string{portOf(s.local), portOf(s.remote)}
		if s.verdict != "" {
			words = append(words, "CLOSE_WAIT")
		}
		if len(s.holders) > 0 {
			words = append(words, fmt.Sprint(s.holders[0].Pid))
		}
		if !slices.ContainsFunc(strings.Split(text, "\n"), func(line string) bool {
			return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) })
		}) {
			t.Errorf("no line with %q in:\n%s", words, text)
			return
		}
	}
}

// The exit status is what a script asks for.
func TestFailOnTurnsAFindingIntoAnExitStatus(t *testing.T) {
	t.Parallel()
	testLeaks(t, func(s *scene) []leak {
		after := closeWaitAfter.String()
		s.trace("--close-wait-after", after)
		for kinds, status := range map[string]int{"close_wait_leak": 3, "never_closed,close_wait_leak": 3, "any": 3, "reset_fd_leak,fd_limit": 0} {
			s.trace("--close-wait-after", after, "--fail-on", kinds).status = status
		}
		cli, srv := s.agents2()
		c, d := pair(cli, srv.listen(anyPort4))
		one := leakOf(c, d, "eof_unread")
		s.prove([]leaked{one})
		want := closeWaitLeak(srv.process(), []leaked{one}, true)
		s.awaitFindings([]leak{want})
		for _, tr := range s.all[1:] {
			tr.awaitFindings([]leak{want})
		}
		// That it is over does not undo it.
		d.close()
		s.awaitResolved([]leak{want})
		return []leak{want}
	})
}

func TestOnlyFindingsWhenOnlyFindingsAreAskedFor(t *testing.T) {
	t.Parallel()
	s := &scene{t: t, ns: newNetns(t)}
	cli, srv := s.agents2()
	c, d := pair(cli, srv.listen(anyPort4))
	one := leakOf(c, d, "eof_unread")
	s.prove([]leaked{one})
	want := closeWaitLeak(srv.process(), []leaked{one}, false)
	want.never = true
	records := runForRecords(t, 3, "--netns", fmt.Sprint(s.ns.inode), "--duration", "2s", "--close-wait-after", closeWaitAfter.String(),
		"--events", "finding", "--fail-on", "close_wait_leak")
	checkFindings(t, records, []leak{want})
	if got, want := typesOf(records), []string{"finding"}; !slices.Equal(got, want) {
		t.Errorf("records of types %v, want %v", got, want)
	}
}

// A recording has what the scans and /proc said, too.
func TestAReplayFindsWhatTheRunHasFound(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "run.rec")
	after := closeWaitAfter.String()
	live := testLeaks(t, func(s *scene) []leak {
		cli, srv := s.agents2()
		l := srv.listen(anyPort4)
		c, d := pair(cli, l)
		before := leakOf(c, d, "eof_unread") // the tracer
		s.trace("--close-wait-after", after, "--record", file)
		c, d = pair(cli, l)
		sockets := []leaked{before, leakOf(c, d, "eof_unread")}
		s.prove(sockets)
		want := closeWaitLeak(srv.process(), sockets, false)
		s.awaitFindings([]leak{want})
		past := neverClosed(srv.process(), sockets, srv.kill)
		past.evidence["age_bound"] = "at_least"
		s.awaitResolved([]leak{want})
		s.awaitFindings([]leak{past})
		return []leak{want, past}
	})
	replayed := runForRecords(t, 3, "--replay", file, "--close-wait-after", after, "--fail-on", "never_closed")
	if diff := gocmp.Diff(findingsOf(live), findingsOf(replayed)); diff != "" {
		t.Errorf("findings (-live +replayed):\n%s", diff)
	}
}

// findingsOf is all that the lines of the findings have.
func findingsOf(records []record) (out []map[string]any) {
	for _, r := range records {
		if r.Type == "finding" {
			out = append(out, r.fields)
		}
	}
	return out
}
