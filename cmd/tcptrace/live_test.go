package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needKernel skips a test where there is no kernel to trace: it takes root, and
// the types that the kernel ships since 5.4 where it is built with them.
func needKernel(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	if _, err := os.Stat(btfFile); err != nil {
		t.Skip(err)
	}
}

// netNamespace makes a network namespace with a loopback, and returns its path
// and a function that runs another inside.
func netNamespace(t *testing.T) (path string, in func(func())) {
	t.Helper()
	name := fmt.Sprintf("tcptrace-cmd-%d", os.Getpid())
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %q: %v: %s", args, err, out)
		}
	}
	ip("netns", "add", name)
	t.Cleanup(func() { ip("netns", "del", name) })
	ip("-n", name, "link", "set", "lo", "up")
	path = "/run/netns/" + name
	return path, func(f func()) {
		t.Helper()
		failed := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends in the namespace
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				err = unix.Setns(fd, unix.CLONE_NEWNET)
				_ = unix.Close(fd)
			}
			if err == nil {
				f()
			}
			failed <- err
		}()
		check(t, <-failed)
	}
}

// tracer is the running command. Its stderr is read to its end by the time that
// wait returns.
type tracer struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdout io.ReadCloser
	ready  chan struct{} // closed at the first line with "tracing", or at the end
	stderr bytes.Buffer
	done   chan struct{} // stderr is at its end
}

// start runs the command, and returns when it says that it is tracing.
func start(t *testing.T, args ...string) *tracer {
	t.Helper()
	guard(t)
	tr := &tracer{t: t, cmd: exec.Command("tcptrace", args...), ready: make(chan struct{}), done: make(chan struct{})}
	var err error
	tr.stdout, err = tr.cmd.StdoutPipe()
	check(t, err)
	stderr, err := tr.cmd.StderrPipe()
	check(t, err)
	check(t, tr.cmd.Start())
	t.Cleanup(func() { _ = tr.cmd.Process.Kill() }) // of no effect when it has ended
	go func() {
		defer close(tr.done)
		ready := false
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			fmt.Fprintln(&tr.stderr, lines.Text())
			if !ready && strings.Contains(lines.Text(), "tracing") {
				ready = true
				close(tr.ready)
			}
		}
		if !ready {
			close(tr.ready)
		}
	}()
	<-tr.ready
	return tr
}

// wait reads the rest of stdout, and checks that the command ends with status 0
// after exactly one line with "tracing".
func (tr *tracer) wait() []byte {
	tr.t.Helper()
	out, err := io.ReadAll(tr.stdout)
	if err != nil && !errors.Is(err, os.ErrClosed) {
		tr.t.Error(err)
	}
	<-tr.done
	if err := tr.cmd.Wait(); err != nil {
		tr.t.Errorf("got %v, want exit status 0; stderr: %s", err, &tr.stderr)
	}
	if n := strings.Count(tr.stderr.String(), "tracing"); n != 1 {
		tr.t.Errorf("got %d lines with tracing, want 1: %s", n, &tr.stderr)
	}
	return out
}

// converse opens a connection over loopback, and closes it at the client's side
// first. It returns the client's port and the server's.
func converse(t *testing.T) (clientPort, serverPort uint16) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Error(err)
		return 0, 0
	}
	defer listener.Close()
	dialled, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Error(err)
		return 0, 0
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Error(err)
		return 0, 0
	}
	defer accepted.Close()
	port := func(a net.Addr) uint16 { return a.(*net.TCPAddr).AddrPort().Port() }
	clientPort, serverPort = port(dialled.LocalAddr()), port(listener.Addr())
	dialled.Close()
	_, _ = io.Copy(io.Discard, accepted) // to the FIN
	return clientPort, serverPort
}

func TestSIGINTPrintsWhatHasHappenedAndThenTheBooks(t *testing.T) {
	needKernel(t)
	netns, in := netNamespace(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		tr := start(t, "--netns", netns)
		var clientPort, serverPort uint16
		in(func() { clientPort, serverPort = converse(t) })
		check(t, tr.cmd.Process.Signal(sig)) // at once: the ring buffer still holds it all
		all := records(t, tr.wait())

		if n := len(all); n == 0 || all[n-1].Type != "stats" {
			t.Fatalf("%v: got %+v, want stats at the end", sig, all)
		}
		comm, err := os.ReadFile("/proc/self/comm")
		check(t, err)
		for _, end := range []struct {
			states       string
			lport, rport uint16
		}{
			{"SYN_SENT ESTABLISHED FIN_WAIT1 FIN_WAIT2", clientPort, serverPort},
			{"SYN_RECV ESTABLISHED CLOSE_WAIT LAST_ACK", serverPort, clientPort},
		} {
			var states []string
			for _, rec := range all {
				// In SYN_SENT the local port is not chosen yet.
				if rec.Type != "transition" || rec.Lport != end.lport && rec.Lport != 0 || rec.Rport != end.rport {
					continue
				}
				states = append(states, rec.Newstate)
				if rec.Newstate == "FIN_WAIT1" && (rec.Pid != uint32(os.Getpid()) || rec.Comm != strings.TrimSpace(string(comm))) {
					t.Errorf("%v: got %+v, want PID %d, comm %s", sig, rec, os.Getpid(), comm)
				}
			}
			if got := strings.Join(states, " "); !strings.HasPrefix(got, end.states) {
				t.Errorf("%v: %d -> %d: got states %s, want %s", sig, end.lport, end.rport, got, end.states)
			}
		}
		if !strings.Contains(tr.stderr.String(), "done") {
			t.Errorf("%v: got stderr %q, want a line with what was seen and lost", sig, &tr.stderr)
		}
	}
}

