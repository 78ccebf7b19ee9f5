package livetest

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// Ports of the mixed traffic. The kernel gives unbound clients those of the
// range, so that a filter can name them in advance.
const (
	webPort, dbPort, dualPort = 30080, 30054, 30099
	boundPort                 = 30500
	clientPortsKernel         = "41000 41015"
	clientPortsFilter         = "41000,41001,41002,41003,41004,41005,41006,41007,41008,41009,41010,41011,41012,41013,41014,41015"
)

// An end is one end of a connection in the mixed traffic: what a filter can
// choose by, and what must be seen of it.
type end struct {
	*sock
	label string // of the connection
	path  string
}

func (e end) isClient() bool { return e.listener == nil }
func (e end) is4() bool      { return e.remote.Addr().Is4() }

// by says whether one of the processes named owns the socket.
func (e end) by(names ...string) bool { return slices.Contains(names, e.maker.name) }

// openAndClose is one connection of the mixed traffic, closed by the client
// first.
func openAndClose(c, l *sock, to string) []end {
	c.connect(netip.MustParseAddrPort(to))
	d := l.accept()
	c.close()
	d.read("")
	d.close()
	label := fmt.Sprintf("%s to %s", c.maker.name, to)
	return []end{{c, label, printedPath("C SS E F1 F2 TW")}, {d, label, "L SR E CW LA C"}}
}

// A filterCase is a set of flags, and whom they let through.
type filterCase struct {
	flags []string
	lets  func(end) bool
}

// A crowd is the processes of the mixed traffic.
type crowd struct {
	netns                  string // its inode
	web, curl, psql, elder *agent
}

func byPort(who crowd) []filterCase {
	return []filterCase{
		{[]string{"--netns", who.netns, "-L", fmt.Sprint(webPort)}, func(e end) bool { return e.local.Port() == webPort }},
		{[]string{"--netns", who.netns, "-L", fmt.Sprint(boundPort)}, func(e end) bool { return e.local.Port() == boundPort }},
		{[]string{"--netns", who.netns, "-L", clientPortsFilter}, func(e end) bool { return e.isClient() && !e.bound }},
		{[]string{"--netns", who.netns, "-D", fmt.Sprintf("%d,%d", webPort, dbPort)}, func(e end) bool {
			return e.remote.Port() == webPort || e.remote.Port() == dbPort
		}},
	}
}

func byAddress(who crowd) []filterCase {
	return []filterCase{
		{[]string{"--netns", who.netns, "-4"}, end.is4},
		{[]string{"--netns", who.netns, "-6"}, func(e end) bool { return !e.is4() }},
		{[]string{"--netns", who.netns, "--remote", "127.0.0.4/31"}, func(e end) bool { return e.remote.Port() == dualPort }},
		{[]string{"--netns", who.netns, "--remote", "10.0.0.0/8,::1/128"}, func(e end) bool { return !e.is4() }},
		{[]string{"--netns", "1"}, func(end) bool { return false }},
	}
}

func byCommand(who crowd) []filterCase {
	return []filterCase{
		// Without a namespace: the name has its number in it.
		{[]string{"--comm", who.web.name}, func(e end) bool { return e.by(who.web.name) }},
		{[]string{"--netns", who.netns, "--comm", "psql,db"}, func(e end) bool { return e.by("psql", "db") }},
		{[]string{"--netns", who.netns, "--comm", "curl"}, func(e end) bool { return e.by("curl") }},
		{[]string{"--netns", who.netns, "--comm", "curl", "-f"}, curlAndChildren},
		{[]string{"--netns", who.netns, "--comm", "curl", "-4", "-D", fmt.Sprint(webPort)}, func(e end) bool {
			return e.by("curl") && e.remote.Port() == webPort
		}},
	}
}

func byPID(who crowd) []filterCase {
	return []filterCase{
		{[]string{"--pid", fmt.Sprint(who.curl.pid)}, func(e end) bool { return e.by("curl") }},
		{[]string{"--pid", fmt.Sprint(who.curl.pid), "-f"}, curlAndChildren},
		{[]string{"--pid", fmt.Sprintf("%d,%d", who.psql.pid, who.elder.pid)}, func(e end) bool { return e.by("psql", "elder") }},
	}
}

func curlAndChildren(e end) bool { return e.by("curl", "elder", "junior") }

func TestEachFilterGivesExactlyWhatMatches(t *testing.T) {
	for name, filters := range map[string]func(crowd) []filterCase{
		"by port": byPort, "by address": byAddress, "by command": byCommand, "by PID": byPID,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testFilters(t, filters)
		})
	}
}

func testFilters(t *testing.T, filters func(crowd) []filterCase) {
	var cases []filterCase
	var ends []end
	_, runs := playComplete(t, func(s *scene) {
		web, db, curl, psql := s.agent(fmt.Sprintf("web%d", s.ns.inode)), s.agent("db"), s.agent("curl"), s.agent("psql")
		elder := s.spawn(curl, "elder") // than the tracers
		s.ns.sysctl(t, "ipv4/ip_local_port_range", clientPortsKernel)
		cases = []filterCase{{[]string{"--netns", "/run/netns/" + s.ns.name}, func(end) bool { return true }}}
		cases = append(cases, filters(crowd{fmt.Sprint(s.ns.inode), web, curl, psql, elder})...)
		for _, c := range cases {
			s.add(startTracer(t, c.flags...))
		}
		junior := s.spawn(curl, "junior")

		web4, db6, dual4 := fmt.Sprintf("127.0.0.1:%d", webPort), fmt.Sprintf("[::1]:%d", dbPort), fmt.Sprintf("127.0.0.5:%d", dualPort)
		l4, l6, dual := web.listen(web4), db.listen(db6), web.listen(fmt.Sprintf("[::]:%d", dualPort))
		bound := curl.socket(web4)
		bound.bind(fmt.Sprintf("127.0.0.1:%d", boundPort))
		ends = slices.Concat(
			openAndClose(curl.socket(web4), l4, web4),
			openAndClose(bound, l4, web4),
			openAndClose(psql.socket(db6), l6, db6),
			openAndClose(curl.socket(db6), l6, db6),
			openAndClose(curl.socket(dual4), dual, dual4),
			openAndClose(elder.socket(web4), l4, web4),
			openAndClose(junior.socket(web4), l4, web4),
		)
		// The first tracer gets everything; once it has, so have the others.
		var ids []string
		for _, e := range ends {
			ids = append(ids, e.id())
		}
		s.endTimeWait(ids)
		time.Sleep(5 * lag)
	})
	for i, c := range cases {
		c.check(t, ends, runs[i].records)
	}
}

func (c filterCase) check(t *testing.T, ends []end, records []record) {
	t.Helper()
	known := map[string]bool{}
	ended := connectionOwners(records)
	for _, e := range ends {
		known[e.id()] = true
		want := ""
		if c.lets(e) {
			want = e.path
		}
		if got := path(transitionsOf(records, e.id())); got != want {
			t.Errorf("%q: %s, end of %s: path %q, want %q", c.flags, e.label, e.maker.name, got, want)
		}
		if got := ended[e.id()] != nil; got != (want != "") {
			t.Errorf("%q: %s, end of %s: connection record %v, want %v", c.flags, e.label, e.maker.name, got, want != "")
		}
	}
	for i := range records {
		r := &records[i]
		// Whether a listener matches a filter for connections is not the matter here.
		if r.Cookie != nil && !known[*r.Cookie] && r.NewState != "LISTEN" {
			t.Errorf("%q: a record of no socket of the traffic: %s", c.flags, r.summary())
		}
	}
}
