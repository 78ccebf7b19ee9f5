package livetest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Enough records, 88 MB, to fill what waits for a reader almost three times.
	pausedStorm = 20_000

	// What the pipe, the writer and the test's reader can hold before a line that goes first, and some
	// other lines that go first too.
	onTheWay = 64<<10 + 128<<10 + 4<<10 + 60<<10

	// The buffers for stdout are 32 MiB of it, the ring buffer 16. With a queue that had no bound it would be more
	// by the 56 MB that are shed.
	mostMemory = 112 << 20
)

// A reader takes the records of a tracer at its own pace.
type reader struct {
	read    atomic.Int64  // bytes
	release chan struct{} // closed when it is to read as fast as it can
	over    chan struct{} // closed at the end of the stream

	// Once over is closed:
	failed      error
	transitions map[string]uint64 // printed so far, by cookie
	connections uint64
	short       []string // connections whose records and unprinted are not all there is
	leakAt      int64    // where the finding begins, -1 if there is none
	stats       record   // the last record
}

// newReader begins to read: so many lines a second, until release is closed.
func newReader(stdout io.Reader, perSecond int) *reader {
	r := &reader{release: make(chan struct{}), over: make(chan struct{}), transitions: map[string]uint64{}, leakAt: -1}
	go func() {
		defer close(r.over)
		if perSecond == 0 {
			<-r.release
		}
		lines := bufio.NewReaderSize(stdout, 4<<10)
		for n := 0; r.failed == nil; n++ {
			line, err := lines.ReadBytes('\n')
			if errors.Is(err, io.EOF) {
				if len(line) > 0 {
					r.failed = fmt.Errorf("the last line is not whole: %q", line)
				}
				return
			}
			if r.failed = err; err == nil {
				r.failed = r.take(line)
			}
			r.read.Add(int64(len(line)))
			if perSecond > 0 && n%(perSecond/100) == 0 {
				select {
				case <-r.release:
					perSecond = 0
				case <-time.After(10 * time.Millisecond):
				}
			}
		}
	}()
	return r
}

func (r *reader) take(line []byte) error {
	r.stats = record{}
	var marks struct{ Unprinted uint64 }
	if err := errors.Join(json.Unmarshal(line, &r.stats), json.Unmarshal(line, &marks)); err != nil {
		return fmt.Errorf("%w: %q", err, line)
	}
	switch rec := &r.stats; rec.Type {
	case "transition":
		r.transitions[orNull(rec.Cookie)]++
	case "connection":
		r.connections++
		want := uint64(5) // as the storm's server does: SYN_RECV, ESTABLISHED, CLOSE_WAIT, LAST_ACK, CLOSE
		if orNull(rec.Role) == "client" {
			want = 6 // SYN_SENT, ESTABLISHED, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE
		}
		if got := r.transitions[orNull(rec.Cookie)]; got+marks.Unprinted != want && len(r.short) < 5 {
			r.short = append(r.short, fmt.Sprintf("%d transitions and %d unprinted, want %d together: %s", got, marks.Unprinted, want, line))
		}
	case "finding":
		if rec.Kind == "close_wait_leak" && rec.Status == "open" && r.leakAt < 0 {
			r.leakAt = r.read.Load()
		}
	}
	return nil
}

// pausedTracer starts tcptrace, whose stdout is read by nobody yet.
func pausedTracer(t *testing.T, ns *netns) (*tracer, *os.File) {
	t.Helper()
	stdout, write := newPipe(t)
	cmd := exec.Command(tcptraceBin, "--duration", tracerLife, "--netns", fmt.Sprint(ns.inode),
		"--close-wait-after", closeWaitAfter.String(), "--metrics", "127.0.0.1:0")
	cmd.Stdout = write
	tr := startTracerBy(t, cmd, cmd.Start)
	write.Close()
	return tr, stdout
}

