// Package otlp sends findings and connections to an OpenTelemetry collector, as log
// records over gRPC. docs/otlp.md describes them.
//
// A collector may be slow, hang or be away: whoever hands over records never waits for it,
// and what waits is bounded. What finds no room, and what the collector refuses, is counted.
// A record that the collector has taken without our learning of it is sent twice.
package otlp

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlplog/otlploggrpc"
	"go.opentelemetry.io/otel/log"
	sdklog "go.opentelemetry.io/otel/sdk/log"
	"go.opentelemetry.io/otel/sdk/resource"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/tcptrace/tcptrace/internal/jsonl"
	"github.com/tcptrace/tcptrace/pkg/aggregate"
)

const (
	// What may wait, of each kind; as many again are being sent. 11 and 13 MB.
	maxFindings    = 1 << 10
	maxConnections = 1 << 15
)

// Config says where records go, and who sends them.
type Config struct {
	Endpoint string // as Check takes it
	Version  string // of tcptrace
	// Host is the name of the host that the records are about; "" if that is not known.
	Host string
	// Report is told when the collector stops taking records, and, with nil, when it takes
	// them again. It is called on another goroutine, and not for every attempt.
	Report func(error)
}

// Check reports whether endpoint is one: http://HOST:PORT, or https for TLS.
func Check(endpoint string) error {
	u, err := url.Parse(endpoint)
	port := uint64(0)
	if err == nil {
		port, err = strconv.ParseUint(u.Port(), 10, 16)
	}
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || port == 0:
		return errors.New("not an endpoint such as http://127.0.0.1:4317, or https://HOST:PORT for TLS")
	case strings.TrimSuffix(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("records are sent over gRPC, which knows no paths: give %s://%s and gRPC's port, mostly 4317", u.Scheme, u.Hostname())
	case u.User != nil:
		return errors.New("no place for a password; give it as a header in OTEL_EXPORTER_OTLP_HEADERS")
	}
	return nil
}

// An Exporter sends records. But for Counts, its methods belong to one goroutine; another
// one does the sending.
type Exporter struct {
	enc      jsonl.Encoder
	patience <-chan struct{} // see Wait

	mu          sync.Mutex // never held while something is sent
	findings    backlog
	connections backlog
	away        bool // the collector does not take records

	wake  chan struct{} // something waits
	full  chan struct{} // so much that it should be sent at once
	freed chan struct{} // there is room again

	sent, unsent atomic.Uint64
	progress     atomic.Uint64 // answers, whatever they say

	closing chan struct{} // closed when no more is handed over
	over    chan struct{} // closed when the sender has stopped
	cancel  context.CancelFunc

	client  *otlploggrpc.Exporter
	logger  log.Logger
	batch   []sdklog.Record // what logger has made
	taken   bool            // the last batch, but for
	refused uint64          // records that the collector did not want
	busy    bool            // it is there, and wants to be asked later
	tells   teller
	waiting time.Duration // before the next attempt
}

// backlog is what waits to be sent, first what is in hand.
type backlog struct {
	most    int
	hand    []item // the sender's
	pending []item
}

// Open makes an Exporter, whether the collector answers or not. What OpenTelemetry's
// environment variables say of headers, certificates, compression, time limit and resource
// holds; an error says which of them is wrong.
func Open(ctx context.Context, cfg Config) (*Exporter, error) {
	e := &Exporter{
		findings: backlog{most: maxFindings}, connections: backlog{most: maxConnections},
		wake: make(chan struct{}, 1), full: make(chan struct{}, 1), freed: make(chan struct{}, 1),
		closing: make(chan struct{}), over: make(chan struct{}),
		tells: teller{report: cfg.Report},
	}
	// OpenTelemetry has one handler for all errors that it cannot return; of these, a wrong
	// setting is one.
	var wrong error
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		if wrong == nil {
			wrong = err
		}
	}))
	res, err := describe(ctx, &cfg)
	if err != nil {
		return nil, err
	}
	if e.client, err = otlploggrpc.New(ctx, e.options(cfg.Endpoint)...); err != nil {
		return nil, err
	}
	provider := sdklog.NewLoggerProvider(
		sdklog.WithResource(res), sdklog.WithProcessor((*collector)(e)), sdklog.WithAllowKeyDuplication(),
	)
	if wrong != nil {
		_ = e.client.Shutdown(ctx)
		return nil, discreet(wrong)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(error) {})) // what goes wrong from now on, Export returns
	e.logger = provider.Logger("tcptrace", log.WithInstrumentationVersion(cfg.Version), log.WithSchemaURL(semconv.SchemaURL))
	sending, cancel := context.WithCancel(context.Background())
	e.cancel = cancel
	go e.run(sending)
	return e, nil
}

