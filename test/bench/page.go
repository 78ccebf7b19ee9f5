package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// rewrite puts each text between its pair of markers in a page.
func rewrite(path string, texts map[string]string) error {
	page, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for name, text := range texts {
		begin, end := "<!-- bench:begin "+name+" -->\n", "<!-- bench:end "+name+" -->\n"
		before, rest, opened := strings.Cut(string(page), begin)
		_, after, closed := strings.Cut(rest, end)
		if !opened || !closed {
			return fmt.Errorf("%s has no place for %s: lines %q and %q", path, name, begin, end)
		}
		page = []byte(before + begin + text + end + after)
	}
	return os.WriteFile(path, page, 0o644)
}

func table(lines [][]string) string {
	var b strings.Builder
	for i, cells := range lines {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
		if i == 0 {
			fmt.Fprintln(&b, strings.Repeat("|---", len(cells))+"|")
		}
	}
	return b.String()
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// spread is the median, followed by the range of the values if they differ.
func spread(format string, values []float64) string {
	middle := fmt.Sprintf(format, median(values))
	least, most := fmt.Sprintf(format, slices.Min(values)), fmt.Sprintf(format, slices.Max(values))
	if least == most {
		return middle
	}
	return fmt.Sprintf("%s (%s to %s)", middle, least, most)
}

// each is one figure of all results.
func each[T any](results []T, value func(T) float64) []float64 {
	var values []float64
	for _, r := range results {
		values = append(values, value(r))
	}
	return values
}

// plot draws the medians that matter most.
func plot(path string, storms, kernel []row) error {
	var data strings.Builder
	for i, r := range storms {
		name := strings.ReplaceAll(r.name, "`", "")
		fmt.Fprintf(&data, "%q %f %f\n", name, median(each(r.results, cpuPerMillion)), median(each(kernel[i].results, atTracepoint)))
	}
	cmd := exec.Command("gnuplot")
	cmd.Stdin = strings.NewReader(`set terminal svg size 960,300 font "sans-serif,12" background "white"
		set output "` + path + `"
		$medians << END
` + data.String() + `END
		set multiplot layout 1,2
		set style fill solid 0.7 noborder
		set border 2
		set yrange [*:*] reverse
		set offsets graph 0, graph 0.15, 0.5, 0.5
		set xrange [0:*]
		unset xtics
		set ytics scale 0
		unset key
		set title "user+sys CPU of the tracer, s per 1M transitions"
		plot $medians using ($2/2):0:($2/2):(0.35):ytic(1) with boxxyerror, "" using 2:0:(sprintf(" %.2f", $2)) with labels left
		set title "at the tracepoint in the kernel, ns per transition"
		plot $medians using ($3/2):0:($3/2):(0.35):ytic(1) with boxxyerror, "" using 3:0:(sprintf(" %.0f", $3)) with labels left
	`)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("gnuplot: %w: %s", err, out)
	}
	return nil
}
