package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	tcptraceBin = "bin/tcptrace"
	stormBin    = "bin/storm"
	stormSize   = 100_000
	// ofTheStorm is part of every address that storm listens on.
	ofTheStorm = "127.77.0."
)

// A tracer is what looks on while the storm goes on.
type tracer struct {
	name    string
	command []string // none: nobody looks on
	// How many lines it should print: so many for each transition and each connection.
	perTransition, perConnection float64
}

func (t tracer) isOurs() bool { return t.command != nil && t.command[0] == tcptraceBin }

// idlers is how many of the tracers, at their head, do not trace.
const idlers = 2

func tracers(idle int) ([]tracer, error) {
	filtered := []string{tcptraceBin, "--pid", strconv.Itoa(idle)}
	at, err := tracepoints(filtered...)
	if err != nil {
		return nil, err
	}
	// One printf for each, with what tcpstates prints.
	script := `tracepoint:sock:` + tracepoint + ` /args->protocol == 6/ {
		printf("%llx %d %s %s %d %s %d %d -> %d\n", args->skaddr, pid, comm, ntop(args->saddr), args->sport,
			ntop(args->daddr), args->dport, args->oldstate, args->newstate); }`
	return []tracer{
		{name: "none"},
		{"programs that do nothing, where those of `--pid` are", append([]string{"/proc/self/exe", "-attach"}, at...), 0, 0},
		// TIME_WAIT ends by one more transition, and each end's story is a line.
		{"`tcptrace`", []string{tcptraceBin}, 1, 1 + 2},
		{"`tcptrace --events finding`", []string{tcptraceBin, "--events", "finding,stats"}, 0, 0},
		{"`tcptrace --pid` of an idle one", filtered, 0, 0},
		{"`tcpstates`", []string{"tcpstates"}, 1, 0},
		{"`tcplife`", []string{"tcplife"}, 0, 2},
		{"`bpftrace`, one printf", []string{"bpftrace", "-e", script}, 1, 0},
	}, nil
}

// A result is what one storm has shown.
type result struct {
	rate        float64       // connections a second
	connections float64       // made
	transitions float64       // made
	start       time.Duration // until it traced
	cpu         time.Duration // from the beginning of the storm until it had read all of it
	endCPU      time.Duration // for the end of TIME_WAIT, after that
	peak        float64       // bytes resident
	lost        map[string]float64
	programs    map[string]program
	floor       float64 // nanoseconds that statistics add to a run
}

// run runs a storm, with the tracer there from before until it has read everything.
func (t tracer) run() (r result, err error) {
	if t.command == nil {
		err = inNamespace(r.storm)
		time.Sleep(time.Second) // for the end of the namespace, as below
		return r, err
	}
	p, err := start(t.command...)
	if err != nil {
		return r, err
	}
	defer p.close()
	if err := t.awaitStart(p); err != nil {
		return r, err
	}
	r.start = time.Since(p.started)
	programsBefore, err := programs(p.pid())
	if err != nil {
		return r, err
	}
	before, err := p.cpu()
	if err != nil {
		return r, err
	}
	var settled time.Duration
	err = inNamespace(func() error {
		if err := r.storm(); err != nil {
			return err
		}
		settled, err = p.settle()
		return err
	})
	if err != nil {
		return r, err
	}
	r.cpu = settled - before
	// With the namespace ends what is in TIME_WAIT; the kernel takes its time for that.
	time.Sleep(time.Second)
	ended, err := p.settle()
	if err != nil {
		return r, err
	}
	r.endCPU = ended - settled
	programsAfter, err := programs(p.pid())
	if err != nil {
		return r, err
	}
	if r.programs, err = since(programsBefore, programsAfter); err != nil {
		return r, err
	}
	if r.peak, err = p.peak(); err != nil {
		return r, err
	}
	if err := p.interrupt(); err != nil {
		return r, err
	}
	return r, t.count(p, &r)
}

// awaitStart waits until the tracer traces. tcptrace says so; the others have
// loaded their program and attach it the next moment.
func (t tracer) awaitStart(p *process) error {
	if t.isOurs() {
		return until("line on stderr that says it is tracing", func() (bool, error) {
			return strings.Contains(p.said(), "tracing"), nil
		})
	}
	err := until("BPF program", func() (bool, error) {
		loaded, err := programs(p.pid())
		return len(loaded) > 0, err
	})
	time.Sleep(time.Second)
	return err
}

// What tells of losses beside what tcptrace calls its causes.
const (
	missingLines = "missing lines"
	bufferFull   = "buffer full"
)

var toldLost = regexp.MustCompile(`(?i)lost (\d+) events`)

// count finds out what was lost: what the tracer says of it, and what it has not
// printed.
func (t tracer) count(p *process, r *result) error {
	var stats struct {
		Lost        map[string]float64
		RecordsLost float64 `json:"records_lost"`
		Unprinted   float64
	}
	printed, told := 0.0, p.said()
	err := p.printed(func(line []byte) error {
		switch {
		case bytes.HasPrefix(line, []byte(`{"type":"stats"`)):
			return json.Unmarshal(line, &stats)
		case bytes.HasPrefix(line, []byte(`{"type":"finding"`)):
		case bytes.Contains(line, []byte(ofTheStorm)):
			printed++
		case bytes.HasPrefix(line, []byte("Lost ")): // bpftrace says it here
			told += string(line) + "\n"
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.lost = map[string]float64{}
	if t.isOurs() {
		if stats.Lost == nil {
			return fmt.Errorf("no stats record")
		}
		r.lost = stats.Lost
		r.lost["records_lost"] = stats.RecordsLost
		r.lost["unprinted"] = stats.Unprinted
	} else {
		for _, message := range toldLost.FindAllStringSubmatch(told, -1) {
			n, _ := strconv.ParseFloat(message[1], 64)
			r.lost[bufferFull] += n
		}
		for _, p := range r.programs {
			r.lost["nested"] += float64(p.misses)
		}
	}
	if want := t.perTransition*r.transitions + t.perConnection*r.connections; want > 0 {
		r.lost[missingLines] = want - printed
	}
	return nil
}

// storm runs the storm on this thread's network namespace.
func (r *result) storm() error {
	p, err := start(stormBin, "-n", strconv.Itoa(stormSize))
	if err != nil {
		return err
	}
	defer p.close()
	if err := p.wait(); err != nil {
		return err
	}
	return p.printed(func(line []byte) error {
		var seconds float64
		_, err := fmt.Sscanf(string(line), "%f connections, %f transitions in %f s: %f connections a second",
			&r.connections, &r.transitions, &seconds, &r.rate)
		return err
	})
}

// inNamespace runs f on a thread in a network namespace of its own. Both end with f.
func inNamespace(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: so the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = prepareNamespace()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func prepareNamespace() error {
	// Or the limit, which depends on the memory of the host, ends TIME_WAIT early.
	if err := os.WriteFile("/proc/sys/net/ipv4/tcp_max_tw_buckets", []byte("1000000"), 0); err != nil {
		return err
	}
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
