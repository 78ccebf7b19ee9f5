package livetest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

// A netns is a network namespace of one test: the traffic of the rest of the
// machine, and of the tests beside it, is not in it.
type netns struct {
	name  string
	inode uint64 // as tcptrace prints it in "netns"
	fd    int
}

var netnsCount atomic.Uint32

func newNetns(t *testing.T) *netns {
	t.Helper()
	live(t)
	n := &netns{name: fmt.Sprintf("tt-%d-%d", os.Getpid(), netnsCount.Add(1))}
	ip(t, "netns add "+n.name)
	t.Cleanup(func() {
		unix.Close(n.fd)
		ip(t, "netns del "+n.name)
	})
	var err error
	if n.fd, err = unix.Open("/run/netns/"+n.name, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		t.Fatalf("open namespace %s: %v", n.name, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(n.fd, &st); err != nil {
		t.Fatalf("stat namespace %s: %v", n.name, err)
	}
	n.inode = st.Ino
	n.ip(t, "link set lo up")
	return n
}

// do runs f on a thread that is inside the namespace. A process that f starts
// is in it as a whole.
func (n *netns) do(t *testing.T, f func()) {
	t.Helper()
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		t.Fatalf("open own network namespace: %v", err)
	}
	defer unix.Close(home)
	if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		t.Fatalf("enter namespace %s: %v", n.name, err)
	}
	defer func() {
		// A thread that cannot come back must not run anything else: it stays
		// locked, and ends with this goroutine.
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			t.Errorf("leave namespace %s: %v", n.name, err)
			return
		}
		runtime.UnlockOSThread()
	}()
	f()
}

// ip runs commands of ip(8) inside the namespace, one a line.
func (n *netns) ip(t *testing.T, commands string) {
	t.Helper()
	ip(t, commands, "-n", n.name)
}

func ip(t *testing.T, commands string, options ...string) {
	t.Helper()
	cmd := exec.Command("ip", append(options, "-batch", "-")...)
	cmd.Stdin = strings.NewReader(commands + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip %q: %v: %s", commands, err, bytes.TrimSpace(out))
	}
}

// sysctl sets a variable of the namespace, named by its path below
// /proc/sys/net.
func (n *netns) sysctl(t *testing.T, path, value string) {
	t.Helper()
	n.do(t, func() {
		// /proc/sys shows the namespace of the thread that opens the file.
		if err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0); err != nil {
			t.Fatalf("set %s: %v", path, err)
		}
	})
}

// openTUN makes tun0 with address 10.99.0.1/24. What the kernel sends into
// that network is read from the file, as IP packets without a header.
func (n *netns) openTUN(t *testing.T) *os.File {
	t.Helper()
	fd := -1
	n.do(t, func() {
		var err error
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			t.Fatalf("open /dev/net/tun: %v", err)
		}
		ifr, err := unix.NewIfreq("tun0")
		if err != nil {
			t.Fatal(err)
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			t.Fatalf("make tun0: %v", err)
		}
	})
	file := os.NewFile(uintptr(fd), "tun0")
	t.Cleanup(func() { file.Close() })
	n.ip(t, "addr add 10.99.0.1/24 dev tun0\nlink set tun0 up")
	return file
}
