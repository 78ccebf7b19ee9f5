package main

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/tcptrace/tcptrace/internal/cri"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// A snapshot waits so long for names that the runtime was asked for meanwhile.
const namesWait = 2 * time.Second

// openRuntime asks the container runtime of --cri for names; nil if there is none, or
// the run is asked to stop meanwhile.
func openRuntime(ctx context.Context, cfg *config) (*cri.Runtime, error) {
	if cfg.cri == "" {
		return nil, nil
	}
	runtime, err := cri.Open(ctx, cfg.cri)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, nil // the run is to stop, which is no failure
	case err != nil:
		return nil, fmt.Errorf("--cri %q: %w", cfg.cri, err)
	}
	return runtime, nil
}

// details passes on what /proc says of a process, and the names of the container that
// it is in, if they are new and known.
func (r *runner) details(d *events.Details) error {
	if err := r.sink.Details(d); err != nil || r.runtime == nil || !r.pipe.tracker.WantsNames(d.Container) {
		return err
	}
	if c, ok := r.runtime.Container(d.Container); ok {
		return r.sink.Container(&c)
	}
	return nil
}

// names passes on the names that were asked for and have come.
func (r *runner) names() error {
	if r.runtime == nil {
		return nil
	}
	found, err := r.runtime.Found()
	switch {
	case err != nil && !r.nameless:
		r.log.Warn("the container runtime does not answer: new containers have no names until it does", zap.Error(err))
	case err == nil && r.nameless:
		r.log.Info("the container runtime answers again")
	}
	r.nameless = err != nil
	for i := range found {
		if err := r.sink.Container(&found[i]); err != nil {
			return err
		}
	}
	return nil
}

// awaitNames waits for them: a container may have started after the runtime was asked
// first.
func (r *runner) awaitNames() error {
	if r.runtime == nil {
		return nil
	}
	for end := time.Now().Add(namesWait); !r.runtime.Settled() && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err := r.names(); err != nil {
			return err
		}
	}
	return r.names()
}
