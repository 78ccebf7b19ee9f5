package probe

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"

	"github.com/tcptrace/tcptrace/internal/privilege"
	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// DefaultRingBytes is the default size of the ring buffer. A storm of 25,000
// connections a second writes 40 MB/s, so this is 0.4 s of it, twenty times what
// gathers between two reads.
const DefaultRingBytes = 16 << 20

// The most records that one Read returns, so that a storm cannot keep the caller
// from its other duties.
const maxBatch = 4096

// Config says what to trace.
type Config struct {
	Filter    *aggregate.Filter // what can be decided in the kernel is
	RingBytes int               // a power of two and a multiple of the page size
	Snapshot  bool              // only scan: no transition is traced
	TimeWait  bool              // trace minisockets: TIME_WAIT, and FIN_WAIT2 without a process
	BTF       string            // file with the kernel's types; "": the kernel's own
	Ways      map[string]string // facility -> the only way that may be taken, or None; for tests

	// Pause is called every few milliseconds of a scan, when all that has come was handed out.
	Pause func()
}

// Variant names the way in which a facility is provided; "" for one that the
// kernel refused, with Err saying why.
type Variant struct {
	Facility, Name string
	Err            error
}

// A Probe is what tcptrace has in the kernel. All methods must be called from
// one goroutine.
type Probe struct {
	core     *ebpf.Collection // the maps, and the first program
	others   []*ebpf.Collection
	links    []link.Link // in the order in which they must be detached
	ring     *ring       // nil in a snapshot
	variants []Variant
	forced   map[string]string // Config.Ways
	pause    func()            // Config.Pause
	byPid    bool              // the kernel side turns away what processes have that nobody asks for

	setState           *ebpf.Program
	look               *ebpf.Program // nil where nothing has to be looked at
	refusesTrampolines error         // why no function can be hooked; nil: not known to be so
	tcp                *link.Iter    // nil if refused
	files              *link.Iter    // nil if refused
	skipped            uint64        // runs of set_state, at the last Books
	netns              uint32        // the only one to look into; 0: all
	home               home
	paths              map[uint32]string // by which network namespaces were entered last, by inode number
}

// LiftMemlock lifts RLIMIT_MEMLOCK where the kernel charges BPF memory to it, as it does
// before 5.11. That shows only to those who may load programs: for others it fails.
func LiftMemlock() error { return rlimit.RemoveMemlock() }

// Open loads the programs and attaches them. Events gather in the ring buffer
// from then on.
func Open(cfg Config) (*Probe, error) {
	// Where this is refused the limit may still be enough.
	memlock := LiftMemlock()

	spec, err := loadTcptrace()
	if err != nil {
		return nil, err
	}
	l := loader{spec: spec}
	l.opts.Cache = btf.NewCache() // to decode the kernel's types takes 15 ms each time
	if cfg.BTF != "" {
		if l.opts.Programs.KernelTypes, err = btf.LoadSpec(cfg.BTF); err != nil {
			return nil, fmt.Errorf("kernel types of %s: %w", cfg.BTF, err)
		}
	}
	if err := l.configure(cfg); err != nil {
		return nil, err
	}
	p := &Probe{netns: cfg.Filter.Netns, forced: cfg.Ways, pause: cfg.Pause, refusesTrampolines: ftraceDisabled()}
	if p.home, err = openHome(); err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	if err := p.open(&l, cfg); err != nil {
		p.Close()
		missing := privilege.MissingToLoad()
		return nil, refused(err, memlock, missing, barrier(missing))
	}
	return p, nil
}

func (p *Probe) open(l *loader, cfg Config) error {
	if cfg.Snapshot {
		if err := p.openScans(l); err != nil {
			return err
		}
		return p.checkForced()
	}
	setState, err := p.openTransitions(l, cfg)
	if err != nil {
		return err
	}
	p.files = p.iterator(l, "descriptors", descriptorWays...)
	p.tcp = p.iterator(l, "sockets", way{iter, tcptraceProgDumpTcp})
	p.trace(l, "processes",
		variant{name: tpBTF, attach: []string{tcptraceProgProcessFork}},
		variant{name: rawTP, attach: []string{tcptraceProgProcessForkRaw}})
	p.trace(l, "accept",
		variant{name: fexit, attach: []string{tcptraceProgAcceptExit}, trampoline: true},
		variant{name: "sys_exit", attach: []string{tcptraceProgAcceptSyscall}})
	p.trace(l, "destroy",
		variant{name: tpBTF, attach: []string{tcptraceProgDestroySock}},
		variant{name: rawTP, attach: []string{tcptraceProgDestroySockRaw}})
	if cfg.TimeWait {
		if err := p.traceTimeWait(l); err != nil {
			return err
		}
	}

	// Last, so that no transition comes before what explains it can; and
	// set_state before set_state_nested, which relies on that order. They are
	// detached the other way round: set_state_nested alone would take every
	// transition for a missed one. Both are loaded before either is attached:
	// between the two, nothing catches what the kernel skips.
	nested := Variant{Facility: "nested", Name: tpBTF}
	var second *ebpf.Collection
	switch {
	case !p.allows("nested", tpBTF):
		nested.Err = errForced
	case setState != tcptraceProgSetState:
		nested.Err = errUntyped
	default:
		if second, nested.Err = l.load(tcptraceProgSetStateNested); nested.Err == nil {
			p.others = append(p.others, second)
		}
	}
	if err := p.attach(l, p.core, setState); err != nil {
		return fmt.Errorf("attach inet_sock_set_state: %w", err)
	}
	if nested.Err == nil {
		nested.Err = p.attach(l, second, tcptraceProgSetStateNested)
	}
	if nested.Err != nil {
		nested.Name = ""
	}
	p.variants = append(p.variants, nested)
	slices.Reverse(p.links)
	return p.checkForced()
}

