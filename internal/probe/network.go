package probe

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// Networks returns the network namespaces that can be told of, by inode number.
func (p *Probe) Networks() []uint32 {
	var err error
	if p.paths, _, err = p.home.others(); err != nil {
		return []uint32{p.home.inode}
	}
	var inodes []uint32
	for inode := range p.paths {
		if p.netns == 0 || inode == p.netns {
			inodes = append(inodes, inode)
		}
	}
	return inodes
}

// Network returns what a network namespace allows. With an error it has what could be
// read, or the number only.
func (p *Probe) Network(inode uint32) (events.Network, error) {
	n := events.Network{Netns: inode}
	err := p.within(inode, func() error { return readNetwork(&n) })
	if errors.Is(err, errGone) || errors.Is(err, errHidden) {
		err = fmt.Errorf("network namespace %d: %w", inode, err)
	}
	return n, err
}

// readNetwork reads the settings of this thread's network namespace.
func readNetwork(n *events.Network) error {
	var errs []error
	read := func(name string) []uint64 {
		b, err := os.ReadFile("/proc/sys/net/ipv4/" + name)
		errs = append(errs, err)
		var ns []uint64
		for _, f := range strings.Fields(string(b)) {
			k, err := strconv.ParseUint(f, 10, 64)
			errs = append(errs, err)
			ns = append(ns, k)
		}
		return append(ns, 0, 0)
	}
	ports := read("ip_local_port_range")
	n.PortLow, n.PortHigh = uint16(ports[0]), uint16(ports[1])
	n.ReusePolicy = uint8(read("tcp_tw_reuse")[0])
	n.Timestamps = uint8(read("tcp_timestamps")[0])
	n.MaxTimeWait = uint32(read("tcp_max_tw_buckets")[0])
	n.FinTimeout = uint32(read("tcp_fin_timeout")[0])

	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports")
	errs = append(errs, err)
	n.Reserved = reservedIn(string(bytes.TrimSpace(b)), n.PortLow, n.PortHigh)

	cookie, err := netnsCookie()
	errs = append(errs, err)
	n.Cookie = cookie

	// Not /proc/net, which is the first thread's.
	b, err = os.ReadFile("/proc/thread-self/net/netstat")
	errs = append(errs, err)
	n.TimeWaitSkipped = counterIn(string(b), "TcpExt:", "TCPTimeWaitOverflow")
	return errors.Join(errs...)
}

// netnsCookie returns the cookie of this thread's network namespace, which no other ever
// has; 0 before 5.14.
func netnsCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return 0, nil
	}
	return cookie, err
}

// reservedIn counts the ports of a list as 8080,9000-9010 that are within a range.
func reservedIn(list string, low, high uint16) (count uint16) {
	for r := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(r, "-")
		if !isRange {
			to = from
		}
		a, err := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err != nil || err2 != nil {
			continue
		}
		if a, b := max(uint16(a), low), min(uint16(b), high); a <= b {
			count += b - a + 1
		}
	}
	return count
}

// counterIn returns a counter of /proc/net/netstat: a line of names, and one of numbers.
func counterIn(netstat, group, name string) uint64 {
	var names []string
	for line := range strings.Lines(netstat) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != group {
			continue
		}
		if names == nil {
			names = f
			continue
		}
		for k, s := range names {
			if s == name && k < len(f) {
				n, _ := strconv.ParseUint(f[k], 10, 64) // the kernel prints numbers
				return n
			}
		}
	}
	return 0
}
