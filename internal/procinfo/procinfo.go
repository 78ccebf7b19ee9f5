// Package procinfo reads what /proc says about processes.
package procinfo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
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
	dir := f.dir(pid)
	stat, err := f.read(pid, "stat")
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

// Exe returns the path of the program that the process runs, as /proc has it:
// with " (deleted)" behind it where the file is gone. It is "" for a process that
// runs none, as kernel threads and zombies do.
func (f FS) Exe(pid uint32) (string, error) {
	exe, err := os.Readlink(filepath.Join(f.dir(pid), "exe"))
	if err = f.gone(pid, err); errors.Is(err, fs.ErrNotExist) {
		for _, dir := range f.threads(pid) {
			if exe, err := os.Readlink(filepath.Join(dir, "exe")); err == nil {
				return exe, nil
			}
		}
		return "", nil
	}
	return exe, err
}

// threads returns the directories of the process's threads. Where the first one
// has ended, the process's own directory speaks for a zombie, while the others
// have its program and its descriptors.
func (f FS) threads(pid uint32) []string {
	// A pattern that is right gives no error.
	dirs, _ := filepath.Glob(filepath.Join(f.dir(pid), "task", "*"))
	return dirs
}

// Files returns how many descriptors the process has open, and its soft limit of
// their number, math.MaxUint64 for none.
func (f FS) Files(pid uint32) (open uint32, limit uint64, err error) {
	limits, err := f.read(pid, "limits")
	if err != nil {
		return 0, 0, err
	}
	if len(limits) == 0 { // it went after the file was opened
		return 0, 0, ErrNoProcess
	}
	if limit, err = fileLimit(limits); err != nil {
		return 0, 0, fmt.Errorf("%s/limits: %w", f.dir(pid), err)
	}
	if open, err = openFiles(filepath.Join(f.dir(pid), "fd")); err != nil {
		return 0, 0, f.gone(pid, err)
	}
	if open == 0 {
		for _, dir := range f.threads(pid) {
			if n, err := openFiles(filepath.Join(dir, "fd")); err == nil && n > 0 {
				return n, limit, nil
			}
		}
	}
	return open, limit, nil
}

// fileLimit finds the soft limit of open files in the content of a limits file.
func fileLimit(limits []byte) (uint64, error) {
	for line := range bytes.Lines(limits) {
		v, ok := bytes.CutPrefix(line, []byte("Max open files "))
		if !ok {
			continue
		}
		soft, _, _ := bytes.Cut(bytes.TrimLeft(v, " "), []byte(" "))
		if string(soft) == "unlimited" {
			return math.MaxUint64, nil
		}
		return strconv.ParseUint(string(soft), 10, 64)
	}
	return 0, errors.New("no limit of open files")
}

// openFiles counts the descriptors in a process's directory of them.
func openFiles(dir string) (uint32, error) {
	// Since Linux 6.2 their number is the directory's size. What a directory on
	// another file system has as its size is something else.
	var on unix.Statfs_t
	if err := unix.Statfs(dir, &on); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if on.Type == unix.PROC_SUPER_MAGIC {
		info, err := os.Stat(dir)
		if err != nil {
			return 0, err
		}
		if info.Size() > 0 {
			return uint32(info.Size()), nil
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer func() { _ = d.Close() }() // it was only read
	for n := uint32(0); ; {
		names, err := d.Readdirnames(1024) // a server may have a million
		n += uint32(len(names))
		if errors.Is(err, io.EOF) {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func (f FS) dir(pid uint32) string {
	return filepath.Join(f.root, strconv.FormatUint(uint64(pid), 10))
}

// read returns the content of a file of the process.
func (f FS) read(pid uint32, name string) ([]byte, error) {
	content, err := os.ReadFile(filepath.Join(f.dir(pid), name))
	return content, f.gone(pid, err)
}

// gone returns ErrNoProcess where err says that there is no such process, and
// else err as it is: that a file is missing may be true of this kernel, or this
// kind of process.
func (f FS) gone(pid uint32, err error) error {
	if errors.Is(err, unix.ESRCH) { // it went after the file was opened
		return ErrNoProcess
	}
	if errors.Is(err, fs.ErrNotExist) {
		if _, none := os.Lstat(f.dir(pid)); errors.Is(none, fs.ErrNotExist) {
			return ErrNoProcess
		}
	}
	return err
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
