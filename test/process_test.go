package livetest

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A kernelObject is a BPF program, map or link, by the number that the kernel
// never gives twice in a test's time.
type kernelObject struct {
	kind string // as /proc/PID/fdinfo has it
	id   uint32
}

// byID are the commands of bpf(2) that open an object by its number.
var byID = map[string]uintptr{
	"prog_id": unix.BPF_PROG_GET_FD_BY_ID,
	"map_id":  unix.BPF_MAP_GET_FD_BY_ID,
	"link_id": unix.BPF_LINK_GET_FD_BY_ID,
}

// exists asks the kernel for the object.
func (o kernelObject) exists() (bool, error) {
	attr := struct{ id, nextID, flags uint32 }{id: o.id}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, byID[o.kind], uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	switch errno {
	case 0:
		return true, unix.Close(int(fd))
	case unix.ENOENT:
		return false, nil
	}
	return false, fmt.Errorf("open %s %d: %w", o.kind, o.id, errno)
}

// heldObjects are the BPF objects of which a process holds descriptors.
func heldObjects(t *testing.T, pid int) map[kernelObject]bool {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("descriptors of %d: %v, %v", pid, files, err)
	}
	held := map[kernelObject]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			kind, value, _ := strings.Cut(strings.TrimSpace(line), ":")
			if byID[kind] == 0 {
				continue
			}
			id, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
			if err != nil {
				t.Fatalf("%s: %q: %v", file, line, err)
			}
			held[kernelObject{kind, uint32(id)}] = true
		}
	}
	return held
}

// Not parallel, so that nothing else traces while it looks.
func TestNothingStaysInTheKernel(t *testing.T) {
	for _, how := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGKILL} {
		t.Run(unix.SignalName(how), func(t *testing.T) {
			ns := newNetns(t)
			tr := startTracer(t, "--netns", fmt.Sprint(ns.inode))
			held := heldObjects(t, tr.pid)
			kinds := map[string]int{}
			for o := range held {
				kinds[o.kind]++
			}
			if len(kinds) != len(byID) {
				t.Fatalf("tcptrace holds %v, want some of each kind: this test looks at the wrong things", kinds)
			}
			if err := tr.signal(how); err != nil {
				t.Fatal(err)
			}
			if how == unix.SIGKILL {
				if _, err := tr.wait(); err != nil {
					t.Fatal(err)
				}
			} else {
				tr.end()
			}
			// The kernel frees what nobody holds after a grace period.
			deadline := time.Now().Add(5 * time.Second)
			for len(held) > 0 && time.Now().Before(deadline) {
				for o := range held {
					there, err := o.exists()
					if err != nil {
						t.Fatal(err)
					}
					if !there {
						delete(held, o)
					}
				}
				time.Sleep(20 * time.Millisecond)
			}
			if len(held) > 0 {
				t.Errorf("left in the kernel: %v, want nothing", held)
			}
		})
	}
}

// `tcptrace | head -1` has to end, also where nothing happens that could be
// written and fail.
func TestItEndsWhenNobodyReads(t *testing.T) {
	for _, quiet := range []bool{true, false} {
		name := map[bool]string{true: "on a quiet host", false: "while there is traffic"}[quiet]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ns := newNetns(t)
			out, outWrite := newPipe(t)
			log, logWrite := newPipe(t)
			cmd := exec.Command(tcptraceBin, "--duration", tracerLife, "--netns", fmt.Sprint(ns.inode))
			cmd.Stdout, cmd.Stderr = outWrite, logWrite
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			outWrite.Close()
			logWrite.Close()
			lines := bufio.NewScanner(log)
			for lines.Scan() && !strings.Contains(lines.Text(), "tracing") {
			}
			go func() {
				for lines.Scan() {
				}
			}()
			if err := out.Close(); err != nil {
				t.Fatal(err)
			}
			if !quiet {
				startAgent(t, ns, "srv").listen(anyPort4)
			}
			exited := make(chan error, 1)
			go func() { exited <- cmd.Wait() }()
			select {
			case err := <-exited:
				if err != nil {
					t.Errorf("ends with %v, want status 0", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("still runs 5 s after its reader went, want an end")
			}
		})
	}
}

func TestItStopsByItselfAfterTheDuration(t *testing.T) {
	t.Parallel()
	ns := newNetns(t)
	started := time.Now()
	tr := startTracer(t, "--netns", fmt.Sprint(ns.inode), "--duration", "1s")
	tr.end()
	if took := time.Since(started); took < time.Second || took > 5*time.Second {
		t.Errorf("ran for %v, want about 1s", took)
	}
}

// In a container, a PID is the container's.
func TestInAPIDNamespaceItSpeaksOfThatNamespacesPIDs(t *testing.T) {
	for _, filtered := range []bool{false, true} {
		name := map[bool]string{false: "all", true: "by PID"}[filtered]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var wants []expect
			s, runs := playComplete(t, func(s *scene) {
				out, outWrite := newPipe(t)
				log, logWrite := newPipe(t)
				first := startInit(t, s.ns, "init", outWrite, logWrite)
				outWrite.Close()
				logWrite.Close()
				cli, srv := s.spawn(first, "cli"), s.spawn(first, "srv")
				if srv.pid > 100 {
					t.Fatalf("agent has PID %d: it is not in a namespace of its own", srv.pid)
				}
				l := srv.listen(anyPort4)
				before, beforeAt := pair(cli, l)
				args := []string{"--netns", fmt.Sprint(s.ns.inode)}
				if filtered {
					args = append(args, "--pid", fmt.Sprint(srv.pid))
				}
				s.add(tracerUnder(t, first, out, log, args...))
				c, d := pair(cli, l)
				c.close()
				before.close()
				time.Sleep(lag)
				d.close()
				beforeAt.close()
				wants = []expect{
					{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}},
					{who: "existing server", sock: beforeAt, existed: true, path: "E CW LA C", conn: []string{"null remote fin close"}},
				}
				if !filtered {
					wants = append(wants,
						expect{who: "client", sock: c, path: "C SS E F1 F2 TW", conn: []string{"client local fin close"}},
						expect{who: "existing client", sock: before, existed: true, path: "E F1 F2 TW", conn: []string{"null local fin close"}})
				}
				s.settle(wants)
			})
			checkAll(s, runs[0], wants)
		})
	}
}

// tracerUnder starts tcptrace as a child of an agent, which holds the write
// ends of the pipes out and log as 3 and 4.
func tracerUnder(t *testing.T, parent *agent, out, log *os.File, args ...string) *tracer {
	t.Helper()
	r := request{Op: "run", FDs: []int{3, 4}, Args: append([]string{tcptraceBin, "--duration", tracerLife}, args...)}
	pid := parent.must(r).N
	for _, fd := range r.FDs {
		parent.must(request{Op: "close", FD: fd})
	}
	tr := &tracer{
		t:   t,
		pid: pid,
		signal: func(sig syscall.Signal) error {
			if r := parent.try(request{Op: "signal", FD: pid, N: int(sig)}); r.Errno != 0 {
				return r.Errno
			}
			return nil
		},
		wait: func() (int, error) {
			r := parent.try(request{Op: "wait", FD: pid})
			if r.Errno != 0 {
				return 0, r.Errno
			}
			return r.N, nil
		},
	}
	tr.follow(out, log)
	return tr
}