// storm makes connections, and says how.
func (n *netns) storm(t *testing.T, bin string, connections int) {
	t.Helper()
	n.do(t, func() {
		out, err := exec.Command(bin, "-n", strconv.Itoa(connections)).CombinedOutput()
		if err != nil {
			t.Fatalf("storm: %v\n%s", err, out)
		}
		t.Logf("under tcptrace: %s", bytes.TrimSpace(out))
	})
}

// leakHere makes a connection whose server, this program, does not close when its client has. It
// returns what closes it.
func (n *netns) leakHere(t *testing.T) (end func()) {
	t.Helper()
	var fds [3]int // listener, client, server
	n.do(t, func() {
		var errs [5]error
		fds[0], errs[0] = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		errs[1] = unix.Bind(fds[0], &unix.SockaddrInet4{Addr: [4]byte{127, 9, 9, 9}})
		errs[2] = unix.Listen(fds[0], 1)
		fds[1], errs[3] = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		at, err := unix.Getsockname(fds[0])
		if err = errors.Join(append(errs[:], err)...); err == nil {
			err = unix.Connect(fds[1], at)
		}
		if err == nil {
			fds[2], _, err = unix.Accept4(fds[0], unix.SOCK_CLOEXEC)
		}
		if err != nil {
			t.Fatalf("leak: %v", err)
		}
		unix.Close(fds[1])
	})
	return func() {
		unix.Close(fds[2])
		unix.Close(fds[0])
	}
}

