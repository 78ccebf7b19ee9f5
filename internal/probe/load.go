package probe

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/privilege"
)

// The inode number of the initial PID namespace (PROC_PID_INIT_INO).
const initialPidns = 0xEFFFFFFC

// Where the kernel side filters by process. PIDs are less than maxPid (PID_MAX_LIMIT).
// maxClosing is as many minisockets as net.ipv4.tcp_max_tw_buckets allows by default
// where memory is not scarce; these and maxHeld take some 10 MB of the kernel's memory.
const (
	maxPid     = 1 << 22
	maxClosing = 1 << 17
	maxHeld    = 1 << 14
)

// loader loads the programs one by one, or those together that are of no use alone, so
// that one which the kernel refuses does not sink the others. They share the maps of the
// first.
type loader struct {
	spec     *ebpf.CollectionSpec
	opts     ebpf.CollectionOptions
	initial  bool    // we are in the initial PID namespace
	byPid    bool    // a process is asked for: what it has nothing to do with need not leave the kernel
	noNotes  error   // why sockets cannot be given notes that say whom they belong to; nil: they can
	noFilter error   // why the last program that was tried filters by no process; nil: it can
	tried    bool    // each helper
	missing  []error // what came of it
	mayProbe error   // why bpf_probe_read_kernel may not be called; nil: it may
}

// try says why the kernel refuses a program.
func (l *loader) try(name string) error {
	s := l.spec.Copy()
	s.Programs = map[string]*ebpf.ProgramSpec{name: s.Programs[name]}
	s.Maps = map[string]*ebpf.MapSpec{tcptraceMapNotes: s.Maps[tcptraceMapNotes]} // no such program names another
	s.Variables = nil
	coll, err := ebpf.NewCollectionWithOptions(s, l.opts)
	if err != nil {
		return plain{err}
	}
	coll.Close()
	return nil
}

func (l *loader) load(names ...string) (*ebpf.Collection, error) {
	s := l.spec.Copy()
	all := s.Programs
	s.Programs = map[string]*ebpf.ProgramSpec{}
	for _, name := range names {
		s.Programs[name] = all[name]
	}
	coll, err := ebpf.NewCollectionWithOptions(s, l.opts)
	if err != nil {
		return nil, plain{err}
	}
	return coll, nil
}

// A helper is something that BPF programs may call on kernels that have it, or may read on
// kernels that have the type for it.
type helper struct {
	facility, variable string
	way                string
	try                string // a program that does nothing else
	otherwise          string // the way that is taken without it; "": none
	typed              bool   // takes a socket whose type the verifier knows
}

var helpers = []helper{
	{"tasks", tcptraceVarHasTask, "task_btf", tcptraceProgTryTask, probeRead, false},
	{"pid_namespace", tcptraceVarHasNumbers, "direct", tcptraceProgTryNumbers, probeRead, false},
	{"cookies", tcptraceVarHasCookies, "helper", tcptraceProgTryCookies, "", true},
}

var errUntyped = errors.New("transitions come without types")

// loadFirst loads the first program, in the first way that the kernel takes, and with it
// the maps that all others share.
func (p *Probe) loadFirst(l *loader, facility string, ways ...way) (way, error) {
	v := Variant{Facility: facility}
	for _, w := range ways {
		if !p.allows(facility, w.name) {
			continue
		}
		var err error
		if p.core, err = p.loadWithHelpers(l, w.program); err == nil {
			v.Name = w.name
			p.variants = append(p.variants, v)
			l.opts.MapReplacements = p.core.Maps
			return w, nil
		}
		v.Err = errors.Join(v.Err, fmt.Errorf("%s: load %s: %w", w.name, w.program, err))
		if isRefused(err, privilege.MissingToLoad()) {
			break
		}
	}
	if v.Err == nil {
		v.Err = errForced
	}
	return way{}, fmt.Errorf("%s: %w", facility, v.Err)
}

// loadWithHelpers loads a program with all helpers that the kernel has. As most kernels
// have all, it is only asked for each one if it does not take them together.
func (p *Probe) loadWithHelpers(l *loader, program string) (*ebpf.Collection, error) {
	errs := make([]error, len(helpers))
	for k, h := range helpers {
		switch {
		case !p.allows(h.facility, h.way):
			errs[k] = errForced
		case h.typed && program == tcptraceProgSetStateRaw:
			errs[k] = errUntyped
		case l.tried:
			errs[k] = l.missing[k]
		}
	}
	coll, err := p.loadWithout(l, program, errs)
	if err != nil && !l.tried && !isRefused(err, privilege.MissingToLoad()) {
		for k, h := range helpers {
			l.missing = append(l.missing, l.try(h.try))
			if errs[k] == nil {
				errs[k] = l.missing[k]
			}
		}
		l.tried = true
		coll, err = p.loadWithout(l, program, errs)
	}
	if err != nil {
		return nil, err
	}
	for k, h := range helpers {
		v := Variant{Facility: h.facility, Name: h.way, Err: errs[k]}
		switch {
		case h.facility == "pid_namespace" && l.initial:
			v = Variant{Facility: h.facility, Name: "initial"}
		case errs[k] == nil:
		case h.otherwise == probeRead && l.mayProbe != nil:
			v.Name, v.Err = "", errors.Join(errs[k], fmt.Errorf("%s: %w", probeRead, l.mayProbe))
		default:
			v.Name = h.otherwise
		}
		p.variants = append(p.variants, v)
	}
	return coll, nil
}

