package livetest

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A terminal is one of tmux's, in which a shell has started a tcptrace and says what came of it.
type terminal struct {
	t   *testing.T
	dir string
}

// openTerminal runs `tcptrace top` in a terminal of that size, with its own tmux server. What else
// the shell is to do goes before the command.
func openTerminal(t *testing.T, width, height int, before string, args ...string) *terminal {
	t.Helper()
	live(t)
	term := &terminal{t: t, dir: t.TempDir()}
	script := fmt.Sprintf("cd %s; %s\nstty -a > before; %s top %s; echo $? > status; stty -a > after; echo the shell again; exec sleep 100",
		term.dir, before, tcptraceBin, strings.Join(args, " "))
	path := filepath.Join(term.dir, "script")
	if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Command("tmux", "-S", term.socket(), "kill-server").Run() }) // it is gone if the test has failed
	term.tmux("-f", "/dev/null", "new-session", "-d", "-s", "top", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height), "sh "+path)
	return term
}

func (term *terminal) socket() string { return filepath.Join(term.dir, "tmux") }

func (term *terminal) tmux(args ...string) string {
	term.t.Helper()
	cmd := exec.Command("tmux", append([]string{"-S", term.socket()}, args...)...)
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		term.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

func (term *terminal) screen() string { return term.tmux("capture-pane", "-p", "-t", "top") }

func (term *terminal) press(keys ...string) {
	term.t.Helper()
	term.tmux(append([]string{"send-keys", "-t", "top"}, keys...)...)
}

// await waits until the screen is as done says, and returns it as it is then, or in the end.
func (term *terminal) await(limit time.Duration, what string, done func(screen string) bool) string {
	term.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		got := term.screen()
		if done(got) {
			return got
		}
		if time.Now().After(deadline) {
			term.t.Fatalf("not within %v: %s. The screen:\n%s", limit, what, got)
		}
	}
}

// has waits until there is a line with all of this in it.
func (term *terminal) has(parts ...string) string {
	term.t.Helper()
	return term.await(callTimeout, fmt.Sprintf("a line with %q", parts), func(screen string) bool {
		for line := range strings.Lines(screen) {
			if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
				return true
			}
		}
		return false
	})
}

func (term *terminal) file(name string) string {
	term.t.Helper()
	b, err := os.ReadFile(filepath.Join(term.dir, name))
	if err != nil {
		term.t.Fatal(err)
	}
	return string(b)
}

// checkRestored checks what a shell finds after the command: its status, the terminal's settings, its
// former screen and cursor, and what was logged behind the screen.
func (term *terminal) checkRestored() {
	term.t.Helper()
	term.has("the shell again")
	if got := strings.TrimSpace(term.file("status")); got != "0" {
		term.t.Errorf("exit status %s, want 0; the screen:\n%s", got, term.screen())
	}
	if before, after := term.file("before"), term.file("after"); before != after {
		term.t.Errorf("stty says\n%swant as before\n%s", after, before)
	}
	if got := term.tmux("display-message", "-p", "-t", "top", "#{alternate_on} #{cursor_flag} #{keypad_flag} #{mouse_any_flag}"); got != "0 1 0 0\n" {
		term.t.Errorf("alternate screen, cursor, keypad, mouse: %q, want 0 1 0 0", got)
	}
	term.has("tcptrace: tracing")
	term.has("tcptrace: done")
}

var shownState = regexp.MustCompile(`\b([A-Z][A-Z_12]+) +([0-9,]+)`)

// states are those of the overview, by the bars' numbers.
func states(screen string) map[string]int {
	counts := map[string]int{}
	for i, line := range strings.Split(screen, "\n") {
		if i < 1 || i > 5 {
			continue
		}
		for _, m := range shownState.FindAllStringSubmatch(line, -1) {
			counts[m[1]], _ = strconv.Atoi(strings.ReplaceAll(m[2], ",", ""))
		}
	}
	return counts
}

