package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/internal/procinfo"
	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/pkg/events"
)

const (
	readWait      = 20 * time.Millisecond // how late a lone event may be
	clockInterval = 100 * time.Millisecond
	booksInterval = time.Second
	scanInterval  = time.Second
)

const btfFile = "/sys/kernel/btf/vmlinux"

// live traces this host.
func live(ctx context.Context, cfg *config, p *pipeline, log *zap.Logger) (failed error) {
	proc := procinfo.Open("/proc")
	if err := checkPids(proc, cfg.filter.Pids); err != nil {
		return err
	}
	if _, err := os.Stat(btfFile); cfg.btf == "" && err != nil {
		return fmt.Errorf("%s: %w; this kernel ships no types: give them with --btf FILE", btfFile, errors.Unwrap(err))
	}
	kernel, err := probe.Open(probe.Config{
		Filter: &cfg.filter, RingBytes: cfg.ringBytes, BTF: cfg.btf,
		// A recording should answer any filter that a replay may have.
		Processes: cfg.filter.ByProcess() || cfg.record != "",
	})
	if err != nil {
		log.Debug("refused", zap.Error(err))
		if probe.IsRefused(err) {
			return errors.New("the kernel refuses to load BPF programs: operation not permitted; run it as root, or with the capabilities CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN")
		}
		return err
	}
	defer kernel.Close()

	var sink recording.Sink = p
	if cfg.record != "" {
		// Not before everything else is right: an older recording may be there.
		f, err := os.Create(cfg.record)
		if err != nil {
			return fmt.Errorf("--record: %w", err)
		}
		t, err := newTee(p, f)
		if err != nil {
			return fmt.Errorf("--record: %w", err)
		}
		sink = t
		defer func() { failed = errors.Join(failed, t.close()) }()
	}

	r := runner{cfg: cfg, kernel: kernel, pipe: p, sink: sink, log: log}
	if err := r.start(proc); err != nil {
		return err
	}
	if err := r.loop(ctx); err != nil {
		return err
	}
	return r.stop()
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

// tee passes everything on to the pipeline and to a recording.
type tee struct {
	*pipeline
	rec  *recording.Writer
	file *os.File
	err  error // the recording's; the run goes on without it
}

func newTee(p *pipeline, f *os.File) (*tee, error) {
	w, err := recording.NewWriter(f)
	return &tee{pipeline: p, rec: w, file: f}, err
}

func (t *tee) keep(write func(*recording.Writer) error) {
	if t.err == nil {
		t.err = write(t.rec)
	}
}

func (t *tee) Event(raw []byte) error {
	if t.err == nil {
		t.err = t.rec.Event(raw)
	}
	return t.pipeline.Event(raw)
}

func (t *tee) Clock(ktime uint64, wall int64) error {
	t.keep(func(w *recording.Writer) error { return w.Clock(ktime, wall) })
	return t.pipeline.Clock(ktime, wall)
}

func (t *tee) Scanned(complete bool) error {
	t.keep(func(w *recording.Writer) error { return w.Scanned(complete) })
	return t.pipeline.Scanned(complete)
}

func (t *tee) Books(b events.Books) error {
	t.keep(func(w *recording.Writer) error { return w.Books(b) })
	return t.pipeline.Books(b)
}

func (t *tee) Probe(facility, variant string) error {
	t.keep(func(w *recording.Writer) error { return w.Probe(facility, variant) })
	return t.pipeline.Probe(facility, variant)
}

// errRecording is the error of a run that went well, but for its recording.
var errRecording = errors.New("the recording is not whole")

// close says whether the recording is whole.
func (t *tee) close() error {
	t.keep((*recording.Writer).Flush)
	if err := t.file.Close(); t.err == nil {
		t.err = err
	}
	if t.err != nil {
		return fmt.Errorf("--record: %w: %w", errRecording, t.err)
	}
	return nil
}

// runner is one live run: it moves what the kernel hands over to the sink, and
// looks after the clock, the books and the scans.
type runner struct {
	cfg    *config
	kernel *probe.Probe
	pipe   *pipeline
	sink   recording.Sink
	log    *zap.Logger

	lastClock, lastBooks, lastScan time.Time
	lost                           uint64 // at the last stats record
	wall                           int64  // of the last clock
}

// start brings in what was there before. The programs are attached already: what
// happens meanwhile waits in the ring buffer.
func (r *runner) start(proc procinfo.FS) error {
	r.pipe.begin()
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
	if err := r.family(proc); err != nil {
		return err
	}
	complete, err := r.kernel.Scan(r.sink.Event)
	if err != nil {
		return fmt.Errorf("scan sockets: %w", err)
	}
	if !complete {
		r.log.Warn("not every network namespace could be entered (CAP_SYS_ADMIN): sockets of the others that no process holds are not known")
	}
	if err := r.clock(); err != nil {
		return err
	}
	if err := r.sink.Scanned(complete); err != nil {
		return err
	}
	r.lastScan = time.Now()
	r.pipe.out.flush()
	r.log.Info("tracing", zap.Int("sockets", r.pipe.tracker.Counts().Tracked))
	return nil
}

// family tells the tracker whose child each running process is. From now on the
// kernel side does.
func (r *runner) family(proc procinfo.FS) error {
	if !r.cfg.filter.Follow && r.cfg.record == "" {
		return nil
	}
	all, err := proc.Processes()
	if err != nil {
		return fmt.Errorf("list processes: %w", err)
	}
	ktime, _ := probe.Clock()
	byPid := map[uint32]events.Proc{}
	var raw []byte
	for _, p := range all {
		child := events.Proc{Pid: p.Pid, Comm: events.MakeComm(p.Comm)}
		byPid[p.Pid] = child
		raw = events.AppendFork(raw[:0], ktime, child, byPid[p.Ppid])
		if err := r.sink.Event(raw); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) loop(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := r.kernel.Read(readWait, r.sink.Event); err != nil {
			return err
		}
		r.pipe.out.flush()
		now := time.Now()
		if now.Sub(r.lastClock) >= clockInterval {
			r.lastClock = now
			if err := r.clock(); err != nil {
				return err
			}
			if r.pipe.out.broken() {
				return nil
			}
		}
		if now.Sub(r.lastScan) >= scanInterval && r.pipe.tracker.WantScan() {
			r.lastScan = now
			if err := r.kernel.Descriptors(r.sink.Event); err != nil {
				return fmt.Errorf("scan descriptors: %w", err)
			}
		}
		if now.Sub(r.lastBooks) >= booksInterval {
			r.lastBooks = now
			if err := r.checkLoss(); err != nil {
				return err
			}
		}
	}
	return nil
}

// clock lets time pass. Both clocks are slewed alike, so their distance changes
// when the wall clock is set and at no other time; what else a measurement shows
// is the time between its two readings.
func (r *runner) clock() error {
	ktime, wall := probe.Clock()
	if d := time.Duration(wall - r.wall); d.Abs() > 5*time.Millisecond {
		r.wall = wall
	}
	return r.sink.Clock(ktime, r.wall)
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
	if lost := s.Lost.Sum() + s.RecordsLost + s.Unprinted; lost > r.lost {
		r.lost = lost
		r.pipe.tryStats()
	}
	return nil
}

// stop takes what the kernel has handed over by now.
func (r *runner) stop() error {
	if err := r.kernel.Detach(); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	if err := r.kernel.Drain(r.sink.Event); err != nil {
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
	}
	return nil
}
