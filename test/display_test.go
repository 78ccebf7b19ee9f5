package livetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A display is a terminal of tmux's that shows what a shell command prints.
type display struct {
	t      *testing.T
	socket string
}

func newDisplay(t *testing.T, width, height int, command string) *display {
	t.Helper()
	d := &display{t, filepath.Join(t.TempDir(), "tmux")}
	done := filepath.Join(t.TempDir(), "done")
	t.Cleanup(func() { d.tmux("kill-server") })
	d.tmux("-u", "-f", "/dev/null", "new-session", "-d", "-x", strconv.Itoa(width), "-y", strconv.Itoa(height), command+"; touch "+done+"; exec sleep 100")
	for deadline := time.Now().Add(callTimeout); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(done); err == nil {
			return d
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is not over within %v. The screen:\n%s", command, callTimeout, d.tmux("capture-pane", "-p"))
		}
	}
}

func (d *display) tmux(args ...string) string {
	d.t.Helper()
	cmd := exec.Command("tmux", append([]string{"-S", d.socket}, args...)...)
	cmd.Env = append(os.Environ(), "TERM=xterm-256color", "LC_ALL=C.UTF-8", "NO_COLOR=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Fatalf("tmux %q: %v: %s", args, err, out)
	}
	return string(out)
}

// awaitCursor waits until the terminal has taken what was printed, and returns what it shows and the column
// of its cursor.
func (d *display) awaitCursor() (screen, column string) {
	d.t.Helper()
	for last := ""; ; time.Sleep(100 * time.Millisecond) {
		screen, column = d.tmux("capture-pane", "-p"), strings.TrimSpace(d.tmux("display-message", "-p", "#{cursor_x}"))
		if screen+column == last {
			return screen, column
		}
		last = screen + column
	}
}

// What a terminal shows is what is printed, whatever processes call themselves; and it stands in columns there,
// where characters have other widths than in a file.
func TestATerminalShowsTextAsItIsPrinted(t *testing.T) {
	t.Parallel()
	live(t)
	names := []string{"nginx", "日本語サー", "e\u0301te\u0301", "웹서버", "a b\tc", "\x1b[2J\x1b[31mr", "\x1b]0;x\a\r\v", "\u202eevil", "in\xff\xfe\xc3"}
	rec := filepath.Join(t.TempDir(), "run.rec")
	playComplete(t, func(s *scene) {
		s.trace("--record", rec)
		cli := s.agent("cli")
		for _, name := range names {
			for _, where := range []string{anyPort4, "[::1]:0"} {
				c, d := pair(cli, s.agent(name).listen(where))
				c.close()
				d.read("")
				d.close()
			}
		}
		s.await(func(records []record) bool {
			ended := 0
			for _, r := range records {
				if r.Type == "transition" && r.OldState == "LAST_ACK" {
					ended++
				}
			}
			return ended == 2*len(names)
		})
	})
	command := []string{"--replay", rec, "-o", "text", "--events", "transition"}
	printed, _, _ := runCommand(t, command...)
	screen, _ := newDisplay(t, 200, 1000, tcptraceBin+" "+strings.Join(command, " ")+" 2>/dev/null").awaitCursor()
	if got, want := strings.TrimRight(screen, "\n"), strings.TrimRight(printed, "\n"); got != want {
		t.Errorf("the terminal shows\n%s\nwant what goes to a pipe:\n%s", got, want)
	}

	header, lines, _ := strings.Cut(printed, "\n")
	want := strconv.Itoa(strings.Index(header, "LADDR:LPORT"))
	for _, name := range names[:4] { // they are no wider than the column
		before := regexp.MustCompile(`(?m)^\S+ \d+ +` + name + ` +`).FindString(lines)
		part := filepath.Join(t.TempDir(), "part")
		if err := os.WriteFile(part, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, got := newDisplay(t, 200, 5, "cat "+part).awaitCursor(); got != want {
			t.Errorf("after %q a terminal is at column %s, want %s, where the header has the address", before, got, want)
		}
	}
}