func TestTopShowsWhatSsShows(t *testing.T) {
	t.Parallel()
	s := &scene{t: t, ns: newNetns(t)}
	m := everyState(s)
	term := openTerminal(t, 80, 24, "", "--netns", fmt.Sprint(s.ns.inode), "--close-wait-after", closeWaitAfter.String())
	// What is no socket yet, and what was missed, is counted every ten seconds.
	var listed map[string]int
	screen := term.await(25*time.Second, "states as ss counts them", func(screen string) bool {
		listed = countStates(t, s.ns)
		return maps.Equal(states(screen), listed)
	})
	for state, n := range listed {
		if n == 0 {
			t.Errorf("no socket in %s: the test shows nothing of it", state)
		}
	}
	if n := strings.Count(screen, "\n"); n != 24 {
		t.Errorf("%d lines, want 24:\n%s", n, screen)
	}
	term.has(">"+strconv.Itoa(m.srv.pid), "srv", " 5 ", "eof_unread")
	term.has(" "+strconv.Itoa(m.cli.pid), "cli", " 1 ")
	term.has("TIME_WAIT TO", "PORTS LEFT")
	term.has(fmt.Sprintf("%s  ", m.listener.local), " 3 ", "28,2", "28,232") // three in TIME_WAIT, of the default range
	term.has("WARN srv[", "keeps 5 connections in CLOSE_WAIT")
	term.has("q quit")

	checkConnectionPage(t, term, s, m)
	checkFilter(term, m)
	for _, size := range [][2]int{{132, 40}, {60, 12}, {20, 5}, {80, 24}} {
		term.tmux("resize-window", "-t", "top", "-x", strconv.Itoa(size[0]), "-y", strconv.Itoa(size[1]))
		term.await(callTimeout, fmt.Sprint("a screen of ", size), func(screen string) bool {
			lines := strings.Split(strings.TrimSuffix(screen, "\n"), "\n")
			return len(lines) == size[1] && strings.HasPrefix(lines[0], "tcptrace top") && strings.HasPrefix(lines[size[1]-1], "Tab list")
		})
	}
	checkFrozen(t, term, m)
	term.press("q")
	term.checkRestored()
}

// checkConnectionPage goes from srv to the oldest of its sockets in CLOSE_WAIT, and back.
func checkConnectionPage(t *testing.T, term *terminal, s *scene, m museumOfStates) {
	term.press("Enter")
	var held ssSocket
	owned := 0
	for _, sock := range s.ns.sockets(t) {
		if len(sock.descriptors) == 1 && sock.descriptors[0].Pid == m.srv.pid {
			owned++
			if sock.state == "CLOSE-WAIT" && sock.cookie == m.held[0].cookie {
				held = sock
			}
		}
	}
	if held.cookie == "" {
		t.Fatal("ss lists no socket in CLOSE_WAIT of srv")
	}
	screen := term.has(fmt.Sprintf("Connections of srv[%d]: %d", m.srv.pid, owned))
	if got, want := strings.Count(screen, "CLOSE_WAIT "), len(m.held); got != want {
		t.Errorf("%d connections in CLOSE_WAIT, want %d:\n%s", got, want, screen)
	}
	term.press("/")
	term.press("-l", ":"+held.rport)
	term.press("Enter")
	term.has(">CLOSE_WAIT", ":"+held.lport, ":"+held.rport, "eof_unread")
	term.press("Enter")
	term.has("cookie", held.cookie)
	term.has("reading", "0 bytes and end-of-file are not read")
	term.has(fmt.Sprintf("srv[%d] fd %d", m.srv.pid, held.descriptors[0].FD))
	term.has("> CLOSE_WAIT", "+") // since before it began
	term.press("Escape")
	term.has("Connections of srv", ": 1")
	term.press("Escape") // the filter
	term.has("Connections of srv", fmt.Sprintf(": %d", owned))
	term.press("Escape")
	term.has("FINDINGS (")
}

