package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
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

A process that does not close its connections is a finding: which one, how many,
since when, which descriptors, and what it failed to do.

Records go to stdout, logs to stderr. It runs until it is interrupted.`

const examples = `  # everything, for ten seconds
  tcptrace --duration 10s

  # who leaves sockets in CLOSE_WAIT, for more than ten seconds
  tcptrace --events finding --close-wait-after 10s

  # the same, of what there is now, and stop
  tcptrace snapshot -o text --close-wait-after 10s

  # connections to port 5432, one line each
  tcptrace -D 5432 --events connection

  # keep a run, and look at it later without root
  tcptrace --record run.rec --duration 1m > /dev/null
  tcptrace --replay run.rec -o text`

const snapshotHelp = `tcptrace snapshot looks once at every TCP socket of this host, in all network
namespaces, and prints each with the processes that hold it, for how long at least
it has been in its state, and, if nobody closes it, what has gone wrong: what a run
of tcptrace tells at its start.

It sees no transition. What takes watching, growth for example, is unknown.`

const snapshotExamples = `  # all sockets, as ss lists them, with owner, age and verdict
  tcptrace snapshot -o text

  # fail if a process has sockets in CLOSE_WAIT for more than five minutes
  tcptrace snapshot --close-wait-after 5m --events finding --fail-on close_wait_leak`

// run executes one command line. Its error, if it is a usageError, is the
// user's mistake.
func run(ctx context.Context, e env) error {
	root := command(e, stream, false)
	root.Use = "tcptrace [flags]"
	root.Short = "Print every TCP state transition with its owner and its dwell time"
	root.Long, root.Example = longHelp, examples
	once := command(e, snapshot, true)
	once.Use = "snapshot [flags]"
	once.Short = "Print the TCP sockets that exist now, who holds them, and which nobody closes"
	once.Long, once.Example = snapshotHelp, snapshotExamples
	root.Version = thisBuild().String()
	root.AddCommand(once, topCommand(e), reportCommand(e), checkCommand(e), completion(e), man(e))
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	root.SetArgs(e.args)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	return root.ExecuteContext(ctx)
}

// command makes a command that understands its flags, but for those without, and then does what
// do does.
func command(e env, do func(context.Context, env, *config) error, snapshot bool, without ...string) *cobra.Command {
	var f flags
	c := &cobra.Command{
		Args:          noArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := f.config()
			if err != nil {
				return err
			}
			return do(cmd.Context(), e, cfg)
		},
	}
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	f.register(all, snapshot)
	c.Flags().SortFlags = false
	all.VisitAll(func(flag *pflag.Flag) {
		if !slices.Contains(without, flag.Name) {
			c.Flags().AddFlag(flag)
		}
	})
	complete(c, f.types())
	return c
}

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q: no such command, and tcptrace takes only flags; see tcptrace --help", args[0])
	}
	return nil
}
