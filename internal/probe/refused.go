package probe

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/host"
)

// A refusal says why the kernel may have refused to load anything, and what helps.
type refusal struct {
	why   string
	cause error // what the kernel said
}

func (r *refusal) Error() string { return r.why }
func (r *refusal) Unwrap() error { return r.cause }

// isRefused reports whether err is the kernel's refusal for lack of privilege. missing
// names the capabilities that are, "" if none is.
func isRefused(err error, missing string) bool {
	// To those who may, EACCES is the verifier's word. To those who may not, cilium/ebpf's
	// tests of what the kernel can do fail too: they take it for one from before Linux 4.6.
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) || // of which seccomp filters answer one
		missing != "" && (errors.Is(err, unix.EACCES) || errors.Is(err, ebpf.ErrNotSupported))
}

// refused explains err if it is such a refusal. memlock is why RLIMIT_MEMLOCK could not be
// lifted, nil if that was not necessary; barrier is what no capability overcomes.
func refused(err, memlock error, missing, barrier string) error {
	const what = "the kernel refuses to load BPF programs"
	switch {
	case !isRefused(err, missing):
		return err
	case barrier != "":
		return &refusal{what + ": " + barrier + " (tcptrace check says more)", err}
	case missing != "":
		return &refusal{what + ": " + missing + " missing; run it as root, or grant " +
			"CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_SYS_ADMIN (tcptrace check says more)", err}
	case memlock != nil:
		var limit unix.Rlimit
		// It cannot fail for one's own limit (getrlimit(2)).
		_ = unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit)
		return &refusal{fmt.Sprintf("%s: this one (before Linux 5.11) counts them as locked memory, of which RLIMIT_MEMLOCK allows %d bytes; "+
			"run \"ulimit -l unlimited\" before (in a systemd unit: LimitMEMLOCK=infinity), or grant CAP_SYS_RESOURCE, which may raise it",
			what, limit.Cur), err}
	}
	return &refusal{fmt.Sprintf("%s, though no capability is missing: %v; "+
		"a security module forbids it (tcptrace check says more)", what, err), err}
}

// barrier says what refuses BPF to those too who have the capabilities; "" if it is
// neither a user namespace nor seccomp. Behind both, whether RLIMIT_MEMLOCK binds looks as
// before Linux 5.11.
func barrier(missing string) string {
	if initial, err := host.InitialUser("/proc"); err == nil && !initial {
		return "in a user namespace that is not the host's, capabilities count for nothing; " +
			"run it in the host's (in a pod: hostUsers: true)"
	}
	// Older kernels answer so for lack of CAP_BPF too.
	if err := host.CallBPF(); err != nil && missing == "" {
		return fmt.Sprintf("%v, though no capability is missing: a seccomp profile forbids it; "+
			"use one that allows bpf, or Unconfined", err)
	}
	return ""
}

// A plain error is one of cilium/ebpf without the hint that it adds to every EPERM, most of
// which have nothing to do with the limit.
type plain struct{ error }

func (p plain) Error() string {
	return strings.ReplaceAll(p.error.Error(), " (MEMLOCK may be too low, consider rlimit.RemoveMemlock)", "")
}

func (p plain) Unwrap() error { return p.error }
