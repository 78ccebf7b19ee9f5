package main

import (
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/procinfo"
	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

const (
	scanInterval  = time.Second     // between scans, at the least
	filesInterval = 2 * time.Second // between looks at how many descriptors a process has, likewise
)

// The rest after a scan, in times of the CPU time that it took: so all scans
// together cost no more than 1% of a core, however much there is to look at.
const restAfterScan = 99

// The same for those that are made because summaries were asked for.
const restAfterAll = 19

// countFiles looks how near to their limit the processes are.
func (r *runner) countFiles() error {
	begun := cpuTime()
	for _, pid := range r.pipe.tracker.Watched() {
		open, limit, err := r.proc.Files(pid)
		gone := errors.Is(err, procinfo.ErrNoProcess)
		if err != nil && !gone {
			continue // it may not be looked at
		}
		if err := r.details(&events.Details{Pid: pid, Gone: gone, OpenFiles: open, FileLimit: limit}); err != nil {
			return err
		}
	}
	if err := r.describe(r.pipe.tracker.Wanted()); err != nil {
		return err
	}
	r.nextFiles = time.Now().Add(max(filesInterval, restAfterScan*(cpuTime()-begun)))
	return nil
}

// scanned ends a scan, and lets the tracker report.
func (r *runner) scanned(s events.Scan) error {
	if !r.cfg.snapshot {
		if err := r.catchUp(); err != nil {
			return err
		}
	}
	if err := r.clock(); err != nil {
		return err
	}
	if err := r.sink.Scanned(s); err != nil {
		return err
	}
	if err := r.describe(r.pipe.tracker.Wanted()); err != nil {
		return err
	}
	return r.clock()
}

// rescan looks at what the tracker wants to see.
func (r *runner) rescan(want aggregate.Want) error {
	begun := cpuTime()
	look := r.kernel.Suspects
	if want == aggregate.WantOwners {
		look = r.kernel.Descriptors
	}
	if err := look(r.event); err != nil {
		return fmt.Errorf("scan descriptors: %w", err)
	}
	complete, err := r.kernel.SuspectsIn(r.pipe.tracker.UnseenIn(), r.event)
	if err != nil {
		return fmt.Errorf("scan sockets: %w", err)
	}
	if err := r.scanned(events.Scan{Complete: complete, Every: want == aggregate.WantOwners}); err != nil {
		return err
	}
	took := cpuTime() - begun
	r.nextScan = time.Now().Add(max(scanInterval, restAfterScan*took))
	r.log.Debug("scanned", zap.Duration("cpu", took), zap.Bool("complete", complete))
	return nil
}

// scanAll looks at all that there is, if that has not just cost too much.
func (r *runner) scanAll(now time.Time) error {
	if !now.After(r.nextAll) {
		return nil
	}
	begun := cpuTime()
	scan, err := r.kernel.Scan(r.event)
	if err != nil {
		return fmt.Errorf("scan sockets: %w", err)
	}
	if err := r.scanned(scan); err != nil {
		return err
	}
	took := cpuTime() - begun
	r.nextAll = time.Now().Add(restAfterAll * took)
	r.nextSeen = time.Now().Add(max(summaryInterval, restAfterScan*took))
	r.log.Debug("scanned all", zap.Duration("cpu", took), zap.Bool("complete", scan.Complete))
	return nil
}

// summarize prints the summaries, of what a scan has just found.
func (r *runner) summarize(now time.Time) error {
	if err := r.scanAll(now); err != nil {
		return err
	}
	if err := r.look(r.pipe.tracker.InFinWait2()); err != nil {
		return err
	}
	if err := r.catchUp(); err != nil {
		return err
	}
	if err := r.clock(); err != nil {
		return err
	}
	if err := r.sink.Summarize(); err != nil {
		return err
	}
	for !r.nextSummary.After(now) {
		r.nextSummary = r.nextSummary.Add(r.cfg.summaryInterval)
	}
	return nil
}

// lookAtNetworks looks at those that the tracker wants to know more of.
func (r *runner) lookAtNetworks(now time.Time) error {
	inodes := r.pipe.tracker.WantNetworks(now.Before(r.nextNetworks))
	if len(inodes) == 0 {
		return nil
	}
	begun := cpuTime()
	if err := r.networks(inodes); err != nil {
		return err
	}
	r.nextNetworks = time.Now().Add(restAfterScan * (cpuTime() - begun))
	return nil
}

// networks tells what these network namespaces allow.
func (r *runner) networks(inodes []uint32) error {
	for _, inode := range inodes {
		// Of one that cannot be entered, no more than that is known.
		n, _ := r.kernel.Network(inode)
		if err := r.sink.Network(n); err != nil {
			return err
		}
	}
	return nil
}

// cpuTime is what this process has used of the CPUs, in the kernel too.
func cpuTime() time.Duration {
	var u unix.Rusage
	// It cannot fail (getrusage(2)).
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
