package host

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// tree makes files; a content "-> X" is a symbolic link to X.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if len(content) > 3 && content[:3] == "-> " {
			err = os.Symlink(content[3:], path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// read reads the facts of a host of which the files of proc and sys are known.
func read(t *testing.T, proc, sys map[string]string) *Facts {
	t.Helper()
	return Read(tree(t, proc), tree(t, sys))
}

// want fails unless the fact is known and is this.
func want[T comparable](t *testing.T, what string, got Known[T], want T) {
	t.Helper()
	if got.Err != nil || got.Value != want {
		t.Errorf("%s: got %v, error %v, want %v", what, got.Value, got.Err, want)
	}
}

func TestFactsAreReadAsTheKernelWritesThem(t *testing.T) {
	f := read(t, map[string]string{
		"sys/kernel/osrelease":                 "6.12.9-cloud-amd64\n",
		"sys/kernel/ftrace_enabled":            "1\n",
		"sys/kernel/unprivileged_bpf_disabled": "2\n",
		"sys/kernel/kptr_restrict":             "0\n",
		"self/status": "Name:\ttcptrace\nUid:\t1000\t65534\t0\t0\nNSpid:\t412\n" +
			"CapPrm:\t000001ffffffffff\nCapEff:\t000000c000200000\nCapBnd:\t000001ffffffffff\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n",
		"self/limits":    "Limit                     Soft Limit           Hard Limit           Units     \nMax locked memory         8388608              unlimited            bytes     \n",
		"self/ns/user":   "-> user:[4026531837]",
		"self/ns/pid":    "-> pid:[4026532301]",
		"self/ns/cgroup": "-> cgroup:[4026531835]",
		"self/cgroup":    "0::/system.slice/tcptrace.service\n",
		"self/mountinfo": "22 26 0:20 / /proc rw,nosuid shared:5 - proc proc rw,hidepid=invisible\n" +
			"30 26 0:12 / /sys/kernel/tracing rw - tracefs tracefs rw\n",
		"1/ns/net": "-> net:[4026531840]",
		"412/comm": "tcptrace\n", // a process without namespaces: a zombie
	}, map[string]string{
		"kernel/btf/vmlinux":       "BTF",
		"kernel/security/lockdown": "none [integrity] confidentiality\n",
		"kernel/security/lsm":      "lockdown,capability,bpf\n",
	})
	want(t, "release", f.Release, "6.12.9-cloud-amd64")
	if f.Types != nil {
		t.Errorf("types: got %v, want none", f.Types)
	}
	want(t, "lockdown", f.Lockdown, "integrity")
	want(t, "LSMs", f.LSMs, "lockdown,capability,bpf")
	want(t, "ftrace_enabled", f.FtraceEnabled, "1")
	want(t, "unprivileged_bpf_disabled", f.UnprivilegedBPF, "2")
	want(t, "kptr_restrict", f.KptrRestrict, "0")
	want(t, "tracefs", f.Tracefs, true)
	// 39 BPF, 38 PERFMON, 21 SYS_ADMIN: capabilities(7)
	want(t, "self", f.Self, Self{Effective: 1<<39 | 1<<38 | 1<<21, Bounding: 1<<41 - 1, Filtered: true, NoNewPrivs: true, Uid: 65534})
	want(t, "memlock", f.Memlock, "8388608")
	want(t, "user namespace", f.InitialUser, true)
	want(t, "PID namespace", f.InitialPid, false)
	want(t, "cgroup namespace", f.InitialCgroup, true)
	want(t, "hidepid", f.Hidepid, "invisible")
	want(t, "processes", f.Processes, Processes{Visible: 2})
	want(t, "cgroup", f.Cgroup, "v2")
}

func TestNothingReadableIsNothingKnown(t *testing.T) {
	f := Read("/nonexistent/proc", "/nonexistent/sys")
	for what, err := range map[string]error{
		"release": f.Release.Err, "types": f.Types, "lockdown": f.Lockdown.Err, "LSMs": f.LSMs.Err, "ftrace_enabled": f.FtraceEnabled.Err,
		"tracefs": f.Tracefs.Err, "self": f.Self.Err, "memlock": f.Memlock.Err, "user namespace": f.InitialUser.Err,
		"PID namespace": f.InitialPid.Err, "cgroup namespace": f.InitialCgroup.Err, "hidepid": f.Hidepid.Err,
		"processes": f.Processes.Err, "cgroup": f.Cgroup.Err,
	} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v, want that there is no such file", what, err)
		}
	}
}

func TestNonsenseIsAnErrorThatNamesTheFile(t *testing.T) {
	f := read(t, map[string]string{
		"self/status": "Name:\tx\nUid:\t0\t0\t0\t0\nCapEff:\tzzz\n", "self/limits": "Max open files 1\n", "self/ns/user": "-> pid:[1]", "self/cgroup": "",
	}, map[string]string{"kernel/security/lockdown": "none\n"})
	for what, err := range map[string]error{
		"status": f.Self.Err, "limits": f.Memlock.Err, "user": f.InitialUser.Err, "cgroup": f.Cgroup.Err, "lockdown": f.Lockdown.Err,
	} {
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: got %v, want an error about its content", what, err)
		}
	}
}

func TestAKernelWithoutLockdownIsNotLockedDown(t *testing.T) {
	f := read(t, nil, map[string]string{"kernel/security/lsm": "capability\n"})
	want(t, "lockdown", f.Lockdown, "none")
}

func TestOfTwoMountsOnProcTheLastIsSeen(t *testing.T) {
	f := read(t, map[string]string{"self/mountinfo": "22 26 0:20 / /proc rw - proc proc rw,hidepid=2\n" +
		"40 22 0:33 / /proc rw - proc proc rw\n41 26 0:34 / /mnt/proc rw - proc proc rw,hidepid=2\n"}, nil)
	want(t, "hidepid", f.Hidepid, "")
}

func TestTheCgroupVersionIsToldByTheHierarchies(t *testing.T) {
	for content, version := range map[string]string{
		"0::/\n":                 "v2",
		"4:memory:/a\n0::/\n":    "v1+v2",
		"2:cpu:/a\n1:memory:/\n": "v1",
	} {
		want(t, content, read(t, map[string]string{"self/cgroup": content}, nil).Cgroup, version)
	}
}

// Two numbers for one process: it is in a PID namespace below the one of this /proc.
func TestProcOfAnotherPIDNamespaceIsToldByItsNumbers(t *testing.T) {
	f := read(t, map[string]string{"self/status": "Uid:\t0\t0\t0\t0\nNSpid:\t9001\t1\nCapEff:\t0\nCapBnd:\t0\n"}, nil)
	want(t, "self", f.Self, Self{Stranger: true})
}