// openTransitions loads the program that sees them, and with it the maps that all others
// share. It returns the program's name.
func (p *Probe) openTransitions(l *loader, cfg Config) (string, error) {
	w, err := p.loadFirst(l, "transitions", way{tpBTF, tcptraceProgSetState}, way{rawTP, tcptraceProgSetStateRaw})
	if err != nil {
		return "", err
	}
	p.setState = p.core.Programs[w.program]
	filter := Variant{Facility: "pid_filter", Name: "sk_storage", Err: l.noFilter}
	if filter.Err != nil {
		filter.Name = ""
	}
	p.variants = append(p.variants, filter)
	if err := p.fillRemotes(cfg); err != nil {
		return "", err
	}
	if err := p.Ask(cfg.Filter.Pids); err != nil {
		return "", err
	}
	if p.ring, err = openRing(p.core.Maps[tcptraceMapEvents]); err != nil {
		return "", fmt.Errorf("ring buffer: %w", err)
	}
	return w.program, nil
}

// openScans loads what a snapshot needs. Without the descriptors nobody's socket could be
// told, so they must be had.
func (p *Probe) openScans(l *loader) error {
	w, err := p.loadFirst(l, "descriptors", descriptorWays...)
	if err != nil {
		return err
	}
	if p.files, err = link.AttachIter(link.IterOptions{Program: p.core.Programs[w.program]}); err != nil {
		return fmt.Errorf("attach iter/task_file: %w", err)
	}
	p.tcp = p.iterator(l, "sockets", way{iter, tcptraceProgDumpTcp})
	return nil
}

var descriptorWays = []way{{iter, tcptraceProgDumpFiles}, {iterProbeRead, tcptraceProgDumpFilesProbed}}

// Variants says how each facility is provided.
func (p *Probe) Variants() []Variant { return p.variants }

// Read waits, and then calls f with what is in the ring buffer. The wait is over early only if the buffer fills faster
// than that. Read returns when the ring is empty, which is then drained, or after a bounded number of records; with f's
// error if it has one. f must not keep raw.
func (p *Probe) Read(wait time.Duration, f func(raw []byte) error) (drained bool, err error) {
	if wait > 0 {
		if err := p.ring.wait(wait); err != nil {
			return false, fmt.Errorf("wait for records: %w", err)
		}
	}
	defer p.ring.release()
	for range maxBatch {
		raw := p.ring.peek()
		if raw == nil {
			return true, nil
		}
		err := f(raw)
		p.ring.take()
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// readUntil calls f with what the ring buffer holds from up to ktime. What an
// iterator says of a socket is true at one moment; so the events before it come
// before it, and those after it after.
func (p *Probe) readUntil(ktime uint64, f func(raw []byte) error) error {
	if p.ring == nil {
		return nil
	}
	defer p.ring.release()
	for {
		raw := p.ring.peek()
		if raw == nil && !p.ring.empty() {
			time.Sleep(busyFor)
			continue
		}
		if raw == nil || events.Ktime(raw) > ktime {
			return nil
		}
		err := f(raw)
		p.ring.take()
		if err != nil {
			return err
		}
	}
}

// Detach stops tracing. What the ring buffer holds by then can still be read,
// and Books is final.
func (p *Probe) Detach() error {
	var errs []error
	for _, l := range p.links {
		errs = append(errs, l.Close())
	}
	p.links = nil
	return errors.Join(errs...)
}

// Drain calls f with all that is in the ring buffer, and does not wait for more.
func (p *Probe) Drain(f func(raw []byte) error) error {
	// A program that was running on another CPU when it was detached may still
	// have a record to submit.
	if _, err := p.Read(5*time.Millisecond, f); err != nil {
		return err
	}
	for !p.ring.empty() {
		if _, err := p.Read(busyFor, f); err != nil {
			return err
		}
	}
	return nil
}

// Close gives everything back. It may be called on a Probe that is half open.
func (p *Probe) Close() {
	_ = p.Detach()
	for _, it := range []*link.Iter{p.tcp, p.files} {
		if it != nil {
			_ = it.Close()
		}
	}
	if p.ring != nil {
		p.ring.close()
	}
	_ = p.home.file.Close()
	for _, c := range p.others {
		c.Close()
	}
	if p.core != nil {
		p.core.Close()
	}
}

// Books returns what the kernel side has counted so far.
func (p *Probe) Books() (events.Books, error) {
	if p.setState == nil {
		return events.Books{}, nil
	}
	var perCPU []tcptraceCounters
	if err := p.core.Maps[tcptraceMapCounts].Lookup(uint32(0), &perCPU); err != nil {
		return events.Books{}, fmt.Errorf("read counters: %w", err)
	}
	var b events.Books
	for _, c := range perCPU {
		b.Seen += c.Seen + c.Filtered
		b.Filtered += c.Filtered
		b.RingFull += c.RingFull
		b.RecordsLost += c.RecordsLost
		b.Rescued += c.Rescued
	}
	// The kernel counts the runs that it skipped; before 5.12 it skipped none.
	if st, err := p.setState.Stats(); err == nil {
		p.skipped = st.RecursionMisses
	}
	b.Skipped = p.skipped
	return b, nil
}
