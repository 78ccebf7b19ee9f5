package main

import (
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const completionHelp = `tcptrace completion prints a script that teaches a shell to complete tcptrace's
commands, flags and the values of flags.`

const completionExamples = `  # for this shell
  source <(tcptrace completion bash)

  # for every shell to come
  tcptrace completion bash > /etc/bash_completion.d/tcptrace
  tcptrace completion zsh > "${fpath[1]}/_tcptrace"
  tcptrace completion fish > ~/.config/fish/completions/tcptrace.fish`

var shells = []string{"bash", "fish", "zsh"}

// completion makes the command of that name. Cobra's own would take a mistake for
// a runtime failure, and knows a shell that no Linux host has.
func completion(e env) *cobra.Command {
	return &cobra.Command{
		Use:           "completion SHELL",
		Short:         "Print the completion script of a shell: " + strings.Join(shells, ", "),
		Long:          completionHelp,
		Example:       completionExamples,
		ValidArgs:     shells,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(shells, args[0]) {
				return usagef("completion %q: name one shell of %s", strings.Join(args, " "), strings.Join(shells, ", "))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return c.Root().GenBashCompletionV2(e.stdout, true)
			case "fish":
				return c.Root().GenFishCompletion(e.stdout, true)
			default:
				return c.Root().GenZshCompletion(e.stdout)
			}
		},
	}
}

// complete tells shells which values the flags of c take. Those that it does not
// know are free, and no files.
func complete(c *cobra.Command, types []string) {
	c.CompletionOptions.SetDefaultShellCompDirective(cobra.ShellCompDirectiveNoFileComp)
	values := map[string]cobra.CompletionFunc{
		"events":  several(types),
		"fail-on": several(append(slices.Clone(findingKinds), "any")),
		"netns":   namedNetns,
		"output":  cobra.FixedCompletions([]string{"json", "text"}, cobra.ShellCompDirectiveNoFileComp),
	}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		take := values[f.Name]
		if what, _ := pflag.UnquoteUsage(f); what == "FILE" {
			take = cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault)
		}
		if take != nil {
			// Fails only for a flag that does not exist, or is registered twice.
			if err := c.RegisterFlagCompletionFunc(f.Name, take); err != nil {
				panic(err)
			}
		}
	})
}

// several completes a list that commas separate, and leaves room for the next one.
func several(choices []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		before := typed[:strings.LastIndexByte(typed, ',')+1]
		var out []cobra.Completion
		for _, choice := range choices {
			if !slices.Contains(strings.Split(before, ","), choice) {
				out = append(out, before+choice)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

// namedNetns completes the namespaces that ip netns knows, and any path.
func namedNetns(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	names, _ := filepath.Glob("/run/netns/*") // fails only for a bad pattern
	return names, cobra.ShellCompDirectiveDefault
}