// discreet is the error without what a header says, since that is a secret.
func discreet(err error) error {
	for _, name := range []string{"OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_LOGS_HEADERS"} {
		if strings.Contains(err.Error(), name) {
			return fmt.Errorf("%s is not key=value,key=value; in a value, %%25 stands for %%, and %%2C for a comma", name)
		}
	}
	return err
}

// describe says who sends; the environment may say otherwise, or more.
func describe(ctx context.Context, cfg *Config) (*resource.Resource, error) {
	who := []attribute.KeyValue{semconv.ServiceName("tcptrace"), semconv.ServiceVersion(cfg.Version)}
	if cfg.Host != "" {
		who = append(who, semconv.HostName(cfg.Host))
	}
	res, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithAttributes(who...), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES %q: %w", os.Getenv("OTEL_RESOURCE_ATTRIBUTES"), err)
	}
	return res, nil
}

func (e *Exporter) options(endpoint string) []otlploggrpc.Option {
	options := []otlploggrpc.Option{
		otlploggrpc.WithEndpointURL(endpoint),
		otlploggrpc.WithRetry(otlploggrpc.RetryConfig{Enabled: false}), // it would drop findings after a minute
		otlploggrpc.WithDialOption(
			grpc.WithUnaryInterceptor(e.answers),
			grpc.WithContextDialer(dial),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: minWait, Multiplier: 1.6, Jitter: 0.2, MaxDelay: maxWait},
				MinConnectTimeout: connectTimeout,
			}),
		),
	}
	if strings.HasPrefix(endpoint, "http:") {
		// A certificate in the environment would otherwise turn TLS on.
		options = append(options, otlploggrpc.WithTLSCredentials(insecure.NewCredentials()))
	}
	return options
}

// Wait has those who hand over wait for room until stop is closed, as long as the collector
// takes records.
func (e *Exporter) Wait(stop <-chan struct{}) { e.patience = stop }

// Clock says what to add to the kernel's clock to get nanoseconds of Unix time.
func (e *Exporter) Clock(wall int64) { e.enc.Wall = wall }

// Finding hands over a finding.
func (e *Exporter) Finding(f *aggregate.Finding) {
	e.push(&e.findings, item{finding: e.enc.Finding(nil, f)})
}

// Connection hands over a connection.
func (e *Exporter) Connection(c *aggregate.Connection) {
	e.push(&e.connections, item{conn: *c, spent: *c.Spent, wall: e.enc.Wall})
}

// Counts returns how many records the collector has taken, and how many it never will have.
func (e *Exporter) Counts() (sent, unsent uint64) { return e.sent.Load(), e.unsent.Load() }

// push lays it down for the sender, if there is room.
func (e *Exporter) push(b *backlog, it item) {
	e.mu.Lock()
	for len(b.pending) >= b.most {
		if !e.waits() || e.away {
			e.mu.Unlock()
			e.unsent.Add(1)
			return
		}
		e.mu.Unlock()
		select {
		case <-e.freed:
		case <-e.patience:
		}
		e.mu.Lock()
	}
	b.pending = append(b.pending, it)
	enough := len(b.pending) >= batchSize
	e.mu.Unlock()
	signal(e.wake)
	if enough {
		signal(e.full)
	}
}

// signal wakes whoever waits for c, now or later.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// waits reports whether those who hand over wait for room.
func (e *Exporter) waits() bool {
	select {
	case <-e.patience:
		e.patience = nil
	default:
	}
	return e.patience != nil
}

// Close sends what waits, and counts as unsent what the collector has not taken when it has not
// answered for stuckAfter, or, unless Wait was called, after lateAfter.
func (e *Exporter) Close() {
	close(e.closing)
	var late <-chan time.Time
	if !e.waits() {
		late = time.After(lateAfter)
	}
	for before := e.progress.Load(); ; before = e.progress.Load() {
		select {
		case <-e.over:
			e.unsent.Add(e.findings.len() + e.connections.len())
			_ = e.client.Shutdown(context.Background()) // it closes the connection
			return
		case <-late:
			e.cancel()
		case <-time.After(stuckAfter):
			if e.progress.Load() == before {
				e.cancel()
			}
		}
	}
}
