package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A tracer is a tcptrace that runs.
type tracer struct {
	cmd     *exec.Cmd
	started time.Duration // until it was tracing
	log     chan []string // all that it has said, when it has ended
	scanned []time.Duration
}

// start starts it, and returns when it is tracing. Its records go to out, if that is not nil.
func (m *meter) start(out io.Writer, args ...string) (*tracer, error) {
	t := &tracer{cmd: exec.Command(m.tcptrace, args...), log: make(chan []string, 1)}
	t.cmd.Stdout = out
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGINT} // it does not end with its standard input
	stderr, err := t.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	begun := time.Now()
	if err := t.cmd.Start(); err != nil {
		return nil, err
	}
	tracing := make(chan bool, 1)
	go func() {
		var log []string
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			log = append(log, lines.Text())
			if strings.Contains(lines.Text(), "tracing") {
				t.started = time.Since(begun)
				tracing <- true
			}
		}
		close(tracing)
		t.log <- log
	}()
	if !<-tracing {
		return nil, fmt.Errorf("%s: %w\n%s", t.cmd, t.cmd.Wait(), strings.Join(<-t.log, "\n"))
	}
	return t, nil
}

func (t *tracer) stop() error {
	if err := t.cmd.Process.Signal(unix.SIGINT); err != nil {
		return err
	}
	log := <-t.log
	if err := t.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w\n%s", t.cmd, err, strings.Join(log, "\n"))
	}
	for _, line := range log {
		if _, said, ok := strings.Cut(line, `scanned {"cpu": "`); ok {
			said, _, _ = strings.Cut(said, `"`)
			d, err := time.ParseDuration(said)
			if err != nil {
				return err
			}
			t.scanned = append(t.scanned, d)
		}
	}
	return nil
}

// scans says what the scans after the first have cost, once it has stopped.
func (t *tracer) scans() string {
	if len(t.scanned) == 0 {
		return "none was made"
	}
	return fmt.Sprintf("%.0f ms (%d)", float64(median(t.scanned))/1e6, len(t.scanned))
}

// cpu is the CPU time that it has used so far.
func (t *tracer) cpu() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", t.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')'):])) // the first is the state, number 3
	user, _ := strconv.Atoi(f[14-2])
	system, _ := strconv.Atoi(f[15-2])
	const tick = 10 * time.Millisecond // USER_HZ
	return time.Duration(user+system) * tick
}

// status returns bytes that /proc/PID/status says.
func (t *tracer) status(name string) int {
	return kilobytes(fmt.Sprintf("/proc/%d/status", t.cmd.Process.Pid), name)
}

func availableMemory() int { return kilobytes("/proc/meminfo", "MemAvailable") }

func kilobytes(path, name string) int {
	text, _ := os.ReadFile(path)
	_, line, _ := strings.Cut(string(text), name+":")
	kb, _ := strconv.Atoi(strings.Fields(line + " 0")[0])
	return kb << 10
}

// output is what a tracer prints.
type output struct {
	rest  []byte // the beginning of a line
	stats struct {
		Type        string
		Seen        uint64
		Lost        map[string]uint64
		RecordsLost uint64 `json:"records_lost"`
	}

	mu       sync.Mutex
	watching bool
	late     []time.Duration
}

func (o *output) watch(on bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.watching = on
}

// Write takes lines.
func (o *output) Write(b []byte) (int, error) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rest = append(o.rest, b...)
	for {
		line, rest, whole := bytes.Cut(o.rest, []byte("\n"))
		if !whole {
			return len(b), nil
		}
		o.rest = rest
		if bytes.HasPrefix(line, []byte(`{"type":"stats"`)) {
			if err := json.Unmarshal(line, &o.stats); err != nil {
				return 0, err
			}
		}
		if _, at, ok := bytes.Cut(line, []byte(`"time":"`)); ok && o.watching {
			at, _, _ = bytes.Cut(at, []byte(`"`))
			when, err := time.Parse(time.RFC3339Nano, string(at))
			if err != nil {
				return 0, err
			}
			o.late = append(o.late, now.Sub(when))
		}
	}
}

func (o *output) lateness() string {
	if len(o.late) == 0 {
		return "never"
	}
	slices.Sort(o.late)
	return fmt.Sprintf("%.0f ms, at most %.0f ms (%d)", float64(median(o.late))/1e6, float64(o.late[len(o.late)-1])/1e6, len(o.late))
}

func (o *output) lost() string {
	if o.stats.Lost == nil {
		return "unknown"
	}
	o.stats.Lost["records_lost"] = o.stats.RecordsLost
	var n uint64
	var causes []string
	for cause, k := range o.stats.Lost {
		if n += k; k > 0 {
			causes = append(causes, fmt.Sprintf("%s %d", cause, k))
		}
	}
	slices.Sort(causes)
	return strings.TrimSuffix(fmt.Sprintf("%d (%s)", n, strings.Join(causes, ", ")), " ()")
}

// probe makes connections, ten a second, that nothing else happens beside.
func probe(d time.Duration) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		server, err := l.Accept()
		if err != nil {
			return err
		}
		c.Close()
		server.Close()
	}
	return nil
}
