package livetest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v2"
)

// A prometheus is a running one.
type prometheus struct {
	t   *testing.T
	url string
}

// startPrometheus starts one of the test's own, that scrapes twice a second what this part of a
// scrape configuration says.
func startPrometheus(t *testing.T, scrape string, flags ...string) *prometheus {
	t.Helper()
	dir := t.TempDir()
	rules, err := filepath.Abs(rulesFile)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}\nrule_files: [%s]\nscrape_configs:\n%s", rules, scrape)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("prometheus", append([]string{
		"--config.file", config, "--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", "127.0.0.1:0", "--log.format", "json",
	}, flags...)...)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	found := make(chan string, 1)
	said := make(chan string, 1)
	go func() {
		var all strings.Builder
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			all.WriteString(lines.Text() + "\n")
			var line struct{ Msg, Address string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "Listening on" {
				found <- line.Address
			}
		}
		said <- all.String()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-said
		_ = cmd.Wait() // killed
	})
	select {
	case address := <-found:
		return &prometheus{t: t, url: "http://" + address}
	case all := <-said:
		said <- all
		t.Fatalf("prometheus ends:\n%s", all)
	case <-time.After(callTimeout):
		t.Fatalf("prometheus does not listen within %v", callTimeout)
	}
	return nil
}

// A sample is one series of the answer to a query.
type sample struct {
	Metric map[string]string
	Value  [2]any
}

// query asks for what an expression gives now.
func (p *prometheus) query(expr string) ([]sample, error) {
	client := http.Client{Timeout: callTimeout}
	resp, err := client.Get(p.url + "/api/v1/query?" + url.Values{"query": {expr}}.Encode())
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer struct {
		Error string
		Data  struct{ Result []sample }
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer.Error != "" {
		return nil, fmt.Errorf("%s: %s", expr, answer.Error)
	}
	return answer.Data.Result, nil
}

// await asks until the answer is one series with this value, and fails the test if it never is.
func (p *prometheus) await(expr, want string) {
	p.t.Helper()
	p.until(expr, want, func(got []sample) bool { return len(got) == 1 && got[0].Value[1] == want })
}

// awaitSome asks until the answer is some series.
func (p *prometheus) awaitSome(expr string) {
	p.t.Helper()
	p.until(expr, "some", func(got []sample) bool { return len(got) > 0 })
}

func (p *prometheus) until(expr, want string, done func([]sample) bool) {
	p.t.Helper()
	var got []sample
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if got, err = p.query(expr); err != nil || done(got) {
			break
		}
	}
	if err != nil || !done(got) {
		p.t.Errorf("%s: %v, %v; want %s", expr, got, err, want)
	}
}

const webConfig = `tls_server_config:
  cert_file: server.pem
  key_file: server.key
basic_auth_users:
  prometheus: $2b$05$9BvLWIboPKmcR3s9l/yqrufD9lS2uk1jWpAuGhPhCL.Cv2yopkTFK
`

// One takes native histograms, by a password and TLS; the other does not know of these, and reads what
// others read.
func TestPrometheusGetsWhatTheRulesAndTheDashboardAskFor(t *testing.T) {
	t.Parallel()
	live(t)
	s := &scene{t: t, ns: newNetns(t)}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "web.yml"), []byte(webConfig), 0o600); err != nil {
		t.Fatal(err)
	}
	serverCertificate(t, dir)
	plain := s.trace("--metrics", "127.0.0.1:0", "--close-wait-after", closeWaitAfter.String())
	closed := s.trace("--metrics", "127.0.0.1:0", "--metrics-config", filepath.Join(dir, "web.yml"), "--close-wait-after", closeWaitAfter.String())
	address := func(tr *tracer) string {
		u, err := url.Parse(metricsURL.FindString(tr.log()))
		if err != nil {
			t.Fatal(err)
		}
		return u.Host
	}
	classic := startPrometheus(t, fmt.Sprintf("  - {job_name: tcptrace, static_configs: [{targets: [%q]}]}\n", address(plain)))
	native := startPrometheus(t, fmt.Sprintf(`  - job_name: tcptrace
    static_configs: [{targets: [%q]}]
    scheme: https
    tls_config: {ca_file: %s}
    basic_auth: {username: prometheus, password: secret}
`, address(closed), filepath.Join(dir, "server.pem")), "--enable-feature=native-histograms")

	both := []*prometheus{classic, native}
	for _, p := range both {
		p.await(`up{job="tcptrace"}`, "1")
	}

	m := everyState(s)
	for range 8 {
		m.lifeOf()
	}
	listed := countStates(t, s.ns)
	for _, p := range both {
		for state, n := range listed {
			if state != "SYN_RECV" { // which a scan every ten seconds counts
				p.await(fmt.Sprintf("tcptrace_sockets{state=%q}", state), fmt.Sprint(n))
			}
		}
		p.await(`tcptrace_findings_open{kind="close_wait_leak",severity="warning"}`, "2")
		p.await(`count(ALERTS{alertname="TcptraceLeak",alertstate="pending"})`, "2") // by kind
		p.await(`count(ALERTS{alertname!~"TcptraceLeak|TcptraceDegraded"}) or vector(0)`, "0")
	}
	const lives = "12" // have left CLOSE_WAIT: the three of the museum, that in LAST_ACK, and these
	classic.await(`tcptrace_state_duration_seconds_count{state="CLOSE_WAIT"}`, lives)
	classic.await(`tcptrace_state_duration_seconds_bucket{state="CLOSE_WAIT",le="60.0"} or tcptrace_state_duration_seconds_bucket{state="CLOSE_WAIT",le="60"}`, lives)
	native.await(`histogram_count(tcptrace_state_duration_seconds{state="CLOSE_WAIT"})`, lives)
	native.await(`count(tcptrace_state_duration_seconds_bucket) or vector(0)`, "0")

	series := plain.scrape()
	known := names(series)
	variables := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*")
	for _, p := range dashboard(t) {
		for _, target := range p.Targets {
			expr := variables.Replace(target.Expr)
			if wrong := wrongNames(expr, []string{target.LegendFormat}, known); len(wrong) > 0 {
				t.Errorf("%s: nothing that is scraped has %v: %s, %s", p.Title, wrong, expr, target.LegendFormat)
			}
			for _, from := range both {
				from.awaitSome(expr)
			}
		}
	}
	var rules alerts
	read(t, rulesFile, yaml.Unmarshal, &rules)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if wrong := wrongNames(r.Expr, slices.Collect(maps.Values(r.Annotations)), known); len(wrong) > 0 {
				t.Errorf("%s: nothing that is scraped has %v", r.Alert, wrong)
			}
		}
	}
	for _, expr := range questions(t) {
		if wrong := wrongNames(expr, nil, known); len(wrong) > 0 {
			t.Errorf("%s: nothing that is scraped has %v: %s", docFile, wrong, expr)
		}
		if _, err := classic.query(expr); err != nil {
			t.Errorf("%s: %v", docFile, err)
		}
	}
	text, err := http.Get(metricsURL.FindString(plain.log()))
	if err != nil {
		t.Fatal(err)
	}
	defer text.Body.Close()
	body, err := io.ReadAll(text.Body)
	if err != nil {
		t.Fatal(err)
	}
	promtool(t, string(body), "check", "metrics")
	for _, tr := range s.all {
		tr.stop()
	}
}

// serverCertificate makes server.pem and server.key in dir.
func serverCertificate(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
		"-subj", "/CN=tcptrace", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "server.key", "-out", "server.pem")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}
