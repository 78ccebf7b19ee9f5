package main

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// What the manual page says beside the commands' own help.
const manEnd = `.SH EXIT STATUS
.TP
.B 0
Stopped as asked: SIGINT, SIGTERM, \fB\-\-duration\fR, end of a replay, or the reader of stdout gone.
.TP
.B 1
Runtime failure; of
.BR "tcptrace check" ,
that tcptrace cannot trace here.
.TP
.B 2
Usage: the line on stderr names flag and value.
.TP
.B 3
There was a finding that \fB\-\-fail\-on\fR asks for.
.SH ENVIRONMENT
.TP
.B NO_COLOR
If it is set, and not empty, text has no colour on a terminal either; nor has it if
.B TERM
is
.IR dumb .
.SH FILES
.TP
.I /sys/kernel/btf/vmlinux
The running kernel's types, unless \fB\-\-btf\fR names another file.
.TP
.I /run/netns/
The network namespaces of
.BR ip\-netns (8),
by name.
.SH SEE ALSO
.BR ss (8),
.BR ip\-netns (8),
.BR tcp (7),
.BR jq (1)
`

// man makes the hidden command that prints tcptrace(1): releases and make install
// take the page from it, so that it says what --help says.
func man(e env) *cobra.Command {
	return &cobra.Command{
		Use:           "man",
		Short:         "Print the manual page",
		Hidden:        true,
		Args:          noArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := e.stdout.Write(page(c.Root()))
			return err
		},
	}
}

// page is the manual page, in the macros of man(7): the flags of root, then each
// command with the flags that only it has, or has another meaning of.
func page(root *cobra.Command) []byte {
	var b bytes.Buffer
	date, _, _ := strings.Cut(thisBuild().time, "T")
	fmt.Fprintf(&b, ".TH TCPTRACE 1 %q tcptrace \"User Commands\"\n", date)
	fmt.Fprintf(&b, ".SH NAME\ntcptrace \\- %s\n", roff(root.Short))
	var commands []*cobra.Command
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			commands = append(commands, c)
		}
	}
	fmt.Fprintf(&b, ".SH SYNOPSIS\n.B %s\n", roff(root.Use))
	for _, c := range commands {
		fmt.Fprintf(&b, ".br\n.B tcptrace %s\n", roff(c.Use))
	}
	fmt.Fprintf(&b, ".SH DESCRIPTION\n%s.SH OPTIONS\n", paragraphs(root.Long))
	root.InitDefaultHelpFlag()
	root.InitDefaultVersionFlag()
	root.Flags().VisitAll(func(f *pflag.Flag) { b.WriteString(option(f)) })
	b.WriteString(".SH COMMANDS\n")
	for _, c := range commands {
		fmt.Fprintf(&b, ".SS tcptrace %s\n%s", roff(c.Use), paragraphs(c.Long))
		var shared []string
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Hidden {
				return
			}
			if as := root.Flags().Lookup(f.Name); as != nil && as.Usage == f.Usage {
				shared = append(shared, `\fB`+roff("--"+f.Name)+`\fR`)
				return
			}
			b.WriteString(option(f))
		})
		if len(shared) > 0 {
			fmt.Fprintf(&b, ".PP\nAs above: %s.\n", strings.Join(shared, ", "))
		}
	}
	b.WriteString(".SH EXAMPLES\n")
	for i, c := range append([]*cobra.Command{root}, commands...) {
		if i > 0 {
			b.WriteString(".PP\n")
		}
		fmt.Fprintf(&b, ".EX\n%s\n.EE\n", roff(strings.TrimPrefix(strings.ReplaceAll(c.Example, "\n  ", "\n"), "  ")))
	}
	b.WriteString(manEnd)
	return b.Bytes()
}

// option is the entry of a flag, nothing for one that is hidden.
func option(f *pflag.Flag) string {
	if f.Hidden {
		return ""
	}
	names := `\fB` + roff("--"+f.Name) + `\fR`
	if f.Shorthand != "" {
		names = `\fB` + roff("-"+f.Shorthand) + `\fR, ` + names
	}
	value, usage := pflag.UnquoteUsage(f)
	if value != "" {
		names += ` \fI` + roff(value) + `\fR`
	}
	switch f.DefValue {
	case "", "0", "0s", "false": // nothing unless it is given
	default:
		usage += fmt.Sprintf(" (default %s)", f.DefValue)
	}
	return fmt.Sprintf(".TP\n%s\n%s\n", names, roff(usage))
}

// paragraphs sets text, in which empty lines separate paragraphs.
func paragraphs(text string) string {
	return strings.ReplaceAll(roff(text), "\n\n", "\n.PP\n") + "\n"
}

// roff makes s stand for itself: a backslash, a dash that may be copied into a
// shell, and a line that looks like a macro.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n.", "\n\\&.", "\n'", "\n\\&'").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
