package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
)

// usageError is a mistake in the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

const longHelp = `tcptrace prints every TCP state transition of this host as JSON Lines: the socket,
the process that owns it, and how long it was in the state that it left. A
connection that ends gets a record of its own: who closed first, how it ended,
the time in every state.

Records go to stdout, logs to stderr. It runs until it is interrupted.`

const examples = `  # everything, for ten seconds
  tcptrace --duration 10s

  # who leaves sockets of the server with PID 4711 in CLOSE_WAIT
  tcptrace --pid 4711 | jq 'select(.newstate == "CLOSE_WAIT")'

  # connections to port 5432, one line each
  tcptrace -D 5432 --events connection

  # keep a run, and look at it later without root
  tcptrace --record run.rec --duration 1m > /dev/null
  tcptrace --replay run.rec -o text`

// run executes one command line. Its error, if it is a usageError, is the
// user's mistake.
func run(ctx context.Context, e env) error {
	var f flags
	root := &cobra.Command{
		Use:           "tcptrace [flags]",
		Short:         "Print every TCP state transition with its owner and its dwell time",
		Long:          longHelp,
		Example:       examples,
		Args:          noArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config()
			if err != nil {
				return err
			}
			return stream(cmd.Context(), e, cfg)
		},
	}
	f.register(root.Flags())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see tcptrace --help", err)}
	})
	root.SetArgs(e.args)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	return root.ExecuteContext(ctx)
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q: tcptrace takes only flags; see tcptrace --help", args[0])
	}
	return nil
}
