package livetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// otlpNames are OpenTelemetry's names of fields; all others keep theirs.
var otlpNames = map[string]string{
	"family": "network.type", "laddr": "network.local.address", "lport": "network.local.port", "raddr": "network.peer.address",
	"rport": "network.peer.port", "pid": "process.pid", "exe": "process.executable.path", "container": "container.id",
	"pod": "k8s.pod.name", "namespace": "k8s.namespace.name", "container_name": "k8s.container.name",
}

// otlpAttributes are the attributes that a record of the stream has to have at the collector.
func (r *record) otlpAttributes() map[string]any {
	out := map[string]any{}
	for name, v := range r.fields {
		object, isObject := v.(map[string]any)
		switch {
		case slices.Contains([]string{"type", "time", "severity", "message"}, name), v == nil:
		case isObject:
			for field, v := range object {
				if v != nil {
					out["tcptrace."+name+"."+field] = v
				}
			}
		case otlpNames[name] != "":
			out[otlpNames[name]] = v
		default:
			out["tcptrace."+name] = v
		}
	}
	if r.Exe != nil {
		out["process.executable.name"] = filepath.Base(*r.Exe)
	}
	if r.Type != "connection" {
		return out
	}
	out["network.transport"] = "tcp"
	if r.Role != nil {
		peer := map[string]string{"client": "server", "server": "client"}[*r.Role]
		out[*r.Role+".address"], out[*r.Role+".port"] = r.fields["laddr"], r.fields["lport"]
		out[peer+".address"], out[peer+".port"] = r.fields["raddr"], r.fields["rport"]
	}
	return out
}

// checkTook compares what the collector has with the stream: every finding and connection, once.
func checkTook(t *testing.T, got []logged, records []record) {
	t.Helper()
	byKey := map[string][]logged{}
	for _, l := range got {
		byKey[l.key()] = append(byKey[l.key()], l)
	}
	severities := map[string]int{"info": 9, "warning": 13, "critical": 17}
	for i := range records {
		r := &records[i]
		if r.Type != "connection" && r.Type != "finding" {
			continue
		}
		ls := byKey[r.otlpKey()]
		if len(ls) == 0 {
			t.Errorf("the collector has not got %v", r.fields)
			continue
		}
		l := ls[0] // of the updates of a finding, the first that is left
		byKey[r.otlpKey()] = ls[1:]
		if diff := gocmp.Diff(r.otlpAttributes(), l.attributes); diff != "" {
			t.Errorf("%s: attributes at the collector: want (-), got (+):\n%s", r.otlpKey(), diff)
		}
		if !l.at.Equal(r.Time) || l.observed.Before(l.at) || l.body != r.Message {
			t.Errorf("%s: time %v, observed %v, body %q; want time %v, observed later, body %q", r.otlpKey(), l.at, l.observed, l.body, r.Time, r.Message)
		}
		severity := 9
		if r.Type == "finding" {
			severity = severities[r.Severity]
		}
		if l.severity != severity || l.severityText != r.Severity {
			t.Errorf("%s: severity %d %q, want %d %q", r.otlpKey(), l.severity, l.severityText, severity, r.Severity)
		}
		for name := range l.attributes {
			if want := strings.HasSuffix(name, "_ms") || strings.HasPrefix(name, "tcptrace.states_ms.") || strings.HasSuffix(name, "_per_second"); l.doubles[name] != want {
				t.Errorf("%s: %s is a double: %v, want %v", r.otlpKey(), name, l.doubles[name], want)
			}
		}
	}
	for key, ls := range byKey {
		if len(ls) > 0 {
			t.Errorf("the collector has %s %d times more than the stream", key, len(ls))
		}
	}
}

