package main

import (
	"errors"
	"fmt"
	"os"

	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// tee passes everything on to the pipeline and to a recording.
type tee struct {
	*pipeline
	rec  *recording.Writer
	file *os.File
	log  *zap.Logger
	err  error // the recording's; the run goes on without it
}

func newTee(p *pipeline, f *os.File, log *zap.Logger) (*tee, error) {
	w, err := recording.NewWriter(f)
	return &tee{pipeline: p, rec: w, file: f, log: log}, err
}

func (t *tee) keep(write func(*recording.Writer) error) {
	if t.err == nil {
		t.kept(write(t.rec))
	}
}

// kept tells at once that a recording ends here: its run may go on for days.
func (t *tee) kept(err error) {
	if err != nil {
		t.err = err
		t.log.Warn("the recording ends here; the run goes on without it", zap.Error(err))
	}
}

func (t *tee) Event(raw []byte) error {
	if t.err == nil {
		t.kept(t.rec.Event(raw))
	}
	return t.pipeline.Event(raw)
}

func (t *tee) Clock(ktime uint64, wall int64) error {
	t.keep(func(w *recording.Writer) error { return w.Clock(ktime, wall) })
	return t.pipeline.Clock(ktime, wall)
}

func (t *tee) Scanned(s events.Scan) error {
	t.keep(func(w *recording.Writer) error { return w.Scanned(s) })
	return t.pipeline.Scanned(s)
}

func (t *tee) Thresholds(th events.Thresholds) error {
	t.keep(func(w *recording.Writer) error { return w.Thresholds(th) })
	return t.pipeline.Thresholds(th)
}

func (t *tee) Summarize() error {
	t.keep((*recording.Writer).Summarize)
	return t.pipeline.Summarize()
}

func (t *tee) Network(n events.Network) error {
	t.keep(func(w *recording.Writer) error { return w.Network(n) })
	return t.pipeline.Network(n)
}

func (t *tee) Books(b events.Books) error {
	t.keep(func(w *recording.Writer) error { return w.Books(b) })
	return t.pipeline.Books(b)
}

func (t *tee) Details(d *events.Details) error {
	t.keep(func(w *recording.Writer) error { return w.Details(d) })
	return t.pipeline.Details(d)
}

func (t *tee) Container(c *events.Container) error {
	t.keep(func(w *recording.Writer) error { return w.Container(c) })
	return t.pipeline.Container(c)
}

func (t *tee) Probe(facility, variant string) error {
	t.keep(func(w *recording.Writer) error { return w.Probe(facility, variant) })
	return t.pipeline.Probe(facility, variant)
}

// errRecording is the error of a run that went well, but for its recording.
var errRecording = errors.New("the recording is not whole")

// close says whether the recording is whole.
func (t *tee) close() error {
	if t.err == nil {
		t.err = t.rec.Flush()
	}
	if err := t.file.Close(); t.err == nil {
		t.err = err
	}
	if t.err != nil {
		return fmt.Errorf("--record: %w: %w", errRecording, t.err)
	}
	return nil
}
