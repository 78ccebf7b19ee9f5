package livetest

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A netns is a network namespace of one test: the traffic of the rest of the
// machine, and of the tests beside it, is not in it.
type netns struct {
	name  string
	inode uint64 // as tcptrace prints it in "netns"
	fd    int
	tuns  int // devices made by openTUN
}

var netnsCount atomic.Uint32

func newNetns(t *testing.T) *netns {
	t.Helper()
	live(t)
	n := &netns{name: fmt.Sprintf("tt-%d-%d", os.Getpid(), netnsCount.Add(1))}
	ip(t, "netns add "+n.name)
	t.Cleanup(func() { n.remove(t) })
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

// remove takes away what holds the namespace, the processes in it aside.
func (n *netns) remove(t *testing.T) {
	t.Helper()
	if n.fd < 0 {
		return
	}
	unix.Close(n.fd)
	n.fd = -1
	ip(t, "netns del "+n.name)
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

// endMinisockets is scene's. It reports whether it has waited for their ends.
func (n *netns) endMinisockets(t *testing.T) (outlasted bool) {
	t.Helper()
	return n.endAll(t, "state", "time-wait", "state", "fin-wait-2")
}

// endAll ends the sockets that ss selects so. Before 6.1 it can only wait for the ends of
// minisockets, and says then that it has.
func (n *netns) endAll(t *testing.T, which ...string) (outlasted bool) {
	t.Helper()
	n.ss(t, append([]string{"-Ktna"}, which...)...)
	left := func() bool { return n.ss(t, append([]string{"-Htna"}, which...)...) != "" }
	if !left() {
		return false
	}
	time.Sleep(58 * time.Second) // of the minute
	for deadline := time.Now().Add(10 * time.Second); left(); time.Sleep(time.Second / 2) {
		if time.Now().After(deadline) {
			t.Fatal("there are minisockets still after more than a minute")
		}
	}
	return true
}

// ss runs ss(8) inside the namespace.
func (n *netns) ss(t *testing.T, args ...string) string {
	t.Helper()
	var out []byte
	var err error
	var stderr strings.Builder
	n.do(t, func() {
		cmd := exec.Command("ss", args...)
		cmd.Stderr = &stderr
		out, err = cmd.Output()
	})
	if err != nil {
		t.Fatalf("ss %q: %v; stderr: %s", args, err, &stderr)
	}
	return string(out)
}

// counter is one of the namespace's counters, as nstat(8) names it.
func (n *netns) counter(t *testing.T, name string) (value int) {
	t.Helper()
	n.do(t, func() {
		out, err := exec.Command("nstat", "-asz", name).Output()
		if err != nil {
			t.Fatalf("nstat %s: %v", name, err)
		}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); f[0] == name {
				if value, err = strconv.Atoi(f[1]); err != nil {
					t.Fatalf("nstat: %q: %v", line, err)
				}
			}
		}
	})
	return value
}

// openTUN makes a TUN device, the first of them with address 10.99.0.1/24. What the
// kernel sends into that network is read from the file, as IP packets without a
// header; addr is the kernel's address there.
func (n *netns) openTUN(t *testing.T) (file *os.File, addr netip.Addr) {
	t.Helper()
	name := fmt.Sprintf("tun%d", n.tuns)
	addr = netip.AddrFrom4([4]byte{10, byte(99 + n.tuns), 0, 1})
	n.tuns++
	fd := -1
	n.do(t, func() {
		var err error
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
			t.Fatalf("open /dev/net/tun: %v", err)
		}
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			t.Fatal(err)
		}
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
			t.Fatalf("make %s: %v", name, err)
		}
	})
	file = os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { file.Close() })
	n.ip(t, fmt.Sprintf("addr add %v/24 dev %s\nlink set %s up", addr, name, name))
	return file, addr
}
