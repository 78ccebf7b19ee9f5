package livetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// A user is with which privileges tcptrace is started.
type user struct {
	confined bool // has no capabilities but caps; else all that this test has
	caps     []int
	uid      uint32
	file     bool     // has them from the program's file, and not from its parent
	by       []string // a command that starts it, given what follows
}

// command runs tcptrace as the user, once start is called on it.
func (u user) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	bin := tcptraceBin
	if u.uid != 0 {
		bin = copyForAll(t)
	}
	if u.file {
		setFileCaps(t, bin, u.caps)
	}
	cmd := exec.Command(bin, args...)
	if len(u.by) > 0 {
		cmd = exec.Command(u.by[0], slices.Concat(u.by[1:], []string{bin}, args)...)
	}
	if u.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: u.uid, Gid: u.uid}}
		if !u.file {
			for _, c := range u.caps {
				cmd.SysProcAttr.AmbientCaps = append(cmd.SysProcAttr.AmbientCaps, uintptr(c))
			}
		}
	}
	return cmd
}

// start starts the command on a thread of its own, whose bounding set has nothing but
// the user's capabilities.
func (u user) start(cmd *exec.Cmd) error {
	if !u.confined {
		return cmd.Start()
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: it ends with this goroutine
		done <- errors.Join(boundTo(u.caps), cmd.Start())
	}()
	return <-done
}

func boundTo(caps []int) error {
	for c := range 64 {
		if slices.Contains(caps, c) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		if err != nil && err != unix.EINVAL { // the kernel has not so many
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	return nil
}

// copyForAll copies the program to where everybody may run it.
func copyForAll(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "tcptrace-nobody-") // t.TempDir's parent is root's own
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	program, err := os.ReadFile(tcptraceBin)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "tcptrace")
	// What another test starts just now must not have the file open for writing: it could
	// not be executed as long as that is so.
	syscall.ForkLock.RLock()
	err = os.WriteFile(bin, program, 0o755)
	syscall.ForkLock.RUnlock()
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.Chmod(bin, 0o755)); err != nil {
		t.Fatal(err)
	}
	return bin
}

// setFileCaps does what setcap(8) does: "+ep".
func setFileCaps(t *testing.T, bin string, caps []int) {
	t.Helper()
	set := setOf(caps)
	attr := binary.LittleEndian.AppendUint32(nil, 0x02000000|1) // VFS_CAP_REVISION_2, VFS_CAP_FLAGS_EFFECTIVE
	for _, word := range []uint32{uint32(set), 0, uint32(set >> 32), 0} {
		attr = binary.LittleEndian.AppendUint32(attr, word) // permitted, inheritable
	}
	if err := unix.Setxattr(bin, "security.capability", attr, 0); err != nil {
		t.Fatalf("give %s capabilities: %v", bin, err)
	}
}

func setOf(caps []int) (set uint64) {
	for _, c := range caps {
		set |= 1 << c
	}
	return set
}

func capMask(caps ...int) string { return fmt.Sprintf("%016x", setOf(caps)) }

// documented are the capabilities that docs/privileges.md says are enough here.
func documented(t *testing.T) []int {
	t.Helper()
	caps := []int{unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_SYS_PTRACE, unix.CAP_SYS_ADMIN}
	fd, err := os.Stat("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	if fd.Size() == 0 { // before Linux 6.2
		caps = append(caps, unix.CAP_DAC_READ_SEARCH)
	}
	return caps
}

// without is a copy.
func without(caps []int, gone ...int) []int {
	return slices.DeleteFunc(slices.Clone(caps), func(c int) bool { return slices.Contains(gone, c) })
}

// A yield is what a run has got out of a scene that is the same for all.
type yield struct {
	Exe         string
	Holders     []holder
	NotAccepted any      // connections in an accept queue, among those leaked
	TimeWait    []string // states of an orphan whose peer closes later
	Without     []string // the capabilities that it has said it lacks
	Threads     map[string]string
}

