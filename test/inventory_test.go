package livetest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// What stands in for a socket is part of the inventory too: a connection that is
// being accepted, one in TIME_WAIT, and an orphan in FIN_WAIT2.
func TestASnapshotHasEverySocketThatSsLists(t *testing.T) {
	t.Parallel()
	s := &scene{t: t, ns: newNetns(t)}
	cli, srv := s.agents2()
	l := srv.listen(anyPort4)
	established, _ := pair(cli, l)
	waiting, peer := pair(cli, l)
	waiting.close()
	peer.close()
	orphan, left := pair(cli, l)
	orphan.close()
	half, _ := pair(cli, l)
	half.shutdownWrite()
	queued := cli.dial(l)
	tun := s.peer()
	tun.remote = srv.listen("10.99.0.1:0").local
	tun.send(syn) // and never the last ACK
	_, _, _, _ = established, left, half, queued

	var listed, records []string
	var timers map[string]time.Duration
	for range 20 { // until nothing moves any more
		before, _ := s.inventory()
		time.Sleep(lag)
		records = nil
		expires := map[string]time.Duration{}
		for _, r := range runForRecords(t, 0, "snapshot", "--netns", fmt.Sprint(s.ns.inode), "--events", "socket") {
			name := fmt.Sprintf("%s %s:%s %s:%s", r.State, orNull(r.Laddr), orNull(r.Lport), orNull(r.Raddr), orNull(r.Rport))
			records = append(records, name)
			if r.ExpiresMs != nil {
				expires[name] = ms(*r.ExpiresMs)
			}
		}
		slices.Sort(records)
		if listed, timers = s.inventory(); !slices.Equal(before, listed) {
			continue
		}
		for name, want := range timers {
			// ss cuts to seconds, and was asked later.
			if got := expires[name]; got < want || got > want+3*time.Second {
				t.Errorf("%s: expires in %v, want at least %v, and little more", name, got, want)
			}
		}
		if len(expires) != len(timers) {
			t.Errorf("expires_ms of %d sockets, want %d: %v", len(expires), len(timers), expires)
		}
		break
	}
	if diff := gocmp.Diff(listed, records); diff != "" {
		t.Errorf("sockets (-ss +tcptrace):\n%s", diff)
	}
	for _, state := range []string{"LISTEN", "ESTABLISHED", "CLOSE_WAIT", "SYN_RECV", "TIME_WAIT", "FIN_WAIT2"} {
		if !slices.ContainsFunc(listed, func(s string) bool { return strings.HasPrefix(s, state+" ") }) {
			t.Errorf("ss lists no socket in %s: this test is to have one", state)
		}
	}
}

// inventory is what ss lists, as "STATE LADDR:LPORT RADDR:RPORT", and how long at
// least a minisocket's timer runs.
func (s *scene) inventory() (names []string, timers map[string]time.Duration) {
	s.t.Helper()
	timers = map[string]time.Duration{}
	for line := range strings.Lines(s.ns.ss(s.t, "-tanoOH")) {
		f := strings.Fields(line)
		name := fmt.Sprintf("%s %s %s", ssStates[f[0]], f[3], strings.Replace(f[4], "0.0.0.0:*", "null:null", 1))
		names = append(names, name)
		if _, timer, ok := strings.Cut(line, "timer:(timewait,"); ok {
			sec, _, _ := strings.Cut(strings.Replace(timer, "1min", "59sec", 1), "sec")
			n, err := strconv.Atoi(sec)
			if err != nil {
				s.t.Fatalf("ss: %q: %v", line, err)
			}
			timers[name] = time.Duration(n) * time.Second
		}
	}
	slices.Sort(names)
	return names, timers
}
