package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/internal/report"
)

const reportHelp = `tcptrace report makes one HTML page of what was recorded: findings first, then which
process leaks since when, the time in each state, the ports that TIME_WAIT takes, the
connections, and what was lost. The page needs no network and no server.

A FILE holds records as tcptrace prints them, or a recording of --record; either may be
compressed with gzip, and - is stdin. Several are shown together: PIDs and cookies of one
have nothing to do with those of another.

It runs without privilege.`

const reportExamples = `  # watch for ten minutes, and look at it
  tcptrace --summary-interval 10s --duration 10m > run.jsonl
  tcptrace report run.jsonl > run.html

  # the same without the file, until Ctrl-C
  tcptrace | tcptrace report - > run.html

  # the runs of three hosts
  tcptrace report web-1.jsonl.gz web-2.jsonl.gz db.rec > all.html`

func reportCommand(e env) *cobra.Command {
	c := &cobra.Command{
		Use:           "report FILE...",
		Short:         "Make one HTML page of records or recordings, on stdout",
		Long:          reportHelp,
		Example:       reportExamples,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          reportArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if isTerminal(e.stdout) {
				return usagef("report: the page is not for a terminal: append > report.html")
			}
			return makeReport(c.Context(), e, args)
		},
	}
	complete(c, nil)
	c.ValidArgsFunction = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
	return c
}

func reportArgs(_ *cobra.Command, args []string) error {
	if len(args) == 0 {
		return usagef("report: no FILE; name records or recordings, or - for stdin")
	}
	for i, name := range args {
		for _, before := range args[:i] {
			if before == name {
				return usagef("report: %q is named twice, and would count twice", name)
			}
		}
	}
	return nil
}

func makeReport(ctx context.Context, e env, names []string) error {
	log := newLogger(e.stderr, false)
	p := &progress{}
	if f, ok := e.stderr.(*os.File); ok && isTerminal(f) {
		p.w = f
	}
	for _, name := range names {
		if name == "-" {
			continue
		}
		st, err := os.Stat(name) // a mistake shows before the work
		switch {
		case err != nil:
			return fmt.Errorf("report: %w", err)
		case st.IsDir():
			return fmt.Errorf("report: %q: is a directory; name the files in it", name)
		}
		p.total += st.Size()
	}
	r := report.New()
	var bad uint64
	var firstBad error
	for _, name := range names {
		in := r.Input(name)
		err := readInput(ctx, name, in, p)
		p.clear()
		if n, first := in.Bad(); n > 0 {
			if bad == 0 {
				firstBad = fmt.Errorf("%s: %w", name, first)
			}
			bad += n
		}
		switch {
		case errors.Is(err, errStop):
			r.Stopped()
		case err != nil:
			return fmt.Errorf("report: %q: %w", name, err)
		}
		if in.IsCut() {
			log.Warn(fmt.Sprintf("%q ends in the middle of a record; all before it is in the report", name))
		}
		if ctx.Err() != nil {
			r.Stopped()
			break
		}
	}
	if r.Empty() {
		return errors.New("report: interrupted before the first record")
	}
	w := bufio.NewWriter(e.stdout)
	err := errors.Join(r.Write(w, thisBuild().String(), time.Now()), w.Flush())
	switch {
	case errors.Is(err, syscall.EPIPE):
		return nil
	case err != nil:
		return fmt.Errorf("write report: %w", err)
	case bad > 0:
		return fmt.Errorf("report: lines that are no records, left out: %d; the first: %w", bad, firstBad)
	}
	return nil
}

// readInput reads one file. Interrupted, it returns errStop; but what comes through a pipe is
// interrupted at its source.
func readInput(ctx context.Context, name string, in *report.Input, p *progress) error {
	f := os.Stdin
	if name == "-" {
		ctx = context.WithoutCancel(ctx)
	} else {
		var err error
		if f, err = os.Open(name); err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
	}
	r := bufio.NewReaderSize(&counted{ctx: ctx, r: f, p: p}, 1<<18)
	if begins(r, "\x1f\x8b") {
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		r = bufio.NewReaderSize(z, 1<<18)
	}
	if begins(r, recording.Magic) {
		return readRecording(ctx, r, in)
	}
	return in.Read(r)
}

func begins(r *bufio.Reader, magic string) bool {
	b, _ := r.Peek(len(magic)) // what is wrong shows when it is read
	return bytes.Equal(b, []byte(magic))
}

// readRecording replays a recording into a pipe, and reads the records from that.
func readRecording(ctx context.Context, r io.Reader, in *report.Input) error {
	from, to, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = from.Close() }()
	var f flags
	c := &cobra.Command{}
	f.register(c.Flags(), false)
	f.summaryInterval = summaryInterval
	cfg, err := f.config()
	if err != nil {
		return err
	}
	cfg.replay = "-"
	// What nothing interrupts has no Done, and the sink would be impatient.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	replayed := make(chan error, 1)
	go func() {
		out := newSink(to)
		out.patience = ctx.Done()
		p := newPipeline(cfg, out)
		err := recording.Replay(r, &player{pipeline: p, ctx: ctx})
		p.finish()
		p.printStats()
		replayed <- errors.Join(err, out.close(), to.Close())
	}()
	in.Recorded()
	err = in.Read(from)
	if played := <-replayed; errors.Is(played, io.ErrUnexpectedEOF) {
		in.Cut()
	} else if played != nil {
		return played
	}
	return err
}

// counted reads until it is interrupted, and shows how far it has come.
type counted struct {
	ctx context.Context
	r   io.Reader
	p   *progress
}

func (c *counted) Read(b []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, errStop
	}
	n, err := c.r.Read(b)
	c.p.add(n)
	return n, err
}

// progress is a bar on a terminal; without w, nothing.
type progress struct {
	w           io.Writer
	done, total int64
	drawn       time.Time
	shown       bool
}

const (
	barCells  = 30
	barWaits  = 500 * time.Millisecond // what is faster needs no bar
	barRedraw = 100 * time.Millisecond
)

func (p *progress) add(n int) {
	p.done += int64(n)
	now := time.Now()
	switch {
	case p.w == nil || p.total == 0: // of a pipe, nobody knows how much there is
		return
	case p.drawn.IsZero():
		p.drawn = now.Add(barWaits - barRedraw)
		return
	case now.Sub(p.drawn) < barRedraw:
		return
	}
	p.drawn, p.shown = now, true
	part := min(float64(p.done)/float64(p.total), 1)
	full := int(part * barCells)
	fmt.Fprintf(p.w, "\r\x1b[K[%s%s] %3.0f%% of %d MB", strings.Repeat("#", full), strings.Repeat(".", barCells-full), 100*part, p.total>>20)
}

func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}
