package otlp

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	collogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

// patience is how long a test waits for what must come: more than the rests between two attempts.
const patience = 30 * time.Second

// A fake is a collector that speaks the real protocol, and answers as the test says.
type fake struct {
	collogs.UnimplementedLogsServiceServer
	addr string

	mu       sync.Mutex
	requests [][]string // of those that were taken: id of each finding, cookie of each connection
	answer   func(request int, names []string) (*collogs.ExportLogsServiceResponse, error)
	asked    int
}

// Export implements collogs.LogsServiceServer.
func (f *fake) Export(_ context.Context, r *collogs.ExportLogsServiceRequest) (*collogs.ExportLogsServiceResponse, error) {
	var names []string
	for _, res := range r.GetResourceLogs() {
		for _, scope := range res.GetScopeLogs() {
			for _, record := range scope.GetLogRecords() {
				for _, a := range record.GetAttributes() {
					if a.GetKey() == "tcptrace.id" || a.GetKey() == "tcptrace.cookie" {
						names = append(names, a.GetValue().GetStringValue())
					}
				}
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	reply := &collogs.ExportLogsServiceResponse{}
	if f.answer != nil {
		var err error
		if reply, err = f.answer(f.asked, names); err != nil {
			return nil, err
		}
	}
	f.requests = append(f.requests, names)
	return reply, nil
}

// got is what the collector has taken so far.
func (f *fake) got() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Concat(f.requests...)
}

// serve lets the fake answer at its address from now on.
func (f *fake) serve(t *testing.T) {
	t.Helper()
	l, err := net.Listen("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	s := grpc.NewServer()
	collogs.RegisterLogsServiceServer(s, f)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() { s.Stop(); <-done })
}

func serving(t *testing.T) *fake {
	f := &fake{addr: "127.0.0.1:0"}
	f.serve(t)
	return f
}

// reports is what Report was told.
type reports struct {
	mu   sync.Mutex
	told []error
}

func (r *reports) report(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.told = append(r.told, err)
}

func (r *reports) all() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.told)
}

func open(t *testing.T, addr string) (*Exporter, *reports) {
	t.Helper()
	var r reports
	e, err := Open(t.Context(), Config{Endpoint: "http://" + addr, Version: "1", Host: "here", Report: r.report})
	if err != nil {
		t.Fatal(err)
	}
	e.connections.most = room
	return e, &r
}

// room is that of these tests, which need not send as many as a run.
const room = 4 * batchSize

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

func checkCounts(t *testing.T, e *Exporter, wantSent, wantUnsent uint64) {
	t.Helper()
	if sent, unsent := e.Counts(); sent != wantSent || unsent != wantUnsent {
		t.Errorf("sent %d, unsent %d, want %d and %d", sent, unsent, wantSent, wantUnsent)
	}
}

func TestCloseSendsWhatWaits(t *testing.T) {
	f := serving(t)
	e, told := open(t, f.addr)
	var want []string
	for n := range 3*batchSize + 1 {
		e.Connection(connection(n))
		want = append(want, fmt.Sprintf("%x", 0x1000+n))
	}
	e.Close()
	if diff := cmp.Diff(want, f.got()); diff != "" {
		t.Errorf("connections: want (-), got (+):\n%s", diff)
	}
	checkCounts(t, e, 3*batchSize+1, 0)
	if n := len(told.all()); n != 0 {
		t.Errorf("%d reports, want none: %v", n, told.all())
	}
}

func TestALoneFindingIsSentSoon(t *testing.T) {
	f := serving(t)
	e, _ := open(t, f.addr)
	e.Finding(finding("a"))
	await(t, "the finding", func() bool { return len(f.got()) == 1 })
	e.Close()
}

// The collector is away when tcptrace starts, and comes when more waits than there is room for.
func TestWhileTheCollectorIsAwayRecordsWait(t *testing.T) {
	f := &fake{addr: "127.0.0.1:0"}
	l, err := net.Listen("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	l.Close()
	e, told := open(t, f.addr)
	e.Connection(connection(0))
	await(t, "a report", func() bool { return len(told.all()) == 1 })
	const many = 5 * room
	for n := range many {
		e.Connection(connection(n + 1))
	}
	e.Finding(finding("a"))
	_, shed := e.Counts()
	if shed < many-2*room || shed >= many {
		t.Errorf("%d connections were shed, want some of %d, and not the %d that there is room for", shed, many, 2*room)
	}
	f.serve(t)
	await(t, "all that waits", func() bool { sent, unsent := e.Counts(); return sent+unsent == many+2 })
	e.Close()
	got := f.got()
	if got[0] != "a" {
		t.Errorf("the first record is %s, want the finding: it goes ahead of connections", got[0])
	}
	checkCounts(t, e, many+2-shed, shed)
	if uint64(len(got)) != many+2-shed {
		t.Errorf("the collector has %d records, want %d", len(got), many+2-shed)
	}
	if all := told.all(); len(all) != 2 || all[0] == nil || all[1] != nil {
		t.Errorf("reports %v, want one that it is away, and one that it is back", all)
	}
}

func TestWhatTheCollectorRefusesIsCountedAndNotSentAgain(t *testing.T) {
	f := serving(t)
	f.answer = func(request int, names []string) (*collogs.ExportLogsServiceResponse, error) {
		switch names[0] {
		case "bad":
			return nil, status.Error(codes.InvalidArgument, "not this one")
		case "partial":
			return &collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{RejectedLogRecords: 1, ErrorMessage: "one"}}, nil
		case "warned":
			return &collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{ErrorMessage: "beware"}}, nil
		}
		return &collogs.ExportLogsServiceResponse{}, nil
	}
	e, told := open(t, f.addr)
	unsent, sent := uint64(0), uint64(0)
	for _, id := range []string{"bad", "partial", "warned", "good"} {
		e.Finding(finding(id))
		await(t, id, func() bool { s, u := e.Counts(); return s+u == sent+unsent+1 })
		sent, unsent = e.Counts()
	}
	e.Close()
	checkCounts(t, e, 2, 2)
	// All of this within a minute: one report of each.
	if all := told.all(); len(all) != 2 || all[0] == nil || all[1] != nil {
		t.Errorf("reports %v, want one that it refuses, and one that it takes records again", all)
	}
	if f.asked != 4 {
		t.Errorf("%d requests, want 4: what is refused for good is not sent again", f.asked)
	}
}

