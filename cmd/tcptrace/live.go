package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/cri"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/procinfo"
	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

const (
	readWait      = 20 * time.Millisecond // how late a lone event may be
	clockInterval = 100 * time.Millisecond
	booksInterval = time.Second
)

// The garbage that may gather, in percent of what is in use. Nearly all of that are tables without pointers, which a
// collection does not look at: to collect four times as often as by default costs nothing that can be measured, and
// by default a million idle sockets would have memory lie about for as much again.
const garbage = 25

const btfFile = "/sys/kernel/btf/vmlinux"

// live traces this host.
func live(ctx context.Context, cfg *config, p *pipeline, log *zap.Logger) (failed error) {
	var served *endpoint
	if cfg.metrics != "" {
		var err error
		if served, err = serveMetrics(cfg, log); err != nil {
			return err
		}
		defer served.close()
	}
	r, err := openRunner(ctx, cfg, p, log)
	if err != nil {
		return err
	}
	r.served = served
	defer r.close()
	if cfg.record != "" {
		// Not before everything else is right: an older recording may be there.
		f, err := os.Create(cfg.record)
		if err != nil {
			return fmt.Errorf("--record: %w", err)
		}
		t, err := newTee(p, f, log)
		if err != nil {
			return fmt.Errorf("--record: %w", err)
		}
		r.sink = t
		defer func() { failed = errors.Join(failed, t.close()) }()
	}
	if err := r.start(); err != nil {
		return err
	}
	ready := []zap.Field{zap.Int("sockets", p.tracker.Counts().Tracked)}
	if served != nil {
		ready = append(ready, zap.String("metrics", served.url))
	}
	r.publish()
	r.log.Info("tracing", ready...)
	ctx, cancel := cfg.bounded(ctx)
	defer cancel()
	if err := r.loop(ctx); err != nil {
		return err
	}
	return r.stop()
}

// openRunner loads what runs in the kernel. Before that it waits for what may be slow:
// then events wait for nothing.
func openRunner(ctx context.Context, cfg *config, p *pipeline, log *zap.Logger) (*runner, error) {
	proc := procinfo.Open("/proc")
	if err := checkPids(proc, cfg.filter.Pids); err != nil {
		return nil, err
	}
	if _, err := os.Stat(btfFile); cfg.btf == "" && err != nil {
		return nil, fmt.Errorf("%s: %w; this kernel ships no types: give them with --btf FILE; tcptrace check says more", btfFile, errors.Unwrap(err))
	}
	runtime, err := openRuntime(ctx, cfg)
	if err != nil {
		return nil, err
	}
	r := &runner{cfg: cfg, runtime: runtime, proc: proc, pipe: p, sink: p, log: log}
	r.kernel, err = probe.Open(probe.Config{
		Filter: &cfg.filter, RingBytes: cfg.ringBytes, BTF: cfg.btf, Snapshot: cfg.snapshot, TimeWait: cfg.timeWait,
		Ways: cfg.ways, Pause: p.out.flush,
	})
	if err != nil {
		r.close()
		log.Debug("refused", zap.NamedError("cause", errors.Unwrap(err)))
		return nil, err
	}
	return r, nil
}

func (r *runner) close() {
	if r.kernel != nil {
		r.kernel.Close()
	}
	if r.runtime != nil {
		r.runtime.Close()
	}
}

// checkPids says at once what would otherwise be a silent stream.
func checkPids(proc procinfo.FS, pids []uint32) error {
	for _, pid := range pids {
		p, err := proc.Process(pid)
		switch {
		case errors.Is(err, procinfo.ErrNoProcess):
			return fmt.Errorf("--pid %d: %w; give the PID of a running process, as this PID namespace has it", pid, err)
		case err != nil:
			return fmt.Errorf("--pid %d: %w", pid, err)
		case p.Tgid != pid:
			return fmt.Errorf("--pid %d: is a thread of process %d; give --pid %d", pid, p.Tgid, p.Tgid)
		}
	}
	return nil
}

// runner is one live run: it moves what the kernel hands over to the sink, and
// looks after the clock, the books and the scans.
type runner struct {
	cfg     *config
	kernel  *probe.Probe
	runtime *cri.Runtime // nil: there is none to ask
	proc    procinfo.FS
	pipe    *pipeline
	sink    recording.Sink
	served  *endpoint // nil: not asked for
	log     *zap.Logger

	lastClock, lastBooks time.Time
	nextScan, nextFiles  time.Time // not before
	nextSummary, nextAll time.Time // likewise: a summary, and a scan of all for its sake
	nextCensus, nextSeen time.Time // likewise: what metrics show, and a scan of all for their or a screen's sake
	nextNetworks         time.Time // likewise: a look at what a network namespace allows
	lost                 uint64    // at the last stats record
	newest               uint64    // Ktime of the last event
	ticked               uint64    // the last clock
	behind               bool      // there are more to be read
	wall                 int64     // of the last clock
	nameless             bool      // the container runtime does not answer
}

