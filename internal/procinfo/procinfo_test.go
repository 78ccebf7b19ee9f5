package procinfo

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fixture is a procfs in a directory.
type fixture struct {
	t    *testing.T
	root string
}

func newFixture(t *testing.T) fixture { return fixture{t, t.TempDir()} }

// file writes a file of a process.
func (f fixture) file(pid, name, content string) {
	f.t.Helper()
	dir := filepath.Join(f.root, pid)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

// process writes the files of a task as proc(5) describes them: stat has the
// name as it is, status has it escaped.
func (f fixture) process(pid, tgid, ppid uint32, comm string) {
	f.t.Helper()
	escaped := strings.NewReplacer("\n", `\n`, `\`, `\\`).Replace(comm)
	dir := fmt.Sprint(pid)
	f.file(dir, "stat", fmt.Sprintf("%d (%s) S %d 1 1 0 -1 4194560 17 0 0 0 0 0 0 0 20 0 1 0 5 0 0\n", pid, comm, ppid))
	f.file(dir, "status", fmt.Sprintf("Name:\t%s\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t%d\nNgid:\t0\nPid:\t%d\nPPid:\t%d\n", escaped, tgid, pid, ppid))
}

func TestAProcessIsReadWhateverItsName(t *testing.T) {
	for _, comm := range []string{
		"nginx", "", "a b", "(sd-pam)", "a) S 1 (b", ") R 99 99", "((((", "))))", "line\nbreak", "Tgid:\t99", "\nTgid:\t99",
		"\xff\xfe", "kworker/u8:3-events_unbound_long_name",
	} {
		t.Run(fmt.Sprintf("%q", comm), func(t *testing.T) {
			f := newFixture(t)
			f.process(42, 42, 7, comm)
			got, err := Open(f.root).Process(42)
			if err != nil {
				t.Fatal(err)
			}
			if want := (Process{Pid: 42, Tgid: 42, Ppid: 7, Comm: comm}); got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		})
	}
}

func TestAThreadNamesItsProcess(t *testing.T) {
	f := newFixture(t)
	f.process(43, 42, 7, "worker")
	got, err := Open(f.root).Process(43)
	if err != nil {
		t.Fatal(err)
	}
	if want := (Process{Pid: 43, Tgid: 42, Ppid: 7, Comm: "worker"}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestAProcessThatIsNotThereIsErrNoProcess(t *testing.T) {
	f := newFixture(t)
	f.process(42, 42, 1, "gone")
	if err := os.Remove(filepath.Join(f.root, "42", "status")); err != nil {
		t.Fatal(err)
	}
	for pid, what := range map[uint32]string{1: "never was", 42: "went between its two files"} {
		if _, err := Open(f.root).Process(pid); !errors.Is(err, ErrNoProcess) {
			t.Errorf("a process that %s: got error %v, want ErrNoProcess", what, err)
		}
	}
	expectGone(t, Open(f.root), 1)
}

// expectGone checks that nothing can be read of the process, because it is gone.
func expectGone(t *testing.T, proc FS, pid uint32) {
	t.Helper()
	if got, err := proc.Process(pid); !errors.Is(err, ErrNoProcess) {
		t.Errorf("Process: got %+v, error %v; want ErrNoProcess", got, err)
	}
	if got, err := proc.Container(pid); !errors.Is(err, ErrNoProcess) {
		t.Errorf("Container: got %q, error %v; want ErrNoProcess", got, err)
	}
	if got, err := proc.Exe(pid); !errors.Is(err, ErrNoProcess) {
		t.Errorf("Exe: got %q, error %v; want ErrNoProcess", got, err)
	}
	if open, limit, err := proc.Files(pid); !errors.Is(err, ErrNoProcess) {
		t.Errorf("Files: got %d of %d, error %v; want ErrNoProcess", open, limit, err)
	}
}

func TestAStatThatIsNoneIsAnErrorThatNamesTheFile(t *testing.T) {
	for _, stat := range []string{"", "42", "42 nginx S 1", "42 )nginx( S 1", "42 (nginx)", "42 (nginx) S"} {
		f := newFixture(t)
		f.file("42", "stat", stat)
		f.file("42", "status", "Tgid:\t42\n")
		want := filepath.Join(f.root, "42", "stat")
		if _, err := Open(f.root).Process(42); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("stat %q: got error %v, want one with %s", stat, err, want)
		}
	}
}

func TestParentsComeBeforeTheirChildren(t *testing.T) {
	f := newFixture(t)
	// As after PIDs have wrapped around: children with smaller numbers.
	tree := map[uint32]uint32{
		1: 0, 2: 0, // init and kthreadd
		900: 1, 30: 900, 20: 30, 10: 20, 31: 900, 1000: 1,
		3: 2,
		// Their parents, 5000 and 6000, went while we looked.
		400: 5000, 399: 400, 398: 399,
		50: 6000,
	}
	for pid, ppid := range tree {
		f.process(pid, pid, ppid, "p")
	}
	// What else is in a procfs.
	f.file("self", "stat", "not a PID")
	f.file("sys", "stat", "")
	f.file("77", "stat", "77 (gone) S 1") // and its status is gone
	for _, name := range []string{"uptime", "-1", "99999999999"} {
		if err := os.WriteFile(filepath.Join(f.root, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}

	all, err := Open(f.root).Processes()
	if err != nil {
		t.Fatal(err)
	}
	at := map[uint32]int{}
	for i, p := range all {
		if _, twice := at[p.Pid]; twice {
			t.Errorf("got process %d twice", p.Pid)
		}
		at[p.Pid] = i
	}
	if len(all) != len(tree) {
		t.Errorf("got %d processes, want %d: %+v", len(all), len(tree), all)
	}
	for pid, ppid := range tree {
		i, ok := at[pid]
		if !ok {
			t.Errorf("process %d is missing", pid)
			continue
		}
		if all[i].Ppid != ppid {
			t.Errorf("process %d: got parent %d, want %d", pid, all[i].Ppid, ppid)
		}
		if parent, ok := at[ppid]; ok && parent > i {
			t.Errorf("process %d stands before its parent %d", pid, ppid)
		}
	}
}

// limits are lines of a limits file, with this soft limit of open files.
func limits(files string) string {
	const format = "%-25s %-20s %-20s %-10s\n" // of fs/proc/base.c
	return fmt.Sprintf(format, "Limit", "Soft Limit", "Hard Limit", "Units") +
		fmt.Sprintf(format, "Max core file size", "0", "unlimited", "bytes") +
		fmt.Sprintf(format, "Max open files", files, "1048576", "files") +
		fmt.Sprintf(format, "Max locked memory", "8388608", "8388608", "bytes")
}

func TestOpenFilesAreCountedAndTheirLimitIsRead(t *testing.T) {
	for _, c := range []struct {
		open  uint32
		soft  string
		limit uint64
	}{
		{0, "1024", 1024},
		{5, "unlimited", math.MaxUint64},
		{3, "0", 0},
		{1, "18446744073709551615", math.MaxUint64},
		{1500, "1073741816", 1073741816}, // more than are read at a time
	} {
		f := newFixture(t)
		f.file("42", "limits", limits(c.soft))
		if err := os.Mkdir(filepath.Join(f.root, "42", "fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		for fd := range c.open {
			f.file("42/fd", fmt.Sprint(fd), "")
		}
		open, limit, err := Open(f.root).Files(42)
		if open != c.open || limit != c.limit || err != nil {
			t.Errorf("got %d open of %d, error %v; want %d of %d", open, limit, err, c.open, c.limit)
		}
	}
}

func TestALimitsFileThatIsNoneIsAnErrorThatNamesIt(t *testing.T) {
	for _, content := range []string{"\n", "Max open files", limits("many"), limits("-1"), "Max processes 1 1 processes\n"} {
		f := newFixture(t)
		f.file("42", "limits", content)
		f.file("42/fd", "0", "")
		want := filepath.Join(f.root, "42", "limits")
		if _, _, err := Open(f.root).Files(42); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("content %q: got error %v, want one with %s", content, err, want)
		}
	}
}

func TestAProcessThatGoesWhileItsLimitsAreReadIsErrNoProcess(t *testing.T) {
	f := newFixture(t)
	f.file("42", "limits", "") // what the kernel shows of one that was reaped
	f.file("42/fd", "0", "")
	if open, limit, err := Open(f.root).Files(42); !errors.Is(err, ErrNoProcess) {
		t.Errorf("got %d of %d, error %v; want ErrNoProcess", open, limit, err)
	}
}

func TestTheProgramIsReadAsProcHasIt(t *testing.T) {
	for _, exe := range []string{"/usr/sbin/nginx", "/usr/sbin/nginx (deleted)", "/opt/my app/\n\xff", strings.Repeat("/long", 700)} {
		f := newFixture(t)
		f.process(42, 42, 1, "nginx")
		if err := os.Symlink(exe, filepath.Join(f.root, "42", "exe")); err != nil {
			t.Fatal(err)
		}
		if got, err := Open(f.root).Exe(42); got != exe || err != nil {
			t.Errorf("got %q, error %v; want %q", got, err, exe)
		}
	}
}

func TestAProcessWithoutAProgramIsNotGone(t *testing.T) {
	f := newFixture(t)
	f.process(2, 2, 0, "kthreadd")
	if got, err := Open(f.root).Exe(2); got != "" || err != nil {
		t.Errorf("got %q, error %v; want none", got, err)
	}
}

func TestAProcfsThatIsNotThereIsAnError(t *testing.T) {
	if got, err := Open(filepath.Join(t.TempDir(), "proc")).Processes(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v and error %v, want one that it does not exist", got, err)
	}
}

func TestTheRealProcKnowsThisProcess(t *testing.T) {
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	pid := uint32(os.Getpid())
	want := Process{Pid: pid, Tgid: pid, Ppid: uint32(os.Getppid()), Comm: strings.TrimSuffix(string(comm), "\n")}
	proc := Open("/proc")
	if got, err := proc.Process(pid); err != nil || got != want {
		t.Errorf("Process: got %+v, error %v; want %+v", got, err, want)
	}
	all, err := proc.Processes()
	if err != nil {
		t.Fatal(err)
	}
	self, parent := -1, -1
	for i, p := range all {
		switch p.Pid {
		case want.Pid:
			self = i
		case want.Ppid:
			parent = i
		}
	}
	if self < 0 || all[self] != want {
		t.Errorf("Processes: got no %+v", want)
	}
	if parent > self {
		t.Errorf("Processes: got this process at %d, its parent at %d; want the parent first", self, parent)
	}
}

func TestTheRealProcShowsTheNameThatAThreadGaveItself(t *testing.T) {
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	tid := uint32(unix.Gettid())
	for _, name := range []string{"a) S 1 (b", "new\nline", "\x1b[2J\xff", `back\slash`} {
		// PR_SET_NAME takes a string that ends with NUL.
		raw := append([]byte(name), 0)
		if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&raw[0])), 0, 0, 0); err != nil {
			t.Fatal(err)
		}
		got, err := Open("/proc").Process(tid)
		want := Process{Pid: tid, Tgid: uint32(os.Getpid()), Ppid: uint32(os.Getppid()), Comm: name}
		if err != nil || got != want {
			t.Errorf("got %+v, error %v; want %+v", got, err, want)
		}
	}
}

func TestTheRealProcHasNoProcessThatHasEnded(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	// Its number is given to another only after all others were.
	expectGone(t, Open("/proc"), uint32(cmd.Process.Pid))
}

func TestTheRealProcCountsTheFilesOfThisProcess(t *testing.T) {
	proc, pid := Open("/proc"), uint32(os.Getpid())
	before, limit, err := proc.Files(pid)
	if err != nil {
		t.Fatal(err)
	}
	var want unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &want); err != nil {
		t.Fatal(err)
	}
	if limit != want.Cur {
		t.Errorf("got a limit of %d, want %d", limit, want.Cur)
	}
	const more = 100
	for range more {
		f, err := os.Open("/dev/null")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	if after, _, err := proc.Files(pid); err != nil || after != before+more {
		t.Errorf("got %d open files, error %v; want %d more than %d", after, err, more, before)
	}
}

func TestTheRealProcKnowsWhichProgramRuns(t *testing.T) {
	want, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Open("/proc").Exe(uint32(os.Getpid())); err != nil || got != want {
		t.Errorf("got %q, error %v; want %q", got, err, want)
	}

	// And that its file was removed.
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(sleep)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "sleep")
	if err := os.WriteFile(copied, content, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(copied, "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := uint32(cmd.Process.Pid)
	if err := os.Remove(copied); err != nil {
		t.Error(err)
	}
	if got, err := Open("/proc").Exe(pid); err != nil || got != copied+" (deleted)" {
		t.Errorf("got %q, error %v; want %q", got, err, copied+" (deleted)")
	}

	// A zombie runs nothing, but is there.
	if err := cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, int(pid), &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := Open("/proc").Exe(pid); err != nil || got != "" {
		t.Errorf("a zombie: got %q, error %v; want none", got, err)
	}
	if open, _, err := Open("/proc").Files(pid); err != nil || open != 0 {
		t.Errorf("a zombie: got %d open files, error %v; want 0", open, err)
	}
	_ = cmd.Wait() // it was killed
}

// A process whose main thread has called pthread_exit(3) lives on in the others.
func TestAProcessWhoseFirstThreadHasEndedIsThatOfTheOthers(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "7")
	for _, d := range []string{"fd", "task/7/fd", "task/8/fd"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, link := range []string{"task/8/exe", "task/8/fd/0", "task/8/fd/1", "task/8/fd/2"} {
		if err := os.Symlink("/usr/bin/server", filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	limits := "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            64                   128                  files     \n"
	if err := os.WriteFile(filepath.Join(dir, "limits"), []byte(limits), 0o600); err != nil {
		t.Fatal(err)
	}
	exe, err := Open(root).Exe(7)
	if exe != "/usr/bin/server" || err != nil {
		t.Errorf("exe: got %q, %v, want /usr/bin/server", exe, err)
	}
	open, limit, err := Open(root).Files(7)
	if open != 3 || limit != 64 || err != nil {
		t.Errorf("files: got %d of %d, %v, want 3 of 64", open, limit, err)
	}
}
