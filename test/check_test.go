package livetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// An item is a record of tcptrace check.
type item struct {
	Type, Item, Status string
	Found              *string
	Cost, Error        string
	Mend               []string
}

// names reports whether one of the mends has these words.
func (i item) names(words string) bool {
	return slices.ContainsFunc(i.Mend, func(m string) bool { return strings.Contains(m, words) })
}

// seccompEnv makes the test binary a command that puts its arguments under a seccomp
// filter: "refuse" for one that refuses bpf(2), "no setns" for one that says there is no
// setns(2), "allow" for one that does neither.
const seccompEnv = "TCPTRACE_TEST_SECCOMP"

func init() {
	if how := os.Getenv(seccompEnv); how != "" {
		fmt.Fprintln(os.Stderr, execFiltered(how, os.Args[1:]))
		os.Exit(125)
	}
}

// execFiltered returns only if it fails. It runs before there is another thread that
// would have to have the filter.
func execFiltered(how string, argv []string) error {
	call, answer := uint32(unix.SYS_BPF), uint32(unix.EPERM)
	switch how {
	case "allow":
		call = ^uint32(0)
	case "no setns":
		call, answer = unix.SYS_SETNS, uint32(unix.ENOSYS)
	}
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: call, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | answer},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return fmt.Errorf("install the filter: %w", err)
	}
	return unix.Exec(argv[0], argv, os.Environ())
}

// checkHost runs tcptrace check by way of a command such as setpriv, and holds the
// records to what is true of all of them.
func checkHost(t *testing.T, by []string) (items map[string]item, status int) {
	t.Helper()
	return checkBinary(t, tcptraceBin, by)
}

func checkBinary(t *testing.T, binary string, by []string) (items map[string]item, status int) {
	t.Helper()
	live(t)
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	argv := slices.Concat(by, []string{binary, "check", "-o", "json"})
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%q: %v", argv, err)
	}
	status = cmd.ProcessState.ExitCode()
	items = map[string]item{}
	for line := range bytes.Lines(out) {
		var i item
		if err := json.Unmarshal(line, &i); err != nil {
			t.Fatalf("%q: %v in %q", argv, err, line)
		}
		if i.Type != "check" || i.Item == "" || items[i.Item].Item != "" {
			t.Errorf("got %s, want type check, and a name of its own", line)
		}
		if (i.Found == nil) != (i.Status == "unknown") || i.Status == "unknown" && i.Error == "" {
			t.Errorf("got %s, want null found, and an error, where it is not known", line)
		}
		if bad := i.Status == "missing" || i.Status == "degraded"; bad && (i.Cost == "" || len(i.Mend) == 0) {
			t.Errorf("got %s, want cost and mend", line)
		}
		items[i.Item] = i
	}
	works := items["probe.transitions"].Status != "missing"
	if works != (status == 0) || status > 1 || len(items) < 20 {
		t.Errorf("%q: got exit status %d with %d items, transitions %q, want 0 if they work, else 1; stderr: %s",
			argv, status, len(items), items["probe.transitions"].Status, &stderr)
	}
	return items, status
}

// inMounts is a command with mounts of its own, changed by a script.
func inMounts(script string) []string {
	return []string{"unshare", "--mount", "sh", "-ec", script + "\nexec \"$@\"", "sh"}
}

func bounded(capabilities string) []string {
	return []string{"setpriv", "--bounding-set", capabilities}
}