func checkFilter(term *terminal, m museumOfStates) {
	term.press("/", "c", "l", "i")
	term.await(callTimeout, "only cli", func(screen string) bool {
		return strings.Contains(screen, ">"+strconv.Itoa(m.cli.pid)) && !strings.Contains(screen, " "+strconv.Itoa(m.srv.pid)+" ")
	})
	term.press("Escape")
	term.has("srv", "eof_unread")
	term.press("?")
	term.has("/", "filter: a name, a PID, an address, a state")
	term.press("x")
	term.has("FINDINGS (")
}

// checkFrozen checks that the file has what the screen shows.
func checkFrozen(t *testing.T, term *terminal, m museumOfStates) {
	term.press("Space")
	term.has("PAUSED")
	term.press("f")
	term.has("written to")
	files, err := filepath.Glob(filepath.Join(term.dir, "tcptrace-top-*.txt"))
	if err != nil || len(files) != 1 {
		t.Fatalf("files %q, %v; want one", files, err)
	}
	b, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsAny(b, "\x1b") {
		t.Errorf("an escape in %q", b)
	}
	frozen := string(b)
	_, body, _ := strings.Cut(frozen, "\n")
	if got, want := states(body), states(term.screen()); !maps.Equal(got, want) {
		t.Errorf("%s has %v, want %v as the screen", files[0], got, want)
	}
	for _, want := range []string{fmt.Sprintf("srv[%d] keeps 5 connections in CLOSE_WAIT", m.srv.pid), m.listener.local.String()} {
		if !strings.Contains(frozen, want) {
			t.Errorf("no %q in\n%s", want, frozen)
		}
	}
	term.press("Space")
}

// Not by a key: the run ends, or is told to.
func TestTopLeavesTheTerminalAsItWas(t *testing.T) {
	t.Parallel()
	ns := newNetns(t)
	where := fmt.Sprint("--netns=", ns.inode)
	t.Run("SIGTERM", func(t *testing.T) {
		term := openTerminal(t, 80, 24, "", where)
		term.has("q quit")
		term.tmux("run-shell", "kill -TERM $(ps -o pid= --ppid #{pane_pid})")
		term.checkRestored()
	})
	t.Run("Ctrl-C", func(t *testing.T) {
		term := openTerminal(t, 80, 24, "", where)
		term.has("q quit")
		term.press("C-c")
		term.checkRestored()
	})
	t.Run("its time is over", func(t *testing.T) {
		term := openTerminal(t, 80, 24, "", where, "--duration", "2s")
		term.has("q quit")
		term.checkRestored()
	})
	t.Run("it cannot begin", func(t *testing.T) {
		term := openTerminal(t, 80, 24, "", "--pid", "4194304")
		term.has("the shell again")
		term.has("tcptrace: --pid 4194304: ")
		if got := strings.TrimSpace(term.file("status")); got != "1" {
			t.Errorf("exit status %s, want 1", got)
		}
	})
	t.Run("without colours", func(t *testing.T) {
		term := openTerminal(t, 80, 24, "export NO_COLOR=1", where)
		term.has("q quit")
		for _, sgr := range regexp.MustCompile(`\x1b\[([0-9;]*)m`).FindAllStringSubmatch(term.tmux("capture-pane", "-p", "-e", "-t", "top"), -1) {
			for n := range strings.SplitSeq(sgr[1], ";") {
				if c, _ := strconv.Atoi(n); c >= 30 && c <= 48 && c != 39 || c >= 90 && c <= 107 { // 39 and 49 are none
					t.Errorf("a colour (%s) where NO_COLOR is set", n)
				}
			}
		}
		term.press("q")
		term.checkRestored()
	})
}

