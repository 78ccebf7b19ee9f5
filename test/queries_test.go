package livetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A row is what a query finds, with numbers as JSON or, if they may be large, as text.
type row map[string]any

// is compares the columns that want has.
func (r row) is(t *testing.T, want row) {
	t.Helper()
	got := row{}
	for name := range want {
		got[name] = fmt.Sprint(r[name])
	}
	for name, v := range want {
		want[name] = fmt.Sprint(v)
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

// within checks a column that is a time in units of unit.
func (r row) within(t *testing.T, name string, unit, least, most time.Duration) {
	t.Helper()
	n, _ := r[name].(float64)
	if got := time.Duration(n * float64(unit)); got < least || got > most {
		t.Errorf("%s: %v, want from %v to %v", name, got, least, most)
	}
}

func (r row) sum(t *testing.T, names ...string) (sum uint64) {
	t.Helper()
	for _, name := range names {
		var n uint64
		if _, err := fmt.Sscan(fmt.Sprint(r[name]), &n); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sum += n
	}
	return sum
}

// documentedQueries are those of docs/queries.md: by heading, and the one before all headings.
func documentedQueries(t *testing.T) (view string, queries map[string]string) {
	t.Helper()
	text, err := os.ReadFile("../docs/queries.md")
	if err != nil {
		t.Fatal(err)
	}
	queries = map[string]string{}
	block := regexp.MustCompile("(?s)```sql\n(.*?)```")
	for i, section := range strings.Split(string(text), "\n## ") {
		heading, _, _ := strings.Cut(section, "\n")
		found := block.FindAllStringSubmatch(section, -1)
		if len(found) != 1 {
			t.Fatalf("%d queries under %q, want 1", len(found), heading)
		}
		if i == 0 {
			view = found[0][1]
		} else {
			queries[heading] = found[0][1]
		}
	}
	return view, queries
}

// duckDB is a directory with DuckDB and the program that asks it.
func duckDB(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "run.mjs"} {
		data, err := os.ReadFile(filepath.Join("duckdb", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Not "npm ci": that wants the bindings of all platforms locked, and there is one here.
	cmd := exec.Command("npm", "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("npm install: %v\n%s", err, out)
	}
	return dir
}

// ask runs statements where the files are.
func ask(t *testing.T, duckdb, files, statements string) (rows []row) {
	t.Helper()
	cmd := exec.Command("node", filepath.Join(duckdb, "run.mjs"))
	cmd.Dir, cmd.Stdin = files, strings.NewReader(statements)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s\n%s", err, stderr.String(), statements)
	}
	for line := range strings.Lines(string(out)) {
		var r row
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		rows = append(rows, r)
	}
	return rows
}

// A questioned is traffic that every documented query has an answer to.
type questioned struct {
	cli, srv *agent
	at       *sock
	slow     *sock
	slowness [2]time.Duration // how long it took to be closed, at least and at most
	leaked   []string         // cookies
	closed   uint16           // a port that nobody listens on
}

const (
	quick, resets, refusals, leaks = 12, 3, 2, 2
	slowly                         = 400 * time.Millisecond
)

func questionable(s *scene) *questioned {
	q := &questioned{cli: s.agent("client"), srv: s.agent("server")}
	q.at = q.srv.listen(anyPort4)
	bulkConnections(q.cli, q.at, quick, true)
	near, far := pair(q.cli, q.at)
	fin := near.close()
	time.Sleep(slowly)
	closed := far.close()
	q.slow = far
	q.slowness = [2]time.Duration{closed.Before.time().Sub(fin.After.time()), closed.After.time().Sub(fin.Before.time())}
	for range resets {
		near, far := pair(q.cli, q.at)
		near.linger0()
		near.close()
		far.readFails(unix.ECONNRESET)
		far.close()
	}
	gone := q.srv.listen(anyPort4)
	q.closed = gone.local.Port()
	gone.close()
	for range refusals {
		c := q.cli.socket(anyPort4)
		c.connectFails(gone.local, unix.ECONNREFUSED)
		c.close()
	}
	for range leaks {
		near, far := pair(q.cli, q.at)
		near.close()
		q.leaked = append(q.leaked, far.id())
	}
	slices.Sort(q.leaked)
	return q
}

// Every query of the documentation is asked about a run whose truth is known, and beside it another
// run, which must not get in between.
func TestTheDocumentedQueriesAnswerTheirQuestions(t *testing.T) {
	t.Parallel()
	live(t)
	dir := t.TempDir()
	var q *questioned
	_, runs := playComplete(t, func(s *scene) {
		tr := s.trace("--record", filepath.Join(dir, "run.rec"), "--close-wait-after", closeWaitAfter.String())
		q = questionable(s)
		tr.waitFor(func(rs []record) bool {
			return slices.ContainsFunc(rs, func(r record) bool { return r.Type == "finding" && r.Count == leaks })
		})
		s.endMinisockets()
		tr.waitFor(func(rs []record) bool {
			return countType(rs, "connection") == 2*(quick+1+resets)+refusals+leaks
		})
	})
	for file, recording := range map[string]string{
		"tcptrace-here.jsonl": filepath.Join(dir, "run.rec"), "tcptrace-there.jsonl": "../cmd/tcptrace/testdata/recordings/ipv6.rec",
	} {
		stdout, stderr, status := runCommand(t, "--replay", recording)
		if status != 0 {
			t.Fatalf("exit status %d:\n%s", status, stderr)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(stdout), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	view, queries := documentedQueries(t)
	checks := q.checks(runs[0])
	if diff := gocmp.Diff(slices.Sorted(maps.Keys(checks)), slices.Sorted(maps.Keys(queries))); diff != "" {
		t.Errorf("headings of docs/queries.md: want (-), got (+):\n%s", diff)
	}
	duckdb := duckDB(t)
	for heading, query := range queries {
		t.Run(heading, func(t *testing.T) {
			// Of the run here: the other one is of a time and of processes of its own.
			rows := slices.DeleteFunc(ask(t, duckdb, dir, view+query), func(r row) bool {
				return r["filename"] == "./tcptrace-there.jsonl" || r["raddr"] == "::1" || r["comm"] == "cli" || r["comm"] == "srv"
			})
			checks[heading](t, rows)
		})
	}
}

// checks says what the queries have to find, by heading.
func (q *questioned) checks(run traced) map[string]func(*testing.T, []row) {
	one := func(t *testing.T, rows []row, n int) bool {
		if len(rows) != n {
			t.Errorf("%d rows, want %d: %v", len(rows), n, rows)
		}
		return len(rows) == n
	}
	port := q.at.local.Port()
	return map[string]func(*testing.T, []row){
		"Who leaks?": func(t *testing.T, rows []row) {
			if one(t, rows, 1) {
				rows[0].is(t, row{"kind": "close_wait_leak", "comm": "server", "pid": q.srv.pid, "count": leaks})
			}
		},
		"Which sockets are in CLOSE_WAIT?": func(t *testing.T, rows []row) {
			if one(t, rows, leaks) {
				cookies := []string{fmt.Sprint(rows[0]["cookie"]), fmt.Sprint(rows[1]["cookie"])}
				slices.Sort(cookies)
				if !slices.Equal(cookies, q.leaked) {
					t.Errorf("cookies %v, want %v", cookies, q.leaked)
				}
				rows[1].within(t, "seconds", time.Second, closeWaitAfter, time.Minute)
			}
		},
		"How long does close() take?": func(t *testing.T, rows []row) {
			if one(t, rows, 1) {
				rows[0].is(t, row{"comm": "server", "pid": q.srv.pid, "connections": quick + 1})
				rows[0].within(t, "p99_ms", time.Millisecond, q.slowness[0], q.slowness[1])
				rows[0].within(t, "p50_ms", time.Millisecond, 0, q.slowness[0]-1)
			}
		},
		"Which connections took longest to be closed?": func(t *testing.T, rows []row) {
			if one(t, rows, quick+1) {
				rows[0].is(t, row{"cookie": q.slow.id(), "lport": port, "close_call": "close"})
				rows[0].within(t, "close_wait_ms", time.Millisecond, q.slowness[0], q.slowness[1])
			}
		},
		"Who fills the ports with TIME_WAIT?": func(t *testing.T, rows []row) {
			if one(t, rows, 1) {
				rows[0].is(t, row{"comm": "client", "raddr": "127.0.0.1", "rport": port, "connections": quick + 1, "reused": 0})
			}
		},
		"Who opens connections over and over?": func(t *testing.T, rows []row) {
			if one(t, rows, 2) {
				rows[0].is(t, row{"comm": "client", "raddr": "127.0.0.1", "rport": port, "connections": quick + 1 + resets + leaks})
				rows[1].is(t, row{"comm": "client", "raddr": "127.0.0.1", "rport": q.closed, "connections": refusals})
			}
		},
		"Which peers send resets?": func(t *testing.T, rows []row) {
			if one(t, rows, 1) {
				rows[0].is(t, row{"comm": "server", "raddr": "127.0.0.1", "resets": resets})
			}
		},
		"What does not end with a FIN?": func(t *testing.T, rows []row) {
			got := map[string]uint64{}
			for _, r := range rows {
				got[fmt.Sprint(r["comm"], " ", r["role"], " ", r["ending"])] = r.sum(t, "connections")
			}
			// The peers of those that leak wait in FIN_WAIT2, until the test ends that.
			want := map[string]uint64{
				"client client refused": refusals, "client client reset_sent": resets, "server server reset_received": resets, "client client aborted": leaks,
			}
			if diff := gocmp.Diff(want, got); diff != "" {
				t.Errorf("want (-), got (+):\n%s", diff)
			}
		},
		"Is it whole?": func(t *testing.T, rows []row) {
			if one(t, rows, 1) {
				stats := lastStats(run.records)
				rows[0].is(t, row{"seen": stats.Seen, "delivered": stats.Delivered, "filtered": stats.Filtered, "lost": 0, "unprinted": 0})
			}
		},
	}
}
