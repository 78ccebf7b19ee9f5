package livetest

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"
)

func TestSocketsThatExistedBefore(t *testing.T) {
	t.Parallel()
	var wants []expect
	var inventory []inventoryWant
	var oldest time.Duration // that any socket can be when the tracer finds it
	s, runs := playComplete(t, func(s *scene) {
		cli, srv := s.agents2()
		begin := time.Now()
		l := srv.listen(anyPort4)
		established, establishedAt := pair(cli, l)
		atEOF, c1 := pair(cli, l)
		atEOF.write("bye")
		c1.read("bye")
		atEOF.close()
		c1.read("")
		unread, c2 := pair(cli, l)
		unread.write("hello")
		unread.close()
		half, c3 := pair(cli, l)
		half.shutdownWrite()
		c3.read("")
		shared, c4 := pair(cli, l)
		child := s.spawn(srv, "heir", c4)
		queued := cli.dial(l)
		time.Sleep(lag)

		s.trace()
		// Whose sockets are asked for makes no difference to what is known of them.
		s.trace("--follow", "--pid", fmt.Sprintf("%d,%d", cli.pid, srv.pid))
		oldest = time.Since(begin)
		inventory = []inventoryWant{
			{sock: l, state: "LISTEN"},
			{sock: established, state: "ESTABLISHED"},
			{sock: establishedAt, state: "ESTABLISHED"},
			{sock: c1, state: "CLOSE_WAIT", evidence: "eof_read true unread_bytes 0"},
			{sock: c2, state: "CLOSE_WAIT", evidence: "eof_read false unread_bytes 5"},
			{sock: half, state: "FIN_WAIT2"},
			{sock: c3, state: "CLOSE_WAIT", evidence: "eof_read true unread_bytes 0"},
			{sock: c4, state: "ESTABLISHED", also: &holder{Pid: child.pid, Comm: child.name, FD: 3}},
			{sock: shared, state: "ESTABLISHED"},
			{sock: queued, state: "ESTABLISHED"},
			{sock: l.pending(queued), state: "ESTABLISHED", queued: true},
		}
		established.close()
		time.Sleep(lag)
		establishedAt.close()
		c1.close()
		c2.close()
		c3.close()
		time.Sleep(lag)
		half.close()
		c4.close() // the child still holds it
		shared.close()
		time.Sleep(lag)
		child.kill()
		d := l.accept()
		queued.close()
		time.Sleep(lag)
		d.close()
		// A connection that begins now on a listener that was there before.
		after, e := pair(cli, l)
		after.close()
		time.Sleep(lag)
		e.close()

		wants = []expect{
			{who: "established client", sock: established, existed: true, path: "E F1 F2 TW", conn: []string{"null local fin close"}},
			{who: "established server", sock: establishedAt, existed: true, path: "E CW LA C", conn: []string{"null remote fin close"}},
			{who: "at EOF", sock: c1, existed: true, path: "CW LA C|CW C", conn: []string{"null remote fin|reset_received close"}, received: 3},
			{who: "client of at EOF", sock: atEOF, existed: true, nobodys: true, path: "F2 TW", conn: []string{"null local|null fin null"}},
			{who: "client of unread", sock: unread, existed: true, nobodys: true, path: "F2 X", conn: []string{"null local|null reset_received null"}},
			{who: "unread", sock: c2, existed: true, path: "CW C", conn: []string{"null remote reset_sent close"}, received: 5},
			{who: "half-closed client", sock: half, existed: true, path: "F2 TW", conn: []string{"null local fin null"}},
			{who: "half-closed server", sock: c3, existed: true, path: "CW LA C", conn: []string{"null remote fin close"}},
			{who: "shared", sock: c4, existed: true, path: "E CW LA C", conn: []string{"null remote fin exit"}, heldBy: child, by: child, byAt: 1},
			{who: "client of shared", sock: shared, existed: true, path: "E F1 F2 TW", conn: []string{"null local fin close"}},
			{who: "client of queued", sock: queued, existed: true, path: "E F1 F2 TW", conn: []string{"null local fin close"}},
			{who: "queued", sock: d, existed: true, acceptedNow: true, path: "E CW LA C", conn: []string{"null|server remote fin close"}},
			{who: "client after", sock: after, path: "C SS E F1 F2 TW", conn: []string{"client local fin close"}},
			{who: "server after", sock: e, path: "L SR E CW LA C", conn: []string{"server remote fin close"}},
		}
		s.settle(wants)
	})
	for _, run := range runs {
		for _, want := range inventory {
			want.check(t, run.records, oldest)
		}
		checkAll(s, run, wants)
		// Minisockets from before have nobody who could be asked for.
		wants = slices.DeleteFunc(wants, func(e expect) bool { return e.nobodys })
	}
}

