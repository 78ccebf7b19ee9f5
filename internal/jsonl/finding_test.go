package jsonl

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// history is what a process did with 52 connections that its peers closed: 48 it
// closed after 100 ms, two after 10 s, one its exit closed, and one it has still.
// Nothing but a tracker can fill a History with times.
func history(t testing.TB) *aggregate.History {
	t.Helper()
	var k kept
	tracker := aggregate.NewTracker(&k, &aggregate.Filter{}, 100, events.DefaultThresholds)
	tracker.Scanned(events.Scan{Complete: true, Every: true})
	now := uint64(time.Second)
	play := func(cookie uint64, old, next events.State, flags events.Flags) {
		tracker.Observe(&events.Event{
			Kind: events.Transition, Ktime: now, Skaddr: cookie, Cookie: cookie, Old: old, New: next,
			Flags: flags | events.HasSocket, Shutdown: 3, Proc: events.Proc{Pid: 4711}, Fd: -1,
		})
	}
	for n := range uint64(52) {
		play(n+1, events.Established, events.CloseWait, events.Owned)
		flags := events.Owned
		switch {
		case n < 48:
			now += 100 * ms
		case n < 50:
			now += 10_000 * ms
		case n == 50:
			now += 60_000 * ms
			flags |= events.Exiting
		default:
			continue
		}
		play(n+1, events.CloseWait, events.LastAck, flags)
	}
	tracker.Tick(now + 1000*ms)
	if k.finding.Evidence.History == nil {
		t.Fatal("got no finding of an exit with a socket in CLOSE_WAIT for a minute, want one")
	}
	return k.finding.Evidence.History
}

// finding has every field known.
func finding(t testing.TB, kind aggregate.Kind) *aggregate.Finding {
	f := &aggregate.Finding{
		Ktime: 77, ID: "some-id-1", Kind: kind, Severity: aggregate.Warning,
		Pid: 4711, Comm: events.MakeComm("nginx"), Exe: "/usr/sbin/nginx", Container: events.Container{ID: "abc123"},
		Count: 6, Oldest: 90 * time.Second,
		Holders: []aggregate.SocketHolder{
			{Holder: aggregate.Holder{Pid: 4711, Comm: events.MakeComm("nginx"), Fd: 7}, Cookie: 0xdeadbeef01},
			{Holder: aggregate.Holder{Pid: 4712, Comm: events.MakeComm("child"), Fd: 0}},
		},
		Message: "one sentence", Advice: "another",
	}
	e := &f.Evidence
	e.Ends = aggregate.CommonEnds{Lport: 80, Rport: 40000, Raddr: addr("192.0.2.7")}
	e.OpenFiles, e.FileLimit, e.Exact = 100, 1024, true
	e.Exhausted = aggregate.Unknown
	e.History = history(t)
	switch kind {
	case aggregate.CloseWaitLeak, aggregate.NeverClosed:
		e.Verdict = aggregate.EOFUnread
		e.Verdicts[aggregate.EOFRead], e.Verdicts[aggregate.EOFUnread] = 2, 4
		e.Unread, e.NoDescriptor = 1<<40, 1
	case aggregate.ResetFdLeak:
		e.Ended[aggregate.EndResetReceived], e.Ended[aggregate.EndTimeout] = 3, 1
		e.Ended[aggregate.EndUnknown] = 2
	case aggregate.FdLimit:
		f.Oldest, f.Holders = aggregate.Unknown, nil
		e.Sockets, e.CloseWait, e.PerMinute, e.Measured, e.Exhausted = 90, 60, 12.5, true, 4567*time.Microsecond
	}
	return f
}

// findingObject is what finding must look like, with this evidence.
func findingObject(kind string, evidence object) object {
	return object{
		"type": "finding", "time": at(77), "id": "some-id-1", "kind": kind, "status": "open", "severity": "warning",
		"pid": num("4711"), "comm": "nginx", "exe": "/usr/sbin/nginx", "container": "abc123",
		"count": num("6"), "oldest_ms": num("90000.000"),
		"holders": []any{
			object{"pid": num("4711"), "comm": "nginx", "fd": num("7"), "cookie": "deadbeef01"},
			object{"pid": num("4712"), "comm": "child", "fd": num("0"), "cookie": nil},
		},
		"evidence": evidence, "message": "one sentence", "advice": "another",
	}
}

