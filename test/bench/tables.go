package main

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A column shows one figure of each row: itself, or divided by what the row named of
// has in the same round.
type column struct {
	title, format string
	value         func(result) float64
	of            string
}

func (c column) cell(rows []row, r row) string {
	values := each(r.results, c.value)
	if i := slices.IndexFunc(rows, func(r row) bool { return r.name == c.of }); i >= 0 {
		for round, base := range each(rows[i].results, c.value) {
			values[round] /= base
		}
	}
	return spread(c.format, values)
}

func rowTable(rows []row, columns ...column) [][]string {
	lines := [][]string{{""}}
	for _, c := range columns {
		lines[0] = append(lines[0], c.title)
	}
	for _, r := range rows {
		cells := []string{r.name}
		for _, c := range columns {
			cells = append(cells, c.cell(rows, r))
		}
		lines = append(lines, cells)
	}
	return lines
}

const peer = "`tcpstates`"

func rate(r result) float64          { return r.rate }
func cpuPerMillion(r result) float64 { return r.cpu.Seconds() / r.transitions * 1e6 }
func atTracepoint(r result) float64  { return r.perTransition(false) }

func stormTable(rows []row) string {
	lines := rowTable(rows,
		column{"connections/s", "%.0f", rate, ""},
		column{"of none", "%.2f", rate, "none"},
		column{"CPU s per 1M transitions", "%.2f", cpuPerMillion, ""},
		column{"of " + peer, "%.2f", cpuPerMillion, peer},
		column{"CPU s when TIME_WAIT ends", "%.2f", func(r result) float64 { return r.endCPU.Seconds() }, ""},
		column{"peak MB", "%.0f", func(r result) float64 { return r.peak / 1e6 }, ""})
	lines[0] = append(lines[0], "lost")
	lines[1] = append(lines[1][:3], "", "", "", "", "") // nobody who could use or lose anything
	for i, r := range rows[1:] {
		lines[i+2] = append(lines[i+2], losses(r))
	}
	return table(lines)
}

// losses are the causes for which anything was lost in any round.
func losses(r row) string {
	var causes []string
	for _, cause := range []string{missingLines, bufferFull, "ring_full", "nested", "table_full", "decode", "records_lost", "unprinted"} {
		lost := each(r.results, func(r result) float64 { return r.lost[cause] })
		if slices.Min(lost) != 0 || slices.Max(lost) != 0 {
			causes = append(causes, cause+" "+spread("%.0f", lost))
		}
	}
	if causes == nil {
		return fmt.Sprintf("0 in each of %d", len(r.results))
	}
	return strings.Join(causes, "; ")
}

func kernelTable(rows []row) string {
	return table(rowTable(rows,
		column{"ns per transition", "%.0f", atTracepoint, ""},
		column{"of " + peer, "%.3f", atTracepoint, peer},
		column{"with measuring", "%.0f", func(r result) float64 { r.floor = 0; return r.perTransition(false) }, ""},
		column{"all its programs", "%.0f", func(r result) float64 { return r.perTransition(true) }, ""},
		column{"measuring takes, a run", "%.0f", func(r result) float64 { return r.floor }, ""}))
}

// programTable is about the programs that a connection meets.
func programTable(rows []row) string {
	lines := [][]string{{"", "program", "ns per run", "runs per connection"}}
	for _, r := range rows {
		for _, name := range slices.Sorted(maps.Keys(r.results[0].programs)) {
			runs := each(r.results, func(r result) float64 { return float64(r.programs[name].runs) / r.connections })
			if median(runs) < 0.1 {
				continue
			}
			lines = append(lines, []string{r.name, "`" + name + "`",
				spread("%.0f", each(r.results, func(r result) float64 { return r.net(r.programs[name]) / float64(r.programs[name].runs) })),
				spread("%.1f", runs)})
		}
	}
	return table(lines)
}

func quietTable(tcptrace row, idle float64) string {
	return table([][]string{
		{"", "default flags"},
		{"idle, of a core", fmt.Sprintf("%.2f%%", 100*idle)},
		{"from start to `tracing`, ms", spread("%.0f", each(tcptrace.results, func(r result) float64 { return 1000 * r.start.Seconds() }))},
	})
}

// machine says where and when all this was measured, and beside what.
func machine(rounds int) (string, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return "", err
	}
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	model := strings.TrimLeft(field(cpu, "model name"), "\t :")
	// Other distributions cut these packages in other ways.
	versions := "of unknown versions"
	if out, err := exec.Command("dpkg-query", "-W", "-f", "${Package} ${Version}, ", "libbpf-tools", "bpftrace", "iproute2").Output(); err == nil {
		versions = strings.TrimSuffix(string(out), ", ")
	}
	return fmt.Sprintf("Measured on %s, Linux %s, %d cores of %s. Beside tcptrace: %s. Medians of %d rounds, with the least and the\n"+
		"most in brackets where they differ; those of the kernel's time of %d.\n", time.Now().UTC().Format(time.DateOnly),
		unix.ByteSliceToString(uts.Release[:]), runtime.NumCPU(), model, versions, rounds, (rounds+1)/2), nil
}
