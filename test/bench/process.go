package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds all that is waited for. tcpstates takes 12 s for a storm.
const patience = time.Minute

// A process is one that the benchmark has started. What it prints goes to files that
// have no name.
type process struct {
	cmd            *exec.Cmd
	started        time.Time
	stdout, stderr *os.File
}

// start starts a command that dies with the calling thread.
func start(command ...string) (*process, error) {
	p := &process{cmd: exec.Command(command[0], command[1:]...)}
	var err error
	if p.stdout, err = nameless(); err != nil {
		return nil, err
	}
	if p.stderr, err = nameless(); err != nil {
		return nil, err
	}
	p.cmd.Stdout, p.cmd.Stderr = p.stdout, p.stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.started = time.Now()
	return p, p.cmd.Start()
}

func nameless() (*os.File, error) {
	f, err := os.CreateTemp("", "tcptrace-bench-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

func (p *process) pid() int { return p.cmd.Process.Pid }

func (p *process) wait() error {
	late := time.AfterFunc(patience, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, p.said())
	}
	return nil
}

// interrupt ends it as Ctrl-C does.
func (p *process) interrupt() error {
	return errors.Join(p.cmd.Process.Signal(syscall.SIGINT), p.wait())
}

func (p *process) close() {
	// Both fail if it has ended, as it mostly has.
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.stdout.Close()
	p.stderr.Close()
}

// said is what it has printed on stderr.
func (p *process) said() string {
	text, _ := io.ReadAll(io.NewSectionReader(p.stderr, 0, 1<<20))
	return string(text)
}

// printed calls look with every line that it has printed on stdout.
func (p *process) printed(look func(line []byte) error) error {
	if _, err := p.stdout.Seek(0, io.SeekStart); err != nil {
		return err
	}
	lines := bufio.NewScanner(p.stdout)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if err := look(lines.Bytes()); err != nil {
			return err
		}
	}
	return lines.Err()
}

// until waits for something that must come soon.
func until(what string, ready func() (bool, error)) error {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if ok, err := ready(); ok || err != nil {
			return err
		}
	}
	return fmt.Errorf("no %s within %v", what, patience)
}

// cpu is what its threads have used, in user mode and in the kernel, to the nanosecond.
func (p *process) cpu() (time.Duration, error) {
	var used unix.Timespec
	// The clock that clock_getcpuclockid(3) names.
	err := unix.ClockGettime(int32(^p.pid()<<3|2), &used)
	return time.Duration(used.Nano()), err
}

// settle waits until it has read all that there was to be read: for a quarter of a second
// it neither prints nor uses more than 4% of a core. It returns the CPU time until then.
func (p *process) settle() (time.Duration, error) {
	var size int64
	used := -time.Hour // longer ago than any two looks
	err := until("rest after the storm", func() (bool, error) {
		time.Sleep(time.Second / 4)
		now, err := p.cpu()
		st, failed := p.stdout.Stat()
		if err = errors.Join(err, failed); err != nil {
			return false, err
		}
		rest := st.Size() == size && now-used < time.Second/100
		size, used = st.Size(), now
		return rest, nil
	})
	return used, err
}

// peak is the most memory that it had resident, in bytes.
func (p *process) peak() (float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid()))
	kilobytes, _ := strconv.ParseFloat(strings.Fields(field(status, "VmHWM:"))[0], 64)
	return kilobytes * 1024, err
}

// field is the value of a line of a file in /proc.
func field(text []byte, name string) string {
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte(name)); ok {
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}