// Each set-up is broken for real, and mended as check says.
func TestCheckNamesTheMendOfWhatIsBroken(t *testing.T) {
	t.Parallel()
	newNetns(t) // one to be entered
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	aside, types := t.TempDir(), filepath.Join(t.TempDir(), "vmlinux")
	if b, err := os.ReadFile("/sys/kernel/btf/vmlinux"); err != nil || os.WriteFile(types, b, 0o644) != nil {
		t.Fatalf("copy the kernel's types: %v", err)
	}
	unmounted := inMounts("umount /sys/kernel/security 2>/dev/null || true")
	type want struct {
		item, status, mend string
		otherwise          bool // mended, it may still not be ok, for another reason
	}
	for _, c := range []struct {
		name           string
		broken, mended []string
		status         int // when broken
		want           []want
	}{
		{"no capabilities", bounded("-all"), bounded("-all,+bpf,+perfmon"), 1, []want{
			{item: "CAP_BPF", status: "missing", mend: "capabilities: {add: [BPF]}"},
			{item: "CAP_PERFMON", status: "missing", mend: "--cap-add=PERFMON"},
			{item: "probe.transitions", status: "missing", mend: "see CAP_BPF, CAP_PERFMON"}}},
		{"CAP_BPF alone", bounded("-all,+bpf"), bounded("-all,+bpf,+perfmon"), 1, []want{
			{item: "CAP_PERFMON", status: "missing", mend: "capabilities: {add: [PERFMON]}"}}},
		{"in place of both CAP_SYS_ADMIN", bounded("-all,+bpf"), bounded("-all,+sys_admin"), 1, []want{
			{item: "CAP_PERFMON", status: "missing", mend: "PERFMON"}}},
		{"no CAP_SYS_ADMIN", bounded("-sys_admin"), nil, 0, []want{
			{item: "CAP_SYS_ADMIN", status: "degraded", mend: "capabilities: {add: [SYS_ADMIN]}"},
			{item: "network_namespaces", status: "degraded", mend: "CAP_SYS_ADMIN"}}},
		{"no CAP_SYS_PTRACE", bounded("-sys_ptrace"), nil, 0, []want{
			{item: "CAP_SYS_PTRACE", status: "degraded", mend: "capabilities: {add: [SYS_PTRACE]}"},
			{item: "processes", status: "degraded", mend: "CAP_SYS_PTRACE", otherwise: true},
			{item: "network_namespaces", status: "degraded", mend: "see CAP_SYS_PTRACE"}}},
		{"nested PID namespace", []string{"unshare", "--pid", "--fork", "--mount-proc"}, nil, 0, []want{
			{item: "pid_namespace", status: "degraded", mend: "hostPID: true"}}},
		{"/proc of another PID namespace", []string{"unshare", "--pid", "--fork"},
			slices.Concat([]string{"unshare", "--pid", "--fork"}, inMounts("mount -t proc proc /proc")), 0, []want{
				{item: "proc", status: "degraded", mend: "mount -t proc proc /proc"}}},
		{"hidden processes", slices.Concat(inMounts("mount -t proc -o hidepid=2 proc /proc"), bounded("-sys_ptrace")),
			slices.Concat(inMounts("mount -t proc -o hidepid=2 proc /proc\nmount -o remount,hidepid=0 /proc"), bounded("-sys_ptrace")), 0, []want{
				{item: "proc", status: "degraded", mend: "mount -o remount,hidepid=0 /proc"}}},
		{"no /proc", inMounts("mount -t tmpfs none /proc"), inMounts("mount -t tmpfs none /proc\nmount -t proc proc /proc"), 1, []want{
			{item: "proc", status: "missing", mend: "mount -t proc proc /proc"},
			{item: "probe.transitions", status: "missing", mend: "see proc"}}},
		{"no kernel types", inMounts("mount -t tmpfs none /sys/kernel/btf"), // as a volume brings them back:
			inMounts("mount --bind /sys/kernel/btf " + aside + "\nmount -t tmpfs none /sys/kernel/btf\nmount --bind " + aside + " /sys/kernel/btf"), 1, []want{
				{item: "btf", status: "missing", mend: "-v /sys/kernel/btf:/sys/kernel/btf"},
				{item: "probe.transitions", status: "missing", mend: "see btf"}}},
		{"no kernel types but in a file", inMounts("mount -t tmpfs none /sys/kernel/btf"),
			inMounts("mount -t tmpfs none /sys/kernel/btf\nset -- \"$@\" --btf " + types), 1, []want{
				{item: "btf", status: "missing", mend: "tcptrace --btf FILE", otherwise: true}}},
		{"no sysfs", inMounts("mount -t tmpfs none /sys"), inMounts("mount -t tmpfs none /sys\nmount -t sysfs sysfs /sys"), 1, []want{
			{item: "btf", status: "missing", mend: "mount -t sysfs sysfs /sys"}}},
		{"no securityfs", unmounted, inMounts("mountpoint -q /sys/kernel/security || mount -t securityfs securityfs /sys/kernel/security"), 0, []want{
			{item: "lockdown", status: "unknown", mend: "mount -t securityfs securityfs /sys/kernel/security", otherwise: true},
			{item: "lsm", status: "unknown", mend: "mount -t securityfs securityfs /sys/kernel/security", otherwise: true}}},
		{"user namespace", []string{"unshare", "--user", "--map-root-user"}, nil, 1, []want{
			{item: "user_namespace", status: "missing", mend: "hostUsers: true"},
			{item: "CAP_BPF", status: "missing", mend: "see user_namespace"}}},
		{"cgroup namespace", []string{"unshare", "--cgroup"}, nil, 0, []want{
			{item: "cgroup", status: "degraded", mend: "--cgroupns=host"}}},
		{"seccomp filter", []string{"env", seccompEnv + "=refuse", self}, []string{"env", seccompEnv + "=allow", self}, 1, []want{
			{item: "seccomp", status: "missing", mend: "seccompProfile: {type: Unconfined}"},
			{item: "probe.transitions", status: "missing", mend: "see seccomp"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			items, status := checkHost(t, c.broken)
			if status != c.status {
				t.Errorf("broken: got exit status %d, want %d", status, c.status)
			}
			for _, w := range c.want {
				if got := items[w.item]; got.Status != w.status || !got.names(w.mend) {
					t.Errorf("broken: got %+v, want %s %s, to be mended by %q", got, w.item, w.status, w.mend)
				}
			}
			items, status = checkHost(t, c.mended)
			if status != 0 {
				t.Errorf("mended: got exit status %d, want 0", status)
			}
			for _, w := range c.want {
				if got := items[w.item]; got.Status != "ok" && !w.otherwise || got.names(w.mend) {
					t.Errorf("mended: got %+v, want %s ok", got, w.item)
				}
			}
		})
	}
}

// What setcap sets must be all that is needed: a second setcap would take the first
// one's away.
func TestTheSetcapThatCheckNamesLetsAnybodyTrace(t *testing.T) {
	t.Parallel()
	live(t)
	newNetns(t) // to enter it takes CAP_SYS_ADMIN
	command := copyForAll(t)
	nobody := []string{"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}
	broken, status := checkBinary(t, command, nobody)
	if status != 1 || broken["CAP_BPF"].Status != "missing" {
		t.Errorf("got exit status %d, CAP_BPF %+v, want 1, and it missing", status, broken["CAP_BPF"])
	}
	for _, c := range []struct {
		item string
		have []string // afterwards
	}{
		{"CAP_BPF", []string{"CAP_BPF", "CAP_PERFMON"}},
		{"CAP_SYS_PTRACE", []string{"CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE"}},
		{"CAP_SYS_ADMIN", []string{"CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE", "CAP_SYS_ADMIN"}},
	} {
		at := slices.IndexFunc(broken[c.item].Mend, func(m string) bool { return strings.HasPrefix(m, "setcap ") })
		if at < 0 {
			t.Fatalf("got %+v, want a setcap to mend it", broken[c.item])
		}
		mend := strings.Replace(broken[c.item].Mend[at], "/PATH/OF/tcptrace", command, 1)
		if out, err := exec.Command("sh", "-c", mend).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", mend, err, out)
		}
		if broken, status = checkBinary(t, command, nobody); status != 0 {
			t.Errorf("after %s: got exit status %d, want 0", mend, status)
		}
		for _, have := range c.have {
			if broken[have].Status != "ok" {
				t.Errorf("after %s: got %+v, want it ok", mend, broken[have])
			}
		}
	}
	stuck, status := checkBinary(t, command, slices.Concat(nobody, []string{"setpriv", "--no-new-privs"}))
	if status != 1 || !stuck["CAP_BPF"].names("allowPrivilegeEscalation: true") || stuck["CAP_BPF"].names("sudo") {
		t.Errorf("with no_new_privs: got exit status %d, %+v, want the mend to allow privilege escalation, and no sudo, which it stops", status, stuck["CAP_BPF"])
	}
	const ambient = "-all,+bpf,+perfmon" // as a systemd unit's AmbientCapabilities= sets them
	if unit, status := checkBinary(t, command, slices.Concat(nobody, []string{"--no-new-privs", "--inh-caps", ambient, "--ambient-caps", ambient})); status != 0 {
		t.Errorf("with no_new_privs and ambient capabilities: got exit status %d, %+v, want 0", status, unit["CAP_BPF"])
	}
}

// Before 5.11 the kernel charges BPF memory to RLIMIT_MEMLOCK.
func TestCheckKnowsWhetherTheLimitOfLockedMemoryBinds(t *testing.T) {
	t.Parallel()
	live(t)
	items, _ := checkHost(t, append([]string{"prlimit", "--memlock=4096:4096"}, bounded("-sys_resource")...))
	want := "ok"
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(name.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	if major < 5 || major == 5 && minor < 11 {
		want = "missing"
	}
	if got := items["memlock"]; got.Status != want || got.names("ulimit -l unlimited") != (want == "missing") {
		t.Errorf("Linux %d.%d: got %+v, want it %s", major, minor, got, want)
	}
}

// hooksFunctions finds out by a program of its own whether the kernel takes trampolines.
func hooksFunctions(t *testing.T) bool {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFExit, AttachTo: "inet_accept", License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Logf("the kernel refuses trampolines: %v", err)
		return false
	}
	defer prog.Close()
	l, err := link.AttachTracing(link.TracingOptions{Program: prog})
	if err != nil {
		t.Logf("the kernel refuses trampolines: %v", err)
		return false
	}
	l.Close()
	return true
}

// Not parallel: those that trace would miss what they trace by trampolines.
func TestCheckSaysWhatIsLostWithoutTrampolines(t *testing.T) {
	live(t)
	accept := func(want bool) item {
		t.Helper()
		items, _ := checkHost(t, nil)
		got := items["probe.accept"]
		if hooked := got.Found != nil && *got.Found == "fexit"; hooked != want || (got.Status == "ok") != want {
			t.Errorf("got %+v, want fexit if trampolines are to be had, which is %v", got, want)
		}
		if strings.Contains(got.Error, "MEMLOCK") {
			t.Errorf("got %q, want no guesses", got.Error)
		}
		return items["ftrace"]
	}
	hooks := hooksFunctions(t)
	accept(hooks)

	const setting = "/proc/sys/kernel/ftrace_enabled"
	was, err := os.ReadFile(setting)
	if errors.Is(err, os.ErrNotExist) {
		return // nothing that could be broken
	}
	if err != nil {
		t.Fatal(err)
	}
	err = os.WriteFile(setting, []byte("0"), 0)
	if errors.Is(err, os.ErrPermission) && !hooks {
		return // a host whose policy refuses this refuses trampolines too: it is broken for good
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(setting, was, 0); err != nil {
			t.Errorf("restore %s: %v", setting, err)
		}
	})
	broken := accept(false)
	mend := slices.IndexFunc(broken.Mend, func(m string) bool { return strings.HasPrefix(m, "sysctl ") })
	if broken.Status != "degraded" || mend < 0 {
		t.Fatalf("got %+v, want it degraded, and sysctl to mend it", broken)
	}
	if out, err := exec.Command("sh", "-c", broken.Mend[mend]).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", broken.Mend[mend], err, out)
	}
	if mended := accept(hooks); mended.Status != "ok" {
		t.Errorf("after %s: got %+v, want it ok", broken.Mend[mend], mended)
	}
}

// The table is for eyes, and a mend to be copied.
func TestCheckAsTextIsNarrow(t *testing.T) {
	t.Parallel()
	live(t)
	argv := append(bounded("-all"), tcptraceBin, "check")
	out, _ := exec.Command(argv[0], argv[1:]...).Output() // it ends with status 1
	if want := "\nmissing   CAP_BPF              not effective\n          cost   "; !strings.Contains(string(out), want) {
		t.Errorf("got:\n%s\nwant %q in it", out, want)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(line) > 101 && f[0] != "mend" && f[0] != "or" {
			t.Errorf("got %d columns, want at most 100: %s", len(line)-1, line)
		}
	}
}