// The run's end is what a replay shows, and it stays there for questions.
func TestTopShowsTheEndOfARecording(t *testing.T) {
	t.Parallel()
	s, runs := playComplete(t, func(s *scene) {
		dir := t.TempDir()
		s.trace("--close-wait-after", closeWaitAfter.String(), "--record", filepath.Join(dir, "run.rec"))
		s.file = filepath.Join(dir, "run.rec")
		cli, srv := s.agents2()
		l := srv.listen(anyPort4)
		for range 3 {
			c, _ := pair(cli, l)
			c.close()
		}
		s.await(func(records []record) bool {
			return slices.ContainsFunc(records, func(r record) bool { return r.Type == "finding" && r.Count == 3 })
		})
	})
	last := slices.IndexFunc(runs[0].records, func(r record) bool { return r.Type == "finding" && r.Count == 3 })
	if last < 0 {
		t.Fatal("the run has found no leak of three sockets")
	}
	srv := s.agents[1].pid
	term := openTerminal(t, 80, 24, "", "--replay", s.file)
	term.has("tcptrace top", "end of run.rec")
	term.has(">"+strconv.Itoa(srv), "srv", " 3 ", "eof_unread")
	term.press("Enter")
	term.has(fmt.Sprintf("Connections of srv[%d]: 4", srv))
	term.press("/")
	term.press("-l", "close_wait")
	term.press("Enter", "Enter")
	term.has(fmt.Sprintf("srv[%d] fd ", srv))
	term.press("q")
	term.has("the shell again")
	if got := strings.TrimSpace(term.file("status")); got != "0" {
		t.Errorf("exit status %s, want 0", got)
	}
}

// A terminal that takes nothing more (Ctrl-S, a network that hangs) stops the drawing, and nothing
// else: what the kernel hands over is read all the same.
func TestAStalledTerminalCostsNoEvent(t *testing.T) {
	bin := buildStorm(t)
	ns := newNetns(t)
	ns.sysctl(t, "ipv4/tcp_max_tw_buckets", "200000")
	connections := stormSize(50_000)
	term := openTerminal(t, 200, 60, "", "--record", "run.rec", "--netns", fmt.Sprint(ns.inode))
	term.has("q quit")
	tty, err := os.OpenFile(strings.TrimSpace(term.tmux("display-message", "-p", "-t", "top", "#{pane_tty}")), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close()
	flow := func(action int) { // tcflow(3)
		if err := unix.IoctlSetInt(int(tty.Fd()), unix.TCXONC, action); err != nil {
			t.Fatalf("tcflow: %v", err)
		}
	}
	const stop, goOn = 0, 1 // TCOOFF, TCOON
	flow(stop)
	time.Sleep(time.Second) // what was under way
	before := term.screen()
	ns.do(t, func() {
		out, err := exec.Command(bin, "-n", fmt.Sprint(connections)).CombinedOutput()
		if err != nil {
			t.Fatalf("storm: %v\n%s", err, out)
		}
		t.Logf("%s", bytes.TrimSpace(out))
	})
	time.Sleep(2 * time.Second)
	if after := term.screen(); after != before {
		t.Errorf("the terminal is not stalled: it went from\n%sto\n%s", before, after)
	}
	flow(goOn)
	term.await(callTimeout, "what came of the storm", func(screen string) bool { return states(screen)["TIME_WAIT"] > int(connections)/2 })
	term.press("q")
	term.checkRestored()

	records := runForRecords(t, 0, "--replay", filepath.Join(term.dir, "run.rec"), "--events", "stats")
	stats := lastStats(records)
	if stats == nil {
		t.Fatal("the recording has no books")
	}
	checkBooks(t, stats)
	if want := 10 * connections; stats.Seen < want {
		t.Errorf("saw %d transitions, want %d at the least", stats.Seen, want)
	}
	if n := stats.Lost["ring_full"]; n != 0 {
		t.Errorf("lost %d transitions because nobody has read them, want 0", n)
	}
}
