package livetest

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// strangers reports each record that is about a socket which the filter should
// have kept out.
func strangers(t *testing.T, records []record, wanted map[string]string) {
	t.Helper()
	reported := map[string]bool{}
	for i := range records {
		r := &records[i]
		if id := orNull(r.Cookie); r.Type != "stats" && wanted[id] == "" && !reported[id] {
			reported[id] = true
			t.Errorf("%s record of socket %s, which the filter excludes: %s", r.Type, id, r.summary())
		}
	}
}

// "Which of my server's connections" must mean all of them and no others.
func TestAServersPIDGivesAllOfItsConnectionsAndNoOthers(t *testing.T) {
	t.Parallel()
	const n = 50
	var srv *agent
	var clientFirst, serverFirst connections
	var alone []expect
	wanted := map[string]string{}
	s, runs := playComplete(t, func(s *scene) {
		var cli *agent
		cli, srv = s.agents2()
		other := s.agent("other")
		l, otherListener := srv.listen(anyPort4), other.listen(anyPort4)
		before, beforeAt := pair(cli, l)
		s.trace("--pid", fmt.Sprint(srv.pid))
		clientFirst = bulkConnections(cli, l, n, true)
		bulkConnections(cli, otherListener, n, true)
		serverFirst = bulkConnections(cli, l, n, false)
		bulkConnections(cli, otherListener, n, false)
		before.close()
		time.Sleep(lag)
		beforeAt.close()
		// The filter must know the process until it has closed its last socket.
		last, lastAt := pair(cli, l)
		srv.exit()
		time.Sleep(lag)
		last.close()

		clear(wanted)
		wanted[l.id()] = "listener"
		wanted[beforeAt.id()] = "existing"
		wanted[lastAt.id()] = "server"
		for _, group := range [][]ends{clientFirst.server, serverFirst.server} {
			for _, c := range group {
				wanted[c.id()] = "server"
			}
		}
		alone = []expect{
			{who: "existing", sock: beforeAt, existed: true, path: "E CW LA C", conn: []string{"null remote fin close"}},
			{who: "closed by exit", sock: lastAt, path: "L SR E F1 F2 TW", conn: []string{"server local fin exit"}},
		}
		s.settle(alone)
		s.waitForConnections(clientFirst.server, serverFirst.server)
	})
	records := runs[0].records
	strangers(t, records, wanted)
	checkBulk(t, records, clientFirst.server, srv, "server", true)
	checkBulk(t, records, serverFirst.server, srv, "server", false)
	for _, want := range alone {
		want.check(s, records, want.sock.id())
	}
}

// The listener of pre-forked workers is held by all of them: only who accepts
// says whose a connection is.
func TestAWorkersPIDGivesWhatThatWorkerAccepted(t *testing.T) {
	t.Parallel()
	var wants []expect
	wanted := map[string]string{}
	s, runs := playComplete(t, func(s *scene) {
		cli, srv := s.agents2()
		l := srv.listen(anyPort4)
		worker0, worker1 := s.spawn(srv, "worker0", l), s.spawn(srv, "worker1", l)
		s.trace("--pid", fmt.Sprint(worker1.pid))
		wants = nil
		clear(wanted)
		wanted[l.id()] = "listener"
		for i := range 10 {
			c := cli.dial(l)
			d := l.in([]*agent{worker0, worker1}[i%2], 3).accept()
			c.close()
			d.read("")
			time.Sleep(lag)
			d.close()
			if d.a == worker1 {
				wanted[d.id()] = "accepted"
				wants = append(wants, expect{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}})
			}
		}
		s.settle(wants)
	})
	strangers(t, runs[0].records, wanted)
	checkAll(s, runs[0], wants)
}

// filtersProcesses reports whether the kernel side turns away what nobody asks for.
func filtersProcesses(stats *record) bool { return stats.Probes["pid_filter"] == "sk_storage" }

// What is no business of a process that is asked for costs the host no more than a look.
func TestWhatOthersDoDoesNotLeaveTheKernel(t *testing.T) {
	t.Parallel()
	ns := newNetns(t)
	idle, cli, srv := startAgent(t, ns, "idle"), startAgent(t, ns, "cli"), startAgent(t, ns, "srv")
	l := srv.listen(anyPort4)
	_, before := pair(cli, l)
	tr := startTracer(t, "--pid", fmt.Sprint(idle.pid))
	const n = 20
	bulkConnections(cli, l, n, true)
	before.close()
	srv.spawn("heir", l).exit()
	ns.endMinisockets(t)
	run := tr.stop()
	stats := lastStats(run.records)
	if len(run.records) != 1 {
		t.Errorf("%d records, want the stats alone: %s", len(run.records), run.records[0].summary())
	}
	switch {
	case !filtersProcesses(stats):
		if stats.Delivered < 10*n || stats.Filtered != 0 {
			t.Errorf("delivered %d, filtered %d; without socket storage all are to be delivered", stats.Delivered, stats.Filtered)
		}
	case stats.Delivered != 0 || stats.Filtered < 10*n || stats.Tracked != 0:
		t.Errorf("delivered %d, filtered %d, sockets_tracked %d; want 0, %d at the least, 0",
			stats.Delivered, stats.Filtered, stats.Tracked, 10*n)
	}
}

