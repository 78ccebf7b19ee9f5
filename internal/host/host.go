// Package host reads what the host, its kernel's settings and the container allow,
// from /proc and /sys. It judges nothing, and needs no privilege: what cannot be
// read is said to be unknown, with the error.
package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Known is a value, or why it is not known.
type Known[T any] struct {
	Value T
	Err   error
}

func known[T any](v T, err error) Known[T] { return Known[T]{v, err} }

// Facts is what there is to know. A file that this kernel does not have is an
// fs.ErrNotExist.
type Facts struct {
	Release         Known[string]
	Types           error         // why the kernel's BTF cannot be read; nil if it can
	Lockdown        Known[string] // none, integrity, confidentiality
	LSMs            Known[string] // separated by commas
	FtraceEnabled   Known[string]
	UnprivilegedBPF Known[string] // kernel.unprivileged_bpf_disabled
	KptrRestrict    Known[string]
	Tracefs         Known[bool] // is it mounted?
	Self            Known[Self]
	Memlock         Known[string] // soft limit: bytes, or "unlimited"
	InitialUser     Known[bool]   // are we in the initial user namespace?
	InitialPid      Known[bool]
	InitialCgroup   Known[bool]
	Hidepid         Known[string] // of /proc, "" for none
	Processes       Known[Processes]
	Cgroup          Known[string] // v1, v2, or v1+v2
}

// Self is what /proc/self/status says of this process.
type Self struct {
	Effective, Bounding uint64 // capabilities: bit N is number N
	Filtered            bool   // by seccomp
	NoNewPrivs          bool   // files with capabilities give none
	Uid                 int    // effective
	Stranger            bool   // this /proc is of another PID namespace than we are in
}

// Processes counts those that /proc shows.
type Processes struct {
	Visible int
	Closed  int // of these, do not let us see which program they run, and in which namespaces
}

// The inode numbers of the initial namespaces (PROC_USER_INIT_INO and so on), the same
// on every kernel.
const (
	initialCgroup = 0xEFFFFFFB
	initialPid    = 0xEFFFFFFC
	initialUser   = 0xEFFFFFFD
)

// Read reads the facts from a procfs and a sysfs: /proc and /sys but in tests.
func Read(proc, sys string) *Facts {
	d := dirs{proc, sys}
	return &Facts{
		Release:         d.sysctl("osrelease"),
		Types:           readable(filepath.Join(sys, "kernel/btf/vmlinux")),
		Lockdown:        known(d.lockdown()),
		LSMs:            known(line(filepath.Join(sys, "kernel/security/lsm"))),
		FtraceEnabled:   d.sysctl("ftrace_enabled"),
		UnprivilegedBPF: d.sysctl("unprivileged_bpf_disabled"),
		KptrRestrict:    d.sysctl("kptr_restrict"),
		Tracefs:         known(d.tracefs()),
		Self:            known(d.self()),
		Memlock:         known(d.memlock()),
		InitialUser:     known(InitialUser(proc)),
		InitialPid:      known(d.isIn("pid", initialPid)),
		InitialCgroup:   known(d.isIn("cgroup", initialCgroup)),
		Hidepid:         known(d.hidepid()),
		Processes:       known(d.processes()),
		Cgroup:          known(d.cgroup()),
	}
}

// InitialUser reports whether we are in the initial user namespace: in others,
// capabilities count for nothing when it comes to BPF.
func InitialUser(proc string) (bool, error) { return dirs{proc: proc}.isIn("user", initialUser) }

type dirs struct{ proc, sys string }

func line(path string) (string, error) {
	b, err := os.ReadFile(path)
	return string(bytes.TrimSpace(b)), err
}

// readable says why a file cannot be read, nil if it can.
func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}

func (d dirs) sysctl(name string) Known[string] {
	return known(line(filepath.Join(d.proc, "sys/kernel", name)))
}

// lockdown returns the mode. Where securityfs is mounted and has no such file, the
// kernel knows no lockdown.
func (d dirs) lockdown() (string, error) {
	modes, err := line(filepath.Join(d.sys, "kernel/security/lockdown"))
	if errors.Is(err, fs.ErrNotExist) && readable(filepath.Join(d.sys, "kernel/security/lsm")) == nil {
		return "none", nil
	}
	if err != nil {
		return "", err
	}
	// none [integrity] confidentiality
	_, after, _ := strings.Cut(modes, "[")
	mode, _, ok := strings.Cut(after, "]")
	if !ok {
		return "", fmt.Errorf("%s/kernel/security/lockdown: no mode in %q", d.sys, modes)
	}
	return mode, nil
}

