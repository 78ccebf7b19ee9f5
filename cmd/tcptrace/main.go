// Command tcptrace prints every TCP state transition of a host, with the process
// that owns the socket and the time that it spent in every state; and says which
// process does not close its connections.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit statuses, as docs/schema.md promises them.
const (
	exitOK      = 0
	exitRuntime = 1
	exitUsage   = 2
	exitFound   = 3
)

// env is what a run has of the world outside, so that tests can call it.
type env struct {
	stdout *os.File
	stderr io.Writer
	args   []string
}

func main() {
	os.Exit(tcptrace())
}

func tcptrace() int {
	// A reader of stdout that goes away is how `| head` ends a run: it must
	// come back as an error of write(2), not kill the process.
	signal.Ignore(syscall.SIGPIPE)

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-signals
		stop()
		<-signals
		// Asked twice: whatever is still to be printed is not worth waiting for.
		os.Exit(exitOK)
	}()

	err := run(ctx, env{stdout: os.Stdout, stderr: os.Stderr, args: os.Args[1:]})
	if err == nil {
		return exitOK
	}
	_, _ = fmt.Fprintf(os.Stderr, "tcptrace: %v\n", err)
	if usage := (usageError{}); errors.As(err, &usage) {
		return exitUsage
	}
	if errors.Is(err, errFound) {
		return exitFound
	}
	return exitRuntime
}
