package host

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// CallBPF finds out whether a call of bpf(2) arrives at the kernel. It asks for what no
// kernel has, and so none refuses for lack of privilege: nil means that the kernel has
// answered so. Older kernels refuse those without CAP_BPF all the
// same, where kernel.unprivileged_bpf_disabled is set.
func CallBPF() error {
	var attr [8]byte
	const size = 1 << 30 // more than a page
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), size)
	switch {
	case errno == 0:
		return errors.New("bpf(2) takes what no kernel takes")
	case errors.Is(errno, unix.E2BIG):
		return nil
	}
	return fmt.Errorf("bpf(2): %w", errno)
}