func TestDurationEndsARunByItself(t *testing.T) {
	needKernel(t)
	netns, _ := netNamespace(t)
	tr := start(t, "--netns", netns, "--duration", "300ms")
	all := records(t, tr.wait())
	if n := len(all); n == 0 || all[n-1].Type != "stats" {
		t.Errorf("got %+v, want stats at the end", all)
	}
}

// On a quiet host no write would ever fail.
func TestALiveRunEndsWhenItsReaderHasGone(t *testing.T) {
	needKernel(t)
	netns, _ := netNamespace(t)
	tr := start(t, "--netns", netns, "-o", "text")
	first, err := bufio.NewReader(tr.stdout).ReadString('\n')
	if err != nil || !strings.HasPrefix(first, "TIME") {
		t.Errorf("got first line %q, error %v; want the header", first, err)
	}
	check(t, tr.stdout.Close())
	tr.wait()
}

func TestARecordingReplaysToTheRecordsOfTheRun(t *testing.T) {
	needKernel(t)
	netns, in := netNamespace(t)
	file := filepath.Join(t.TempDir(), "run.rec")
	tr := start(t, "--netns", netns, "--record", file)
	in(func() { converse(t) })
	check(t, tr.cmd.Process.Signal(os.Interrupt))
	live := tr.wait()
	if got := replayed(t, "--replay", file); !bytes.Equal(got, live) {
		t.Errorf("got from the replay:\n%s\nwant what the run printed:\n%s", got, live)
	}
}

// The run goes on without its recording: the stream is what somebody watches.
func TestARecordingThatTheDiskCannotHoldFailsTheRunAtItsEnd(t *testing.T) {
	needKernel(t)
	netns, _ := netNamespace(t)
	cmd := exec.Command("tcptrace", "--netns", netns, "--record", "/dev/full", "--duration", "300ms")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	guard(t)
	_ = cmd.Run()
	if got := cmd.ProcessState.ExitCode(); got != 1 {
		t.Errorf("got exit status %d, want 1", got)
	}
	for _, want := range []string{"tcptrace: --record: ", "not whole", "no space left"} {
		if !strings.Contains(stderr.String(), want) {
			t.Errorf("got stderr %q, want %q in it", &stderr, want)
		}
	}
	all := records(t, stdout.Bytes())
	if n := len(all); n == 0 || all[n-1].Type != "stats" {
		t.Errorf("got %+v, want stats at the end", all)
	}
}

// fails runs the command, which must end with status 1, one line on stderr and
// nothing on stdout, and returns the line.
func fails(t *testing.T, cred *syscall.Credential, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	cmd.Dir = "/"
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	exit := (*exec.ExitError)(nil)
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("%q: got %v, want exit status 1; stderr: %s", args, err, &stderr)
	}
	if stdout.Len() > 0 {
		t.Errorf("%q: got stdout %q, want none", args, &stdout)
	}
	line, ok := strings.CutSuffix(stderr.String(), "\n")
	if !ok || strings.Contains(line, "\n") {
		t.Errorf("%q: got stderr %q, want one line", args, &stderr)
	}
	return line
}

func TestWithoutPrivilegeOneLineSaysWhatToDo(t *testing.T) {
	needKernel(t)
	// Where nobody may go: neither go test's directory nor testscript's is.
	dir, err := os.MkdirTemp("", "tcptrace-nobody")
	check(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	check(t, os.Chmod(dir, 0o755))
	self, err := os.Executable()
	check(t, err)
	binary, err := os.ReadFile(self)
	check(t, err)
	command := filepath.Join(dir, "tcptrace")
	check(t, os.WriteFile(command, binary, 0o755))

	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	// Several times, because maps and programs are loaded in no fixed order, and
	// each may be the first that the kernel refuses.
	for n := range 40 {
		args := [][]string{{command}, {command, "--pid", strconv.Itoa(os.Getpid())}, {command, "-L", "80", "--duration", "1s"}}[n%3]
		got := fails(t, nobody, args...)
		for _, want := range []string{"tcptrace: ", "run it as root", "CAP_BPF", "CAP_PERFMON", "tcptrace check"} {
			if !strings.Contains(got, want) {
				t.Errorf("%q: got %q, want %q in it", args, got, want)
			}
		}
	}
}

func TestAPidThatCannotBeTracedIsAnErrorThatSaysWhy(t *testing.T) {
	// PIDs are below pid_max, which is at most 4194304 (proc_sys_kernel(5)).
	if got := fails(t, nil, "tcptrace", "--pid", "4194304"); !strings.Contains(got, "--pid 4194304: no such process") {
		t.Errorf("got %q, want it to name flag and PID", got)
	}
	runtime.LockOSThread() // a thread that stays
	defer runtime.UnlockOSThread()
	tid, pid := unix.Gettid(), os.Getpid()
	if tid == pid {
		entries, err := os.ReadDir("/proc/self/task")
		check(t, err)
		tid, err = strconv.Atoi(entries[len(entries)-1].Name())
		check(t, err)
	}
	if tid == pid {
		t.Fatal("got a Go program with one thread, want several")
	}
	got := fails(t, nil, "tcptrace", "--pid", strconv.Itoa(tid))
	for _, want := range []string{fmt.Sprintf("--pid %d:", tid), fmt.Sprintf("thread of process %d", pid), fmt.Sprintf("give --pid %d", pid)} {
		if !strings.Contains(got, want) {
			t.Errorf("got %q, want %q in it", got, want)
		}
	}
}

func TestARecordingThatCannotBeMadeIsAnErrorThatNamesTheFile(t *testing.T) {
	needKernel(t)
	if got := fails(t, nil, "tcptrace", "--record", "/nowhere/run.rec"); !strings.Contains(got, "--record: open /nowhere/run.rec: ") {
		t.Errorf("got %q, want flag and file in it", got)
	}
}