func TestTheCollectorGetsWhatTheStreamHas(t *testing.T) {
	t.Parallel()
	live(t)
	const many = 20
	var c *collector
	var who process
	var leaked *sock
	_, runs := playComplete(t, func(s *scene) {
		c = startCollector(t)
		tr := s.trace("--otlp", "http://"+c.addr, "--close-wait-after", closeWaitAfter.String())
		cli, srv := s.agent("cli"), s.agent("srv\xff\x1b[2J\"")
		l := srv.listen(anyPort4)
		bulkConnections(cli, l, many, true)
		near, far := pair(cli, l)
		near.close()
		who, leaked = srv.process(), far
		tr.waitFor(func(rs []record) bool {
			return slices.ContainsFunc(rs, func(r record) bool { return r.Type == "finding" })
		})
		s.endMinisockets()
		tr.waitFor(func(rs []record) bool { return countType(rs, "connection") >= 2*many+1 })
	})
	got := c.took()
	checkTook(t, got, runs[0].records)
	connections, findings := 0, 0
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range got {
		if l.resource["service.name"] != "tcptrace" || l.resource["host.name"] != host || l.resource["service.version"] == "" {
			t.Errorf("resource %v, want tcptrace with a version, on %s", l.resource, host)
		}
		switch a := l.attributes; {
		case l.event == "tcptrace.connection" && a["tcptrace.role"] == "server" && a["server.port"] == float64(leaked.local.Port()):
			connections++
		case l.event == "tcptrace.finding" && a["tcptrace.status"] == "open" && a["tcptrace.kind"] == "close_wait_leak":
			findings++
			// What the leaking process itself says.
			if a["process.pid"] != float64(who.pid) || a["process.executable.path"] != who.exe || a["tcptrace.evidence.lport"] != float64(leaked.local.Port()) {
				t.Errorf("the finding is about %v %v and port %v, want %d %s and %d",
					a["process.pid"], a["process.executable.path"], a["tcptrace.evidence.lport"], who.pid, who.exe, leaked.local.Port())
			}
			if comm := strings.ToValidUTF8(who.comm, "\ufffd"); a["tcptrace.comm"] != comm {
				t.Errorf("the finding is about %q, want %q", a["tcptrace.comm"], comm)
			}
		}
	}
	if connections < many || findings != 1 {
		t.Errorf("%d connections of the server and %d leaks at the collector, want %d and 1", connections, findings, many)
	}
	checkExported(t, &runs[0], uint64(len(got)), 0)
}

func countType(rs []record, kind string) (n int) {
	for _, r := range rs {
		if r.Type == kind {
			n++
		}
	}
	return n
}

// checkExported compares what tcptrace says it has sent with the truth.
func checkExported(t *testing.T, run *traced, sent, unsent uint64) {
	t.Helper()
	stats := lastStats(run.records)
	if stats == nil {
		t.Fatal("no stats")
	}
	if got := fmt.Sprint(stats.fields["otlp_sent"], " ", stats.fields["otlp_unsent"]); got != fmt.Sprint(sent, " ", unsent) {
		t.Errorf("stats: otlp_sent and otlp_unsent %s, want %d %d", got, sent, unsent)
	}
	if line := fmt.Sprintf(`"otlp_sent": %d, "otlp_unsent": %d}`, sent, unsent); !strings.Contains(run.stderr, line) {
		t.Errorf("stderr does not say %s:\n%s", line, run.stderr)
	}
}

const (
	collectorAway = "the OpenTelemetry collector does not take records"
	collectorBack = "the OpenTelemetry collector takes records again"
)

// It is away when tcptrace starts, comes, dies in the middle, and comes again.
func TestTheCollectorMayComeAndGo(t *testing.T) {
	t.Parallel()
	live(t)
	const many = 50
	ns := newNetns(t)
	c := newCollector(t)
	cli, srv := startAgent(t, ns, "cli"), startAgent(t, ns, "srv")
	l := srv.listen(anyPort4)
	tr := startTracer(t, "--netns", fmt.Sprint(ns.inode), "--otlp", "http://"+c.addr)
	// The server's end of each has no TIME_WAIT.
	ended := 0
	connect := func() {
		bulkConnections(cli, l, many, true)
		ended += many
	}
	have := func(rs []logged) bool {
		cookies := map[any]bool{}
		for _, r := range rs {
			if r.attributes["tcptrace.role"] == "server" {
				cookies[r.attributes["tcptrace.cookie"]] = true
			}
		}
		return len(cookies) == ended
	}
	connect()
	for end := time.Now().Add(callTimeout); !strings.Contains(tr.log(), collectorAway); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("stderr does not say that the collector is away:\n%s", tr.log())
		}
	}
	c.start(map[string]any{})
	c.await("the connections from before it came", 30*time.Second, have)
	c.signal(unix.SIGKILL)
	connect()
	time.Sleep(2 * time.Second) // an attempt has failed
	c.start(map[string]any{})
	c.await("the connections from when it was away", 30*time.Second, have)
	run := tr.stop()
	if n := strings.Count(run.stderr, collectorAway); n == 0 || n > 2 {
		t.Errorf("stderr says %d times that the collector is away, want it once or twice:\n%s", n, run.stderr)
	}
	if !strings.Contains(run.stderr, collectorBack) {
		t.Errorf("stderr does not say that the collector is back:\n%s", run.stderr)
	}
	stats := lastStats(run.records)
	if stats.fields["otlp_unsent"] != 0.0 {
		t.Errorf("otlp_unsent %v, want 0: there was room for all", stats.fields["otlp_unsent"])
	}
}