func TestAWarningIsNoRefusal(t *testing.T) {
	f := serving(t)
	f.answer = func(int, []string) (*collogs.ExportLogsServiceResponse, error) {
		return &collogs.ExportLogsServiceResponse{PartialSuccess: &collogs.ExportLogsPartialSuccess{ErrorMessage: "beware"}}, nil
	}
	e, told := open(t, f.addr)
	e.Finding(finding("a"))
	e.Close()
	checkCounts(t, e, 1, 0)
	if all := told.all(); len(all) != 0 {
		t.Errorf("reports %v, want none", all)
	}
}

func TestACollectorThatIsBusyIsAskedAgain(t *testing.T) {
	f := serving(t)
	f.answer = func(request int, names []string) (*collogs.ExportLogsServiceResponse, error) {
		if request > 2 {
			return &collogs.ExportLogsServiceResponse{}, nil
		}
		s, err := status.New(codes.ResourceExhausted, "later").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Millisecond)})
		if err != nil {
			t.Error(err)
		}
		return nil, s.Err()
	}
	e, _ := open(t, f.addr)
	e.Finding(finding("a"))
	await(t, "the finding", func() bool { return len(f.got()) == 1 })
	e.Close()
	checkCounts(t, e, 1, 0)
}

// A collector that accepts connections and says nothing must not keep a run from its end.
func TestCloseDoesNotWaitForACollectorThatHangs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e, _ := open(t, l.Addr().String())
	e.Finding(finding("a"))
	for n := range 3 * batchSize {
		e.Connection(connection(n))
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		e.Close()
	}()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatalf("Close does not return within %v", patience)
	}
	checkCounts(t, e, 0, 3*batchSize+1)
}

// A replay is faster than any collector: it waits, and everything arrives.
func TestWhoHasPatienceLosesNothing(t *testing.T) {
	f := serving(t)
	f.answer = func(int, []string) (*collogs.ExportLogsServiceResponse, error) {
		time.Sleep(time.Millisecond)
		return &collogs.ExportLogsServiceResponse{}, nil
	}
	e, _ := open(t, f.addr)
	e.Wait(t.Context().Done())
	const many = 5 * room
	for n := range many {
		e.Connection(connection(n))
	}
	e.Close()
	checkCounts(t, e, many, 0)
	if n := len(f.got()); n != many {
		t.Errorf("the collector has %d connections, want %d", n, many)
	}
}

// But not for a collector that is away.
func TestPatienceEndsWhenTheCollectorIsAway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	e, _ := open(t, addr)
	e.Wait(t.Context().Done())
	const many = 5 * room
	for n := range many {
		e.Connection(connection(n))
	}
	e.Close()
	checkCounts(t, e, 0, many)
}

func TestAWrongSettingInTheEnvironmentIsAnError(t *testing.T) {
	for name, value := range map[string]string{
		"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nonexistent", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon",
		"OTEL_EXPORTER_OTLP_COMPRESSION": "brotli", "OTEL_RESOURCE_ATTRIBUTES": "nonsense",
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(name, value)
			e, err := Open(t.Context(), Config{Endpoint: "https://127.0.0.1:1", Version: "1"})
			if err == nil {
				e.Close()
			}
			if err == nil || !strings.Contains(err.Error(), value) {
				t.Errorf("%s=%s: error %v, want one that says %q", name, value, err, value)
			}
		})
	}
}

// A collector whose queue is full says so, by the same code as one that is away. It is there.
func TestAReplayWaitsForACollectorThatIsBusy(t *testing.T) {
	f := serving(t)
	f.answer = func(request int, _ []string) (*collogs.ExportLogsServiceResponse, error) {
		if request%8 == 0 {
			return nil, status.Error(codes.Unavailable, "sending queue is full")
		}
		return &collogs.ExportLogsServiceResponse{}, nil
	}
	e, _ := open(t, f.addr)
	e.Wait(t.Context().Done())
	const many = 5 * room
	for n := range many {
		e.Connection(connection(n))
	}
	e.Close()
	checkCounts(t, e, many, 0)
}

// A header is how one proves who sends.
func TestAWrongHeaderIsNotRepeated(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer s3cret%")
	e, err := Open(t.Context(), Config{Endpoint: "http://127.0.0.1:1", Version: "1"})
	if err == nil {
		e.Close()
	}
	if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "OTEL_EXPORTER_OTLP_HEADERS") {
		t.Errorf("got %v, want an error that names the variable, and not what is in it", err)
	}
}
