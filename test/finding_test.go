package livetest

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// closeWaitAfter is the threshold of most tests: long enough for every call that
// a test makes in time, and short enough to wait for.
const closeWaitAfter = 700 * time.Millisecond

// A leaked is a socket whose peer has closed the connection, and whose process
// has not.
type leaked struct {
	cookie        string
	holders       []holder // as byHolder sorts them; none in an accept queue
	local, remote netip.AddrPort
	verdict       string // of close_wait_leak; "" if there was a reset
	unread        int
	before, after time.Time // around the peer's close()
}

// A leak is what one finding has to say.
type leak struct {
	kind     string
	who      process  // pid 0: none that is visible
	sockets  []leaked // the one that was closed first stands first
	count    int
	severity string // "" if it may be any
	evidence map[string]any
	never    bool // its end must not be seen: the process still leaks
	ageless  bool // how long it has lasted cannot be known, only that it is no longer than the truth

	// When a process ended that has never closed: around its kill.
	endBefore, endAfter time.Time
}

// common is what all sockets have in common, nil if nothing.
func common(sockets []leaked, of func(leaked) any) any {
	for _, s := range sockets[1:] {
		if of(s) != of(sockets[0]) {
			return nil
		}
	}
	return of(sockets[0])
}

// ports is the evidence that says where the sockets lead.
func ports(sockets []leaked) map[string]any {
	return map[string]any{
		"lport": common(sockets, func(s leaked) any { return float64(s.local.Port()) }),
		"rport": common(sockets, func(s leaked) any { return float64(s.remote.Port()) }),
		"raddr": common(sockets, func(s leaked) any { return s.remote.Addr().String() }),
	}
}

// verdicts counts the sockets by verdict and names the most frequent one.
func verdicts(sockets []leaked) (map[string]any, string) {
	out := map[string]any{"eof_read": 0.0, "eof_unread": 0.0, "not_accepted": 0.0}
	most := sockets[0].verdict
	for _, s := range sockets {
		n := out[s.verdict].(float64) + 1
		out[s.verdict] = n
		if n > out[most].(float64) {
			most = s.verdict
		}
	}
	return out, most
}

// closeWaitLeak is the finding about the sockets. seen says that tcptrace saw
// their FINs, and so knows their ages and the history of the process.
func closeWaitLeak(who process, sockets []leaked, seen bool) leak {
	evidence, verdict := verdicts(sockets)
	evidence["verdict"] = verdict
	unread, noDescriptor := 0, 0
	for _, s := range sockets {
		unread += s.unread
		if s.verdict != "not_accepted" && len(s.holders) == 0 {
			noDescriptor++
		}
	}
	evidence["unread_bytes"], evidence["no_descriptor"] = float64(unread), float64(noDescriptor)
	evidence["age_bound"] = "at_least"
	if seen {
		evidence["age_bound"] = "exact"
		evidence["closed"], evidence["fin_to_close_p50_ms"], evidence["fin_to_close_p99_ms"] = 0.0, nil, nil
		// What nobody has accepted is not in the history of a process.
		if verdict != "not_accepted" {
			evidence["peer_closed_first"], evidence["held"] = float64(len(sockets)), float64(len(sockets))
		}
	}
	return leak{kind: "close_wait_leak", who: who, sockets: sockets, count: len(sockets), evidence: with(evidence, ports(sockets))}
}

// neverClosed ends the process, and is the finding that follows.
func neverClosed(who process, sockets []leaked, kill func()) leak {
	evidence, _ := verdicts(sockets)
	evidence["age_bound"] = "exact"
	out := leak{kind: "never_closed", who: who, sockets: sockets, count: len(sockets), evidence: with(evidence, ports(sockets))}
	out.endBefore = time.Now()
	kill()
	out.endAfter = time.Now()
	return out
}

// resetLeak is the finding about sockets whose connections ended as ended says: a
// key of the evidence of that name. What was before tcptrace has left no trace of
// when, and perhaps none of how.
func resetLeak(who process, sockets []leaked, ended string, seen bool) leak {
	evidence := map[string]any{"age_bound": "at_least"}
	if seen {
		evidence = map[string]any{"age_bound": "exact", "ended": map[string]any{ended: float64(len(sockets))}}
	}
	return leak{kind: "reset_fd_leak", who: who, sockets: sockets, count: len(sockets),
		evidence: with(evidence, ports(sockets)), ageless: !seen}
}

func with(m, more map[string]any) map[string]any {
	for k, v := range more {
		m[k] = v
	}
	return m
}

// about says whether the record is of this finding.
func (l *leak) about(r *record) bool {
	return r.Type == "finding" && r.Kind == l.kind && (r.Pid == nil && l.who.pid == 0 || r.Pid != nil && *r.Pid == l.who.pid)
}

// of is the finding's records in their order.
func (l *leak) of(records []record) (out []record) {
	for i := range records {
		if l.about(&records[i]) {
			out = append(out, records[i])
		}
	}
	return out
}

