package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

const tracepoint = "inet_sock_set_state"

// A program is what the kernel says of one BPF program of a tracer.
type program struct {
	atTracepoint bool
	runs, misses uint64
	time         time.Duration // 0 without statistics
}

// programs are those that the process has descriptors of, by id.
func programs(pid int) (map[uint32]program, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		return nil, err
	}
	all := map[uint32]program{}
	here := map[uint32]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // closed by now
		}
		if err != nil {
			return nil, err
		}
		number := func(name string) uint64 {
			n, _ := strconv.ParseUint(field(text, name+":"), 10, 64)
			return n
		}
		id := uint32(number("prog_id"))
		if field(text, "run_cnt:") != "" {
			// Of type 5, tracepoint, are the programs of the other tools, and they have no other;
			// the one that is attached without a link does not say where it is.
			all[id] = program{atTracepoint: number("prog_type") == uint64(ebpf.TracePoint), runs: number("run_cnt"),
				misses: number("recursion_misses"), time: time.Duration(number("run_time_ns"))}
		}
		here[id] = here[id] || field(text, "tp_name:") == tracepoint
	}
	for id, p := range all {
		p.atTracepoint = p.atTracepoint || here[id]
		all[id] = p
	}
	return all, nil
}

// since is what the programs have done between two looks at them, by name.
func since(before, after map[uint32]program) (map[string]program, error) {
	did := map[string]program{}
	for id, p := range after {
		b := before[id]
		prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
		if err != nil {
			return nil, err
		}
		info, err := prog.Info()
		prog.Close()
		if err != nil {
			return nil, err
		}
		did[info.Name] = program{p.atTracepoint, p.runs - b.runs, p.misses - b.misses, p.time - b.time}
	}
	return did, nil
}

// runWithStatistics runs a storm while the kernel takes the time of all BPF programs,
// among them one at the tracepoint that does nothing: what it seems to take is what
// taking the time costs.
func (t tracer) runWithStatistics() (result, error) {
	statistics, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		return result{}, fmt.Errorf("turn statistics on: %w", err)
	}
	defer statistics.Close()
	empty, at, err := emptyProgram(tracepoint)
	if err != nil {
		return result{}, err
	}
	defer empty.Close()
	defer at.Close()
	r, err := t.run()
	if err != nil {
		return result{}, err
	}
	did, err := empty.Stats()
	if err != nil {
		return result{}, err
	}
	r.floor = float64(did.Runtime.Nanoseconds()) / float64(did.RunCount)
	return r, nil
}

// emptyProgram attaches a program that does nothing.
func emptyProgram(tracepoint string) (*ebpf.Program, link.Link, error) {
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.RawTracepoint, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		return nil, nil, fmt.Errorf("load an empty program: %w", err)
	}
	at, err := link.AttachRawTracepoint(link.RawTracepointOptions{Name: tracepoint, Program: empty})
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("attach an empty program to %s: %w", tracepoint, err), empty.Close())
	}
	return empty, at, nil
}

// attachEmpty is a tracer that looks at nothing. It ends by a signal.
func attachEmpty(tracepoints []string) error {
	for _, tp := range tracepoints {
		empty, at, err := emptyProgram(tp)
		if err != nil {
			return err
		}
		defer empty.Close()
		defer at.Close()
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	<-interrupted
	return nil
}

// tracepoints are those that a command, which traces when it says so, attaches programs
// to, each as often as it does.
func tracepoints(command ...string) ([]string, error) {
	p, err := start(command...)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if err := (tracer{command: command}).awaitStart(p); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", p.pid()))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // closed by now
		}
		if name := field(text, "tp_name:"); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, p.interrupt()
}

// perTransition is the time in nanoseconds that its programs, those at the tracepoint or
// all, took for each transition, without what taking the time costs.
func (r result) perTransition(all bool) float64 {
	var sum float64
	for _, p := range r.programs {
		if all || p.atTracepoint {
			sum += r.net(p)
		}
	}
	return sum / r.transitions
}

func (r result) net(p program) float64 {
	return float64(p.time.Nanoseconds()) - r.floor*float64(p.runs)
}
