package main

import (
	"slices"
	"strings"

	"github.com/tcptrace/tcptrace/internal/probe"
)

// ways takes the values of --probe: FACILITY=WAY.
func ways(in list) (map[string]string, error) {
	out := map[string]string{}
	for _, s := range in {
		name, way, _ := strings.Cut(s, "=")
		var names, allowed []string
		for _, f := range probe.Facilities() {
			names = append(names, f.Name)
			if f.Name != name {
				continue
			}
			allowed = []string{probe.None}
			for _, w := range f.Ways {
				allowed = append(allowed, w.Name)
			}
		}
		if allowed == nil {
			return nil, usagef("--probe %q: no such facility; give FACILITY=WAY, of: %s", s, strings.Join(names, ", "))
		}
		if !slices.Contains(allowed, way) {
			return nil, usagef("--probe %q: no such way; of %s there are: %s", s, name, strings.Join(allowed, ", "))
		}
		out[name] = way
	}
	return out, nil
}
