package livetest

import (
	"fmt"
	"net"
	"strings"
	"testing"
)

// Servers in Go listen by MPTCP unless told otherwise; what they have closed first waits
// like any other connection. Before 6.2 it is not told from another protocol's.
func TestAServerThatListensByMPTCPHasItsTimeWait(t *testing.T) {
	t.Parallel()
	ns := newNetns(t)
	tr := startTracer(t, "--netns", fmt.Sprint(ns.inode))
	var lport uint16
	ns.do(t, func() {
		l, err := net.Listen("tcp", anyPort4)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		lport = uint16(l.Addr().(*net.TCPAddr).Port)
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		d, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		d.Close()
		_, _ = c.Read(make([]byte, 1)) // end-of-file
		c.Close()
	})
	waits := func(records []record, is func(*record) bool) (n int) {
		for i := range records {
			if r := &records[i]; r.Lport != nil && *r.Lport == lport && is(r) {
				n++
			}
		}
		return n
	}
	if n := strings.Count(ns.ss(t, "-Htn", "state", "time-wait", "sport", "=", fmt.Sprint(":", lport)), "\n"); n != 1 {
		t.Fatalf("ss lists %d in TIME_WAIT, want 1", n)
	}
	want := 1
	if speaksMPTCP() && !castsPointers() {
		want = 0
	}
	found := runForRecords(t, 0, "snapshot", "--netns", fmt.Sprint(ns.inode))
	if n := waits(found, func(r *record) bool { return r.Type == "socket" && r.State == "TIME_WAIT" }); n != want {
		t.Errorf("a snapshot has %d in TIME_WAIT, want %d", n, want)
	}
	entered := func(records []record) bool {
		return waits(records, func(r *record) bool { return r.isTransition() && r.NewState == "TIME_WAIT" }) == want
	}
	if !tr.waitFor(entered) {
		t.Errorf("the stream has not %d that enter TIME_WAIT", want)
	}
	tr.stop()
}