// passing is two agents, of which the first can pass descriptors to the second.
func (s *scene) passing() (giver, taker *agent) {
	s.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	giving, taking := os.NewFile(uintptr(fds[0]), "giving"), os.NewFile(uintptr(fds[1]), "taking")
	defer giving.Close()
	defer taking.Close()
	return s.agent("giver", giving), s.agent("taker", taking)
}

// Nobody tells of a descriptor that changes hands. What its new holder does with it, does.
func TestASocketThatWasPassedIsShownFromWhatItsNewHolderDoes(t *testing.T) {
	t.Parallel()
	var taken *sock
	_, runs := playComplete(t, func(s *scene) {
		cli := s.agent("cli")
		giver, taker := s.passing()
		s.trace("--pid", fmt.Sprint(taker.pid))
		c, d := pair(cli, giver.listen(anyPort4))
		giver.sendFD(d)
		taken = taker.receiveFD(d)
		d.close()
		c.close()
		taken.read("")
		time.Sleep(lag)
		taken.close()
		s.await(func(rs []record) bool { return len(connectionsOf(rs, taken.id())) > 0 })
	})
	strangers(t, runs[0].records, map[string]string{taken.id(): "passed"})
	if got := path(transitionsOf(runs[0].records, taken.id())); got != "CW LA C" {
		t.Errorf("path %q, want %q", got, "CW LA C")
	}
	for _, r := range connectionsOf(runs[0].records, taken.id()) {
		if orNull(r.End) != "fin" || orNull(r.CloseCall) != "close" || orNull(r.Closer) != "remote" || r.Pid == nil || *r.Pid != taken.a.pid {
			t.Errorf("closed by %s, end %s, close_call %s, owner %s; want remote, fin, close, the new holder",
				orNull(r.Closer), orNull(r.End), orNull(r.CloseCall), r.owner())
		}
		if r.Start != nil && filtersProcesses(lastStats(runs[0].records)) {
			t.Errorf("start %v, want null: what its giver did was no business of the process asked for", r.Start)
		}
	}
}

// A service manager passes listeners on. The first accept() tells of one, and from the scan
// that this asks for on it is like any other.
func TestTheConnectionsOfAPassedListenerAreSoonSeenWhole(t *testing.T) {
	t.Parallel()
	var stories []string
	playComplete(t, func(s *scene) {
		cli := s.agent("cli")
		giver, taker := s.passing()
		s.trace("--pid", fmt.Sprint(taker.pid))
		l := giver.listen(anyPort4)
		giver.sendFD(l)
		taken := taker.receiveFD(l)
		stories = nil
		for range 60 { // for as long as it may take until there is a scan
			c := cli.dial(l)
			d := taken.accept()
			c.close()
			d.read("")
			time.Sleep(lag)
			d.close()
			s.await(func(rs []record) bool { return len(connectionsOf(rs, d.id())) > 0 })
			var story string
			s.tr.waitFor(func(rs []record) bool { story = path(transitionsOf(rs, d.id())); return true })
			if stories = append(stories, story); story == "L SR E CW LA C" {
				return
			}
			time.Sleep(200 * time.Millisecond)
		}
	})
	for i, story := range stories {
		if last := i == len(stories)-1; !strings.HasSuffix("L SR E CW LA C", story) || story == "" || last && story != "L SR E CW LA C" {
			t.Errorf("connection %d of %d: path %q, want the end of it, and all of it at last", i+1, len(stories), story)
		}
	}
}

// Programs in Go listen by MPTCP, and what they hold then is not what is traced.
func TestAListenerOfGosFromBeforeTheStartHasItsConnections(t *testing.T) {
	t.Parallel()
	ns := newNetns(t)
	var l net.Listener
	ns.do(t, func() {
		var err error
		if l, err = net.Listen("tcp", anyPort4); err != nil {
			t.Fatal(err)
		}
	})
	defer l.Close()
	cli := startAgent(t, ns, "cli")
	tr := startTracer(t, "--netns", fmt.Sprint(ns.inode), "--pid", fmt.Sprint(os.Getpid()))
	c := cli.socket(anyPort4)
	c.connect(l.Addr().(*net.TCPAddr).AddrPort())
	d, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.close()
	_, _ = d.Read(make([]byte, 1)) // end-of-file
	time.Sleep(lag)
	d.Close()
	server := &sock{local: c.remote, remote: c.local}
	tr.waitFor(func(rs []record) bool { return len(storyOf(rs, server)) >= 5 })
	run := tr.stop()
	if got := path(storyOf(run.records, server)); got != "L SR E CW LA C" {
		t.Errorf("path %q, want %q", got, "L SR E CW LA C")
	}
	run.checkNothingLost(t)
	if got := storyOf(run.records, c); len(got) != 0 {
		t.Errorf("the client's end is told of: %s", got[0].summary())
	}
}
