package livetest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of an agent that take more than one system call.

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// addrPort is the address as tcptrace shows it: IPv4-mapped is IPv4.
func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// localEnd and remoteEnd give the zero AddrPort where the socket has none.
func localEnd(fd int) netip.AddrPort {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(sa)
}

func remoteEnd(fd int) netip.AddrPort {
	sa, err := unix.Getpeername(fd)
	if err != nil {
		return netip.AddrPort{}
	}
	return addrPort(sa)
}

// restart repeats a call that one of the Go runtime's signals interrupted.
func restart(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// acceptOne waits in accept itself, as most servers do.
func acceptOne(fd int, out *reply) error {
	return took(out, func() (int, error) {
		got, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		return got, err
	})
}

// acceptOld is the system call without flags: a different one to the kernel,
// and to who watches it.
func acceptOld(fd int, out *reply) error {
	return took(out, func() (int, error) {
		got, _, err := unix.Accept(fd)
		if err == nil {
			unix.CloseOnExec(got)
		}
		return got, err
	})
}

// took makes the call and fills in what is to be known of the new socket.
func took(out *reply, accept func() (int, error)) error {
	got, err := restart(accept)
	out.After = now()
	if err != nil {
		return err
	}
	out.FD = got
	out.Local, out.Remote = localEnd(got), remoteEnd(got)
	out.Cookie, err = unix.GetsockoptUint64(got, unix.SOL_SOCKET, unix.SO_COOKIE)
	return err
}

func dialOne(to netip.AddrPort, out *reply) error {
	family := unix.AF_INET6
	if to.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	out.FD = fd
	// Before connect(): where only who asks gives a socket its cookie, all of its records have it so.
	if out.Cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE); err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		return err
	}
	out.Local, out.Remote = localEnd(fd), remoteEnd(fd)
	return nil
}

// bulk opens N connections, one after the other, and closes each at once
// (order "first") or when the peer has closed (order "last").
func bulk(r request, out *reply, open func(fd int, one *reply) error) error {
	for range r.N {
		var one reply
		if err := open(r.FD, &one); err != nil {
			return err
		}
		if r.Order == "last" {
			var buf [64]byte
			if _, err := restart(func() (int, error) { return unix.Read(one.FD, buf[:]) }); err != nil {
				return err
			}
		}
		if err := unix.Close(one.FD); err != nil {
			return err
		}
		out.Ends = append(out.Ends, ends{Cookie: one.Cookie, Local: one.Local, Remote: one.Remote})
	}
	return nil
}

// poll waits until fd is ready. An error on the socket counts as ready.
func poll(fd int, events int16, timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n > 0:
			return nil
		case time.Now().After(deadline):
			return unix.ETIMEDOUT
		}
	}
}

// connectNonblocking leaves the socket blocking again, for the calls that
// follow.
func connectNonblocking(r request, out *reply) error {
	if err := unix.SetNonblock(r.FD, true); err != nil {
		return err
	}
	err := unix.Connect(r.FD, sockaddr(r.Addr))
	out.After = now()
	if errors.Is(err, unix.EINPROGRESS) {
		err = nil
	}
	out.Local = localEnd(r.FD)
	return errors.Join(err, unix.SetNonblock(r.FD, false))
}

// connectUnspec dissolves a connection. package unix has no address of family
// AF_UNSPEC.
func connectUnspec(fd int) error {
	sa := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
	if errno != 0 {
		return errno
	}
	return nil
}

func receiveFD(fd int, out *reply) error {
	var data [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(fd, data[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err == nil && len(fds) == 1 {
			out.FD = fds[0]
			return nil
		}
	}
	return errors.New("no descriptor in the message")
}

// command prepares a child to which descriptors of this agent are passed, as 3
// and up.
func command(path string, fds []int) (*exec.Cmd, error) {
	cmd := exec.Command(path)
	for _, fd := range fds {
		// A duplicate: an os.File closes its descriptor when it is collected.
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(dup), "inherited"))
	}
	return cmd, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// spawn starts a child agent. The test meets it on the socket that it names.
func (p *calls) spawn(r request, out *reply) error {
	cmd, err := command("/proc/self/exe", r.FDs)
	if err != nil {
		return err
	}
	defer closeAll(cmd.ExtraFiles)
	cmd.Env = append(os.Environ(), agentEnv+"="+r.Args[0], agentNameEnv+"="+string(r.Data), agentInitEnv+"=")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	out.N = cmd.Process.Pid
	// The child ends when the test hangs up or kills it: nothing waits for it.
	go func() { _ = cmd.Wait() }()
	return nil
}

// run starts a command whose stdout and stderr are descriptors of this agent.
func (p *calls) run(r request, out *reply) error {
	cmd, err := command(r.Args[0], r.FDs)
	if err != nil {
		return err
	}
	defer closeAll(cmd.ExtraFiles)
	cmd.Args = r.Args
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = cmd.ExtraFiles[0], cmd.ExtraFiles[1], nil
	if err := cmd.Start(); err != nil {
		return err
	}
	out.N = cmd.Process.Pid
	p.children[out.N] = cmd
	return nil
}

// wait gives the exit status of a command that run started.
func (p *calls) wait(r request, out *reply) error {
	cmd := p.children[r.FD]
	if cmd == nil {
		return fmt.Errorf("process %d is not of this agent", r.FD)
	}
	delete(p.children, r.FD)
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return err
	}
	out.N = cmd.ProcessState.ExitCode()
	return nil
}
