package livetest

import (
	"bytes"
	"fmt"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// amongDescriptors starts a command among processes that have as many descriptors each as they may, none of them a
// socket, but for the last process, which listens and says its PID.
const amongDescriptors = `
import os, socket, sys

held, full = os.pipe(), os.pipe()
processes = int(sys.argv[1])
for k in range(processes):
    if os.fork() == 0:
        os.close(held[1])
        if k + 1 == processes:
            listener = socket.socket()
            listener.listen()
            os.write(2, b"%d" % os.getpid())
        try:
            while True:
                os.dup(0)
        except OSError:
            os.write(full[1], b".")
        os.read(held[0], 1)
        os._exit(0)
    os.read(full[0], 1)
os.set_inheritable(held[1], True)
os.execv(sys.argv[2], sys.argv[2:])
`

// The kernel gives up an iterator that passes a million objects without a row (MAX_ITER_OBJECTS).
func TestASocketBehindAMillionDescriptorsIsFound(t *testing.T) {
	live(t)
	const most = 100_000 // of one process, and as many as the walk has after the million
	limit := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	each := min(limit.Max, most)
	processes := 1_000_000/each + 2
	cmd := exec.Command("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
		"prlimit", fmt.Sprintf("--nofile=%d:", each), "python3", "-c", amongDescriptors, fmt.Sprint(processes),
		tcptraceBin, "snapshot", "--events", "socket")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v; stderr:\n%s", err, stderr.String())
	}
	r, err := parseRecord(out)
	if err != nil {
		t.Fatalf("%v: %q; want one socket", err, out)
	}
	if r.State != "LISTEN" || len(r.Holders) != 1 || fmt.Sprint(r.Holders[0].Pid) != stderr.String() {
		t.Errorf("got %s; want a listener that process %s holds", out, stderr.String())
	}
}
