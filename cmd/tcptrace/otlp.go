package main

import (
	"context"
	"os"

	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/otlp"
	"github.com/tcptrace/tcptrace/pkg/aggregate"
)

// collector checks --otlp. Whether a collector is there, sending to it tells.
func (f *flags) collector() error {
	if f.otlp == "" {
		return nil
	}
	if err := otlp.Check(string(f.otlp)); err != nil {
		return usagef("--otlp %q: %w", string(f.otlp), err)
	}
	return nil
}

// openOTLP prepares to send what the pipeline makes to the collector of --otlp.
func (p *pipeline) openOTLP(ctx context.Context, log *zap.Logger) error {
	if p.cfg.otlp == "" {
		return nil
	}
	where := zap.String("endpoint", p.cfg.otlp)
	to := otlp.Config{Endpoint: p.cfg.otlp, Version: thisBuild().version, Report: func(err error) {
		if err != nil {
			log.Warn("the OpenTelemetry collector does not take records; otlp_unsent counts what it will never get", where, zap.Error(err))
		} else {
			log.Info("the OpenTelemetry collector takes records again", where)
		}
	}}
	if p.cfg.replay == "" { // a recording may be of another host
		to.Host, _ = os.Hostname() // unknown, if it fails
	}
	var err error
	if p.otlp, err = otlp.Open(ctx, to); err != nil {
		return usagef("--otlp %q: %w; mend the environment variable that says so, docs/otlp.md lists them", p.cfg.otlp, err)
	}
	return nil
}

// closeOTLP sends what waits.
func (p *pipeline) closeOTLP() {
	if p.otlp != nil {
		p.out.flush() // this may take a while
		p.otlp.Close()
	}
}

// exported is what became of the records for the collector; nil if there is none.
func (p *pipeline) exported() *aggregate.Exported {
	if p.otlp == nil {
		return nil
	}
	var x aggregate.Exported
	x.Sent, x.Unsent = p.otlp.Counts()
	return &x
}
