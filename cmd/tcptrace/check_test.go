package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/probe"
)

// everything is a host on which nothing is missing.
func everything() *survey {
	s := &survey{Facts: &host.Facts{}, networks: 3, entered: 3}
	s.Release.Value, s.Lockdown.Value, s.LSMs.Value = "6.12.9", "none", "capability"
	s.FtraceEnabled.Value, s.UnprivilegedBPF.Value, s.KptrRestrict.Value = "1", "2", "1"
	s.Self.Value = host.Self{Effective: 1<<41 - 1, Bounding: 1<<41 - 1}
	s.Memlock.Value, s.Cgroup.Value = "65536", "v2"
	s.InitialUser.Value, s.InitialPid.Value, s.InitialCgroup.Value = true, true, true
	s.Processes.Value.Visible = 100
	s.variants = []probe.Variant{{Facility: "accept", Name: "fexit"}, {Facility: "transitions", Name: "tp_btf"}}
	return s
}

func itemOf(t *testing.T, s *survey, name string) item {
	t.Helper()
	items := s.items()
	at := slices.IndexFunc(items, func(i item) bool { return i.Name == name })
	if at < 0 {
		t.Fatalf("got no item %s", name)
	}
	return items[at]
}

// What the live tests cannot break on every host: they do the rest.
func TestWhatIsBrokenHasItsStatusAndItsMend(t *testing.T) {
	refusedBPF := errors.New("bpf(2): operation not permitted")
	for name, c := range map[string]struct {
		broken             func(*survey)
		item, status, mend string // "" for no mend
	}{
		"nothing":                       {func(*survey) {}, "memlock", "ok", ""},
		"no lockdown LSM":               {func(*survey) {}, "lockdown", "ok", ""},
		"locked down for integrity":     {func(s *survey) { s.Lockdown.Value = "integrity" }, "lockdown", "ok", ""},
		"for confidentiality":           {func(s *survey) { s.Lockdown.Value = "confidentiality" }, "lockdown", "degraded", "lockdown=integrity"},
		"memory charged, and too small": {func(s *survey) { s.lifted, s.refused = syscall.EPERM, syscall.EPERM }, "memlock", "missing", "ulimit -l unlimited"},
		"memory charged, and enough":    {func(s *survey) { s.lifted = syscall.EPERM }, "memlock", "ok", ""},
		"memory without limit":          {func(s *survey) { s.Memlock.Value, s.lifted = "unlimited", syscall.EPERM }, "memlock", "ok", ""},
		"whether memory is charged": {func(s *survey) { s.lifted, s.refused, s.Self.Value.Effective = syscall.EPERM, syscall.EPERM, 0 },
			"memlock", "unknown", "see CAP_BPF"},
		"a filter that lets all through":  {func(s *survey) { s.Self.Value.Filtered = true }, "seccomp", "ok", ""},
		"a filter that does not":          {func(s *survey) { s.Self.Value.Filtered, s.called = true, refusedBPF }, "seccomp", "missing", "Unconfined"},
		"a filter, and no capability":     {func(s *survey) { s.Self.Value = host.Self{Filtered: true}; s.called = refusedBPF }, "seccomp", "unknown", "see CAP_BPF"},
		"setns refused to the privileged": {func(s *survey) { s.entered = 1 }, "network_namespaces", "degraded", "setns"},
		"an LSM that hides a process":     {func(s *survey) { s.Processes.Value.Closed = 1 }, "processes", "degraded", "LSM"},
		"namespaces that cannot be found": {func(s *survey) { s.more = true }, "network_namespaces", "degraded", "see CAP_SYS_PTRACE"},
		"a capability that what cannot be found may need": {func(s *survey) { s.Self.Value.Effective &^= 1 << 21; s.more = true },
			"CAP_SYS_ADMIN", "degraded", "sudo"},
		"a capability that nothing needs": {func(s *survey) { s.Self.Value.Effective &^= 1 << 21 }, "CAP_SYS_ADMIN", "info", ""},
		"a kernel without cgroups' namespaces": {func(s *survey) { s.InitialCgroup = host.Known[bool]{Err: fs.ErrNotExist} },
			"cgroup", "ok", ""},
		"a kernel without ftrace": {func(s *survey) { s.FtraceEnabled = host.Known[string]{Err: fs.ErrNotExist} }, "ftrace", "info", ""},
		"no /proc/sys": {func(s *survey) {
			s.FtraceEnabled.Err, s.Release.Err = fs.ErrNotExist, fs.ErrNotExist
		}, "ftrace", "unknown", ""},
		"ftrace off": {func(s *survey) { s.FtraceEnabled.Value = "0" }, "ftrace", "degraded", "sysctl -w kernel.ftrace_enabled=1"},
		"a container's user that is not root": {func(s *survey) { s.Self.Value = host.Self{Uid: 1000} },
			"CAP_BPF", "missing", "{runAsUser: 0, capabilities: {add: [BPF]}}"},
		"a container's user, in Docker": {func(s *survey) { s.Self.Value = host.Self{Uid: 1000} },
			"CAP_BPF", "missing", "--user=0 --cap-add=BPF"},
		"a service's user": {func(s *survey) { s.Self.Value = host.Self{Uid: 1000, Bounding: 1<<41 - 1, NoNewPrivs: true} },
			"CAP_BPF", "missing", "AmbientCapabilities=CAP_BPF"},
		"a user": {func(s *survey) { s.Self.Value.Effective, s.Self.Value.Uid = 0, 1000 }, "CAP_BPF", "missing", "setcap cap_bpf,cap_perfmon+ep"},
		"a user, after the line for CAP_SYS_PTRACE": {func(s *survey) {
			s.Self.Value.Effective, s.Self.Value.Uid, s.Processes.Value.Closed, s.entered = 0, 1000, 1, 1
		}, "CAP_SYS_ADMIN", "degraded", "setcap cap_bpf,cap_perfmon,cap_sys_ptrace,cap_sys_admin+ep"},
		"an old kernel": {func(s *survey) { s.refused = errors.New("unknown func bpf_get_socket_cookie#46") },
			"probe.transitions", "missing", "another kernel: docs/requirements.md"},
		"an LSM": {func(s *survey) { s.refused = syscall.EPERM }, "probe.transitions", "missing", "LSM"},
		"a second choice": {func(s *survey) {
			s.variants[0] = probe.Variant{Facility: "accept", Name: "sys_exit", Err: syscall.EPERM}
		},
			"probe.accept", "degraded", "LSM"},
		"a second choice that loses nothing": {func(s *survey) {
			s.variants[0] = probe.Variant{Facility: "destroy", Name: "raw_tp", Err: errors.New("no types")}
		}, "probe.destroy", "ok", ""},
		"types from a file": {func(s *survey) {
			s.Types, s.btf = fs.ErrNotExist, "types.btf"
		}, "btf", "degraded", "hostPath"},
		"no types": {func(s *survey) { s.Types, s.refused = fs.ErrNotExist, errors.New("no BTF found") }, "probe.transitions", "missing", "see btf"},
		"a file that holds no types": {func(s *survey) { s.btf, s.refused = "/etc/passwd", errors.New("no valid BTF header") },
			"probe.transitions", "missing", "without --btf"},
		"no choice": {func(s *survey) {
			s.variants[0] = probe.Variant{Facility: "accept", Err: errors.New("bpf_rdonly_cast is not there")}
		}, "probe.accept", "missing", "another kernel: fexit needs trampolines; sys_exit needs 6.2"},
	} {
		t.Run(name, func(t *testing.T) {
			s := everything()
			c.broken(s)
			got := itemOf(t, s, c.item)
			mends := slices.ContainsFunc(got.Mend, func(m string) bool { return strings.Contains(m, c.mend) })
			if got.Status != c.status || c.mend == "" && len(got.Mend) > 0 || c.mend != "" && !mends {
				t.Errorf("got %+v, want %s, and the mend %q", got, c.status, c.mend)
			}
		})
	}
}

