package livetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The agent's side of the agents: a process of its own that makes the socket
// calls that a test asks for. agent_test.go is the other side.

const (
	agentEnv     = "TCPTRACE_TEST_AGENT"      // the Unix socket on which the test waits for this agent
	agentNameEnv = "TCPTRACE_TEST_AGENT_NAME" // its command name
	agentInitEnv = "TCPTRACE_TEST_AGENT_INIT" // set if it is the first process of its PID namespace
)

// agentLife bounds an agent's life, should test and cleanup both fail to end it.
const agentLife = 2 * time.Minute

// A request is one call for the agent to make. What the fields mean depends on
// Op.
type request struct {
	Op    string
	FD    int
	N     int
	Addr  netip.AddrPort
	Data  []byte
	FDs   []int
	Args  []string
	Order string
}

// A reply is what the call gave. Errno is 0 for success.
type reply struct {
	FD            int
	N             int
	Data          []byte
	Errno         syscall.Errno
	Cookie        uint64
	Local, Remote netip.AddrPort
	Ends          []ends
	Before, After stamp // taken right around the call
}

// ends identifies one of the connections of a bulk call.
type ends struct {
	Cookie        uint64
	Local, Remote netip.AddrPort
}

// A stamp is one moment on the kernel's clocks. tcptrace measures with
// CLOCK_BOOTTIME.
type stamp struct{ Boot, Mono, Wall int64 }

func (s stamp) time() time.Time { return time.Unix(0, s.Wall) }

func now() stamp {
	var boot, mono unix.Timespec
	// Neither clock can fail on a kernel that runs BPF.
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot)
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono)
	return stamp{Boot: boot.Nano(), Mono: mono.Nano(), Wall: time.Now().UnixNano()}
}

// runAgent serves calls until the test hangs up. It does not return.
func runAgent() {
	err := serveCalls()
	if err == nil || errors.Is(err, io.EOF) {
		os.Exit(0)
	}
	fmt.Fprintln(os.Stderr, "agent:", err)
	os.Exit(1)
}

func serveCalls() error {
	time.AfterFunc(agentLife, func() { os.Exit(2) })
	// What was inherited is passed on to a child only when a test says so.
	for fd := 3; fd < 10; fd++ {
		unix.CloseOnExec(fd)
	}
	if os.Getenv(agentInitEnv) != "" {
		if err := mountProc(); err != nil {
			return err
		}
	}
	// Written by any thread, this names the leader, whose name is the process's.
	if err := os.WriteFile("/proc/self/comm", []byte(os.Getenv(agentNameEnv)), 0); err != nil {
		return err
	}
	conn, err := net.Dial("unix", os.Getenv(agentEnv))
	if err != nil {
		return err
	}
	out := json.NewEncoder(conn)
	if err := out.Encode(reply{N: os.Getpid()}); err != nil {
		return err
	}
	requests := make(chan request)
	replies := make(chan reply)
	go callLoop(requests, replies)
	// Reading on while a call blocks is what notices that the test is gone.
	hungUp := make(chan error, 1)
	go func() {
		in := json.NewDecoder(conn)
		for {
			var r request
			if err := in.Decode(&r); err != nil {
				hungUp <- err
				return
			}
			requests <- r
		}
	}()
	for {
		select {
		case r := <-replies:
			if err := out.Encode(r); err != nil {
				return err
			}
		case err := <-hungUp:
			return err
		}
	}
}

// mountProc gives the process its own /proc, which shows its PID namespace.
func mountProc() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// callLoop makes the calls, all on one thread that is not the leader and has
// another name: tcptrace must show the process's name, not the thread's.
func callLoop(requests <-chan request, replies chan<- reply) {
	runtime.LockOSThread()
	if err := os.WriteFile("/proc/thread-self/comm", []byte("agent-thread"), 0); err != nil {
		fmt.Fprintln(os.Stderr, "agent: name thread:", err)
	}
	p := &calls{children: map[int]*exec.Cmd{}}
	for r := range requests {
		out := reply{Before: now()}
		err := p.do(r, &out)
		if out.After == (stamp{}) {
			out.After = now()
		}
		if err != nil && !errors.As(err, &out.Errno) {
			fmt.Fprintf(os.Stderr, "agent: %s: %v\n", r.Op, err)
			out.Errno = syscall.EBADMSG
		}
		replies <- out
	}
}

// calls makes the calls of one agent.
type calls struct {
	children map[int]*exec.Cmd
}

func (p *calls) do(r request, out *reply) (err error) {
	switch r.Op {
	case "socket":
		if out.FD, err = unix.Socket(r.N, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
			out.Cookie, err = unix.GetsockoptUint64(out.FD, unix.SOL_SOCKET, unix.SO_COOKIE)
		}
		return err
	case "bind":
		// Not SO_REUSEADDR's usual use: it lets a test come back to a port that
		// is in TIME_WAIT.
		if err := unix.SetsockoptInt(r.FD, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(r.FD, sockaddr(r.Addr)); err != nil {
			return err
		}
		out.Local = localEnd(r.FD)
		return nil
	case "listen":
		return unix.Listen(r.FD, r.N)
	case "connect":
		err := unix.Connect(r.FD, sockaddr(r.Addr))
		out.After = now()
		out.Local, out.Remote = localEnd(r.FD), remoteEnd(r.FD)
		return err
	case "connect nonblocking":
		return connectNonblocking(r, out)
	case "connect unspec":
		return connectUnspec(r.FD)
	case "accept":
		return acceptOld(r.FD, out)
	case "names":
		out.Local, out.Remote = localEnd(r.FD), remoteEnd(r.FD)
		return nil
	case "read":
		buf := make([]byte, r.N)
		out.N, err = restart(func() (int, error) { return unix.Read(r.FD, buf) })
		out.After = now()
		out.Data = buf[:max(out.N, 0)]
		return err
	case "write":
		// Not Write: SIGPIPE would end the agent.
		out.N, err = unix.SendmsgN(r.FD, r.Data, nil, nil, unix.MSG_NOSIGNAL)
		return err
	case "shutdown":
		return unix.Shutdown(r.FD, r.N)
	case "close":
		return unix.Close(r.FD)
	case "linger":
		return unix.SetsockoptLinger(r.FD, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: int32(r.N)})
	case "setsockopt":
		return unix.SetsockoptInt(r.FD, r.FDs[0], r.FDs[1], r.N)
	case "poll":
		return poll(r.FD, int16(r.N), 5*time.Second)
	case "send fd":
		return unix.Sendmsg(r.FD, []byte{0}, unix.UnixRights(r.N), nil, 0)
	case "receive fd":
		return receiveFD(r.FD, out)
	case "serve":
		return bulk(r, out, acceptOne)
	case "dial":
		return bulk(r, out, func(_ int, one *reply) error { return dialOne(r.Addr, one) })
	case "spawn":
		return p.spawn(r, out)
	case "run":
		return p.run(r, out)
	case "signal":
		return unix.Kill(r.FD, syscall.Signal(r.N))
	case "wait":
		return p.wait(r, out)
	case "exit":
		os.Exit(0)
	}
	return fmt.Errorf("unknown call %q", r.Op)
}
