package main

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/pkg/events"
)

var update = flag.Bool("update", false, "rewrite the goldens of testdata/recordings")

// The command as a user's shell sees it. Each script finds in its directory:
//
//	sample.rec     two connections (see sample)
//	cut.rec        the same, cut within its last frame
//	garbage.rec    no recording
//	version.rec    a recording of a version to come
//	leak.rec       a process that leaves a socket in CLOSE_WAIT (see leaks)
//	over.rec       the same, and in the end it closes it
//	all.rec        findings of all kinds
//	long.rec       far more records than a pipe and the queue before it hold
func TestTheCommandDoesWhatItsScriptsSay(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			whole := sample(t)
			version := bytes.Clone(whole)
			version[8]++
			for name, content := range map[string][]byte{
				"sample.rec": whole, "cut.rec": whole[:len(whole)-1], "garbage.rec": []byte("{\"type\":\"stats\"}\n"),
				"version.rec": version, "long.rec": long(t),
				"leak.rec": leaks(t, "close_wait_leak"), "over.rec": leaks(t, "over"),
				"all.rec": leaks(t, "close_wait_leak", "never_closed", "reset_fd_leak", "fd_limit"),
			} {
				if err := os.WriteFile(filepath.Join(e.WorkDir, name), content, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status},
	})
}

// long is a recording of many connections.
func long(t testing.TB) []byte {
	return record(t, func(w *recording.Writer) error {
		for n := range uint64(20_000) {
			for _, raw := range client(n + 1).activeClose() {
				if err := w.Event(raw); err != nil {
					return err
				}
			}
		}
		return w.Books(events.Books{Seen: 100_000})
	})
}

// status N COMMAND...: the command ends with status N, and so that stderr holds
// no stack of a panic. Its output is there for stdout and stderr.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		exit := (*exec.ExitError)(nil)
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("got exit status %d, want %d; stderr: %s", got, want, ts.ReadFile("stderr"))
	}
	if s := ts.ReadFile("stderr"); strings.Contains(s, "goroutine ") || strings.Contains(s, "panic") {
		ts.Fatalf("got a stack, want a sentence: %s", s)
	}
}

// Every testdata/recordings/NAME.rec, recorded from a real kernel, gives
// NAME.jsonl. After -update, read what has changed.
func TestRecordingsOfRealKernelsGiveTheirGoldens(t *testing.T) {
	recs, err := filepath.Glob("testdata/recordings/*.rec")
	check(t, err)
	if len(recs) == 0 {
		t.Fatal("got no recordings in testdata/recordings, want some")
	}
	for _, rec := range recs {
		t.Run(strings.TrimSuffix(filepath.Base(rec), ".rec"), func(t *testing.T) {
			golden := strings.TrimSuffix(rec, ".rec") + ".jsonl"
			got := replayed(t, "--replay", rec)
			if *update {
				check(t, os.WriteFile(golden, got, 0o644))
			}
			want, err := os.ReadFile(golden)
			check(t, err)
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
				t.Errorf("got (+) and want (-) differ:\n%s", diff)
			}
			checkWhole(t, records(t, got))
		})
	}
}

// checkWhole holds a golden to what no update may change: a run that lost
// nothing, whose books balance and say what was printed.
func checkWhole(t *testing.T, all []printed) {
	t.Helper()
	stats := all[len(all)-1]
	if stats.Type != "stats" {
		t.Fatalf("the last record: got %s, want stats", stats.Type)
	}
	types := map[string]uint64{}
	for _, rec := range all {
		types[rec.Type]++
		if rec.Unprinted != 0 {
			t.Errorf("got %+v, want no unprinted", rec)
		}
	}
	for cause, n := range stats.Lost {
		if n != 0 {
			t.Errorf("lost to %s: got %d, want 0", cause, n)
		}
	}
	if stats.Seen != stats.Delivered+stats.Filtered {
		t.Errorf("seen: got %d, want delivered + filtered, which is %d + %d", stats.Seen, stats.Delivered, stats.Filtered)
	}
	for typ, n := range stats.Records {
		if n != types[typ] {
			t.Errorf("records of type %s: stats say %d, want the %d that were printed", typ, n, types[typ])
		}
	}
}

// replayed returns what a command line that ends well prints.
func replayed(t *testing.T, args ...string) []byte {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "stdout")
	check(t, err)
	defer f.Close()
	var stderr bytes.Buffer
	if err := run(t.Context(), env{stdout: f, stderr: &stderr, args: args}); err != nil {
		t.Fatalf("%q: %v; stderr: %s", args, err, &stderr)
	}
	b, err := os.ReadFile(f.Name())
	check(t, err)
	return b
}