// yieldOf plays the scene and traces it. All is in a network namespace that only
// processes keep, unless it is mounted.
func yieldOf(t *testing.T, u user, mounted bool, adjust func(full *yield)) {
	t.Helper()
	var got, want yield
	var orphan *sock
	var found leak
	_, runs := playComplete(t, func(s *scene) {
		cli, srv := s.agents2()
		if !mounted {
			s.ns.unmount(t)
		}
		l := srv.listen(anyPort4)
		cli.dial(srv.listen(anyPort4)).close() // nobody holds the other end
		want = yield{
			Exe: srv.process().exe, NotAccepted: 1.0,
			TimeWait: []string{"FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT"},
			Threads:  map[string]string{"CapInh": capMask(), "CapAmb": capMask(), "NoNewPrivs": "1"},
		}
		tr := s.add(startTracerAs(t, u, "--netns", fmt.Sprint(s.ns.inode), "--close-wait-after", closeWaitAfter.String()))
		got = yield{Threads: threads(t, tr.pid)}

		c, d := pair(cli, l)
		c.close()
		want.Holders = []holder{{srv.pid, srv.name, d.fd, d.id()}}
		adjust(&want)
		found = leak{kind: "close_wait_leak", who: srv.process(), count: 1}
		if want.NotAccepted == 1.0 {
			found.count = 2
		}
		var peer *sock
		orphan, peer = pair(cli, l)
		orphan.close()
		time.Sleep(5 * lag)
		s.closed(peer, orphan)
		s.await(func(records []record) bool { return len(transitionsOf(records, orphan.id())) >= 5 })
		s.awaitFindings([]leak{found})
	})
	if r := found.worst(runs[0].records); r != nil {
		got.Exe, got.Holders, got.NotAccepted = orNull(r.Exe), r.Holders, r.Evidence["not_accepted"]
	}
	for _, r := range transitionsOf(runs[0].records, orphan.id()) {
		if r.OldState != "CLOSE" && r.OldState != "SYN_SENT" {
			got.TimeWait = append(got.TimeWait, r.NewState)
		}
	}
	got.Without = lacks(runs[0].stderr)
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("what the run got out of it (-want +got):\n%s\n%s", diff, runs[0].stderr)
	}
}

// unmount takes away the file that keeps the namespace: then only its processes do, as in
// most containers.
func (n *netns) unmount(t *testing.T) {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n.remove(t)
	n.fd = fd
	t.Cleanup(func() {
		unix.Close(n.fd)
		n.fd = -1 // it is removed already
	})
}

// threads is what the kernel says of the privileges of a process's threads, all alike.
func threads(t *testing.T, pid int) map[string]string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(files) < 2 {
		t.Fatalf("threads of tcptrace: %v, %v; want some", files, err)
	}
	all := map[string]string{}
	for _, file := range files {
		status, err := os.ReadFile(file)
		if errors.Is(err, os.ErrNotExist) {
			continue // it has just ended
		}
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(status)) {
			name, value, _ := strings.Cut(line, ":")
			if value = strings.TrimSpace(value); !strings.HasPrefix(name, "Cap") && name != "NoNewPrivs" {
				continue
			}
			if first, known := all[name]; known && first != value {
				t.Errorf("%s: %s %s, want %s as in other threads", file, name, value, first)
			}
			all[name] = value
		}
	}
	return all
}

// lacks are the capabilities that a run has said it lacks.
func lacks(stderr string) (names []string) {
	for line := range strings.Lines(stderr) {
		if rest, ok := strings.CutPrefix(line, "tcptrace: without "); ok {
			name, _, _ := strings.Cut(rest, ":")
			names = append(names, name)
		}
	}
	return names
}

// keeps says which capabilities remain, and to what others are bounded.
func (y *yield) keeps(bounds []int, caps ...int) {
	maps.Copy(y.Threads, map[string]string{"CapEff": capMask(caps...), "CapPrm": capMask(caps...), "CapBnd": capMask(bounds...)})
}

