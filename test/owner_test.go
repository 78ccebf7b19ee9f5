package livetest

import (
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTheProcessIsTheOneThatHoldsTheSocket(t *testing.T) {
	runScenarios(t, []scenario{
		{name: "fork-inherit", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			child := s.spawn(srv, "heir", d)
			d.close() // not the last descriptor: no event
			c.close()
			time.Sleep(lag)
			child.kill()
			return []expect{
				{who: "client", sock: c, path: "C SS E F1 F2 TW", conn: []string{"client local fin close"}},
				{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin exit"}, heldBy: child, by: child, byAt: 3},
			}
		}},
		{name: "prefork", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			l := srv.listen(anyPort4)
			var workers []*sock // the listener, as each worker holds it
			for _, name := range []string{"worker0", "worker1", "worker2"} {
				workers = append(workers, l.in(s.spawn(srv, name, l), 3))
			}
			var wants []expect
			for i := range 9 {
				c := cli.dial(l)
				d := workers[i%len(workers)].accept()
				c.close()
				d.read("")
				time.Sleep(lag)
				d.close()
				wants = append(wants,
					expect{who: "client", sock: c, path: "C SS E F1 F2 TW", conn: []string{"client local fin close"}},
					expect{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}})
			}
			return wants
		}},
		{name: "scm-pass", play: func(s *scene) []expect {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				s.t.Fatal(err)
			}
			giving, taking := os.NewFile(uintptr(fds[0]), "giving"), os.NewFile(uintptr(fds[1]), "taking")
			defer giving.Close()
			defer taking.Close()
			cli, giver, taker := s.agent("cli"), s.agent("giver", giving), s.agent("taker", taking)
			s.trace()
			c, d := pair(cli, giver.listen(anyPort4))
			giver.sendFD(d)
			taken := taker.receiveFD(d)
			d.close()
			c.close()
			taken.read("")
			time.Sleep(lag)
			taken.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E F1 F2 TW", conn: []string{"client local fin close"}},
				{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}, heldBy: taker, by: taker, byAt: 3},
			}
		}},
		{name: "connected-by-the-parent", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			child := s.spawn(cli, "heir", c)
			c.close()
			c.in(child, 3).close()
			time.Sleep(lag)
			d.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E F1 F2 TW", conn: []string{"client local fin close"}, heldBy: child, by: child, byAt: 2},
				{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}},
			}
		}},
	})
}

// A process that is gone before anyone can look at it has to be named all the
// same.
func TestShortLivedConnectionsHaveTheirOwner(t *testing.T) {
	t.Parallel()
	const n = 200
	for _, clientFirst := range []bool{true, false} {
		var opened connections
		var cli, srv *agent
		_, runs := playComplete(t, func(s *scene) {
			cli, srv = s.agents2()
			s.trace()
			opened = bulkConnections(cli, srv.listen(anyPort4), n, clientFirst)
			srv.exit()
			s.waitForConnections(opened.client, opened.server)
		})
		checkBulk(t, runs[0].records, opened.server, srv, "server", clientFirst)
		checkBulk(t, runs[0].records, opened.client, cli, "client", !clientFirst)
	}
}

// waitForConnections waits until the stream has the end of each connection, and
// ends TIME_WAIT when all that goes through it is there.
func (s *scene) waitForConnections(groups ...[]ends) {
	s.t.Helper()
	var ids []string
	for _, c := range slices.Concat(groups...) {
		ids = append(ids, c.id())
	}
	s.endTimeWait(ids)
}

// endTimeWait is waitForConnections by cookie.
func (s *scene) endTimeWait(ids []string) {
	s.t.Helper()
	s.await(func(records []record) bool {
		ended, last := connectionOwners(records), lastStates(records)
		return !slices.ContainsFunc(ids, func(id string) bool { return ended[id] == nil && last[id] != "TIME_WAIT" })
	})
	s.endMinisockets()
	s.await(func(records []record) bool {
		ended := connectionOwners(records)
		return !slices.ContainsFunc(ids, func(id string) bool { return ended[id] == nil })
	})
}

// connectionOwners maps the cookie of each connection that ended to its record.
func connectionOwners(records []record) map[string]*record {
	out := map[string]*record{}
	for i := range records {
		if r := &records[i]; r.Type == "connection" && r.Cookie != nil {
			out[*r.Cookie] = r
		}
	}
	return out
}

// checkBulk checks one end of the connections of a bulk call: what they went
// through, and whom their connection records name.
func checkBulk(t *testing.T, records []record, opened []ends, a *agent, role string, passive bool) {
	t.Helper()
	states, closer := map[string]string{"client": "C SS E ", "server": "L SR E "}[role], "local"
	if passive {
		states, closer = states+"CW LA C", "remote"
	} else {
		states += "F1 F2 TW"
	}
	ended := connectionOwners(records)
	for _, c := range opened {
		if got, want := path(transitionsOf(records, c.id())), printedPath(states); got != want {
			t.Errorf("%s %s: path %q, want %q", role, c.id(), got, want)
		}
		r := ended[c.id()]
		if r == nil {
			t.Errorf("%s %s: no connection record, want one", role, c.id())
			continue
		}
		if r.Pid == nil || *r.Pid != a.pid || *r.Comm != a.name {
			t.Errorf("%s %s: owner %s, want %d/%q", role, c.id(), r.owner(), a.pid, a.name)
		}
		if orNull(r.Role) != role || orNull(r.Closer) != closer || orNull(r.CloseCall) != "close" {
			t.Errorf("%s %s: role %s, closer %s, close_call %s; want %s, %s, close",
				role, c.id(), orNull(r.Role), orNull(r.Closer), orNull(r.CloseCall), role, closer)
		}
		if orNull(r.Laddr) != c.Local.Addr().String() || orNull(r.Lport) != portOf(c.Local) || orNull(r.Rport) != portOf(c.Remote) {
			t.Errorf("%s %s: %s:%s -> :%s, want %v -> %v", role, c.id(), orNull(r.Laddr), orNull(r.Lport), orNull(r.Rport), c.Local, c.Remote)
		}
	}
}

// A command may call itself anything.
func TestAnyCommandNameIsOneValidLine(t *testing.T) {
	names := map[string]string{
		"newline":       "new\nline",
		"quote":         `q"uo'te`,
		"backslash":     `back\slash\n`,
		"escape":        "\x1b[31mred\x1b[0m",
		"invalid-UTF-8": "in\xff\xfevalid\xc3",
		"not-ASCII":     "größe→",
	}
	var scenarios []scenario
	for name, comm := range names {
		scenarios = append(scenarios, scenario{name: name, play: func(s *scene) []expect {
			cli, srv := s.agent(comm), s.agent(comm)
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			d.close()
			c.read("")
			time.Sleep(lag)
			c.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E CW LA C", conn: []string{"client remote fin close"}},
				{who: "server", sock: d, path: "L SR E F1 F2 TW", conn: []string{"server local fin close"}},
			}
		}})
	}
	runScenarios(t, scenarios)
}
