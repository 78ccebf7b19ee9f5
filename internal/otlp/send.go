package otlp

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	sdklog "go.opentelemetry.io/otel/sdk/log"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

const (
	gather    = time.Second // so long a lone record waits for others
	batchSize = 256         // of one request, so that even of findings it stays below the 4 MiB that a gRPC server takes by default

	stuckAfter = 3 * time.Second
	lateAfter  = 10 * time.Second

	// Between attempts.
	minWait, maxWait = time.Second, 10 * time.Second
	connectTimeout   = 5 * time.Second
	// So long the other host may leave data unacknowledged. By default it takes a quarter of an hour until a
	// connection to a host that is gone is given up, and each request on it in vain.
	goneAfter = 20 * time.Second

	quiet = time.Minute // between two reports that the collector is away
)

// run is the one goroutine that may wait for the collector.
func (e *Exporter) run(ctx context.Context) {
	defer close(e.over)
	defer e.cancel()
	for closing := false; ; {
		items, from := e.next()
		if len(items) == 0 {
			if closing {
				return
			}
			closing = e.rest()
			continue
		}
		err := e.send(ctx, items)
		n := uint64(len(items))
		switch {
		case e.taken:
			e.done(from, n-e.refused, e.refused)
			if e.refused == 0 {
				err = nil // it may have said something all the same
			}
		case ctx.Err() != nil:
			return // Close waits no longer
		case passing(err):
			e.heard(err)
			if closing && !e.busy {
				return
			}
			closing = e.pause(ctx, e.backoff(err), closing)
			continue
		default:
			e.done(from, 0, n)
		}
		e.heard(err)
	}
}

// next returns what makes one request, findings first; nil if there is nothing. It stays where
// it is until done.
func (e *Exporter) next() ([]item, *backlog) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range []*backlog{&e.findings, &e.connections} {
		if len(b.hand) == 0 && len(b.pending) > 0 {
			b.hand, b.pending = b.pending, nil
			signal(e.freed)
		}
		if len(b.hand) > 0 {
			return b.hand[:min(len(b.hand), batchSize)], b
		}
	}
	return nil, nil
}

// done lets go of as many as were in a request, and keeps the books.
func (e *Exporter) done(b *backlog, sent, unsent uint64) {
	b.hand = b.hand[sent+unsent:]
	e.sent.Add(sent)
	e.unsent.Add(unsent)
}

func (b *backlog) len() uint64 { return uint64(len(b.hand) + len(b.pending)) }

// rest waits for something to send, and then for more of it; or for the end, which it reports.
func (e *Exporter) rest() (closing bool) {
	select {
	case <-e.wake:
	case <-e.closing:
		return true
	}
	select {
	case <-e.full:
	case <-time.After(gather):
	case <-e.closing:
		return true
	}
	return false
}

// pause waits, but not beyond the end, which it reports; at the end, as long as Close does.
func (e *Exporter) pause(ctx context.Context, d time.Duration, closing bool) bool {
	end := (<-chan struct{})(e.closing)
	if closing {
		end = ctx.Done()
	}
	select {
	case <-time.After(d):
		return closing
	case <-end:
		return true
	}
}

// send makes one request.
func (e *Exporter) send(ctx context.Context, items []item) error {
	e.taken, e.refused, e.busy = false, 0, false
	for i := range items {
		e.logger.Emit(ctx, items[i].record())
	}
	err := e.client.Export(ctx, e.batch)
	clear(e.batch)
	e.batch = e.batch[:0]
	return err
}

// dial connects to the collector.
func dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(goneAfter.Milliseconds()))
		})
		return errors.Join(err, failed)
	}}
	return d.DialContext(ctx, "tcp", addr)
}

// answers looks at the collector's answer: the client says only in words how many records it refused.
func (e *Exporter) answers(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	err := invoke(ctx, method, req, reply, conn, opts...)
	// A collector whose queue is full says what is said for one that is away: it is Unavailable.
	e.busy = passing(err) && ctx.Err() == nil && conn.GetState() == connectivity.Ready
	if r, ok := reply.(*collogs.ExportLogsServiceResponse); ok && err == nil {
		e.taken = true
		e.refused = min(uint64(max(r.GetPartialSuccess().GetRejectedLogRecords(), 0)), uint64(len(e.batch)))
	}
	return err
}

// passing reports whether the same request may succeed later: by the codes that OTLP names.
func passing(err error) bool {
	s, ok := status.FromError(err)
	if !ok {
		return false
	}
	switch s.Code() {
	case codes.Canceled, codes.DeadlineExceeded, codes.Aborted, codes.OutOfRange, codes.Unavailable, codes.DataLoss:
		return true
	case codes.ResourceExhausted:
		return askedFor(err) > 0
	}
	return false
}

// askedFor is how long the collector asks to be left alone.
func askedFor(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			return r.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// backoff is how long to wait before the next attempt.
func (e *Exporter) backoff(err error) time.Duration {
	e.waiting = min(max(2*e.waiting, minWait), maxWait)
	return max(e.waiting, askedFor(err))
}

// heard draws the conclusions of an answer, or of none.
func (e *Exporter) heard(err error) {
	e.progress.Add(1)
	later := err != nil && passing(err)
	if !later {
		e.waiting = 0
	}
	e.mu.Lock()
	e.away = later && !e.busy
	e.mu.Unlock()
	signal(e.freed) // whoever waits for room is to see that
	e.tells.tell(err, time.Now())
}

// teller tells when the collector stops taking records and when it takes them again; not
// every time, if that is often.
type teller struct {
	report func(error)
	told   bool // that it does not
	last   time.Time
}

func (t *teller) tell(err error, now time.Time) {
	switch {
	case err == nil && t.told:
		t.told = false
		t.report(nil)
	case err != nil && !t.told && (t.last.IsZero() || now.Sub(t.last) >= quiet):
		t.told, t.last = true, now
		t.report(err)
	}
}

// collector is the Exporter as the SDK's processor: it gathers the records of one request,
// since the SDK's own queue drops what it has no room for without a count, findings too.
type collector Exporter

// Enabled implements sdklog.Processor.
func (*collector) Enabled(context.Context, sdklog.EnabledParameters) bool { return true }

// OnEmit implements sdklog.Processor.
func (c *collector) OnEmit(_ context.Context, r *sdklog.Record) error {
	c.batch = append(c.batch, *r) // nobody else keeps it
	return nil
}

// Shutdown implements sdklog.Processor.
func (*collector) Shutdown(context.Context) error { return nil }

// ForceFlush implements sdklog.Processor.
func (*collector) ForceFlush(context.Context) error { return nil }
