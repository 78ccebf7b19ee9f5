package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"time"
)

const (
	mostSockets = 2_000_000
	perSocket   = 5 << 10     // bytes of memory, the kernel's and a tracer's
	spare       = 2 << 30     // that is left to the rest of the host
	patience    = time.Minute // with ss
	stormSize   = 400_000     // connections: more than are made while tcptrace starts
)

type meter struct {
	tcptrace string
	rounds   int
	idle     time.Duration
}

// measure fills one column.
func (m *meter) measure(sockets int) (c column, err error) {
	if free := availableMemory(); free < sockets*perSocket+spare {
		return nil, fmt.Errorf("%d sockets need %d MB of memory; %d MB are available", sockets, (sockets*perSocket+spare)>>20, free>>20)
	}
	c.add("", "%d sockets", sockets)
	empty, err := m.start(nil)
	if err != nil {
		return nil, err
	}
	base := empty.status("VmRSS")
	c.add("resident without any", "%.1f MB", float64(base)/1e6)
	c.add("CPU while idle, without any", "%.2f%% of a core", m.load(empty))
	if err := empty.stop(); err != nil {
		return nil, err
	}

	if err := m.live(&c, sockets, base); err != nil {
		return nil, err
	}
	return c, m.timeWait(&c, sockets, base)
}

// live measures what sockets cost that a process holds each of.
func (m *meter) live(c *column, sockets, base int) (err error) {
	p, err := newPlace()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.gather(sockets / 2); err != nil {
		return err
	}
	if err := m.snapshots(c, p); err != nil {
		return err
	}
	if err := m.starts(c, sockets, base); err != nil {
		return err
	}
	if err := m.storms(c, sockets); err != nil {
		return err
	}
	return m.idles(c, sockets, base)
}

// snapshots sets them beside ss, in turn.
func (m *meter) snapshots(c *column, p *place) error {
	var ours, theirs, cpu []time.Duration
	for range m.rounds {
		begun := time.Now()
		snapshot := exec.Command(m.tcptrace, "snapshot")
		if err := snapshot.Run(); err != nil {
			return fmt.Errorf("%s: %w", snapshot, err)
		}
		ours = append(ours, time.Since(begun))
		cpu = append(cpu, snapshot.ProcessState.UserTime()+snapshot.ProcessState.SystemTime())

		begun = time.Now()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		err := p.in(ctx, "ss", "-tanp").Run()
		cancel()
		if err != nil && ctx.Err() != context.DeadlineExceeded {
			return fmt.Errorf("ss -tanp: %w", err)
		}
		theirs = append(theirs, time.Since(begun))
	}
	more := ""
	if median(theirs) >= patience {
		more = "> "
	}
	c.add("`tcptrace snapshot`", "%.2f s (CPU %.2f s)", median(ours).Seconds(), median(cpu).Seconds())
	c.add("`ss -tanp`", "%s%.2f s", more, median(theirs).Seconds())
	c.add("`ss` / `tcptrace snapshot`", "%s%.1f", more, median(theirs).Seconds()/median(ours).Seconds())
	return nil
}

// starts measures a start, with all records.
func (m *meter) starts(c *column, sockets, base int) error {
	t, err := m.start(nil)
	if err != nil {
		return err
	}
	c.add("start to `tracing`", "%.2f s (CPU %.2f s)", t.started.Seconds(), t.cpu().Seconds())
	c.add("resident then, each", "%.0f bytes", float64(t.status("VmRSS")-base)/float64(sockets))
	c.add("at most until then, each", "%.0f bytes", float64(t.status("VmHWM")-base)/float64(sockets))
	return t.stop()
}

// storms starts a tracer in the middle of a storm.
func (m *meter) storms(c *column, sockets int) error {
	storm, err := newPlace()
	if err != nil {
		return err
	}
	ctx, calm := context.WithCancel(context.Background())
	defer calm()
	stormy := make(chan error)
	go func() { stormy <- storm.part(ctx, stormSize) }()
	var out output
	t, err := m.start(&out, "--events", "socket,stats", "--max-sockets", strconv.Itoa(4*(sockets+stormSize)))
	calm()
	if err := errors.Join(err, <-stormy, storm.close()); err != nil {
		return err
	}
	if err := t.stop(); err != nil {
		return err
	}
	c.add("lost in a storm during the first scan", "%s of %d", out.lost(), out.stats.Seen)
	return nil
}

// idles watches a tracer while next to nothing happens.
func (m *meter) idles(c *column, sockets, base int) error {
	var out output
	t, err := m.start(&out, "--events", "transition", "--verbose")
	if err != nil {
		return err
	}
	c.add("CPU while idle", "%.2f%% of a core", m.load(t))
	out.watch(true)
	if err := probe(m.idle / 2); err != nil {
		return err
	}
	out.watch(false)
	resident := t.status("VmRSS")
	if err := t.stop(); err != nil {
		return err
	}
	c.add("CPU of a scan", "%s", t.scans())
	c.add("a lone event is printed after", "%s", out.lateness())
	c.add("resident after that, each", "%.0f bytes", float64(resident-base)/float64(sockets))
	return nil
}

// load is what a tracer uses of a core while nothing happens, in percent.
func (m *meter) load(t *tracer) float64 {
	used, begun := t.cpu(), time.Now()
	time.Sleep(m.idle / 2)
	return 100 * (t.cpu() - used).Seconds() / time.Since(begun).Seconds()
}

// timeWait measures as many sockets in TIME_WAIT.
func (m *meter) timeWait(c *column, sockets, base int) error {
	p, err := newPlace()
	if err != nil {
		return err
	}
	defer func() { _ = p.close() }() // what has been measured counts
	// Half of the table is for them.
	args := []string{"--events", "finding", "--max-sockets", strconv.Itoa(4 * sockets)}
	t, err := m.start(nil, args...)
	if err != nil {
		return err
	}
	if err := p.part(context.Background(), sockets); err != nil {
		return err
	}
	n := p.inTimeWait()
	c.add("in TIME_WAIT", "%d", n)
	c.add("resident, each of those", "%.0f bytes", float64(t.status("VmRSS")-base)/float64(n))
	if err := t.stop(); err != nil {
		return err
	}
	n = p.inTimeWait()
	if t, err = m.start(nil, args...); err != nil {
		return err
	}
	c.add("start with those", "%.2f s (CPU %.2f s)", t.started.Seconds(), t.cpu().Seconds())
	c.add("resident then, each of them", "%.0f bytes", float64(t.status("VmRSS")-base)/float64(n))
	return t.stop()
}

func median(ds []time.Duration) time.Duration {
	slices.Sort(ds)
	return ds[len(ds)/2]
}