// The members that several kinds have.
var (
	historyMembers = object{"peer_closed_first": num("52"), "closed": num("50"), "held": num("1")}
	endsMembers    = object{"age_bound": "exact", "lport": num("80"), "raddr": "192.0.2.7", "rport": num("40000")}
	filesMembers   = object{"open_fds": num("100"), "limit": num("1024")}
	readMembers    = object{"eof_read": num("2"), "eof_unread": num("4"), "not_accepted": num("0"), "unread_bytes": num("1099511627776")}
)

func members(parts ...object) object {
	all := object{}
	for _, p := range parts {
		with(all, p)
	}
	return all
}

// without returns o without some fields.
func without(o object, fields ...string) object {
	for _, f := range fields {
		delete(o, f)
	}
	return o
}

// checkFinding is check, and takes the times from FIN to close() for right if they
// are to 3.2%.
func checkFinding(t *testing.T, line []byte, want object) {
	t.Helper()
	got := parse(t, line)
	evidence, ok := got["evidence"].(object)
	if !ok {
		t.Fatalf("evidence: got %v, want an object", got["evidence"])
	}
	if want["evidence"].(object)["peer_closed_first"] != nil {
		for name, ms := range map[string]float64{"fin_to_close_p50_ms": 100, "fin_to_close_p99_ms": 10_000} {
			written := fmt.Sprint(evidence[name])
			f, err := strconv.ParseFloat(written, 64)
			if _, digits, _ := strings.Cut(written, "."); err != nil || len(digits) != 3 || math.Abs(f-ms) > 0.032*ms {
				t.Errorf("%s: got %s, want %g to 3.2%%, with three digits after the point", name, written, ms)
			}
			delete(evidence, name)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("got (+) and want (-) differ:\n%s", diff)
	}
}

func TestAFindingHasTheFieldsOfTheContract(t *testing.T) {
	leak := func() object {
		return members(object{"verdict": "eof_unread", "no_descriptor": num("1")}, readMembers, endsMembers, filesMembers, historyMembers)
	}
	dead := func() object {
		return members(endsMembers, filesMembers, object{"ended": object{
			"reset_received": num("3"), "timeout": num("1"), "aborted": num("0"), "fin": num("0"), "unknown": num("2"),
		}})
	}
	limit := func() object {
		return members(filesMembers, object{
			"sockets": num("90"), "close_wait": num("60"), "close_wait_per_minute": num("12.5"), "emfile_in_ms": num("4.567"),
		})
	}
	peaks := object{"peak_count": num("9"), "peak_oldest_ms": num("123456.789")}
	resolve := func(f *aggregate.Finding) {
		f.Status, f.Count, f.Oldest, f.Holders = aggregate.Resolved, 0, aggregate.Unknown, nil
		f.Evidence.PeakCount, f.Evidence.PeakOldest = 9, 123456789*time.Microsecond
	}
	over := object{"status": "resolved", "count": num("0"), "oldest_ms": nil, "holders": []any{}}

	for _, tt := range []struct {
		name   string
		kind   aggregate.Kind
		change func(*aggregate.Finding)
		want   object
	}{
		{"close_wait_leak", aggregate.CloseWaitLeak, nil, findingObject("close_wait_leak", leak())},
		{
			"an update", aggregate.CloseWaitLeak, func(f *aggregate.Finding) { f.Status = aggregate.Update },
			with(findingObject("close_wait_leak", leak()), object{"status": "update"}),
		},
		{
			"critical", aggregate.CloseWaitLeak, func(f *aggregate.Finding) { f.Severity = aggregate.Critical },
			with(findingObject("close_wait_leak", leak()), object{"severity": "critical"}),
		},
		{
			"info", aggregate.CloseWaitLeak, func(f *aggregate.Finding) { f.Severity = aggregate.Info },
			with(findingObject("close_wait_leak", leak()), object{"severity": "info"}),
		},
		{
			"of a process that was gone before it was asked", aggregate.CloseWaitLeak,
			func(f *aggregate.Finding) {
				f.Exe, f.Container, f.Evidence.OpenFiles, f.Evidence.FileLimit = "", events.Container{}, 0, 0
			},
			without(with(findingObject("close_wait_leak", without(leak(), "open_fds", "limit")), object{"exe": nil}), "container"),
		},
		{
			"in a pod", aggregate.CloseWaitLeak, func(f *aggregate.Finding) { f.Container = inPod },
			with(findingObject("close_wait_leak", leak()), objectInPod),
		},
		{
			"without a limit", aggregate.CloseWaitLeak, func(f *aggregate.Finding) { f.Evidence.FileLimit = math.MaxUint64 },
			findingObject("close_wait_leak", with(leak(), object{"limit": nil})),
		},
		{
			"sockets that have nothing in common", aggregate.CloseWaitLeak,
			func(f *aggregate.Finding) { f.Evidence.Ends, f.Evidence.Exact = aggregate.CommonEnds{}, false },
			findingObject("close_wait_leak", with(leak(), object{"age_bound": "at_least", "lport": nil, "raddr": nil, "rport": nil})),
		},
		{
			"not accepted", aggregate.CloseWaitLeak,
			func(f *aggregate.Finding) {
				f.Evidence.Verdict, f.Evidence.Verdicts[aggregate.NotAccepted] = aggregate.NotAccepted, 7
				f.Evidence.Listeners = f.Holders[:1]
				f.Holders = nil
			},
			with(findingObject("close_wait_leak", with(leak(), object{
				"verdict": "not_accepted", "not_accepted": num("7"),
				"listeners": []any{object{"pid": num("4711"), "comm": "nginx", "fd": num("7"), "cookie": "deadbeef01"}},
			})), object{"holders": []any{}}),
		},
		{
			"not accepted, and nobody listens who can be seen", aggregate.CloseWaitLeak,
			func(f *aggregate.Finding) { f.Evidence.Verdicts[aggregate.NotAccepted] = 1 },
			findingObject("close_wait_leak", with(leak(), object{"not_accepted": num("1"), "listeners": []any{}})),
		},
		{
			"of no visible process", aggregate.CloseWaitLeak,
			func(f *aggregate.Finding) {
				f.Pid, f.Comm, f.Exe, f.Container, f.Evidence.FileLimit = 0, events.Comm{}, "", events.Container{}, 0
			},
			without(with(findingObject("close_wait_leak", without(leak(), "open_fds", "limit", "peer_closed_first", "closed", "held")),
				object{"pid": nil, "comm": nil, "exe": nil}), "container"),
		},
		{
			"of a process that has closed none", aggregate.CloseWaitLeak,
			func(f *aggregate.Finding) { f.Evidence.History = &aggregate.History{} },
			findingObject("close_wait_leak", with(leak(), object{
				"peer_closed_first": num("0"), "closed": num("0"), "held": num("0"),
				"fin_to_close_p50_ms": nil, "fin_to_close_p99_ms": nil,
			})),
		},
		{
			"close_wait_leak, resolved", aggregate.CloseWaitLeak, resolve,
			with(findingObject("close_wait_leak", members(peaks, historyMembers)), over),
		},
		{
			"of no visible process, resolved", aggregate.CloseWaitLeak,
			func(f *aggregate.Finding) {
				resolve(f)
				f.Pid, f.Comm, f.Exe, f.Container = 0, events.Comm{}, "", events.Container{}
			},
			without(with(with(findingObject("close_wait_leak", members(peaks)), over), object{"pid": nil, "comm": nil, "exe": nil}), "container"),
		},
		{
			"never_closed", aggregate.NeverClosed, func(f *aggregate.Finding) { f.Holders = nil },
			with(findingObject("never_closed", members(readMembers, endsMembers, historyMembers)), object{"holders": []any{}}),
		},
		{"reset_fd_leak", aggregate.ResetFdLeak, nil, findingObject("reset_fd_leak", dead())},
		{
			"reset_fd_leak of every end", aggregate.ResetFdLeak,
			func(f *aggregate.Finding) {
				f.Count = 11
				f.Evidence.Ended[aggregate.EndAborted], f.Evidence.Ended[aggregate.EndFin] = 4, 1
			},
			with(findingObject("reset_fd_leak", with(dead(), object{"ended": object{
				"reset_received": num("3"), "timeout": num("1"), "aborted": num("4"), "fin": num("1"), "unknown": num("2"),
			}})), object{"count": num("11")}),
		},
		{ // The history is one of CLOSE_WAIT.
			"reset_fd_leak, resolved", aggregate.ResetFdLeak, resolve,
			with(findingObject("reset_fd_leak", members(peaks)), over),
		},
		{
			"fd_limit", aggregate.FdLimit, nil,
			with(findingObject("fd_limit", limit()), object{"oldest_ms": nil, "holders": []any{}}),
		},
		{
			"fd_limit, its growth not known", aggregate.FdLimit,
			func(f *aggregate.Finding) {
				f.Evidence.PerMinute, f.Evidence.Measured, f.Evidence.Exhausted = 0, false, aggregate.Unknown
			},
			with(findingObject("fd_limit", with(limit(), object{"close_wait_per_minute": nil, "emfile_in_ms": nil})),
				object{"oldest_ms": nil, "holders": []any{}}),
		},
		{
			"fd_limit that gets better", aggregate.FdLimit,
			func(f *aggregate.Finding) { f.Evidence.PerMinute, f.Evidence.Exhausted = -3, aggregate.Unknown },
			with(findingObject("fd_limit", with(limit(), object{"close_wait_per_minute": num("-3.0"), "emfile_in_ms": nil})),
				object{"oldest_ms": nil, "holders": []any{}}),
		},
		{
			"fd_limit, resolved", aggregate.FdLimit, resolve,
			with(findingObject("fd_limit", peaks), over),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := finding(t, tt.kind)
			if tt.change != nil {
				tt.change(f)
			}
			e := Encoder{Wall: wall}
			line := e.Finding(nil, f)
			if f.Evidence.History.FinToClose(0.5) == aggregate.Unknown {
				check(t, line, tt.want)
				return
			}
			checkFinding(t, line, tt.want)
		})
	}
}

