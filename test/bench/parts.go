package main

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
)

var (
	aTime           = regexp.MustCompile(`[\d.]+ ns/\w+`)
	someAllocations = regexp.MustCompile(`(\d+) allocs/op`)
)

// goBenchmarks runs those of the parts that take time.
func goBenchmarks() (string, error) {
	cmd := exec.Command("go", "test", "-run", "^$", "-bench", ".", "-skip", "^BenchmarkMemory", "-benchmem", "-p", "1", "./cmd/...", "./internal/...", "./pkg/...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	fmt.Printf("%s", out)
	if err != nil {
		return "", fmt.Errorf("go test -bench: %w", err)
	}
	lines := [][]string{{"package", "benchmark", "takes", "allocations/op"}}
	pkg := ""
	for line := range strings.Lines(string(out)) {
		if path, ok := strings.CutPrefix(line, "pkg: github.com/tcptrace/tcptrace/"); ok {
			pkg = strings.TrimSpace(path)
		}
		// The last time is the one that the benchmark has chosen a unit for.
		times, allocations := aTime.FindAllString(line, -1), someAllocations.FindStringSubmatch(line)
		name, _, ok := strings.Cut(strings.TrimPrefix(line, "Benchmark"), "-")
		if ok && times != nil && allocations != nil {
			lines = append(lines, []string{"`" + pkg + "`", name, times[len(times)-1], allocations[1]})
		}
	}
	return table(lines), nil
}
