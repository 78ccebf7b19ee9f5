package main

import (
	"context"
	"fmt"

	"go.uber.org/zap"
)

// look makes one scan.
func look(ctx context.Context, cfg *config, p *pipeline, log *zap.Logger) error {
	r, err := openRunner(ctx, cfg, p, log)
	if err != nil {
		return err
	}
	defer r.close()
	return r.start()
}

// snapshot prints the sockets that there are, and what is wrong with them.
func snapshot(ctx context.Context, e env, cfg *config) error {
	log := newLogger(e.stderr, cfg.verbose)
	out := newSink(e.stdout)
	out.patience = ctx.Done() // nothing is missed meanwhile: a slow reader gets all of it
	p := newPipeline(cfg, out)
	err := look(ctx, cfg, p, log)
	if err == nil {
		p.printStats()
	}
	if werr := out.close(); werr != nil {
		err = fmt.Errorf("write records: %w", werr)
	}
	if err == nil && p.failed {
		return errFound
	}
	return err
}
