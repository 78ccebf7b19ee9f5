package probe

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

func TestARefusalNamesItsCauseAndItsMend(t *testing.T) {
	eperm := fmt.Errorf("load program: %w", plain{fmt.Errorf("map create: %w (MEMLOCK may be too low, consider rlimit.RemoveMemlock)", unix.EPERM)})
	old := fmt.Errorf("map create: %w (requires >= v4.6)", ebpf.ErrNotSupported)
	memlock := errors.New("failed to set memlock rlimit")
	for _, row := range []struct {
		name         string
		err, memlock error
		missing      string
		barrier      string
		want         []string // in the message
		not          []string
	}{
		{"a capability", eperm, nil, "CAP_PERFMON", "", []string{"CAP_PERFMON missing", "as root", "CAP_SYS_ADMIN", "tcptrace check"}, []string{"MEMLOCK", "rlimit"}},
		{"capabilities, and so the limit cannot be raised", eperm, memlock, "CAP_BPF", "", []string{"CAP_BPF missing"}, []string{"MEMLOCK"}},
		{"capabilities, taken for an old kernel", old, memlock, "CAP_BPF", "", []string{"CAP_BPF missing"}, []string{"v4.6"}},
		{"the limit", eperm, memlock, "", "", []string{"RLIMIT_MEMLOCK", "before Linux 5.11", "ulimit -l unlimited", "LimitMEMLOCK=infinity", "CAP_SYS_RESOURCE"}, nil},
		{"a policy", eperm, nil, "", "", []string{"no capability is missing", "map create: operation not permitted", "security module"}, []string{"MEMLOCK"}},
		{"a barrier, behind which the limit cannot be told", eperm, memlock, "", "not the host's", []string{"not the host's", "tcptrace check"}, []string{"MEMLOCK"}},
		{"a barrier, and capabilities", eperm, memlock, "CAP_BPF", "not the host's", []string{"not the host's"}, []string{"as root"}},
		{"a filter that says there is no such call", unix.ENOSYS, memlock, "", "a filter", []string{"refuses", "a filter"}, []string{"MEMLOCK"}},
		{"a program that the verifier rejects", unix.EACCES, nil, "", "", []string{"permission denied"}, []string{"refuses"}},
		{"a program that the verifier cannot read", unix.EINVAL, memlock, "", "", []string{"invalid argument"}, []string{"refuses", "MEMLOCK"}},
		{"a kernel that is too old", old, nil, "", "", []string{"v4.6"}, []string{"refuses"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := refused(row.err, row.memlock, row.missing, row.barrier)
			if !errors.Is(got, row.err) {
				t.Errorf("%v: does not wrap its cause", got)
			}
			for _, want := range row.want {
				if !strings.Contains(got.Error(), want) {
					t.Errorf("got %q, want %q in it", got, want)
				}
			}
			for _, not := range row.not {
				if strings.Contains(got.Error(), not) {
					t.Errorf("got %q, want no %q in it", got, not)
				}
			}
		})
	}
}
