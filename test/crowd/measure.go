package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
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
	if err := m.snapshots(c, p, sockets); err != nil {
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
func (m *meter) snapshots(c *column, p *place, sockets int) error {
	var ours, theirs, cpu []time.Duration
	var ratios []float64
	for range m.rounds {
		snapshot := exec.Command(m.tcptrace, "snapshot")
		took, err := list(snapshot, sockets)
		if err != nil {
			return err
		}
		ours = append(ours, took)
		cpu = append(cpu, snapshot.ProcessState.UserTime()+snapshot.ProcessState.SystemTime())

		ctx, cancel := context.WithTimeout(context.Background(), patience)
		took, err = list(p.in(ctx, "ss", "-tanp"), sockets)
		cancel()
		if err != nil && ctx.Err() != context.DeadlineExceeded {
			return err
		}
		theirs = append(theirs, took)
		ratios = append(ratios, took.Seconds()/ours[len(ours)-1].Seconds())
	}
	more := ""
	if median(theirs) >= patience {
		more = "> "
	}
	c.add("`tcptrace snapshot`", "%.2f s (CPU %.2f s)", median(ours).Seconds(), median(cpu).Seconds())
	c.add("`ss -tanp`", "%s%.2f s", more, median(theirs).Seconds())
	c.add("`ss` / `tcptrace snapshot`", "%s%.1f (%.1f to %.1f)", more, median(ratios), slices.Min(ratios), slices.Max(ratios))
	return nil
}

// list runs a command that prints a line for each socket at least, and says how long that took.
func list(cmd *exec.Cmd, sockets int) (time.Duration, error) {
	out, err := os.CreateTemp("", "crowd")
	if err != nil {
		return 0, err
	}
	defer func() { _ = errors.Join(out.Close(), os.Remove(out.Name())) }()
	cmd.Stdout = out
	begun := time.Now()
	err = cmd.Run()
	took := time.Since(begun)
	if err != nil {
		return took, fmt.Errorf("%s: %w", cmd, err)
	}
	printed, err := os.ReadFile(out.Name())
	if n := bytes.Count(printed, []byte{'\n'}); err == nil && n < sockets {
		err = fmt.Errorf("%s: printed %d lines, want one for each of %d sockets", cmd, n, sockets)
	}
	return took, err
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

func median[T cmp.Ordered](values []T) T {
	slices.Sort(values)
	return values[len(values)/2]
}