// An inventoryWant is what the socket record of one socket must say.
type inventoryWant struct {
	sock     *sock
	state    string
	evidence string  // that a CLOSE_WAIT has
	also     *holder // beside the socket's agent
	queued   bool    // nobody holds it yet
}

func (want inventoryWant) check(t *testing.T, records []record, oldest time.Duration) {
	t.Helper()
	s := want.sock
	i := slices.IndexFunc(records, func(r record) bool {
		// By its ends, because a queued connection's cookie nobody can ask for.
		return r.Type == "socket" && orNull(r.Lport) == portOf(s.local) &&
			(r.Rport == nil) == !s.remote.IsValid() && (r.Rport == nil || *r.Rport == s.remote.Port())
	})
	if i < 0 {
		t.Errorf("no socket record of %v to %v in %s, want one", s.local, s.remote, want.state)
		return
	}
	r := &records[i]
	if r.State != want.state {
		t.Errorf("socket %s: state %s, want %s", s.id(), r.State, want.state)
	}
	if !want.queued && !r.of(s.id()) {
		t.Errorf("socket %s: cookie %s", s.id(), orNull(r.Cookie))
	}
	if orNull(r.Laddr) != s.local.Addr().String() {
		t.Errorf("socket %s: laddr %s, want %v", s.id(), orNull(r.Laddr), s.local.Addr())
	}
	source, holders := "fd", []holder{{Pid: s.a.pid, Comm: s.a.name, FD: s.fd}}
	known := holders
	if want.queued {
		source, holders = "listener", nil
	}
	if want.also != nil {
		holders = append(holders, *want.also)
		known = holders
	}
	byPid := func(a, b holder) int { return cmp.Compare(a.Pid, b.Pid) }
	slices.SortFunc(holders, byPid)
	if got := slices.SortedFunc(slices.Values(r.Holders), byPid); !slices.Equal(got, holders) {
		t.Errorf("socket %s: holders %v, want %v", s.id(), got, holders)
	}
	// Of several holders any may be named.
	if r.Pid == nil || *r.OwnerSource != source ||
		!slices.ContainsFunc(known, func(h holder) bool { return h.Pid == *r.Pid && h.Comm == *r.Comm }) {
		t.Errorf("socket %s: owner %s, want one of %v as %s", s.id(), r.owner(), known, source)
	}
	checkAge(t, r, oldest)
	evidence := ""
	if r.EOFRead != nil || r.UnreadBytes != nil {
		evidence = fmt.Sprintf("eof_read %s unread_bytes %s", orNull(r.EOFRead), orNull(r.UnreadBytes))
	}
	if evidence != want.evidence {
		t.Errorf("socket %s: evidence %q, want %q", s.id(), evidence, want.evidence)
	}
}

// checkAge checks that an age claims no more than is true: one that is only a
// bound is a lower bound.
func checkAge(t *testing.T, r *record, oldest time.Duration) {
	t.Helper()
	if (r.AgeMs == nil) != (r.AgeBound == nil) {
		t.Errorf("socket %s: age_ms %s, age_bound %s: both or none are null", orNull(r.Cookie), orNull(r.AgeMs), orNull(r.AgeBound))
	}
	if r.State == "CLOSE_WAIT" && r.AgeMs == nil {
		t.Errorf("socket %s: no age_ms in CLOSE_WAIT, want one", orNull(r.Cookie))
	}
	// The kernel remembers when by its timer's tick.
	const tick = 10 * time.Millisecond
	if r.AgeMs != nil && (*r.AgeMs < 0 || ms(*r.AgeMs) > oldest+tick) {
		t.Errorf("socket %s: age_ms %v, want at most %v", orNull(r.Cookie), *r.AgeMs, oldest)
	}
}