// One that stands still takes nothing, and costs bounded memory and time.
func TestACollectorThatStandsStillHoldsNothingUp(t *testing.T) {
	const room, dear = 2 << 15, 64 << 20 // what may wait, and what that may take
	connections := int(stormSize(50_000))
	bin := buildStorm(t)
	ns := newNetns(t)
	c := startCollector(t)
	c.signal(unix.SIGSTOP)
	flags := []string{"--netns", fmt.Sprint(ns.inode), "--events", "connection,finding,stats"}
	plain := startTracer(t, flags...)
	tr := startTracer(t, append(flags, "--otlp", "http://"+c.addr)...)
	ns.storm(t, bin, connections)
	ns.endMinisockets(t)
	time.Sleep(5 * lag) // until all of it has been read
	if with, without := peakMemory(t, tr.pid), peakMemory(t, plain.pid); with > without+dear {
		t.Errorf("peak memory %d bytes, and %d without a collector: want at most %d more", with, without, dear)
	}
	plain.stop()
	run := tr.stop() // which fails if it takes longer than a call may
	stats := lastStats(run.records)
	ended := stats.Records["connection"] + stats.Unprinted // a finding is never shed
	if ended < uint64(2*connections) && stats.Lost["nested"] == 0 {
		t.Errorf("%d connections ended, want %d", ended, 2*connections)
	}
	if !testing.Short() && ended <= room {
		t.Errorf("%d connections, want more than the %d that there is room for", ended, room)
	}
	checkExported(t, &run, 0, ended+stats.Records["finding"])
}

// A recording may be sent later, from elsewhere: with TLS, which the environment tells.
func TestARecordingIsSentOverTLS(t *testing.T) {
	t.Parallel()
	live(t) // or the collector cannot be built
	certificate, key := certificateFor(t, "127.0.0.1")
	c := newCollector(t)
	c.start(map[string]any{"tls": map[string]any{"cert_file": certificate, "key_file": key}})
	recording := "../cmd/tcptrace/testdata/recordings/closewait-500ms-client-first.rec"
	replay := func(scheme, ca string) traced {
		t.Helper()
		cmd := exec.Command(tcptraceBin, "--replay", recording, "--otlp", scheme+"://"+c.addr)
		cmd.Env = append(os.Environ(), "OTEL_EXPORTER_OTLP_CERTIFICATE="+ca, "OTEL_RESOURCE_ATTRIBUTES=host.name=elsewhere")
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s", err, stderr.String())
		}
		run := traced{stderr: stderr.String()}
		for line := range strings.Lines(string(out)) {
			r, err := parseRecord([]byte(line))
			if err != nil {
				t.Fatal(err)
			}
			run.records = append(run.records, r)
		}
		return run
	}
	// The system's authorities do not know this one, and without TLS it does not answer.
	for _, scheme := range []string{"https", "http"} {
		run := replay(scheme, "")
		checkExported(t, &run, 0, uint64(countType(run.records, "connection")))
		if n := strings.Count(run.stderr, collectorAway); n != 1 {
			t.Errorf("%s: stderr says %d times that the collector is away, want once:\n%s", scheme, n, run.stderr)
		}
	}
	run := replay("https", certificate)
	checkExported(t, &run, uint64(countType(run.records, "connection")), 0)
	got := c.took()
	checkTook(t, got, run.records)
	for _, l := range got {
		if l.resource["host.name"] != "elsewhere" {
			t.Errorf("host.name is %v, want elsewhere, as the environment has it", l.resource["host.name"])
		}
	}
	if len(got) == 0 {
		t.Error("the recording has no connection")
	}
}

// certificateFor makes a certificate for an address, which is its own authority.
func certificateFor(t *testing.T, addr string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.ParseIP(addr)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certificate, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for file, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certificate, key
}
