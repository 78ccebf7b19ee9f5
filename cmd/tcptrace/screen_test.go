package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal is a new one of 80 columns, and what has been written to it.
func terminal(t *testing.T) (tty *os.File, written func() []byte) {
	t.Helper()
	ptmx, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	t.Cleanup(func() { _ = ptmx.Close() })
	check(t, unix.IoctlSetPointerInt(int(ptmx.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(ptmx.Fd()), unix.TIOCGPTN)
	check(t, err)
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	check(t, err)
	check(t, unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}))
	all := make(chan []byte)
	go func() {
		b, _ := io.ReadAll(ptmx) // until nobody has the terminal open: EIO
		all <- b
	}()
	return tty, func() []byte {
		check(t, tty.Close())
		return <-all
	}
}

func TestColourIsForATerminalWhoseUserWantsIt(t *testing.T) {
	leak := filepath.Join(t.TempDir(), "leak.rec")
	check(t, os.WriteFile(leak, leaks(t, "close_wait_leak"), 0o600))
	for _, tt := range []struct {
		term, noColor string
		terminal      bool
		want          bool
	}{
		{"xterm", "", true, true},
		{"xterm", "1", true, false},
		{"dumb", "", true, false},
		{"", "", true, false},
		{"xterm", "", false, false},
	} {
		t.Setenv("TERM", tt.term)
		t.Setenv("NO_COLOR", tt.noColor)
		var out []byte
		if tt.terminal {
			tty, written := terminal(t)
			check(t, run(t.Context(), env{stdout: tty, stderr: io.Discard, args: []string{"--replay", leak, "-o", "text"}}))
			out = written()
		} else {
			out = replayed(t, "--replay", leak, "-o", "text")
		}
		if !bytes.Contains(out, []byte("close_wait_leak")) {
			t.Fatalf("%+v: got %q, want the finding", tt, out)
		}
		if got := bytes.ContainsRune(out, '\x1b'); got != tt.want {
			t.Errorf("%+v: colour is %v, want %v", tt, got, tt.want)
		}
		// On a terminal of 80 columns the local end is a port.
		if got := bytes.Contains(out, []byte("LADDR:LPORT")); got == tt.terminal {
			t.Errorf("%+v: the header has LADDR: %v\n%s", tt, got, out)
		}
	}
}