func (d dirs) self() (Self, error) {
	path := filepath.Join(d.proc, "self/status")
	status, err := os.ReadFile(path)
	if err != nil {
		return Self{}, err
	}
	var s Self
	var errs []error
	caps := func(v string) uint64 {
		n, err := strconv.ParseUint(v, 16, 64)
		errs = append(errs, err)
		return n
	}
	missing := []string{"Uid", "CapEff", "CapBnd"}
	for l := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(l, ":")
		f := strings.Fields(value)
		if len(f) == 0 {
			continue
		}
		switch name {
		case "Uid": // real, effective, saved, of the file system
			if len(f) != 4 {
				return s, fmt.Errorf("%s: %q is not four numbers", path, value)
			}
			s.Uid, err = strconv.Atoi(f[1])
			errs = append(errs, err)
		case "NSpid": // in this procfs's namespace, and in those below it that we are in
			s.Stranger = len(f) > 1
		case "CapEff":
			s.Effective = caps(f[0])
		case "CapBnd":
			s.Bounding = caps(f[0])
		case "NoNewPrivs":
			s.NoNewPrivs = f[0] != "0"
		case "Seccomp":
			s.Filtered = f[0] != "0"
		}
		missing = slices.DeleteFunc(missing, func(m string) bool { return m == name })
	}
	if len(missing) > 0 {
		errs = append(errs, fmt.Errorf("%s: no %s", path, strings.Join(missing, ", ")))
	}
	return s, errors.Join(errs...)
}

func (d dirs) memlock() (string, error) {
	path := filepath.Join(d.proc, "self/limits")
	limits, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	for l := range strings.Lines(string(limits)) {
		if v, ok := strings.CutPrefix(l, "Max locked memory "); ok {
			if f := strings.Fields(v); len(f) > 0 {
				return f[0], nil
			}
		}
	}
	return "", fmt.Errorf("%s: no limit of locked memory", path)
}

// isIn reports whether our namespace of this kind has that inode number.
func (d dirs) isIn(kind string, inode uint64) (bool, error) {
	path := filepath.Join(d.proc, "self/ns", kind)
	link, err := os.Readlink(path)
	if err != nil {
		return false, err
	}
	var got uint64
	if _, err := fmt.Sscanf(link, kind+":[%d]", &got); err != nil {
		return false, fmt.Errorf("%s: %q is no namespace", path, link)
	}
	return got == inode, nil
}

// A mount is one line of mountinfo.
type mount struct {
	point, kind string
	options     []string // of the file system, not of this mount
}

func (d dirs) mounts() ([]mount, error) {
	info, err := os.ReadFile(filepath.Join(d.proc, "self/mountinfo"))
	if err != nil {
		return nil, err
	}
	var all []mount
	for l := range strings.Lines(string(info)) {
		// ID parent major:minor root mountpoint options... - type source options
		head, tail, _ := strings.Cut(l, " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if len(h) > 4 && len(t) > 2 {
			all = append(all, mount{h[4], t[0], strings.Split(t[2], ",")})
		}
	}
	return all, nil
}

func (d dirs) tracefs() (bool, error) {
	all, err := d.mounts()
	return slices.ContainsFunc(all, func(m mount) bool { return m.kind == "tracefs" }), err
}

func (d dirs) hidepid() (string, error) {
	all, err := d.mounts()
	hide := ""
	for _, m := range all {
		if m.point != "/proc" || m.kind != "proc" {
			continue
		}
		hide = "" // of two on top of each other, the last is seen
		for _, o := range m.options {
			if v, ok := strings.CutPrefix(o, "hidepid="); ok && v != "0" && v != "off" {
				hide = v
			}
		}
	}
	return hide, err
}

func (d dirs) processes() (Processes, error) {
	var n Processes
	entries, err := os.ReadDir(d.proc)
	if err != nil {
		return n, err
	}
	for _, e := range entries {
		if _, err := strconv.ParseUint(e.Name(), 10, 32); err != nil {
			continue
		}
		n.Visible++
		// The kernel asks the same of who wants to know the program, and each of the
		// namespaces. Of a zombie or a process that has just gone there is none to see.
		link, err := os.Readlink(filepath.Join(d.proc, e.Name(), "ns/net"))
		if errors.Is(err, fs.ErrPermission) || err == nil && link == "" { // as 5.10 says it
			n.Closed++
		}
	}
	return n, nil
}

// cgroup tells by the hierarchies that we are in: that of v2 has number 0.
func (d dirs) cgroup() (string, error) {
	path := filepath.Join(d.proc, "self/cgroup")
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var v1, v2 bool
	for l := range strings.Lines(string(content)) {
		if strings.HasPrefix(l, "0::") {
			v2 = true
		} else {
			v1 = true
		}
	}
	switch {
	case v1 && v2:
		return "v1+v2", nil
	case v1:
		return "v1", nil
	case v2:
		return "v2", nil
	}
	return "", fmt.Errorf("%s: it is empty", path)
}
