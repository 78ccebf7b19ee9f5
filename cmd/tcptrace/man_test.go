package main

import (
	"regexp"
	"strings"
	"testing"
)

// Whatever flags and commands there will be.
func TestTheManualPageHasAllThatHelpHas(t *testing.T) {
	page := strings.NewReplacer(`\-`, "-", `\fB`, "", `\fI`, "", `\fR`, "").Replace(string(replayed(t, "man")))
	for _, command := range []string{"", "check", "completion", "snapshot"} {
		help := string(replayed(t, append(strings.Fields(command), "--help")...))
		for _, want := range regexp.MustCompile(`(?m)^ +(-\w, )?--[a-z0-9-]+( [A-Z]+)?`).FindAllString(help, -1) {
			if want = strings.TrimSpace(want); !strings.Contains(page, want) {
				t.Errorf("tcptrace %s --help has %q, the manual page has not", command, want)
			}
		}
		long, _, _ := strings.Cut(help, "\n\n")
		if !strings.Contains(page, long) {
			t.Errorf("got a page without what tcptrace %s --help begins with:\n%s", command, long)
		}
	}
}
