package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// A runtime that hangs is no reason to fail a run that is asked to stop.
func TestToStopWhileTheRuntimeHangsIsNoFailure(t *testing.T) {
	t.Parallel()
	// Not t.TempDir: with this name, the path would not fit an address.
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "cri.sock")
	l, err := net.Listen("unix", path) // takes connections, and never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ctx, stop := context.WithCancel(context.Background())
	stop()
	if runtime, err := openRuntime(ctx, &config{cri: path}); runtime != nil || err != nil {
		t.Errorf("got %v, error %v; want neither", runtime, err)
	}
}
