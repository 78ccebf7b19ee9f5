package livetest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A collector is a running OpenTelemetry collector that writes down what it takes.
type collector struct {
	t       *testing.T
	addr    string
	file    string // what it has taken, of all that ran at this address
	process *os.Process
}

// A logged is a log record that a collector has taken.
type logged struct {
	event, body, severityText string
	severity                  int
	at, observed              time.Time
	attributes                map[string]any // numbers as float64
	doubles                   map[string]bool
	resource                  map[string]any
}

// builtCollector is collector/, a module of its own, built when the first test asks for it.
var builtCollector = sync.OnceValues(func() (string, error) {
	return program(buildDir, "collector", ".", "go", "-C", "collector", "build")
})

// newCollector is one that does not run yet: nobody answers at its address.
func newCollector(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return &collector{t: t, addr: l.Addr().String(), file: filepath.Join(t.TempDir(), "collector.jsonl")}
}

func startCollector(t *testing.T) *collector {
	t.Helper()
	c := newCollector(t)
	c.start(map[string]any{})
	return c
}

// start runs it until the end of the test, or until it is killed. settings are those of the
// receiver's gRPC server.
func (c *collector) start(settings map[string]any, flags ...string) {
	c.t.Helper()
	bin, err := builtCollector()
	if err != nil {
		c.t.Fatal(err)
	}
	config, err := json.Marshal(map[string]any{"protocols": map[string]any{"grpc": with(maps.Clone(settings), map[string]any{"endpoint": c.addr})}})
	if err != nil {
		c.t.Fatal(err)
	}
	out, err := os.OpenFile(c.file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer out.Close()
	stderr, errWrite := newPipe(c.t)
	cmd := exec.Command(bin, append(flags, "-config", string(config))...)
	cmd.Stdout, cmd.Stderr = out, errWrite
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	errWrite.Close()
	c.process = cmd.Process
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait() // it is killed
	}()
	kill := cmd.Process
	c.t.Cleanup(func() {
		_ = kill.Kill() // fails if it was killed already
		<-ended
	})
	ready := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(stderr)
		for lines.Scan() {
			if lines.Text() == "ready" {
				ready <- true
			}
		}
		close(ready)
	}()
	select {
	case ok := <-ready:
		if !ok {
			c.t.Fatalf("the collector ends with %s", config)
		}
	case <-time.After(callTimeout):
		c.t.Fatalf("the collector is not ready within %v", callTimeout)
	}
}

func (c *collector) signal(sig syscall.Signal) {
	c.t.Helper()
	if err := c.process.Signal(sig); err != nil {
		c.t.Fatal(err)
	}
}

// took is what it has taken so far.
func (c *collector) took() (out []logged) {
	c.t.Helper()
	data, err := os.ReadFile(c.file)
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		var request struct {
			ResourceLogs []struct {
				Resource  struct{ Attributes []any }
				ScopeLogs []struct {
					Scope      struct{ Name string }
					LogRecords []struct {
						TimeUnixNano, ObservedTimeUnixNano string
						SeverityNumber                     int
						SeverityText, EventName            string
						Body                               struct{ StringValue string }
						Attributes                         []any
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(line), &request); err != nil {
			c.t.Fatalf("%v: %q", err, line)
		}
		for _, res := range request.ResourceLogs {
			for _, scope := range res.ScopeLogs {
				for _, r := range scope.LogRecords {
					doubles := map[string]bool{}
					out = append(out, logged{
						event: r.EventName, body: r.Body.StringValue, severityText: r.SeverityText, severity: r.SeverityNumber,
						at: c.unixNano(r.TimeUnixNano), observed: c.unixNano(r.ObservedTimeUnixNano),
						attributes: c.keyValues(r.Attributes, doubles), doubles: doubles, resource: c.keyValues(res.Resource.Attributes, nil),
					})
				}
			}
		}
	}
	return out
}

func (c *collector) unixNano(s string) time.Time {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		c.t.Fatal(err)
	}
	return time.Unix(0, n).UTC()
}

// keyValues decodes attributes as OTLP's JSON has them, and notes which are doubles.
func (c *collector) keyValues(list []any, doubles map[string]bool) map[string]any {
	out := map[string]any{}
	for _, a := range list {
		kv := a.(map[string]any)
		key := kv["key"].(string)
		if _, twice := out[key]; twice {
			c.t.Errorf("attribute %s is there twice", key)
		}
		value := kv["value"].(map[string]any)
		if _, ok := value["doubleValue"]; ok && doubles != nil {
			doubles[key] = true
		}
		out[key] = c.anyValue(value)
	}
	return out
}

func (c *collector) anyValue(v map[string]any) any {
	for kind, v := range v {
		switch kind {
		case "stringValue", "boolValue", "doubleValue":
			return v
		case "intValue":
			n, err := strconv.ParseFloat(v.(string), 64)
			if err != nil {
				c.t.Fatal(err)
			}
			return n
		case "arrayValue":
			values := []any{}
			list, _ := v.(map[string]any)["values"].([]any)
			for _, v := range list {
				values = append(values, c.anyValue(v.(map[string]any)))
			}
			return values
		case "kvlistValue":
			return c.keyValues(v.(map[string]any)["values"].([]any), nil)
		}
		c.t.Fatalf("a value of the kind %s", kind)
	}
	return nil
}

// await waits until done says so of what it has taken.
func (c *collector) await(what string, limit time.Duration, done func([]logged) bool) {
	c.t.Helper()
	for end := time.Now().Add(limit); !done(c.took()); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Errorf("the collector has not got %s within %v", what, limit)
			return
		}
	}
}

// key is what a record of the stream and one at the collector have in common.
func (l *logged) key() string {
	return fmt.Sprint(l.event, l.attributes["tcptrace.cookie"], l.attributes["tcptrace.id"], l.attributes["tcptrace.status"])
}

func (r *record) otlpKey() string {
	return fmt.Sprint("tcptrace."+r.Type, r.fields["cookie"], r.fields["id"], r.fields["status"])
}