// peakMemory is the largest resident set that a process has had, in bytes.
func peakMemory(t *testing.T, pid int) uint64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	kb := regexp.MustCompile(`VmHWM:\s*(\d+) kB`).FindSubmatch(status)
	if kb == nil {
		t.Fatalf("no VmHWM:\n%s", status)
	}
	n, err := strconv.ParseUint(string(kb[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n << 10
}

// A reader who pauses costs records, which are counted, and nothing else: no event, no finding, no memory without a
// bound. When the reader goes on, what matters comes first.
func TestAReaderWhoIsSlowGetsFindingsFirstAndTheBooksStayTrue(t *testing.T) {
	bin := buildStorm(t)
	for name, perSecond := range map[string]int{"who takes nothing": 0, "who takes 1,000 lines a second": 1000} {
		t.Run(name, func(t *testing.T) {
			for attempt := 1; pausedRun(t, bin, perSecond); attempt++ {
				if attempt == stormAttempts {
					t.Fatalf("transitions lost as nested in storm %d in a row", attempt)
				}
			}
		})
	}
}

// pausedRun reports whether the run is to be repeated: see quietStorm.
func pausedRun(t *testing.T, bin string, perSecond int) (again bool) {
	ns := newNetns(t)
	ns.sysctl(t, "ipv4/tcp_max_tw_buckets", "200000")
	tr, stdout := pausedTracer(t, ns)
	r := newReader(stdout, perSecond)
	ns.storm(t, bin, pausedStorm)
	shed := func(m map[string]float64) bool { return m["tcptrace_unprinted_total"] > 0 }
	if m := tr.awaitScrape(callTimeout, shed); !shed(m) {
		t.Fatal("nothing is shed: the reader is not slow enough for what this test is about")
	}
	end := ns.leakHere(t)
	found := func(m map[string]float64) bool { return m[`tcptrace_findings_total{kind="close_wait_leak"}`] == 1 }
	if m := tr.awaitScrape(callTimeout, found); !found(m) {
		t.Errorf("%v close_wait_leak found while stdout is slow, want 1", m[`tcptrace_findings_total{kind="close_wait_leak"}`])
	}
	read := r.read.Load()
	if perSecond > 0 { // it gets there at its pace
		for deadline := time.Now().Add(callTimeout); r.read.Load() < read+onTheWay && time.Now().Before(deadline); {
			time.Sleep(lag)
		}
	}
	close(r.release)
	end()
	ns.endMinisockets(t)
	time.Sleep(5 * lag) // until all of it has been read
	peak := peakMemory(t, tr.pid)
	if err := tr.signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if status, err := tr.wait(); err != nil || status != 0 {
		t.Fatalf("exit status %d, %v, want 0; stderr:\n%s", status, err, tr.log())
	}
	<-r.over
	if r.failed != nil {
		t.Fatal(r.failed)
	}

	stats := &r.stats
	if stats.Type != "stats" {
		t.Fatalf("the last record is a %s, want stats", stats.Type)
	}
	checkBooks(t, stats)
	t.Logf("unprinted %d, printed %v, peak memory %d MiB, the finding at %d with %d read before it was known",
		stats.Unprinted, stats.Records, peak>>20, r.leakAt, read)
	if stats.Lost["nested"] > 0 {
		return !t.Failed()
	}
	for cause, n := range stats.Lost {
		if n > 0 {
			t.Errorf("lost %d transitions as %s while stdout was slow, want 0", n, cause)
		}
	}
	// The storm has 16 listeners, the leak one.
	const connections, listeners = pausedStorm + 1, 17
	var transitions uint64
	for _, n := range r.transitions {
		transitions += n
	}
	if got, want := transitions+r.connections+stats.Unprinted, uint64(11*connections+2*listeners+2*connections); got != want {
		t.Errorf("%d transitions and %d connections printed, %d unprinted, are %d, want the %d that there were",
			transitions, r.connections, stats.Unprinted, got, want)
	}
	if stats.Records["transition"] != transitions || stats.Records["connection"] != r.connections {
		t.Errorf("stats say that %v were printed, want %d transitions and %d connections", stats.Records, transitions, r.connections)
	}
	for _, s := range r.short {
		t.Error(s)
	}
	switch {
	case r.leakAt < 0:
		t.Error("the finding was not printed")
	case r.leakAt > read+onTheWay:
		t.Errorf("the finding came %d bytes after it was made, want at most %d: ahead of what waited", r.leakAt-read, onTheWay)
	}
	if peak > mostMemory {
		t.Errorf("peak memory %d MiB, want %d at most", peak>>20, mostMemory>>20)
	}
	return false
}

// A reader who has stopped for good keeps no run from its end, and what it will never read is counted.
func TestAReaderWhoHasStoppedIsNotWaitedFor(t *testing.T) {
	bin := buildStorm(t)
	ns := newNetns(t)
	const connections = 1000
	tr, stdout := pausedTracer(t, ns)
	ns.storm(t, bin, connections)
	ns.endMinisockets(t)
	time.Sleep(5 * lag)
	if err := tr.signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	if status, err := tr.wait(); err != nil || status != 0 {
		t.Fatalf("exit status %d, %v, want 0; stderr:\n%s", status, err, tr.log())
	}
	left, err := io.ReadAll(stdout)
	if err != nil {
		t.Fatal(err)
	}
	tr.readers.Wait()
	done := regexp.MustCompile(`"unprinted": (\d+)`).FindStringSubmatch(tr.log())
	if done == nil {
		t.Fatalf("stderr does not say how many records were not printed:\n%s", tr.log())
	}
	unprinted, _ := strconv.Atoi(done[1])
	// The books, and findings about so many connections, come on top; and what was in the writer's hands counts as
	// unprinted, though the pipe holds some of it.
	got, want := unprinted+bytes.Count(left, []byte("\n")), 13*connections+2*16
	if most := want + 10 + (128<<10)/200; got < want || got > most {
		t.Errorf("%d lines in the pipe and %d unprinted are %d, want %d to %d", bytes.Count(left, []byte("\n")), unprinted, got, want, most)
	}
}

// smallDisk is a command line before another: that finds a disk with place for a mebibyte at dir, which nobody else sees.
func smallDisk(dir string) []string {
	return []string{"unshare", "--mount", "sh", "-ec", `mount -t tmpfs -o size=1m none "$0" && exec "$@"`, dir}
}

// A disk that is full ends the recording, and says so, but not the run: stdout has everything.
func TestAFullDiskEndsTheRecordingAndNotTheRun(t *testing.T) {
	bin := buildStorm(t)
	ns := newNetns(t)
	const connections = 2000
	dir := t.TempDir()
	name := filepath.Join(dir, "storm.rec")
	tr := startTracerAs(t, user{by: smallDisk(dir)}, "--netns", fmt.Sprint(ns.inode), "--record", name)
	tr.status = 1
	cut, err := os.Open(fmt.Sprintf("/proc/%d/root%s", tr.pid, name)) // the disk goes with the last who has it open
	if err != nil {
		t.Fatal(err)
	}
	defer cut.Close()
	ns.storm(t, bin, connections)
	ns.endMinisockets(t)
	full := fmt.Sprintf("write %s: %v", name, unix.ENOSPC)
	for deadline := time.Now().Add(callTimeout); !strings.Contains(tr.log(), full); time.Sleep(lag) {
		if time.Now().After(deadline) {
			t.Fatalf("stderr does not say %q while the run goes on:\n%s", full, tr.log())
		}
	}
	run := tr.stop()
	stats := lastStats(run.records)
	if want := uint64(13*connections + 2*16); stats == nil || stats.Lost["nested"] == 0 && stats.Records["transition"]+stats.Records["connection"] != want {
		t.Errorf("stats %+v, want %d transitions and connections printed, as with a disk that has place", stats, want)
	}
	if last := run.stderr[strings.LastIndex(strings.TrimSpace(run.stderr), "\n")+1:]; !strings.Contains(last, "--record") || !strings.Contains(last, full) {
		t.Errorf("the last line on stderr is %q, want the flag and %q", last, full)
	}

	replay := exec.Command(tcptraceBin, "--replay", "/proc/self/fd/3", "--events", "transition")
	replay.ExtraFiles = []*os.File{cut}
	out, err := replay.Output()
	if err != nil {
		t.Fatalf("replay what was recorded: %v", err)
	}
	var live []record
	for _, r := range run.records {
		if r.isTransition() {
			live = append(live, r)
		}
	}
	n := 0
	for line := range bytes.Lines(out) {
		r, err := parseRecord(line)
		if err != nil {
			t.Fatal(err)
		}
		if n >= len(live) {
			t.Fatalf("transition %d of the replay is %s, want none: the run has no more", n, line)
		}
		if l := live[n]; !r.Time.Equal(l.Time) || orNull(r.Lport) != orNull(l.Lport) || orNull(r.Rport) != orNull(l.Rport) || r.NewState != l.NewState {
			t.Fatalf("transition %d of the replay is %s, want that of the run, at %s into %s", n, line, l.Time, l.NewState)
		}
		n++
	}
	if n == 0 || n == len(live) {
		t.Errorf("%d transitions replayed of %d, want those that found place on the disk", n, len(live))
	}
}

// If stdout itself is on a full disk, there is nothing left to run for.
func TestAFullDiskBehindStdoutEndsTheRun(t *testing.T) {
	bin := buildStorm(t)
	ns := newNetns(t)
	dir := t.TempDir()
	by := smallDisk(dir)
	by[4] = strings.Replace(by[4], `exec "$@"`, `exec "$@" > "$0/records.jsonl"`, 1)
	cmd := user{by: by}.command(t, "--duration", tracerLife, "--netns", fmt.Sprint(ns.inode))
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd.Stdout = null
	tr := startTracerBy(t, cmd, cmd.Start)
	ns.storm(t, bin, 2000)
	status, err := tr.wait()
	tr.readers.Wait()
	if full := unix.ENOSPC.Error(); err != nil || status != 1 || !strings.Contains(tr.log(), full) {
		t.Errorf("exit status %d, %v, want 1 and %q on stderr:\n%s", status, err, full, tr.log())
	}
}
