package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/pkg/aggregate"
)

const checkHelp = `tcptrace check says what this host, its kernel and the container allow; of each
thing that is missing, what that costs and what mends it: any one of the lines named.
To find out, it does for a moment what tcptrace does at its start.

It runs without privilege too, and says which is missing. Exit status 1 means that
transitions cannot be traced here.`

const checkExamples = `  # what is missing, and the mend
  tcptrace check

  # the same for a script
  tcptrace check -o json | jq -c 'select(.status == "missing") | [.item, .mend]'`

var errCannotTrace = errors.New("transitions cannot be traced here: mend what check says is missing")

func checkCommand(e env) *cobra.Command {
	var output string
	var btf name
	c := &cobra.Command{
		Use:           "check [flags]",
		Short:         "Say what this host allows, and what mends each thing that is missing",
		Long:          checkHelp,
		Example:       checkExamples,
		Args:          noArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(*cobra.Command, []string) error {
			write := writeItems
			switch output {
			case "text":
			case "json":
				write = encodeItems
			default:
				return usagef("--output %q: no such format; there are json and text", output)
			}
			s := surveyHost(string(btf))
			if err := write(e.stdout, s.items()); err != nil && !errors.Is(err, syscall.EPIPE) {
				return fmt.Errorf("write checks: %w", err)
			}
			if s.refused != nil {
				return errCannotTrace
			}
			return nil
		},
	}
	c.Flags().SortFlags = false
	c.Flags().StringVarP(&output, "output", "o", "text", "`FORMAT`: text (for eyes) or json (one record a line)")
	c.Flags().Var(&btf, "btf", "kernel types from `FILE`, where "+btfFile+" is not to be had")
	complete(c, nil)
	return c
}

// An item is one thing that check has looked at.
type item struct {
	Name   string   `json:"item"`
	Status string   `json:"status"`
	Found  *string  `json:"found"` // nil: not known
	Cost   string   `json:"cost,omitempty"`
	Error  string   `json:"error,omitempty"` // why it is not known, or what the kernel has refused
	Mend   []string `json:"mend,omitempty"`  // each line mends it alone
}

// The statuses of an item.
const (
	statusOK       = "ok"
	statusDegraded = "degraded" // tcptrace works, and sees less, or costs more
	statusMissing  = "missing"  // so does what needs it
	statusUnknown  = "unknown"
	statusInfo     = "info" // good to know; costs nothing
)

// survey is what the items rest on.
type survey struct {
	*host.Facts
	btf                string // --btf
	called             error  // why bpf(2) does not reach the kernel
	lifted             error  // why RLIMIT_MEMLOCK stays
	networks, entered  int    // network namespaces
	more               bool   // there may be others, of processes that do not show theirs
	unreached, refused error  // why these are not known; why transitions cannot be traced
	variants           []probe.Variant
}

// surveyHost looks, and tries.
func surveyHost(btf string) *survey {
	s := &survey{Facts: host.Read("/proc", "/sys"), btf: btf, called: host.CallBPF(), lifted: probe.LiftMemlock()}
	s.networks, s.entered, s.more, s.unreached = probe.Reach()
	p, err := probe.Open(probe.Config{Filter: &aggregate.Filter{}, RingBytes: probe.DefaultRingBytes, TimeWait: true, BTF: btf})
	if err != nil {
		s.refused = err
		return s
	}
	defer p.Close()
	s.variants = p.Variants()
	return s
}

func encodeItems(w io.Writer, items []item) error {
	bw := bufio.NewWriter(w)
	enc := json.NewEncoder(bw)
	enc.SetEscapeHTML(false)
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000000000Z")
	for _, it := range items {
		if err := enc.Encode(struct {
			Type string `json:"type"`
			Time string `json:"time"`
			item
		}{"check", now, it}); err != nil {
			return err
		}
	}
	return bw.Flush()
}

// How wide text is; only a mend may be wider, so that it can be copied.
const checkWidth = 100

func writeItems(w io.Writer, items []item) error {
	bw := bufio.NewWriter(w)
	count := map[string]int{}
	for _, it := range items {
		count[it.Status]++
		found := "not known"
		if it.Found != nil {
			found = *it.Found
		}
		fmt.Fprintf(bw, "%-9s %-20s %s\n", it.Status, it.Name, indent(found, 31))
		if it.Cost != "" {
			fmt.Fprintf(bw, "%10scost   %s\n", "", indent(it.Cost, 17))
		}
		if it.Error != "" {
			fmt.Fprintf(bw, "%10serror  %s\n", "", indent(it.Error, 17))
		}
		for i, m := range it.Mend {
			word := "mend"
			if i > 0 {
				word = "or"
			}
			fmt.Fprintf(bw, "%10s%-5s  %s\n", "", word, m)
		}
	}
	fmt.Fprintf(bw, "\n%d ok, %d degraded, %d missing, %d unknown\n",
		count[statusOK], count[statusDegraded], count[statusMissing], count[statusUnknown])
	return bw.Flush()
}

// indent breaks s into lines, all but the first of which begin with so many spaces.
func indent(s string, spaces int) string {
	var b strings.Builder
	at := spaces
	for i, word := range strings.Fields(s) {
		switch {
		case i == 0:
		case at+1+len(word) > checkWidth:
			fmt.Fprintf(&b, "\n%*s", spaces, "")
			at = spaces
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += len(word)
	}
	return b.String()
}
