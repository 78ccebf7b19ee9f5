package livetest

import (
	"encoding/json"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"
)

const (
	rulesFile     = "../deploy/prometheus/tcptrace.rules.yml"
	rulesTests    = "../deploy/prometheus/tcptrace.rules.test.yml"
	scrapeFile    = "../deploy/prometheus/scrape.yml"
	dashboardFile = "../deploy/grafana/tcptrace.json"
	docFile       = "../docs/metrics.md"
)

// promtool is Prometheus' own judge of what is written for it.
func promtool(t *testing.T, stdin string, args ...string) {
	t.Helper()
	cmd := exec.Command("promtool", args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v\n%s", cmd, err, out)
	}
}

func TestPrometheusTakesTheRulesAndTheScrapeConfiguration(t *testing.T) {
	t.Parallel()
	promtool(t, "", "check", "rules", rulesFile)
	promtool(t, "", "test", "rules", rulesTests)
	promtool(t, "", "check", "config", scrapeFile)
}

func read(t *testing.T, path string, parse func([]byte, any) error, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := parse(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// alerts are those of the rules file.
type alerts struct {
	Groups []struct {
		Rules []struct {
			Alert       string
			Expr        string
			Annotations map[string]string
		}
	}
}

func TestEveryAlertIsShownToFireAndNotToFire(t *testing.T) {
	t.Parallel()
	var rules alerts
	read(t, rulesFile, yaml.Unmarshal, &rules)
	var shown struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string        `yaml:"alertname"`
				ExpAlerts []interface{} `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	read(t, rulesTests, yaml.Unmarshal, &shown)
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range shown.Tests {
		for _, c := range test.AlertRuleTest {
			if len(c.ExpAlerts) > 0 {
				fires[c.Alertname] = true
			} else {
				silent[c.Alertname] = true
			}
		}
	}
	n := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			n++
			if !fires[r.Alert] || !silent[r.Alert] {
				t.Errorf("%s: shown to fire: %v, not to fire: %v; want both", r.Alert, fires[r.Alert], silent[r.Alert])
			}
			for _, name := range []string{"summary", "description", "runbook"} {
				if r.Annotations[name] == "" {
					t.Errorf("%s has no %s", r.Alert, name)
				}
			}
		}
	}
	if n == 0 {
		t.Error("no alerts")
	}
}

var runbookCommand = regexp.MustCompile("`tcptrace ([^`]*)`")

func TestTheCommandsOfTheAlertsRun(t *testing.T) {
	t.Parallel()
	live(t)
	var rules alerts
	read(t, rulesFile, yaml.Unmarshal, &rules)
	tried := map[string]bool{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			found := runbookCommand.FindAllStringSubmatch(r.Annotations["runbook"], -1)
			if len(found) == 0 {
				t.Errorf("%s: its runbook names no command: %s", r.Alert, r.Annotations["runbook"])
			}
			for _, c := range found {
				if tried[c[1]] {
					continue
				}
				tried[c[1]] = true
				args := strings.Fields(strings.Replace(c[1], ":9464", ":0", 1)) // another may be there
				if strings.HasPrefix(args[0], "-") {
					args = append(args, "--duration", "10ms")
				}
				if _, stderr, status := runCommand(t, args...); status != 0 {
					t.Errorf("%s: tcptrace %s: exit status %d:\n%s", r.Alert, c[1], status, stderr)
				}
			}
		}
	}
}

// A panel of the dashboard.
type panel struct {
	ID      int
	Title   string
	GridPos struct{ X, Y, W, H int } `json:"gridPos"`
	Targets []struct{ Expr, LegendFormat string }
}

func dashboard(t *testing.T) []panel {
	t.Helper()
	var d struct{ Panels []panel }
	read(t, dashboardFile, json.Unmarshal, &d)
	if len(d.Panels) == 0 {
		t.Fatal("the dashboard has no panels")
	}
	return d.Panels
}

func TestThePanelsOfTheDashboardDoNotOverlap(t *testing.T) {
	t.Parallel()
	taken, ids := map[[2]int]string{}, map[int]string{}
	for _, p := range dashboard(t) {
		if other, known := ids[p.ID]; known {
			t.Errorf("%s and %s have the same id", p.Title, other)
		}
		ids[p.ID] = p.Title
		g := p.GridPos
		if g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 || len(p.Targets) == 0 {
			t.Errorf("%s: at %+v with %d queries", p.Title, g, len(p.Targets))
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other, is := taken[[2]int{x, y}]; is {
					t.Fatalf("%s and %s overlap", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
	}
}

// questions are the expressions in the documentation.
func questions(t *testing.T) (out []string) {
	t.Helper()
	text, err := os.ReadFile(docFile)
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(text), "```promql\n")
	block, _, _ = strings.Cut(block, "```")
	for line := range strings.Lines(block) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			out = append(out, line)
		}
	}
	if len(out) == 0 {
		t.Fatalf("%s has no questions", docFile)
	}
	return out
}

// names are the labels of each metric, and what Prometheus adds to all. Of a native histogram it
// makes a metric of the plain name.
func names(series map[string]float64) map[string][]string {
	out := map[string][]string{"up": {"job", "instance"}}
	label := regexp.MustCompile(`(\w+)="`)
	for s := range series {
		name, rest, _ := strings.Cut(s, "{")
		out[name] = []string{"job", "instance"}
		for _, m := range label.FindAllStringSubmatch(rest, -1) {
			out[name] = append(out[name], m[1])
		}
		if plain, ok := strings.CutSuffix(name, "_count"); ok {
			out[plain] = out[name]
		}
	}
	return out
}

var (
	metricName = regexp.MustCompile(`\b(?:(?:tcptrace|process|go)_\w+|up\b)(\{[^}]*\})?`)
	matcher    = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
	grouping   = regexp.MustCompile(`\b(?:by|on|without|ignoring)\s*\(([^)]*)\)`)
	template   = regexp.MustCompile(`\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}`)
	quoted     = regexp.MustCompile(`"[^"]*"`)
)

// wrongNames are the metrics and labels that an expression, and what is written with its labels, names
// and that there are not.
func wrongNames(expr string, texts []string, known map[string][]string) (wrong []string) {
	var labels []string
	named := metricName.FindAllStringSubmatch(expr, -1)
	if len(named) == 0 {
		wrong = append(wrong, "no metric at all")
	}
	for _, m := range named {
		name, selector := strings.TrimSuffix(m[0], m[1]), quoted.ReplaceAllString(m[1], `""`)
		has, there := known[name]
		if !there {
			wrong = append(wrong, "metric "+name)
		}
		labels = append(labels, has...)
		for _, l := range matcher.FindAllStringSubmatch(selector, -1) {
			if !slices.Contains(has, l[1]) {
				wrong = append(wrong, "label "+l[1]+" of "+name)
			}
		}
	}
	check := func(l string) {
		if !slices.Contains(labels, l) {
			wrong = append(wrong, "label "+l)
		}
	}
	for _, g := range grouping.FindAllStringSubmatch(expr, -1) {
		for l := range strings.SplitSeq(g[1], ",") {
			check(strings.TrimSpace(l))
		}
	}
	for _, text := range texts {
		for _, l := range template.FindAllStringSubmatch(text, -1) {
			check(l[1])
		}
	}
	return wrong
}

// Where it asks for what is not there, TestPrometheusGetsWhatTheRulesAndTheDashboardAskFor says so.
func TestWrongNamesInAnExpressionAreFound(t *testing.T) {
	t.Parallel()
	known := map[string][]string{"tcptrace_sockets": {"job", "instance", "state"}, "up": {"job", "instance"}}
	for _, tt := range []struct {
		expr, text string
		wrong      bool
	}{
		{`sum by (state) (tcptrace_sockets{state!="LISTEN"}) > 0`, "{{ $labels.state }}", false},
		{`up{job="tcptrace_socket"} == 1 unless on (job, instance) tcptrace_sockets`, "", false},
		{`tcptrace_socket`, "", true},
		{`tcptrace_sockets{stat="LISTEN"}`, "", true},
		{`sum by (stat) (tcptrace_sockets)`, "", true},
		{`tcptrace_sockets`, "{{stat}}", true},
		{`vector(1)`, "", true},
	} {
		if got := wrongNames(tt.expr, []string{tt.text}, known); len(got) > 0 != tt.wrong {
			t.Errorf("%s, %q: found wrong: %v; want some: %v", tt.expr, tt.text, got, tt.wrong)
		}
	}
}
