package probe

import (
	"fmt"
	"os"
	"syscall"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// The inode number of the initial PID namespace (PROC_PID_INIT_INO).
const initialPidns = 0xEFFFFFFC

// loader loads the programs one by one, or those together that are of no use alone, so
// that one which the kernel refuses does not sink the others. They share the maps of the
// first.
type loader struct {
	spec *ebpf.CollectionSpec
	opts ebpf.CollectionOptions
}

func (l *loader) load(names ...string) (*ebpf.Collection, error) {
	s := l.spec.Copy()
	all := s.Programs
	s.Programs = map[string]*ebpf.ProgramSpec{}
	for _, name := range names {
		s.Programs[name] = all[name]
	}
	return ebpf.NewCollectionWithOptions(s, l.opts)
}

// configure sets the constants that the programs are compiled with in the kernel.
func configure(spec *ebpf.CollectionSpec, cfg Config) error {
	f := cfg.Filter
	spec.Maps[tcptraceMapEvents].MaxEntries = uint32(cfg.RingBytes)

	pidns, err := pidNamespace()
	if err != nil {
		return err
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
		tcptraceVarReadsUser:    features.HaveProgramHelper(ebpf.Kprobe, asm.FnProbeReadKernel) == nil,
		tcptraceVarWakeupBytes:  uint64(cfg.RingBytes / 8),
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