// loadWithout loads a program that does without the helpers that have an error.
func (p *Probe) loadWithout(l *loader, program string, errs []error) (*ebpf.Collection, error) {
	l.noFilter = l.noNotes
	for k, h := range helpers {
		if err := l.spec.Variables[h.variable].Set(errs[k] == nil); err != nil {
			return nil, fmt.Errorf("set %s: %w", h.variable, err)
		}
		if h.variable != tcptraceVarHasNumbers {
			l.noFilter = errors.Join(l.noFilter, errs[k])
		}
	}
	p.byPid = l.byPid && l.noFilter == nil
	if err := l.spec.Variables[tcptraceVarFilterPids].Set(p.byPid); err != nil {
		return nil, fmt.Errorf("set filter_pids: %w", err)
	}
	return l.load(program)
}

// configure sets the constants that the programs are compiled with in the kernel.
func (l *loader) configure(cfg Config) error {
	f, spec := cfg.Filter, l.spec
	spec.Maps[tcptraceMapEvents].MaxEntries = uint32(cfg.RingBytes)

	pidns, err := pidNamespace()
	if err != nil {
		return err
	}
	l.initial = pidns == 0
	l.mayProbe = features.HaveProgramHelper(ebpf.Kprobe, asm.FnProbeReadKernel)
	if cfg.Ways["tasks"] == None || cfg.Ways["pid_namespace"] == None {
		l.mayProbe = errForced
	}
	if !cfg.Snapshot {
		l.noNotes = l.tryNotes(cfg.Ways["pid_filter"])
	}
	if l.byPid = len(f.Pids) > 0 && !cfg.Snapshot && l.noNotes == nil; l.byPid {
		spec.Maps[tcptraceMapAsked].MaxEntries = maxPid / 64
		spec.Maps[tcptraceMapClosing].MaxEntries = maxClosing
		spec.Maps[tcptraceMapHeld].MaxEntries = maxHeld
	}
	if l.byPid && f.Follow {
		spec.Maps[tcptraceMapHeirs].MaxEntries = maxPid / 64
	}
	family := uint16(0)
	switch f.Family {
	case 4:
		family = syscall.AF_INET
	case 6:
		family = syscall.AF_INET6
	}
	for name, value := range map[string]any{
		tcptraceVarPidnsInum:    pidns,
		tcptraceVarSelfPid:      uint32(os.Getpid()),
		tcptraceVarJiffyNs:      jiffy(),
		tcptraceVarMayProbe:     l.mayProbe == nil,
		tcptraceVarWakeupBytes:  uint64(cfg.RingBytes / 8),
		tcptraceVarFilterFollow: f.Follow,
		tcptraceVarFilterNetns:  f.Netns,
		tcptraceVarFilterFamily: family,
		tcptraceVarFilterLport:  len(f.Lports) > 0,
		tcptraceVarFilterRport:  len(f.Rports) > 0,
		tcptraceVarFilterRemote: len(f.Remotes) > 0,
		tcptraceVarLports:       portSet(f.Lports),
		tcptraceVarRports:       portSet(f.Rports),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}

// tryNotes says why sockets cannot be given notes. The listeners of programs in Go speak
// MPTCP; where what such a socket has cannot be read, what comes of one must not be turned
// away.
func (l *loader) tryNotes(forced string) error {
	if forced == None {
		return errForced
	}
	if l.mayProbe != nil {
		if err := hasFunction(l, "bpf_rdonly_cast"); err != nil {
			return errors.Join(err, fmt.Errorf("%s: %w", probeRead, l.mayProbe))
		}
	}
	return l.try(tcptraceProgTryStorage)
}

// pidNamespace returns the inode number of our PID namespace, or 0 if that is
// the initial one, whose numbers every task carries without a look-up.
func pidNamespace() (uint32, error) {
	fi, err := os.Stat("/proc/self/ns/pid")
	if err != nil {
		return 0, fmt.Errorf("PID namespace: %w", err)
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok || st.Ino == initialPidns {
		return 0, nil
	}
	return uint32(st.Ino), nil
}

// jiffy returns the length of a jiffy in ns: the coarse clocks tick with it. 0
// if that is not known; the ages of sockets then are not either.
func jiffy() uint64 {
	var res unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &res); err != nil {
		return 0
	}
	return uint64(res.Nano())
}

func portSet(ports []uint16) [65536 / 8]byte {
	var set [65536 / 8]byte
	for _, p := range ports {
		set[p/8] |= 1 << (p % 8)
	}
	return set
}

// Ask adds processes to those that are asked for, by their PIDs in our PID namespace, where
// the kernel side filters by process. What their children do, with Filter.Follow, it then
// learns by itself.
func (p *Probe) Ask(pids []uint32) error {
	if !p.byPid {
		return nil
	}
	asked := p.core.Maps[tcptraceMapAsked]
	for _, pid := range pids {
		var word uint64
		if err := asked.Lookup(pid/64, &word); err != nil {
			return fmt.Errorf("ask for process %d: %w", pid, err)
		}
		if err := asked.Put(pid/64, word|1<<(pid%64)); err != nil {
			return fmt.Errorf("ask for process %d: %w", pid, err)
		}
	}
	return nil
}

func (p *Probe) fillRemotes(cfg Config) error {
	for _, r := range cfg.Filter.Remotes {
		key := tcptraceRemoteKey{Prefixlen: uint32(r.Bits()), Addr: r.Addr().As16()}
		if r.Addr().Is4() {
			key.Prefixlen += 96
		}
		if err := p.core.Maps[tcptraceMapRemotes].Put(key, uint8(1)); err != nil {
			return fmt.Errorf("remote %s: %w", r, err)
		}
	}
	return nil
}
