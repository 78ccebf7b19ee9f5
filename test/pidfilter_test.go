package livetest

import (
	"fmt"
	"testing"
	"time"
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