// worst is the last record of the finding before it was resolved.
func (l *leak) worst(records []record) *record {
	mine := l.of(records)
	for i := len(mine) - 1; i >= 0; i-- {
		if mine[i].Status != "resolved" {
			return &mine[i]
		}
	}
	return nil
}

// awaitFindings waits until each leak has been found at its full size, and says
// whether that came to be.
func (tr *tracer) awaitFindings(wants []leak) bool {
	return tr.waitFor(func(records []record) bool {
		for i := range wants {
			if r := wants[i].worst(records); r == nil || r.Count != wants[i].count {
				return false
			}
		}
		return true
	})
}

// awaitResolved waits until each leak that must end has.
func (tr *tracer) awaitResolved(wants []leak) bool {
	return tr.waitFor(func(records []record) bool {
		for i := range wants {
			mine := wants[i].of(records)
			if wants[i].ends() && (len(mine) == 0 || mine[len(mine)-1].Status != "resolved") {
				return false
			}
		}
		return true
	})
}

// awaitFindings and awaitResolved wait for the first tracer, and give up without
// a word, as await does.
func (s *scene) awaitFindings(wants []leak) { s.short = !s.tr.awaitFindings(wants) || s.short }
func (s *scene) awaitResolved(wants []leak) { s.short = !s.tr.awaitResolved(wants) || s.short }

// ends says whether the finding has to be resolved. One about the past is not.
func (l *leak) ends() bool { return !l.never && l.kind != "never_closed" }

// checkFindings compares a run with the leaks that were in it, all of them and no
// others.
func checkFindings(t *testing.T, records []record, wants []leak) {
	t.Helper()
	for i := range wants {
		wants[i].check(t, records)
	}
	ids := map[string]*leak{}
	for i := range records {
		r := &records[i]
		if r.Type != "finding" {
			continue
		}
		at := slices.IndexFunc(wants, func(l leak) bool { return l.about(r) })
		if at < 0 {
			t.Errorf("a finding of no leak: %s", r.finding())
			continue
		}
		if first := ids[r.ID]; first != nil && first != &wants[at] {
			t.Errorf("%s %s: id %s is another finding's too", r.Kind, orNull(r.Pid), r.ID)
		}
		ids[r.ID] = &wants[at]
	}
	if t.Failed() {
		for i := range records {
			if records[i].Type == "finding" {
				t.Log(records[i].finding())
			}
		}
	}
}

// finding is a finding in short, for messages.
func (r *record) finding() string {
	return fmt.Sprintf("%s %s %s %s %s of %s/%s: count %d, oldest %s ms, holders %v, %v", r.Time.Format("05.000"), r.ID, r.Kind, r.Status, r.Severity,
		orNull(r.Pid), orNull(r.Comm), r.Count, orNull(r.OldestMs), r.Holders, r.Evidence)
}

func (l *leak) check(t *testing.T, records []record) {
	t.Helper()
	mine := l.of(records)
	where := fmt.Sprintf("%s of %d", l.kind, l.who.pid)
	if len(mine) == 0 {
		t.Errorf("%s: no finding, want one with count %d", where, l.count)
		return
	}
	checkCourse(t, where, mine, l.ends())
	for i := range mine {
		l.checkSubject(t, where, &mine[i])
	}
	worst := l.worst(mine)
	if worst == nil {
		return
	}
	if worst.Count != l.count {
		t.Errorf("%s: count %d, want %d", where, worst.Count, l.count)
	}
	got := map[string]any{}
	for name := range l.evidence {
		v, ok := worst.Evidence[name]
		if !ok {
			v = "absent"
		}
		got[name] = v
	}
	if counts, ok := got["ended"].(map[string]any); ok {
		maps.DeleteFunc(counts, func(_ string, n any) bool { return n == 0.0 }) // may be left out
	}
	// accept() reserves a descriptor before it waits. /proc does not show it; the
	// kernel counts it.
	if open, ok := l.evidence["open_fds"].(float64); ok && got["open_fds"] == open+1 {
		got["open_fds"] = open
	}
	if diff := gocmp.Diff(l.evidence, got); diff != "" {
		t.Errorf("%s: evidence (-want +got):\n%s", where, diff)
	}
	l.checkHolders(t, where, worst)
	for i := range mine {
		if mine[i].Status != "resolved" {
			l.checkOldest(t, where, &mine[i])
		}
	}
}

// checkSubject checks what every record of the finding has to say.
func (l *leak) checkSubject(t *testing.T, where string, r *record) {
	t.Helper()
	who := "null null null"
	if l.who.pid != 0 {
		who = fmt.Sprintf("%d %s %s", l.who.pid, l.who.comm, l.who.exe)
	}
	if got := fmt.Sprintf("%s %s %s", orNull(r.Pid), orNull(r.Comm), orNull(r.Exe)); got != who {
		t.Errorf("%s: process %q, want %q", where, got, who)
	}
	if !slices.Contains([]string{"info", "warning", "critical"}, r.Severity) || l.severity != "" && r.Severity != l.severity {
		t.Errorf("%s: severity %q, want %q", where, r.Severity, cmp.Or(l.severity, "one that the contract knows"))
	}
	for _, text := range []string{r.Message, r.Advice} {
		if text == "" || strings.ContainsAny(text, "\n\t") {
			t.Errorf("%s: message or advice %q, want a sentence", where, text)
		}
	}
}