// Whatever a finding holds: one line of JSON, in which nothing is said twice.
func TestEveryFindingIsOneLineOfJSON(t *testing.T) {
	e := Encoder{Wall: wall}
	for kind := aggregate.CloseWaitLeak; kind <= aggregate.FdLimit; kind++ {
		for status := aggregate.Open; status <= aggregate.Resolved; status++ {
			for severity := aggregate.Info; severity <= aggregate.Critical; severity++ {
				for _, pid := range []uint32{0, 1} {
					full := finding(t, kind)
					full.Status, full.Severity, full.Pid = status, severity, pid
					bare := &aggregate.Finding{Kind: kind, Status: status, Severity: severity, Pid: pid}
					bare.Evidence.History = &aggregate.History{}
					for _, f := range []*aggregate.Finding{full, bare} {
						got := parse(t, e.Finding(nil, f))
						if got["kind"] != kind.String() || got["status"] != status.String() || got["severity"] != severity.String() {
							t.Errorf("got %v, %v, %v; want %s, %s, %s", got["kind"], got["status"], got["severity"], kind, status, severity)
						}
					}
				}
			}
		}
	}
}

func TestTheNamesOfFindingsAreThoseOfTheContract(t *testing.T) {
	for got, want := range map[fmt.Stringer]string{
		aggregate.CloseWaitLeak: "close_wait_leak", aggregate.NeverClosed: "never_closed",
		aggregate.ResetFdLeak: "reset_fd_leak", aggregate.FdLimit: "fd_limit",
		aggregate.Open: "open", aggregate.Update: "update", aggregate.Resolved: "resolved",
		aggregate.Info: "info", aggregate.Warning: "warning", aggregate.Critical: "critical",
		aggregate.EOFRead: "eof_read", aggregate.EOFUnread: "eof_unread", aggregate.NotAccepted: "not_accepted",
		aggregate.Dead: "reset_fd_leak", aggregate.VerdictNone: "",
	} {
		if got.String() != want {
			t.Errorf("%T: got %q, want %q", got, got, want)
		}
	}
}