// Each row starts with no capabilities but those it names; what it has not got is all that
// it loses. What remains once it traces is what scans need.
func TestTheDocumentedCapabilitiesAreEnough(t *testing.T) {
	live(t)
	const nobody = 65534
	all := documented(t)
	later := without(all, unix.CAP_BPF, unix.CAP_PERFMON)
	noPtrace, noAdmin := without(all, unix.CAP_SYS_PTRACE), without(all, unix.CAP_SYS_ADMIN)
	// Without CAP_SYS_ADMIN some kernels ask for CAP_BPF all the time.
	stays := func(caps ...int) []int {
		if bpfStaysPrivileged(t) {
			caps = append(caps, unix.CAP_BPF)
		}
		return caps
	}
	for _, row := range []struct {
		name    string
		user    user
		mounted bool
		want    func(*yield)
	}{
		{name: "root", want: func(y *yield) { y.keeps(later, later...) }},
		{name: "root with these", user: user{confined: true, caps: all}, want: func(y *yield) { y.keeps(all, later...) }},
		{name: "nobody with these", user: user{confined: true, caps: all, uid: nobody}, want: func(y *yield) { y.keeps(all, later...) }},
		{
			name: "nobody with a file that has these", user: user{confined: true, caps: all, uid: nobody, file: true},
			want: func(y *yield) { y.keeps(all, later...) },
		},
		{name: "CAP_SYS_ADMIN for CAP_BPF and CAP_PERFMON", user: user{confined: true, caps: later}, want: func(y *yield) { y.keeps(later, later...) }},
		{name: "no CAP_SYS_PTRACE", user: user{confined: true, caps: noPtrace}, want: func(y *yield) {
			y.Exe, y.NotAccepted, y.Without = "null", 0.0, []string{"CAP_SYS_PTRACE"}
			y.keeps(noPtrace, without(later, unix.CAP_SYS_PTRACE)...)
		}},
		{name: "no CAP_SYS_PTRACE but a mount", user: user{confined: true, caps: noPtrace}, mounted: true, want: func(y *yield) {
			y.Exe, y.Without = "null", []string{"CAP_SYS_PTRACE"}
			y.keeps(noPtrace, without(later, unix.CAP_SYS_PTRACE)...)
		}},
		{name: "no CAP_SYS_ADMIN", user: user{confined: true, caps: noAdmin, uid: nobody}, mounted: true, want: func(y *yield) {
			y.NotAccepted, y.Without = 0.0, []string{"CAP_SYS_ADMIN"}
			y.keeps(noAdmin, stays(without(later, unix.CAP_SYS_ADMIN)...)...)
		}},
		{name: "the least", user: user{confined: true, caps: []int{unix.CAP_BPF, unix.CAP_PERFMON}, uid: nobody}, want: func(y *yield) {
			y.Exe, y.NotAccepted, y.Without = "null", 0.0, []string{"CAP_SYS_PTRACE", "CAP_SYS_ADMIN"}
			if slices.Contains(all, unix.CAP_DAC_READ_SEARCH) {
				y.Without = append(y.Without, "CAP_DAC_READ_SEARCH")
			}
			y.keeps([]int{unix.CAP_BPF, unix.CAP_PERFMON}, stays()...)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			yieldOf(t, row.user, row.mounted, row.want)
		})
	}
}

// bpfStaysPrivileged asks the kernel, from a thread without capabilities, whether it lets
// one without them use what is loaded.
func bpfStaysPrivileged(t *testing.T) bool {
	t.Helper()
	errno := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		if err := unix.Capset(&head, &new([2]unix.CapUserData)[0]); err != nil {
			errno <- err
			return
		}
		noMap := ^uint32(0)
		_, _, err := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_FREEZE, uintptr(unsafe.Pointer(&noMap)), unsafe.Sizeof(noMap))
		errno <- err
	}()
	err := <-errno
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EBADF) {
		t.Fatalf("bpf: %v, want a refusal", err)
	}
	return errors.Is(err, unix.EPERM)
}

// Where /proc has no other users' processes, sockets from before the start may be in network
// namespaces that are not found. What becomes of them then is no sign of anything missed.
func TestNothingWasMissedOfSocketsThatHiddenProcessesKeep(t *testing.T) {
	t.Parallel()
	_, runs := playComplete(t, func(s *scene) {
		cli, srv := s.agents2()
		s.ns.unmount(t)
		c := cli.dial(srv.listen(anyPort4)) // nobody holds the other end
		hidden := user{by: slices.Concat(inMounts("mount -t proc -o hidepid=2 proc /proc"),
			bounded("-all,+bpf,+perfmon"), []string{"--regid", "65534", "--clear-groups"})} // nothing is hidden from group 0
		s.add(startTracerAs(t, hidden, "--netns", fmt.Sprint(s.ns.inode)))
		c.close()
		s.await(func(records []record) bool {
			return slices.ContainsFunc(records, func(r record) bool { return r.NewState == "CLOSE_WAIT" })
		})
	})
	for _, r := range runs[0].records {
		if r.isTransition() && r.Gap {
			t.Errorf("got a gap before %s -> %s, want none", r.OldState, r.NewState)
		}
	}
}