// checkCourse checks the records of one finding against each other: it opens
// once, each update has doubled something, and nothing follows its end.
func checkCourse(t *testing.T, where string, mine []record, ends bool) {
	t.Helper()
	last := &mine[len(mine)-1]
	if ends != (last.Status == "resolved") {
		t.Errorf("%s: last status %s, want resolved: %v", where, last.Status, ends)
	}
	for i := range mine {
		r := &mine[i]
		if r.ID != mine[0].ID {
			t.Errorf("%s: id %s, want that of its first record, %s", where, r.ID, mine[0].ID)
		}
		switch {
		case (r.Status == "open") != (i == 0):
			t.Errorf("%s: record %d is %s, want open once, at the beginning", where, i, r.Status)
		case r.Status == "update":
			before := &mine[i-1]
			aged := r.OldestMs != nil && before.OldestMs != nil && *r.OldestMs >= 2**before.OldestMs
			worse := before.Severity == "warning" && r.Severity == "critical"
			if r.Count < 2*before.Count && !aged && !worse {
				t.Errorf("%s: update from %d sockets of %s ms to %d of %s ms, want one only when something has doubled",
					where, before.Count, orNull(before.OldestMs), r.Count, orNull(r.OldestMs))
			}
		case r.Status == "resolved":
			checkResolved(t, where, r, mine[:i])
		}
	}
}

func checkResolved(t *testing.T, where string, r *record, before []record) {
	t.Helper()
	if r.Count != 0 || r.OldestMs != nil || len(r.Holders) != 0 {
		t.Errorf("%s: resolved with count %d, oldest_ms %s, holders %v; want 0, null, none", where, r.Count, orNull(r.OldestMs), r.Holders)
	}
	peak := slices.MaxFunc(before, func(a, b record) int { return cmp.Compare(a.Count, b.Count) }).Count
	if got, ok := r.Evidence["peak_count"].(float64); !ok || int(got) < peak {
		t.Errorf("%s: resolved with peak_count %v, want %d at the least", where, r.Evidence["peak_count"], peak)
	}
	for _, b := range before {
		if b.OldestMs == nil {
			continue
		}
		if got, ok := r.Evidence["peak_oldest_ms"].(float64); !ok || got < *b.OldestMs {
			t.Errorf("%s: resolved with peak_oldest_ms %v, want %v at the least", where, r.Evidence["peak_oldest_ms"], *b.OldestMs)
		}
	}
}

// checkHolders compares the holders with the leakers' word: of the oldest
// sockets, at most 16.
func (l *leak) checkHolders(t *testing.T, where string, r *record) {
	t.Helper()
	want := []holder{}
	if l.kind == "close_wait_leak" || l.kind == "reset_fd_leak" {
		for _, s := range l.sockets {
			want = append(want, s.holders...)
		}
	}
	if diff := gocmp.Diff(want[:min(len(want), 16)], r.Holders); diff != "" {
		t.Errorf("%s: holders (-want +got):\n%s", where, diff)
	}
}

// ageTolerance is by how much an age may be short: the second of the two bars.
const ageTolerance = 100 * time.Millisecond

// checkOldest checks the age of the oldest socket against this program's clock.
func (l *leak) checkOldest(t *testing.T, where string, r *record) {
	t.Helper()
	if l.kind == "fd_limit" {
		if r.OldestMs != nil {
			t.Errorf("%s: oldest_ms %v, want null", where, *r.OldestMs)
		}
		return
	}
	if r.OldestMs == nil {
		t.Errorf("%s: oldest_ms null, want the age of the oldest", where)
		return
	}
	oldest := l.sockets[0]
	if l.kind == "never_closed" {
		checkAgeBetween(t, where+": oldest_ms", *r.OldestMs, l.endBefore.Sub(oldest.after), l.endAfter.Sub(oldest.before))
		return
	}
	if l.ageless {
		oldest.after = r.Time
	}
	checkSince(t, where+": oldest_ms", r.Time, *r.OldestMs, oldest)
}

// checkSince checks the age that a record of that time gives to a socket.
func checkSince(t *testing.T, where string, at time.Time, age float64, s leaked) {
	t.Helper()
	checkAgeBetween(t, where, age, at.Sub(s.after), at.Sub(s.before))
}

// checkAgeBetween checks an age against the bounds of the truth: it is at most
// the truth, and hardly less.
func checkAgeBetween(t *testing.T, where string, age float64, least, most time.Duration) {
	t.Helper()
	if got := ms(age); got > most || got < least-ageTolerance {
		t.Errorf("%s %v, want %v at the most and %v at the least", where, got, most, least-ageTolerance)
	}
}
