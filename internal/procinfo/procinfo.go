// Package procinfo reads what /proc says about processes.
package procinfo

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// FS is a mounted procfs. Its PIDs are those of the PID namespace that it was
// mounted in.
type FS struct{ root string }

// Open returns the procfs at root, "/proc" but in tests.
func Open(root string) FS { return FS{root} }

// Process is one process, or a thread of one.
type Process struct {
	Pid  uint32
	Tgid uint32 // differs from Pid for a thread
	Ppid uint32
	Comm string // any bytes
}

// ErrNoProcess is the error for a PID that no process has.
var ErrNoProcess = errors.New("no such process")

// Process returns the process, or the thread, with this PID.
func (f FS) Process(pid uint32) (Process, error) {
	p := Process{Pid: pid}
	dir := filepath.Join(f.root, strconv.FormatUint(uint64(pid), 10))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if errors.Is(err, fs.ErrNotExist) {
		return p, ErrNoProcess
	}
	if err != nil {
		return p, err
	}
	// PID (comm) state ppid ...: comm may hold anything, brackets too.
	from, to := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if from < 0 || to < from {
		return p, fmt.Errorf("%s/stat: no command name", dir)
	}
	p.Comm = string(stat[from+1 : to])
	rest := bytes.Fields(stat[to+1:])
	if len(rest) < 2 {
		return p, fmt.Errorf("%s/stat: no parent", dir)
	}
	p.Ppid = number(rest[1])

	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return p, ErrNoProcess // it has just gone
	}
	for line := range bytes.Lines(status) {
		if v, ok := bytes.CutPrefix(line, []byte("Tgid:")); ok {
			p.Tgid = number(bytes.TrimSpace(v))
		}
	}
	return p, nil
}

func number(b []byte) uint32 {
	n, _ := strconv.ParseUint(string(b), 10, 32)
	return uint32(n)
}

// Processes returns all processes that there are, parents before children.
func (f FS) Processes() ([]Process, error) {
	entries, err := os.ReadDir(f.root)
	if err != nil {
		return nil, err
	}
	children := map[uint32][]Process{}
	alive := map[uint32]bool{}
	for _, e := range entries {
		pid, err := strconv.ParseUint(e.Name(), 10, 32)
		if err != nil {
			continue
		}
		p, err := f.Process(uint32(pid))
		if err != nil {
			continue // it has just gone
		}
		children[p.Ppid] = append(children[p.Ppid], p)
		alive[p.Pid] = true
	}
	var all []Process
	var walk func(pid uint32)
	walk = func(pid uint32) {
		for _, p := range children[pid] {
			all = append(all, p)
			walk(p.Pid)
		}
	}
	for ppid := range children {
		if !alive[ppid] { // 0, or a parent that went while we looked
			walk(ppid)
		}
	}
	return all, nil
}
