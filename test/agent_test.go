package livetest

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// callTimeout bounds each call of an agent. None takes that long unless a test
// or the product is wrong.
const callTimeout = 10 * time.Second

// An agent is a process in a test's network namespace that makes the socket
// calls it is told to: the processes that tcptrace must name. It belongs to the
// test's goroutine.
type agent struct {
	t     *testing.T
	name  string
	pid   int // in the agent's own PID namespace
	pidfd int
	conn  net.Conn
	in    *json.Decoder
}

var agentCount atomic.Uint32

// startAgent starts an agent with the given command name, which inherits files
// as descriptors 3 and up.
func startAgent(t *testing.T, ns *netns, name string, files ...*os.File) *agent {
	t.Helper()
	return launchAgent(t, ns, name, nil, files...)
}

// startInit starts an agent that is the first process of a PID namespace.
func startInit(t *testing.T, ns *netns, name string, files ...*os.File) *agent {
	t.Helper()
	return launchAgent(t, ns, name, &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS}, files...)
}

func launchAgent(t *testing.T, ns *netns, name string, attr *syscall.SysProcAttr, files ...*os.File) *agent {
	t.Helper()
	l, path := meetingPoint(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), agentEnv+"="+path, agentNameEnv+"="+name)
	if attr != nil {
		cmd.Env = append(cmd.Env, agentInitEnv+"=1")
	}
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = files
	ns.do(t, func() {
		if err := cmd.Start(); err != nil {
			t.Fatalf("start agent %s: %v", name, err)
		}
	})
	// The end of an agent is read from its pidfd; this only reaps it.
	go func() { _ = cmd.Wait() }()
	return meetAgent(t, l, name)
}

// meetingPoint makes the socket on which one new agent is awaited. It lies in
// the file system, where neither the network nor the PID namespace matters.
func meetingPoint(t *testing.T) (*net.UnixListener, string) {
	t.Helper()
	// Not t.TempDir: with a long test name, the path would not fit an address.
	dir, err := os.MkdirTemp("", "tt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, fmt.Sprint(agentCount.Add(1)))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return l, path
}

func meetAgent(t *testing.T, l *net.UnixListener, name string) *agent {
	t.Helper()
	defer l.Close()
	if err := l.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatalf("agent %s does not start: %v", name, err)
	}
	// As tcptrace prints it: JSON carries text only, so a byte that is not part
	// of any is shown as U+FFFD, which is also what runes make of it.
	a := &agent{t: t, name: string([]rune(name)), conn: conn, in: json.NewDecoder(conn)}
	a.pidfd = peerPidfd(t, conn)
	t.Cleanup(func() {
		a.kill()
		conn.Close()
		unix.Close(a.pidfd)
	})
	a.pid = a.finish("start").N
	return a
}

// peerPidfd holds on to the process at the other end, which may be a child of
// another agent: its number could be another process's by the time it is used.
func peerPidfd(t *testing.T, conn *net.UnixConn) int {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || credErr != nil {
		t.Fatalf("credentials of agent: %v, %v", err, credErr)
	}
	pidfd, err := unix.PidfdOpen(int(cred.Pid), 0)
	if err != nil {
		t.Fatalf("open agent %d: %v", cred.Pid, err)
	}
	return pidfd
}

// begin sends a call without waiting for its end; finish must follow.
func (a *agent) begin(r request) {
	a.t.Helper()
	if err := json.NewEncoder(a.conn).Encode(r); err != nil {
		a.t.Fatalf("agent %s: send %q: %v", a.name, r.Op, err)
	}
}

// finish waits for the end of the call that was begun.
func (a *agent) finish(op string) reply {
	a.t.Helper()
	if err := a.conn.SetReadDeadline(time.Now().Add(callTimeout)); err != nil {
		a.t.Fatal(err)
	}
	var out reply
	if err := a.in.Decode(&out); err != nil {
		a.t.Fatalf("agent %s: %s: %v", a.name, op, err)
	}
	return out
}

// try makes a call that may fail.
func (a *agent) try(r request) reply {
	a.t.Helper()
	a.begin(r)
	return a.finish(r.Op)
}

// must makes a call that has to succeed.
func (a *agent) must(r request) reply {
	a.t.Helper()
	out := a.try(r)
	if out.Errno != 0 {
		a.t.Fatalf("agent %s: %s(%+v): %v", a.name, r.Op, r, out.Errno)
	}
	return out
}

// spawn starts a child agent of this one, which inherits the sockets as
// descriptors 3 and up.
func (a *agent) spawn(name string, inherited ...*sock) *agent {
	a.t.Helper()
	l, path := meetingPoint(a.t)
	r := request{Op: "spawn", Args: []string{path}, Data: []byte(name)}
	for _, s := range inherited {
		r.FDs = append(r.FDs, s.fd)
	}
	a.must(r)
	return meetAgent(a.t, l, name)
}

// sendFD passes a socket over the agent's descriptor 3, to where receiveFD of
// the other end gets it.
func (a *agent) sendFD(s *sock) {
	a.t.Helper()
	a.must(request{Op: "send fd", FD: 3, N: s.fd})
}

func (a *agent) receiveFD(s *sock) *sock {
	a.t.Helper()
	return s.in(a, a.must(request{Op: "receive fd", FD: 3}).FD)
}

// exit ends the agent without a close of its sockets.
func (a *agent) exit() {
	a.t.Helper()
	a.begin(request{Op: "exit"})
	a.waitEnd()
}

// kill ends the agent, if it still lives, wherever it is.
func (a *agent) kill() {
	a.t.Helper()
	err := unix.PidfdSendSignal(a.pidfd, unix.SIGKILL, nil, 0)
	if err != nil && err != unix.ESRCH {
		a.t.Errorf("kill agent %s: %v", a.name, err)
	}
	a.waitEnd()
}

func (a *agent) waitEnd() {
	a.t.Helper()
	if err := poll(a.pidfd, unix.POLLIN, callTimeout); err != nil {
		a.t.Errorf("agent %s does not end: %v", a.name, err)
	}
}
