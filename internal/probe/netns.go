package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/privilege"
)

// home is the network namespace that we are in.
type home struct {
	file  *os.File
	inode uint32
}

func openHome() (h home, err error) {
	// Not of the process: its first thread may be elsewhere for a moment.
	if h.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return h, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(int(h.file.Fd()), &st); err != nil {
		return h, errors.Join(err, h.file.Close())
	}
	h.inode = uint32(st.Ino)
	return h, nil
}

// IsHome reports whether a number is that of the network namespace that we are in.
func (p *Probe) IsHome(inode uint32) bool { return inode == p.home.inode }

// Why a network namespace cannot be entered.
var (
	errMoved  = errors.New("the path leads there no more")
	errGone   = errors.New("no process is in it any more, nor is it mounted")
	errHidden = fmt.Errorf("nothing leads there that may be looked at: %w", os.ErrPermission)
)

// within runs f on a thread that is in a network namespace. It returns errGone if nothing leads
// there, and else what f returns or the kernel refuses with.
func (p *Probe) within(inode uint32, f func() error) error {
	if inode == p.home.inode { // needs no privilege
		return f()
	}
	for range 3 { // who is in it may exit before we enter, while others stay
		if path := p.paths[inode]; path != "" {
			if err := p.home.leaveFor(path, inode, f); !errors.Is(err, errMoved) {
				return err
			}
		}
		// To look for all takes longer than to look through most.
		var all bool
		var err error
		if p.paths, all, err = p.home.others(); err != nil {
			return err
		}
		switch {
		case p.paths[inode] != "":
		case all:
			return errGone
		default:
			return errHidden
		}
	}
	return fmt.Errorf("network namespace %d: %w", inode, errMoved)
}

// leaveFor runs f on a thread that is in the network namespace at path, if it is the one with that
// number; else it returns errMoved.
func (h home) leaveFor(path string, inode uint32, f func() error) error {
	there, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) { // whoever has the PID now
		return errMoved
	}
	if err != nil {
		return err
	}
	defer func() { _ = there.Close() }() // it was only looked at
	var st unix.Stat_t
	if err := unix.Fstat(int(there.Fd()), &st); err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	if uint32(st.Ino) != inode {
		return errMoved
	}
	return h.elsewhere(func() error {
		if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return nil
	}, f)
}

func inode(path string) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, unix.EACCES // how 5.10 says so: the link leads to the directory that it is in
	}
	return uint32(st.Ino), nil
}

// elsewhere runs f on a thread that go has taken to another network namespace.
func (h home) elsewhere(leave, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := leave(); err != nil {
			// It may have left all the same.
			h.comeBack()
			done <- err
			return
		}
		err := f()
		h.comeBack()
		done <- err
	}()
	return <-done
}

// comeBack gives the thread back, in the network namespace that it came from. Else it
// ends with its goroutine, so that no other ever runs in the wrong namespace.
func (h home) comeBack() {
	if unix.Setns(int(h.file.Fd()), unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread()
	}
}

// others finds the network namespaces that a process is in or that are mounted
// somewhere (ip netns, container runtimes), by inode number; and our own. It reports
// whether all is that can be found, given the capability to look at every process.
func (h home) others() (found map[uint32]string, all bool, err error) {
	found, all = map[uint32]string{h.inode: "/proc/self/ns/net"}, true
	add := func(path string) {
		inode, err := inode(path)
		if err == nil && found[inode] == "" {
			found[inode] = path
		}
		// Some processes are hidden even from those who have it.
		if errors.Is(err, os.ErrPermission) && !privilege.Has(unix.CAP_SYS_PTRACE) {
			all = false
		}
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, false, err
	}
	for _, proc := range procs {
		add(proc + "/ns/net") // no part of the pattern: a file may be open to us in a directory that is not
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, false, err
	}
	for line := range strings.Lines(string(mounts)) {
		// ID parent major:minor root mountpoint options... - type source options
		f := strings.Fields(line)
		if len(f) > 5 && strings.HasPrefix(f[3], "net:[") {
			add(f[4])
		}
		// Processes that are not in /proc at all refuse nothing.
		if len(f) > 5 && f[4] == "/proc" && strings.Contains(f[len(f)-1], "hidepid=") && !privilege.Has(unix.CAP_SYS_PTRACE) {
			all = false
		}
	}
	return found, all, nil
}

// Reach counts the network namespaces that can be found, ours included, and how many
// of them can be entered. It reports whether there may be others for want of
// CAP_SYS_PTRACE. It loads nothing.
func Reach() (found, entered int, more bool, err error) {
	h, err := openHome()
	if err != nil {
		return 0, 0, false, fmt.Errorf("network namespace: %w", err)
	}
	defer func() { _ = h.file.Close() }()
	paths, all, err := h.others()
	if err != nil {
		return 0, 0, false, err
	}
	for inode, path := range paths {
		err := error(nil)
		if inode != h.inode {
			err = h.leaveFor(path, inode, func() error { return nil })
		}
		switch {
		case err == nil:
			entered++
		case errors.Is(err, errMoved):
			continue // gone meanwhile
		}
		found++
	}
	return found, entered, !all, nil
}