// start brings in what was there before. The programs are attached already: what
// happens meanwhile waits in the ring buffer.
func (r *runner) start() error {
	missing := r.confine()
	debug.SetGCPercent(garbage) // not before: to load programs needs a lot that is not kept
	r.pipe.begin()
	asked := r.cfg.thresholds
	asked.SummaryInterval = r.cfg.summaryInterval
	if err := r.sink.Thresholds(asked); err != nil {
		return err
	}
	for _, v := range r.kernel.Variants() {
		if v.Err != nil {
			r.log.Debug("refused", zap.String("facility", v.Facility), zap.String("instead", v.Name), zap.Error(v.Err))
		}
		if err := r.sink.Probe(v.Facility, v.Name); err != nil {
			return err
		}
	}
	if err := r.clock(); err != nil {
		return err
	}
	if err := r.family(); err != nil {
		return err
	}
	if err := r.checkContainer(); err != nil {
		return err
	}
	if err := r.networks(r.kernel.Networks()); err != nil {
		return err
	}
	scan, err := r.kernel.Scan(r.event)
	if err != nil {
		return fmt.Errorf("scan sockets: %w", err)
	}
	if r.cfg.snapshot {
		if err := r.awaitNames(); err != nil {
			return err
		}
	}
	switch {
	case !r.kernel.Has("sockets"):
		r.log.Warn("the kernel refuses iterators: sockets from before the start are not known, or only those that a process holds")
	case !scan.Complete && len(missing) == 0:
		r.log.Warn("not every network namespace could be entered: sockets of the others that no process holds are not known")
	}
	if err := r.scanned(scan); err != nil {
		return err
	}
	if n := r.pipe.tracker.Counts().NoPlace; n > 0 {
		r.log.Warn("there are more sockets than --max-sockets: the others are not shown", zap.Int("max-sockets", r.cfg.maxSockets))
	}
	r.nextScan = time.Now().Add(scanInterval)
	r.nextSeen = time.Now().Add(summaryInterval)
	r.nextSummary = time.Now().Add(r.cfg.summaryInterval)
	if err := r.countFiles(); err != nil {
		return err
	}
	if err := r.clock(); err != nil {
		return err
	}
	r.pipe.out.flush()
	if !r.cfg.snapshot {
		debug.FreeOSMemory() // what only the scan has needed: no other will be that large
	}
	return nil
}

// event passes on a record of the kernel side. Of a process that comes up for the
// first time it first says where it runs: a moment later it may be gone.
func (r *runner) event(raw []byte) error {
	r.newest = events.Ktime(raw)
	if pid := events.Pid(raw); pid != 0 && !r.pipe.tracker.Knows(pid) {
		if err := r.introduce(pid); err != nil {
			return err
		}
	}
	return r.sink.Event(raw)
}

// introduce tells in which container a process is, and which program it runs.
func (r *runner) introduce(pid uint32) error {
	// Of one that has gone nothing can be known any more.
	id, _ := r.proc.Container(pid)
	exe, _ := r.proc.Exe(pid)
	return r.details(&events.Details{Pid: pid, Container: id, Exe: exe})
}

// describe tells all of what /proc says of these processes.
func (r *runner) describe(pids []uint32) error {
	for _, pid := range pids {
		d := events.Details{Pid: pid}
		// What cannot be read stays unknown: the process has gone, or is somebody
		// else's and we are not root.
		d.Exe, _ = r.proc.Exe(pid)
		d.Container, _ = r.proc.Container(pid)
		d.OpenFiles, d.FileLimit, _ = r.proc.Files(pid)
		if err := r.details(&d); err != nil {
			return err
		}
	}
	return nil
}

// checkContainer says what would otherwise be a silent stream. A container may
// still be about to start: so that is no error.
func (r *runner) checkContainer() error {
	prefix := r.cfg.filter.Container
	if prefix == "" {
		return nil
	}
	all, err := r.proc.Processes()
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	for _, p := range all {
		if id, err := r.proc.Container(p.Pid); err == nil && strings.HasPrefix(id, prefix) {
			return nil
		}
	}
	r.log.Warn("no process is in the container now, as far as /proc/PID/cgroup tells", zap.String("container", prefix))
	return nil
}

// family tells the tracker whose child each running process is. From now on the
// kernel side does.
func (r *runner) family() error {
	if !r.cfg.filter.Follow && r.cfg.record == "" {
		return nil
	}
	all, err := r.followed()
	if err != nil {
		return err
	}
	ktime, _ := probe.Clock()
	byPid := map[uint32]events.Proc{}
	var raw []byte
	for _, p := range all {
		child := events.Proc{Pid: p.Pid, Comm: events.MakeComm(p.Comm)}
		byPid[p.Pid] = child
		raw = events.AppendFork(raw[:0], ktime, child, byPid[p.Ppid])
		if r.cfg.filter.Container != "" {
			if err := r.introduce(p.Pid); err != nil {
				return err
			}
		}
		if err := r.sink.Event(raw); err != nil {
			return err
		}
	}
	return nil
}

