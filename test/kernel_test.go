package livetest

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// What the kernel at hand can do is found out by trying, here as in the product, and by
// other code than the product's.

// givesCookies reports whether a tracing program may give a socket its cookie (5.12).
// Where it may not, sockets have one only if somebody has asked: the agents do, as soon as
// they have a descriptor.
var givesCookies = sync.OnceValue(func() bool {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "inet_sock_set_state", License: "GPL",
		Instructions: asm.Instructions{
			asm.LoadMem(asm.R1, asm.R1, 0, asm.DWord),
			asm.FnGetSocketCookie.Call(),
			asm.Mov.Imm(asm.R0, 0),
			asm.Return(),
		},
	})
	if err == nil {
		_ = prog.Close()
	}
	return err == nil
})

// castsPointers reports whether a program may take a number for the address of a kernel's
// object (6.2).
var castsPointers = sync.OnceValue(func() bool {
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return false
	}
	var fn *btf.Func
	return types.TypeByName("bpf_rdonly_cast", &fn) == nil
})

// speaksMPTCP reports whether the kernel is built with it.
var speaksMPTCP = sync.OnceValue(func() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err == nil {
		_ = unix.Close(fd)
	}
	return !errors.Is(err, unix.EPROTONOSUPPORT)
})

// named gives the records of a socket from before it was asked for its cookie that
// cookie, and all of one that never was a name of its own. What tells them apart until
// then is their ends.
func named(records []record) []record {
	if givesCookies() {
		return records
	}
	// Not as they were printed: a minisocket's end is told later than what comes after it.
	inTime := make([]*record, len(records))
	for i := range records {
		inTime[i] = &records[i]
	}
	slices.SortStableFunc(inTime, func(a, b *record) int { return a.Time.Compare(b.Time) })
	names, nameless := map[string]string{}, 0
	for _, r := range slices.Backward(inTime) {
		if r.Lport == nil || r.Rport == nil {
			continue
		}
		key := fmt.Sprint(r.Netns, orNull(r.Laddr), *r.Lport, orNull(r.Raddr), *r.Rport)
		switch {
		case r.Cookie != nil:
			names[key] = *r.Cookie
		case names[key] == "":
			nameless++
			names[key] = fmt.Sprint("nameless-", nameless)
			fallthrough
		default:
			name := names[key]
			r.Cookie = &name
		}
		if r.OldState == "LISTEN" {
			delete(names, key) // what comes before it is of another connection
		}
	}
	return records
}

// isNameless reports whether an id is one that named has made up.
func isNameless(id string) bool { return strings.HasPrefix(id, "nameless-") }

// name is what records call a socket. To list it may be what has given it its cookie; then it is known by its ends.
func (l *ssLine) name(cookie string, records []record) string {
	if givesCookies() || slices.ContainsFunc(records, func(r record) bool { return r.of(cookie) }) {
		return cookie
	}
	for _, r := range slices.Backward(records) {
		if r.Cookie != nil && r.Lport != nil && r.Rport != nil && l.local == endOf(r.Laddr, r.Lport) && l.remote == endOf(r.Raddr, r.Rport) {
			return *r.Cookie
		}
	}
	return cookie
}

// endOf is one of a socket's, as ss prints it.
func endOf(addr *string, port *uint16) string {
	return net.JoinHostPort(orNull(addr), fmt.Sprint(*port))
}

// endMinisockets ends all that only stands in for a socket: in TIME_WAIT, or in
// FIN_WAIT2 without a process. Nothing else may be in FIN_WAIT2. Before 6.1 it can only
// wait until they end: then they have outlasted it.
func (s *scene) endMinisockets() {
	s.t.Helper()
	s.outlasted = s.ns.endMinisockets(s.t) || s.outlasted
}
