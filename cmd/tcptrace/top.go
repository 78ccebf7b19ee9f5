package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/tui"
	"github.com/tcptrace/tcptrace/pkg/aggregate"
)

const topHelp = `tcptrace top shows what happens now on the whole screen: sockets by state, the
processes that do not close theirs, where TIME_WAIT takes the ports, the open
findings and what to do about them; of one process or destination its connections,
and of one connection its time line and who holds it. ? shows the keys.

It prints no records. With --replay it plays the recording as fast as it can, and
shows how things stood at its end.`

const topExamples = `  # this host
  tcptrace top

  # one service, impatiently
  tcptrace top --comm nginx -f --close-wait-after 10s

  # how things stood when a recording ended
  tcptrace top --replay run.rec`

// What of the stream's flags is about records, or about others than those who look.
var notOfTop = []string{"events", "output", "summary-interval", "fail-on", "metrics", "metrics-config", "otlp"}

func topCommand(e env) *cobra.Command {
	c := command(e, top, false, notOfTop...)
	c.Use = "top [flags]"
	c.Short = "Show states, leaks, ports and connections live on the whole screen"
	c.Long, c.Example = topHelp, topExamples
	return c
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// top traces, or replays, behind a screen. The tracker belongs to a goroutine that draws nothing
// and waits for nobody who does.
func top(ctx context.Context, e env, cfg *config) error {
	was, err := unix.IoctlGetTermios(int(e.stdout.Fd()), unix.TCGETS)
	if err != nil {
		return usagef("top: stdout is no terminal to draw on; use tcptrace for records, or tcptrace snapshot for one look")
	}
	if t := os.Getenv("TERM"); t == "" || t == "dumb" {
		return usagef("top: TERM %q: this terminal cannot be drawn on; use tcptrace -o text, or tcptrace snapshot -o text", t)
	}
	cfg.print = nil
	logs := &backlog{to: e.stderr}
	if f, ok := e.stderr.(*os.File); ok && isTerminal(f) {
		logs.held = true // it is the screen, as a rule
	}
	defer logs.release()
	log := newLogger(logs, cfg.verbose)
	out := newSink(e.stdout) // the pipeline has one; it gets no records
	p := newPipeline(cfg, out)
	p.board = newBoard(cfg, logs)

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil { // not before the terminal is as it was
				ended <- fmt.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		if cfg.replay == "" {
			ended <- live(ctx, cfg, p, log)
			return
		}
		ctx, cancel := cfg.bounded(ctx) // to look at the end is part of it
		defer cancel()
		err := replay(ctx, cfg, p, log)
		if err == nil {
			p.board.played(ctx, p)
		}
		ended <- err
	}()
	stuck := false
	select {
	case err = <-ended: // before there was anything to show
	case <-p.board.first:
		drawn := make(chan error, 1)
		go func() { drawn <- tui.Run(ctx, p.board.feed, e.stdout) }()
		select {
		case err = <-ended: // --duration, a second thought of the kernel, SIGTERM
			stop()
			select {
			case derr := <-drawn:
				err = cmp.Or(err, derr)
			case <-time.After(stuckAfter): // it takes not even what would restore it
				stuck = true
			}
		case err = <-drawn:
			stop()
			err = cmp.Or(err, <-ended)
		}
	}
	if werr := out.close(); err == nil {
		err = werr
	}
	if err == nil {
		summarize(log, p)
	}
	if stuck {
		_ = unix.IoctlSetTermios(int(e.stdout.Fd()), unix.TCSETS, was)
		logs.drop()
	}
	return err
}

// A view is made so often at the most, and a rest is taken after it, in times of the CPU time
// that it took, so that it costs no more than 1% of a core.
const viewInterval = 500 * time.Millisecond

// The time over which transitions per second are counted.
const rateOver = 2 * time.Second

// A board publishes what a tui shows. It belongs to the pipeline's goroutine.
type board struct {
	feed  *tui.Feed
	first chan struct{} // closed when there is something to show
	logs  *backlog

	replay string
	past   []aggregate.Finding // the last that are about processes that have exited, the newest first
	points []point             // of the last rateOver; of a replay, the first of all
	next   time.Time           // no view before
	rest   time.Time           // likewise, also if another is asked for
	query  *aggregate.Query    // of the last view
}

// point is how many transitions there had been at a time.
type point struct{ ktime, delivered uint64 }

// So many findings about processes that have exited are shown.
const maxPast = 16

func newBoard(cfg *config, logs *backlog) *board {
	b := &board{feed: tui.NewFeed(), first: make(chan struct{}), logs: logs}
	if cfg.replay != "" {
		b.replay = filepath.Base(cfg.replay)
	}
	return b
}

// finding keeps what no view shows: a finding that is over when it is told.
func (b *board) finding(told *aggregate.Finding) {
	if told.Kind != aggregate.NeverClosed {
		return
	}
	f := *told
	f.Evidence = aggregate.Evidence{}                  // of which a part is the tracker's
	b.past = slices.Insert(slices.Clone(b.past), 0, f) // frames have the other
	b.past = b.past[:min(len(b.past), maxPast)]
}

// show publishes a view if it is time for one, or if another is asked for.
func (b *board) show(p *pipeline) {
	if len(b.points) == 0 {
		b.rate(p.ktime, p.stats().Delivered) // from here on
	}
	now := time.Now()
	if now.Before(b.rest) || now.Before(b.next) && b.query == b.feed.Query() || !p.tracker.Started() {
		return
	}
	begun := cpuTime()
	b.publish(p, false)
	b.next, b.rest = now.Add(viewInterval), now.Add(restAfterScan*(cpuTime()-begun))
}

func (b *board) publish(p *pipeline, played bool) {
	b.query = b.feed.Query()
	st := p.stats()
	b.feed.Publish(&tui.Frame{
		View: p.tracker.View(b.query), Wall: *p.wall, PerSecond: b.rate(p.ktime, st.Delivered), Lost: st.Lost.Sum(),
		Past: b.past, Note: b.logs.last(), Replay: b.replay, Played: played,
	})
	select {
	case <-b.first:
	default:
		close(b.first)
	}
}

// rate is the transitions per second: of a replay, over all of it.
func (b *board) rate(ktime, delivered uint64) float64 {
	b.points = append(b.points, point{ktime, delivered})
	if b.replay != "" {
		b.points = b.points[:1]
	}
	for len(b.points) > 2 && b.points[1].ktime+uint64(rateOver) <= ktime {
		b.points = b.points[1:]
	}
	from := b.points[0]
	if ktime <= from.ktime {
		return 0
	}
	return float64(delivered-from.delivered) / time.Duration(ktime-from.ktime).Seconds()
}

// played shows the end of a recording for as long as somebody looks.
func (b *board) played(ctx context.Context, p *pipeline) {
	p.finish()
	for {
		b.publish(p, true)
		select {
		case <-b.feed.Asked():
		case <-ctx.Done():
			return
		}
	}
}

// A backlog is a log that may be held back while something else is drawn on the terminal: as
// much of it as fits.
type backlog struct {
	mu     sync.Mutex
	to     io.Writer
	held   bool
	lines  [][]byte
	missed int
	newest string
}

// So many lines are held; the first and, of the others, the last.
const (
	firstLines = 64
	lastLines  = 64
)

// Write implements io.Writer: zap writes line by line.
func (b *backlog) Write(line []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.newest = strings.TrimPrefix(strings.TrimSpace(string(line)), "tcptrace: ")
	if !b.held {
		return b.to.Write(line)
	}
	if len(b.lines) == firstLines+lastLines {
		b.lines = slices.Delete(b.lines, firstLines, firstLines+1)
		b.missed++
	}
	b.lines = append(b.lines, bytes.Clone(line))
	return len(line), nil
}

func (b *backlog) last() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.newest
}

// drop forgets what was held: the terminal that it is for takes nothing.
func (b *backlog) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = nil
}

// release writes what was held, and holds no more.
func (b *backlog) release() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = false
	for i, line := range b.lines {
		if i == firstLines && b.missed > 0 {
			_, _ = fmt.Fprintf(b.to, "tcptrace: %d lines of the log are left out here\n", b.missed)
		}
		_, _ = b.to.Write(line) // to whom should it be said?
	}
	b.lines = nil
}
