package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tcptrace/tcptrace/internal/recording"
)

func newLogger(w io.Writer, verbose bool) *zap.Logger {
	level := zapcore.InfoLevel
	if verbose {
		level = zapcore.DebugLevel
	}
	enc := zapcore.NewConsoleEncoder(zapcore.EncoderConfig{
		NameKey: "name", MessageKey: "message", ConsoleSeparator: " ", LineEnding: "\n",
		EncodeName:     func(n string, a zapcore.PrimitiveArrayEncoder) { a.AppendString(n + ":") },
		EncodeDuration: zapcore.StringDurationEncoder,
	})
	return zap.New(zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), level)).Named("tcptrace")
}

// stream is the main job: records to stdout until something ends it.
func stream(ctx context.Context, e env, cfg *config) error {
	log := newLogger(e.stderr, cfg.verbose)
	log.Debug("filter", zap.Stringer("filter", cfg))
	from := live
	if cfg.replay != "" {
		from = replay
	}
	out := newSink(e.stdout)
	p := newPipeline(cfg, out)
	err := p.openOTLP(ctx, log)
	if err == nil {
		err = from(ctx, cfg, p, log)
	}
	whole := err == nil || errors.Is(err, errRecording)
	if whole {
		p.finish()
	}
	p.closeOTLP()
	if whole {
		p.printStats()
	}
	// The writer's error comes first: a run that has ended because nothing
	// more could be written has no other.
	switch werr := out.close(); {
	case errors.Is(werr, errStuck):
		p.shed += out.waiting()
		log.Warn("the last records were not printed", zap.Error(werr))
	case werr != nil:
		err, whole = fmt.Errorf("write records: %w", werr), false
	}
	if whole {
		summarize(log, p)
	}
	if err == nil && p.failed {
		return errFound
	}
	return err
}

// errFound is the error of a run with a finding that --fail-on asks for.
var errFound = errors.New("--fail-on: there was such a finding")

// summarize says in one line what was seen and lost.
func summarize(log *zap.Logger, p *pipeline) {
	s := p.stats()
	fields := []zap.Field{
		zap.Uint64("seen", s.Seen), zap.Uint64("delivered", s.Delivered), zap.Uint64("filtered", s.Filtered),
		zap.Uint64("lost", s.Lost.Sum()), zap.Uint64("unprinted", s.Unprinted),
	}
	if s.Evicted > 0 {
		fields = append(fields, zap.Uint64("evicted", s.Evicted))
	}
	if s.Exported != nil {
		fields = append(fields, zap.Uint64("otlp_sent", s.Exported.Sent), zap.Uint64("otlp_unsent", s.Exported.Unsent))
	}
	log.Info("done", fields...)
}

// replay runs the pipeline on a recording.
func replay(ctx context.Context, cfg *config, p *pipeline, log *zap.Logger) error {
	f, err := os.Open(cfg.replay)
	if err != nil {
		return fmt.Errorf("--replay: %w", err)
	}
	defer func() { _ = f.Close() }()
	ctx, cancel := cfg.bounded(ctx)
	defer cancel()
	p.begin()
	p.out.patience = ctx.Done() // a recording can wait for a slow reader
	if p.otlp != nil {
		p.otlp.Wait(ctx.Done())
	}
	err = recording.Replay(f, &player{pipeline: p, ctx: ctx})
	if was, is := p.recorded.CloseWaitAfter, cfg.over(p.recorded).CloseWaitAfter; was != is {
		log.Warn(fmt.Sprintf("the recording was made with --close-wait-after %s, and looks at sockets when that is over: with %s, leaks may come late or be missing",
			was, is))
	}
	switch {
	case errors.Is(err, errStop):
		return nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		log.Warn("the recording ends in the middle of an event; all before it was played", zap.String("file", cfg.replay))
		return nil
	case err != nil:
		return fmt.Errorf("--replay %q: %w", cfg.replay, err)
	}
	return nil
}

// player lets a replay be interrupted.
type player struct {
	*pipeline
	ctx    context.Context
	events int
}

func (p *player) Event(raw []byte) error {
	if p.events++; p.events%1024 == 0 && (p.ctx.Err() != nil || p.out.broken()) {
		return errStop
	}
	return p.pipeline.Event(raw)
}
