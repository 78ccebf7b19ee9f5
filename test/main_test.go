// Package livetest drives the built command against the running kernel: it
// makes TCP traffic whose truth it knows, in network namespaces of its own, and
// compares what tcptrace prints with what the processes that made it say.
//
// The command is the one that TCPTRACE_BIN names; without it, one is built. With
// -short, loads are smaller: an emulated CPU takes ten times as long.
package livetest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// recordDir is where each scenario leaves its raw events: this is how the
// fixtures of the unit tests are made.
var recordDir = flag.String("record", "", "keep each scenario's raw events in `DIR`/<scenario>.rec")

// tcptraceBin is the command under test. TestMain sets it.
var tcptraceBin string

// buildDir is where TestMain builds, and removes in the end.
var buildDir string

// atOnce bounds the tests that run side by side. They mostly sleep, but each
// traces, and programs on one tracepoint run one after the other.
const atOnce = "4"

func init() {
	// An agent's main goroutine must stay on the thread group's leader, so that
	// its socket calls surely come from another thread: see runAgent.
	if os.Getenv(agentEnv) != "" {
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(agentEnv) != "" {
		runAgent()
	}
	flag.Parse()
	status, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

func runTests(m *testing.M) (status int, err error) {
	if cannotTrace() == nil {
		// Before 5.11 BPF memory counts as locked; without CAP_SYS_RESOURCE this is the way.
		unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
		if failed := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited); failed != nil && !errors.Is(failed, unix.EPERM) {
			return 0, failed
		}
		dir, failed := os.MkdirTemp("", "tcptrace-test-")
		if failed != nil {
			return 0, failed
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
		buildDir = dir
		if tcptraceBin, failed = findBinary(dir); failed != nil {
			return 0, failed
		}
	}
	// An explicit -parallel is the user's wish.
	explicit := false
	flag.Visit(func(f *flag.Flag) { explicit = explicit || f.Name == "test.parallel" })
	if !explicit {
		if err := flag.Set("test.parallel", atOnce); err != nil {
			return 0, err
		}
	}
	return m.Run(), nil
}

func findBinary(dir string) (string, error) {
	if bin := os.Getenv("TCPTRACE_BIN"); bin != "" {
		return filepath.Abs(bin)
	}
	return program(dir, "tcptrace", "../cmd/tcptrace", "go", "build")
}

// program is the path of a program that compiler makes of source, in dir. Where
// TCPTRACE_TESTBIN names a directory it is the one in there: a virtual machine
// has no compiler.
func program(dir, name, source string, compiler ...string) (string, error) {
	if made := os.Getenv("TCPTRACE_TESTBIN"); made != "" {
		return filepath.Abs(filepath.Join(made, name))
	}
	bin := filepath.Join(dir, name)
	cmd := exec.Command(compiler[0], append(compiler[1:], "-o", bin, source)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0") // as the Makefile builds the command
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return bin, nil
}

// cannotTrace says why nothing can be traced here, nil if it can.
func cannotTrace() error {
	if os.Geteuid() != 0 {
		return errors.New("live tests need root: they make network namespaces and load BPF programs")
	}
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return fmt.Errorf("live tests need the kernel's types: %w", err)
	}
	return nil
}

// live skips a test where nothing can be traced. It is the only reason to skip
// in this package: where tracing is possible at all, every test counts.
func live(t *testing.T) {
	t.Helper()
	if err := cannotTrace(); err != nil {
		t.Skip(err)
	}
}