// What cannot be loaded is told by the name of what is missing, and how to get it.
func TestWithoutTheCapabilitiesToLoadItSaysWhichAreMissing(t *testing.T) {
	live(t)
	for _, row := range []struct {
		has     []int
		missing string
	}{
		{nil, "CAP_BPF and CAP_PERFMON"},
		{[]int{unix.CAP_BPF, unix.CAP_SYS_PTRACE}, "CAP_PERFMON"},
		{[]int{unix.CAP_PERFMON, unix.CAP_SYS_PTRACE}, "CAP_BPF"},
	} {
		for _, uid := range []uint32{0, 65534} {
			for _, command := range [][]string{{"--duration", "5s"}, {"snapshot"}} {
				want := "load BPF programs: " + row.missing + " missing; run it as root"
				stderr, status := user{confined: true, caps: row.has, uid: uid}.run(t, command...)
				if status != 1 || !strings.Contains(stderr, want) || !strings.Contains(stderr, "tcptrace check") || strings.Contains(stderr, "MEMLOCK") {
					t.Errorf("%q as %d with %v: exit status %d, want 1 and %q, tcptrace check and no MEMLOCK in:\n%s", command, uid, row.has, status, want, stderr)
				}
			}
		}
	}
}

// Some refuse those too who have the capabilities: then neither these nor the limit of
// locked memory is to blame, which cannot be raised there.
func TestWhatNoCapabilityOvercomesIsNamed(t *testing.T) {
	t.Parallel()
	live(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		user user
		want string
	}{
		{"a user namespace", user{by: []string{"unshare", "--user", "--map-root-user"}}, "hostUsers: true"},
		{"a seccomp filter", user{
			by: []string{"setpriv", "--no-new-privs", "env", seccompEnv + "=refuse", self}, confined: true, caps: []int{unix.CAP_BPF, unix.CAP_PERFMON},
		}, "seccomp"},
	} {
		for _, command := range [][]string{{"--duration", "1ms"}, {"snapshot"}} {
			stderr, status := row.user.run(t, command...)
			if status != 1 || !strings.Contains(stderr, row.want) || strings.Contains(stderr, "MEMLOCK") || strings.Contains(stderr, "as root") {
				t.Errorf("%s, %q: exit status %d, want 1 and %q, no capability and no MEMLOCK in:\n%s", row.name, command, status, row.want, stderr)
			}
		}
	}
}

// It goes on with its own network namespace, and says so.
func TestWhereThereIsNoSetnsOtherNamespacesAreLeftOut(t *testing.T) {
	t.Parallel()
	newNetns(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	filtered := user{by: []string{"env", seccompEnv + "=no setns", self}}
	for _, command := range [][]string{{"--duration", "1ms"}, {"snapshot"}} {
		stderr, status := filtered.run(t, command...)
		if want := "not every network namespace could be entered"; status != 0 || !strings.Contains(stderr, want) {
			t.Errorf("%q: exit status %d, want 0 and %q in:\n%s", command, status, want, stderr)
		}
	}
}

// Before 5.11 the kernel counts what BPF takes as locked memory.
func TestWhereMemoryIsCountedALowLimitIsLiftedOrTheMendNamed(t *testing.T) {
	t.Parallel()
	live(t)
	u := user{by: []string{"prlimit", "--memlock=65536:65536"}, confined: true, caps: []int{unix.CAP_BPF, unix.CAP_PERFMON}}
	stderr, status := u.run(t, "--duration", "1ms")
	if want := `"ulimit -l unlimited"`; status != 0 && (status != 1 || !strings.Contains(stderr, want)) {
		t.Errorf("exit status %d, stderr %q; want 0, or 1 and %q in it", status, stderr, want)
	}
	u.caps = append(u.caps, unix.CAP_SYS_RESOURCE)
	if stderr, status := u.run(t, "--duration", "1ms"); status != 0 {
		t.Errorf("with CAP_SYS_RESOURCE: exit status %d, stderr %q; want 0", status, stderr)
	}
}

// A recording is played by anybody.
func TestAReplayNeedsNoPrivilege(t *testing.T) {
	live(t)
	recording, err := filepath.Abs("../cmd/tcptrace/testdata/recordings/refused.rec")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(recording)
	if err != nil {
		t.Fatal(err)
	}
	nobody := user{confined: true, uid: 65534}
	file := filepath.Join(filepath.Dir(copyForAll(t)), "refused.rec") // where nobody may read it
	if err := os.WriteFile(file, content, 0o644); err != nil {
		t.Fatal(err)
	}
	if stderr, status := nobody.run(t, "--replay", file); status != 0 {
		t.Errorf("exit status %d, want 0:\n%s", status, stderr)
	}
}

// run runs tcptrace until it ends by itself.
func (u user) run(t *testing.T, args ...string) (stderr string, status int) {
	t.Helper()
	cmd := u.command(t, args...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := u.start(cmd); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(callTimeout, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait() // ProcessState has the status
	return log.String(), cmd.ProcessState.ExitCode()
}
