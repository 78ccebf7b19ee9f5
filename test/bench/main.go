// Command bench measures what tcptrace costs, beside the tools that do part of its
// work, and writes the tables of docs/performance.md and docs/performance.svg. It is
// run by `make bench`, as root, on a machine that does nothing else.
//
// Nothing outlives it, however it ends: what it starts dies with it, its network
// namespaces belong to its threads, its mount to a namespace of its own, its files
// have no names, and the statistics are on while a descriptor is open.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

func main() {
	rounds := flag.Int("rounds", 5, "how often everything is measured, all rows in turn")
	attach := flag.Bool("attach", false, "attach programs that do nothing to the tracepoints named, and wait (a row of the tables)")
	flag.Parse()
	err := errors.New("-rounds must be from 1 to 20")
	switch {
	case *attach:
		err = attachEmpty(flag.Args())
	case *rounds >= 1 && *rounds <= 20:
		err = bench(*rounds)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench keeps to the main thread: what a thread has started is told to die when the
// thread ends, and only this one is sure to live as long as the process.
func bench(rounds int) error {
	runtime.LockOSThread()
	if os.Geteuid() != 0 {
		return errors.New("needs root, for BPF programs and network namespaces: sudo make bench")
	}
	if err := mountTracefs(); err != nil {
		return err
	}
	idle, err := start("sleep", "infinity")
	if err != nil {
		return err
	}
	defer idle.close()
	rows, err := tracers(idle.pid())
	if err != nil {
		return err
	}
	storms, err := inTurn(rows, rounds, tracer.run)
	if err != nil {
		return err
	}
	// The statistics themselves cost each run of a program some 45 ns, so these storms
	// count for nothing else; and they vary less.
	kernel, err := inTurn(rows[idlers:], (rounds+1)/2, tracer.runWithStatistics)
	if err != nil {
		return err
	}
	idling, err := measureIdle()
	if err != nil {
		return err
	}
	parts, err := goBenchmarks()
	if err != nil {
		return err
	}
	where, err := machine(rounds)
	if err != nil {
		return err
	}
	if err := plot("docs/performance.svg", storms[idlers:], kernel); err != nil {
		return err
	}
	return rewrite("docs/performance.md", map[string]string{
		"machine":  where,
		"storm":    stormTable(storms),
		"kernel":   kernelTable(kernel),
		"programs": programTable(kernel),
		"quiet":    quietTable(storms[idlers], idling),
		"parts":    parts,
	})
}

// A row is a tracer with what was measured of it, by rounds.
type row struct {
	tracer
	results []result
}

// inTurn measures all tracers in each round, so that what disturbs the machine for a
// while disturbs them alike; in another order each time, since one may leave work for the kernel
// to do during the next.
func inTurn(tracers []tracer, rounds int, measure func(tracer) (result, error)) ([]row, error) {
	rows := make([]row, len(tracers))
	for round := range rounds {
		for n := range tracers {
			i := (n + round) % len(tracers)
			t := tracers[i]
			r, err := measure(t)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.name, err)
			}
			rows[i].tracer = t
			rows[i].results = append(rows[i].results, r)
			fmt.Printf("%d/%d %-28s %6.0f connections/s, CPU %.2f s, %4.0f ns a transition in the kernel, lost %v\n", round+1, rounds,
				t.name, r.rate, r.cpu.Seconds(), r.perTransition(true), r.lost)
		}
	}
	return rows, nil
}

// mountTracefs gives this thread, and what it starts, a tracefs where the host has
// none mounted: all but tcptrace need it.
func mountTracefs() error {
	const at = "/sys/kernel/tracing"
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("own mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to itself: %w", err)
	}
	if err := unix.Mount("tracefs", at, "tracefs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount tracefs at %s: %w", at, err)
	}
	return nil
}