// The document's table is that of the program.
func TestRequirementsListEachWayOfEachFacility(t *testing.T) {
	var b strings.Builder
	for _, f := range probe.Facilities() {
		name, what := "`"+f.Name+"`", f.What
		for _, w := range f.Ways {
			fmt.Fprintf(&b, "| %s | %s | `%s` | %s | %s |\n", name, what, w.Name, w.Needs, w.Loses)
			name, what = "", ""
		}
		fmt.Fprintf(&b, "| | | none | | %s |\n", f.Lost)
	}
	doc, err := os.ReadFile("../../docs/requirements.md")
	check(t, err)
	if !strings.Contains(string(doc), b.String()) {
		t.Errorf("docs/requirements.md: want this table in it:\n%s", &b)
	}
}

func TestCheckIsAlignedAndWrapsAllButMends(t *testing.T) {
	known := "v2"
	var out bytes.Buffer
	check(t, writeItems(&out, []item{
		{Name: "cgroup", Status: statusOK, Found: &known},
		{Name: "lsm", Status: statusUnknown, Error: "open it: no such file", Mend: []string{"mount it", "do without"}},
		{Name: "network_namespaces", Status: statusDegraded, Found: &known, Cost: strings.TrimSpace(strings.Repeat("word ", 20))},
	}))
	want := `ok        cgroup               v2
unknown   lsm                  not known
          error  open it: no such file
          mend   mount it
          or     do without
degraded  network_namespaces   v2
          cost   word word word word word word word word word word word word word word word word
                 word word word word

1 ok, 1 degraded, 0 missing, 1 unknown
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", &out, want)
	}
}
