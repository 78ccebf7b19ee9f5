package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Connections that one process has, to a listener of its own: its descriptors are far from a limit of 20,000, and their
// ports from what there are to one destination (ip_local_port_range).
const perProcess = 7_500

// A place is a network namespace of our own. Its processes end with this one, however that ends, since they wait for the
// end of their standard input; and the namespace ends with them.
type place struct {
	path    string
	anchor  *exec.Cmd
	holders []*exec.Cmd
	stdins  []io.Closer
}

func newPlace() (*place, error) {
	// As many may be in TIME_WAIT as can be made within a minute.
	anchor := exec.Command("sh", "-c", "ip link set lo up && sysctl -qw net.ipv4.tcp_max_tw_buckets=4000000 && echo up && exec cat")
	anchor.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	p := &place{anchor: anchor}
	if err := p.launch(anchor); err != nil {
		return nil, errors.Join(fmt.Errorf("network namespace: %w", err), p.close())
	}
	p.path = fmt.Sprintf("/proc/%d/ns/net", anchor.Process.Pid)
	return p, nil
}

// launch starts a process that ends with its standard input, and waits until it says a line.
func (p *place) launch(cmd *exec.Cmd) error {
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	p.holders, p.stdins = append(p.holders, cmd), append(p.stdins, in)
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		return fmt.Errorf("%s: %w", cmd, err)
	}
	return nil
}

// in is a command that runs there.
func (p *place) in(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + p.path, name}, args...)...)
}

// gather opens n connections in which nothing happens any more.
func (p *place) gather(n int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for k := 0; k*perProcess < n; k++ {
		count := min(perProcess, n-k*perProcess)
		if err := p.launch(p.in(context.Background(), self, "hold", strconv.Itoa(k), strconv.Itoa(count))); err != nil {
			return err
		}
	}
	return nil
}

// part opens n connections and closes them, the client first: as many sockets are in TIME_WAIT then, for a minute.
// It stops early when ctx is over.
func (p *place) part(ctx context.Context, n int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	const atOnce = 2
	errs := make(chan error, atOnce)
	for w := range atOnce {
		go func() {
			for k := w; k*perProcess < n; k += atOnce {
				err := p.in(ctx, self, "part", strconv.Itoa(k), strconv.Itoa(min(perProcess, n-k*perProcess))).Run()
				if ctx.Err() != nil {
					break
				}
				if err != nil {
					errs <- fmt.Errorf("part: %w", err)
					return
				}
			}
			errs <- nil
		}()
	}
	return errors.Join(<-errs, <-errs)
}

// inTimeWait returns how many sockets there are in TIME_WAIT.
func (p *place) inTimeWait() int {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/sockstat", p.anchor.Process.Pid))
	_, tw, _ := strings.Cut(string(text), " tw ")
	n, _ := strconv.Atoi(strings.Fields(tw + " 0")[0])
	return n
}

func (p *place) close() error {
	for _, in := range p.stdins {
		_ = in.Close() // it is a pipe
	}
	var errs []error
	for _, h := range p.holders {
		errs = append(errs, h.Wait())
	}
	return errors.Join(errs...)
}

// hold is what process number k of gather does: it opens count connections, and holds both ends.
func hold(k, count int) error {
	l, err := listen(k)
	if err != nil {
		return err
	}
	for range count {
		client, _, err := connection(l)
		if err != nil {
			return err
		}
		// So that they all go at once, without TIME_WAIT, when the process ends.
		if err := unix.SetsockoptLinger(client, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
			return err
		}
	}
	fmt.Println("held")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// part opens count connections and closes them, the client first: as many sockets are in TIME_WAIT then.
func part(k, count int) error {
	l, err := listen(k)
	if err != nil {
		return err
	}
	for range count {
		client, server, err := connection(l)
		if err := errors.Join(err, unix.Close(client), unix.Close(server)); err != nil {
			return err
		}
	}
	return nil
}

type listener struct {
	fd   int
	addr unix.Sockaddr
}

// listen makes listener number k, at an address of its own.
func listen(k int) (l listener, err error) {
	if l.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return l, err
	}
	addr := &unix.SockaddrInet4{Addr: [4]byte{127, 1, byte(k >> 8), byte(k)}, Port: 8080}
	if err := errors.Join(unix.Bind(l.fd, addr), unix.Listen(l.fd, 16)); err != nil {
		return l, fmt.Errorf("listen: %w", err)
	}
	l.addr, err = unix.Getsockname(l.fd)
	return l, err
}

func connection(l listener) (client, server int, err error) {
	if client, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, 0, err
	}
	if err := unix.Connect(client, l.addr); err != nil {
		return 0, 0, fmt.Errorf("connect: %w", err)
	}
	if server, _, err = unix.Accept4(l.fd, unix.SOCK_CLOEXEC); err != nil {
		return 0, 0, fmt.Errorf("accept: %w", err)
	}
	return client, server, nil
}
