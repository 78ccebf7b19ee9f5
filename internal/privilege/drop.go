package privilege

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// set is a set of capabilities, by their bits.
type set uint64

func (s set) has(bit int) bool { return s&(1<<bit) != 0 }

// sets are those of a thread, as capget(2) and capset(2) have them.
type sets struct{ effective, permitted, inheritable set }

func current() (sets, error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return sets{}, fmt.Errorf("capget: %w", err)
	}
	join := func(low, high uint32) set { return set(low) | set(high)<<32 }
	return sets{
		effective:   join(data[0].Effective, data[1].Effective),
		permitted:   join(data[0].Permitted, data[1].Permitted),
		inheritable: join(data[0].Inheritable, data[1].Inheritable),
	}, nil
}

// Drop gives up, in all threads and for good, the capabilities that are of no use any more
// once the programs are attached, and the right to get others by executing a program. It
// must come when all files are open that root may open and others may not.
func Drop() error {
	have, err := current()
	if err != nil {
		return err
	}
	var keep set
	for _, c := range Used() {
		if c.Later {
			keep |= have.permitted & (1 << c.bit)
		}
	}
	if err := everyThread(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	// Few may do this. With no_new_privs it is no more than tidiness: it is what people
	// look at.
	if have.effective.has(unix.CAP_SETPCAP) {
		if err := bound(keep); err != nil {
			return err
		}
	}
	const canBPF = 1 << unix.CAP_BPF
	if err := apply(sets{effective: keep, permitted: keep | have.permitted&canBPF}); err != nil {
		return err
	}
	if bpfIsPrivileged() {
		keep |= have.permitted & canBPF
	}
	return apply(sets{effective: keep, permitted: keep})
}

// bound takes all but these capabilities out of the bounding set.
func bound(keep set) error {
	for bit := range 64 {
		held, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(bit), 0, 0, 0)
		if err != nil {
			return nil // the kernel has no more than these
		}
		if held == 0 || keep.has(bit) {
			continue
		}
		if err := everyThread(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(bit), 0); err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", bit, err)
		}
	}
	return nil
}

// apply makes these the capabilities of all threads. The ambient set goes with the
// inheritable one.
func apply(s sets) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(s.effective), Permitted: uint32(s.permitted), Inheritable: uint32(s.inheritable)},
		{Effective: uint32(s.effective >> 32), Permitted: uint32(s.permitted >> 32), Inheritable: uint32(s.inheritable >> 32)},
	}
	err := everyThread(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&data[0])), 0)
	if err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// bpfIsPrivileged reports whether the kernel asks for a capability even to use what is
// loaded: where kernel.unprivileged_bpf_disabled is set, it does so before 5.19.
func bpfIsPrivileged() bool {
	// There is no such map: who may ask is told so.
	noMap := struct{ fd, _ uint32 }{fd: ^uint32(0)}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_LOOKUP_ELEM, uintptr(unsafe.Pointer(&noMap)), unsafe.Sizeof(noMap))
	return errno == unix.EPERM
}

// errCgo says why a build cannot drop anything. The threads of C libraries are not the Go
// runtime's to change.
var errCgo = errors.New("this build uses cgo, whose threads cannot be changed: build with CGO_ENABLED=0")

// everyThread makes a system call on all threads. Capabilities are a thread's own, and any
// thread may come to run any goroutine.
//
//go:uintptrescapes
func everyThread(trap, a1, a2, a3 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0)
	switch errno {
	case 0:
		return nil
	case syscall.ENOTSUP:
		return errCgo
	}
	return errno
}
