// Command storm opens and closes TCP connections over loopback as fast as it
// can, or at a rate: a bounded load for tests and measurements. Each connection makes ten
// transitions (five at either end), each listener two.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Listeners have an address each, so that ports of closed connections, which
// wait in TIME_WAIT, never run out. All are in 127.77.0.0/24, by which the storm
// is told from whatever else is on loopback.
const listeners = 16

type listener struct {
	fd   int
	addr unix.SockaddrInet4
}

func main() {
	n := flag.Int("n", 100_000, "connections, at most 1000000")
	workers := flag.Int("workers", 4, "threads")
	rate := flag.Int("rate", 0, "connections a second, at most 100000; 0: as fast as it can")
	flag.Parse()
	if *n < 1 || *n > 1_000_000 || *workers < 1 || *workers > 64 || *rate < 0 || *rate > 100_000 {
		fmt.Fprintln(os.Stderr, "storm: -n from 1 to 1000000, -workers from 1 to 64, -rate at most 100000")
		os.Exit(2)
	}
	start := time.Now()
	if err := storm(*n, *workers, *rate); err != nil {
		fmt.Fprintln(os.Stderr, "storm:", err)
		os.Exit(1)
	}
	d := time.Since(start)
	fmt.Printf("%d connections, %d transitions in %.3f s: %.0f connections a second\n",
		*n, 10**n+2*listeners, d.Seconds(), float64(*n)/d.Seconds())
}

// storm opens n connections, rate of them a second.
func storm(n, workers, rate int) error {
	var ls []listener
	for i := range listeners {
		l, err := listen([4]byte{127, 77, 0, byte(1 + i)})
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(l.fd) }()
		ls = append(ls, l)
	}
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	start := time.Now()
	for w := range workers {
		wg.Go(func() {
			// Blocking calls on a thread of its own, as a server in C has it.
			runtime.LockOSThread()
			for i := w; i < n; i += workers {
				if rate > 0 {
					time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))))
				}
				if err := connection(&ls[i%listeners]); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	return <-errs
}

func listen(addr [4]byte) (listener, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return listener{}, err
	}
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: addr}), unix.Listen(fd, 1024)); err != nil {
		return listener{}, err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return listener{}, err
	}
	return listener{fd: fd, addr: *sa.(*unix.SockaddrInet4)}, nil
}

// connection is one whole life: the client closes first, the server reads the end of file
// and closes too. What is accepted may be another worker's.
func connection(l *listener) error {
	c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := again(func() error { return unix.Connect(c, &l.addr) }); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	var s int
	if err := again(func() error { s, _, err = unix.Accept4(l.fd, unix.SOCK_CLOEXEC); return err }); err != nil {
		return fmt.Errorf("accept: %w", err)
	}
	if err := unix.Close(c); err != nil {
		return err
	}
	var buf [16]byte
	if err := again(func() error { _, err := unix.Read(s, buf[:]); return err }); err != nil {
		return fmt.Errorf("read: %w", err)
	}
	return unix.Close(s)
}

// again repeats a call that a signal of Go's scheduler has interrupted.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EALREADY) {
			if errors.Is(err, unix.EISCONN) {
				return nil
			}
			return err
		}
	}
}