// followed returns all processes, once the kernel side has been told of the descendants of
// those that are asked for. It adds the children that these have from then on: so another
// look must show none that had come before.
func (r *runner) followed() ([]procinfo.Process, error) {
	asked := map[uint32]bool{}
	for _, pid := range r.cfg.filter.Pids {
		asked[pid] = true
	}
	for {
		all, err := r.proc.Processes()
		if err != nil {
			return nil, fmt.Errorf("list processes: %w", err)
		}
		var more []uint32
		for _, p := range all {
			if r.cfg.filter.Follow && asked[p.Ppid] && !asked[p.Pid] {
				asked[p.Pid] = true
				more = append(more, p.Pid)
			}
		}
		if len(more) == 0 {
			return all, nil
		}
		if err := r.kernel.Ask(more); err != nil {
			return nil, err
		}
	}
}

func (r *runner) loop(ctx context.Context) error {
	for ctx.Err() == nil {
		wait := readWait
		if r.behind {
			wait = 0
		}
		if err := r.read(wait); err != nil {
			return err
		}
		r.pipe.out.flush()
		now := time.Now()
		if now.Sub(r.lastClock) >= clockInterval {
			r.lastClock = now
			if err := r.names(); err != nil {
				return err
			}
			if err := r.clock(); err != nil {
				return err
			}
			if r.pipe.out.broken() {
				return nil
			}
		}
		if err := r.lookAtNetworks(now); err != nil {
			return err
		}
		if now.After(r.nextScan) {
			if want := r.pipe.tracker.WantScan(); want != aggregate.WantNothing {
				if err := r.rescan(want); err != nil {
					return err
				}
			}
		}
		if r.cfg.summaryInterval > 0 && !now.Before(r.nextSummary) {
			if err := r.summarize(now); err != nil {
				return err
			}
		}
		if now.After(r.nextFiles) {
			if err := r.countFiles(); err != nil {
				return err
			}
		}
		if (r.served != nil || r.pipe.board != nil) && now.After(r.nextSeen) {
			if err := r.scanAll(now); err != nil {
				return err
			}
		}
		if now.Sub(r.lastBooks) >= booksInterval {
			r.lastBooks = now
			if err := r.checkLoss(); err != nil {
				return err
			}
			r.publish()
		}
	}
	return nil
}

// read takes what the kernel hands over.
func (r *runner) read(wait time.Duration) error {
	drained, err := r.kernel.Read(wait, r.event)
	r.behind = !drained
	return err
}

// catchUp reads what has gathered while something else was done: all of it, unless it
// grows faster than that.
func (r *runner) catchUp() error {
	const enough = 64
	for range enough {
		if err := r.read(0); err != nil || !r.behind {
			return err
		}
	}
	return nil
}

// clock lets time pass, as far as what happened in it is known. Both clocks are slewed alike, so their distance changes
// when the wall clock is set and at no other time; what else a measurement shows
// is the time between its two readings.
func (r *runner) clock() error {
	ktime, wall := probe.Clock()
	if r.behind {
		ktime = max(r.ticked, min(ktime, r.newest))
	}
	r.ticked = ktime
	if d := time.Duration(wall - r.wall); d.Abs() > 5*time.Millisecond {
		r.wall = wall
	}
	if err := r.sink.Clock(ktime, r.wall); err != nil {
		return err
	}
	return r.look(r.pipe.tracker.Looks())
}

// look looks at minisockets that may have gone on without an event.
func (r *runner) look(at []events.Look) error {
	for at := range slices.Chunk(at, probe.MaxLooks) {
		if err := r.kernel.Look(at); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) books() error {
	b, err := r.kernel.Books()
	if err != nil {
		return err
	}
	return r.sink.Books(b)
}

// checkLoss prints the books when something was lost since they were printed last.
func (r *runner) checkLoss() error {
	if err := r.books(); err != nil {
		return err
	}
	s := r.pipe.stats()
	lost := s.Lost.Sum() + s.RecordsLost + s.Unprinted + s.Evicted
	if s.Exported != nil {
		lost += s.Exported.Unsent
	}
	if lost > r.lost && r.pipe.tryStats() {
		r.lost = lost
	}
	return nil
}

// stop takes what the kernel has handed over by now.
func (r *runner) stop() error {
	if err := r.kernel.Detach(); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	if err := r.kernel.Drain(r.event); err != nil {
		return err
	}
	if err := r.clock(); err != nil {
		return err
	}
	if err := r.books(); err != nil {
		return err
	}
	if n := r.pipe.underway(); n != 0 {
		r.log.Warn("the kernel side has counted other transitions than have arrived", zap.Int64("difference", n))
		r.pipe.decode += uint64(max(n, 0)) // what does not arrive is lost here, wherever that was
	}
	return nil
}
