package livetest

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A socket that waits in the accept queue belongs to whoever accepts it in the
// end, however long that takes.
func TestALongWaitInTheQueueChangesNoOwner(t *testing.T) {
	t.Parallel()
	ns := newNetns(t)
	cli, master := startAgent(t, ns, "cli"), startAgent(t, ns, "master")
	l := master.listen(anyPort4)
	worker := master.spawn("worker", l)
	ofWorker := startTracer(t, "--pid", fmt.Sprint(worker.pid))
	ofMaster := startTracer(t, "--pid", fmt.Sprint(master.pid))

	c := cli.dial(l)
	time.Sleep(1500 * time.Millisecond) // longer than a listener's process is kept waiting
	d := l.in(worker, 3).accept()
	c.close()
	d.read("")
	d.close()
	ofWorker.waitFor(func(records []record) bool { return len(connectionsOf(records, d.id())) > 0 })

	run := ofWorker.stop()
	if got := path(transitionsOf(run.records, d.id())); got != "L SR E CW LA C" {
		t.Errorf("--pid of the worker: got path %q, want the whole of it", got)
	}
	for _, r := range transitionsOf(run.records, d.id()) {
		if r.Pid == nil || *r.Pid != worker.pid && *r.Pid != master.pid {
			t.Errorf("--pid of the worker: %s: got another owner, want the worker's or its master's", r.summary())
		}
	}
	run = ofMaster.stop()
	// By its ends: before 5.12 it has no cookie until the worker accepts.
	if got := path(storyOf(run.records, d)); got != "L SR E" {
		t.Errorf("--pid of the master: got path %q, want it until the worker accepts", got)
	}
	if got := connectionsOf(run.records, d.id()); len(got) != 0 {
		t.Errorf("--pid of the master: got a connection of the worker's: %s", got[0].summary())
	}
}

// Listeners have no peer and may speak both families; still they are what tells
// whose a socket is that nobody has accepted.
func TestAFilterByPeerKnowsWhoseQueueItIs(t *testing.T) {
	t.Parallel()
	for _, flags := range [][]string{
		{"--remote", "127.0.0.0/8"},
		{"-4"},
		{"--remote", "127.0.0.0/8", "--pid", "SERVER"},
		{"-4", "--pid", "SERVER"},
	} {
		t.Run(fmt.Sprint(flags), func(t *testing.T) {
			ns := newNetns(t)
			cli, srv := startAgent(t, ns, "cli"), startAgent(t, ns, "srv")
			args := []string{"--netns", fmt.Sprint(ns.inode)}
			for _, f := range flags {
				if f == "SERVER" {
					f = fmt.Sprint(srv.pid)
				}
				args = append(args, f)
			}
			tr := startTracer(t, args...)
			l := srv.listen("[::]:0") // made after the start: nothing else tells of it
			c := cli.socket(anyPort4)
			c.connect(addrPort(&unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(l.local.Port())}))
			time.Sleep(lag)
			c.close()
			time.Sleep(lag)
			srv.exit() // and with it goes what it never accepted

			server := func(records []record) (found []record) {
				for i := range records {
					if r := &records[i]; r.Type == "connection" && orNull(r.Role) == "server" {
						found = append(found, *r)
					}
				}
				return found
			}
			tr.waitFor(func(records []record) bool { return len(server(records)) > 0 })
			got := server(tr.stop().records)
			if len(got) != 1 || got[0].Pid == nil || *got[0].Pid != srv.pid || orNull(got[0].OwnerSource) != "listener" {
				t.Fatalf("got %d connections of the server, want one with its pid %d by listener: %+v", len(got), srv.pid, got)
			}
		})
	}
}

// Raw sockets and one kind of netlink socket carry TCP's number 6 as protocol.
func TestOnlyTCPSocketsAreInTheInventory(t *testing.T) {
	t.Parallel()
	ns := newNetns(t)
	var fds []int
	ns.do(t, func() {
		raw := func(domain, protocol int) {
			fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
			if err != nil {
				t.Fatalf("raw socket of domain %d, protocol %d: %v", domain, protocol, err)
			}
			fds = append(fds, fd)
		}
		raw(unix.AF_INET, unix.IPPROTO_TCP)
		raw(unix.AF_NETLINK, unix.NETLINK_XFRM) // 6 as well
		for range 300 {
			// Behind each lies other memory: to read it as an MPTCP socket gives
			// anything, of any namespace.
			raw(unix.AF_INET, unix.IPPROTO_MPTCP)
		}
		if err := unix.Connect(fds[0], &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
	})
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	run := startTracer(t, "--netns", fmt.Sprint(ns.inode)).stop()
	for _, r := range run.records {
		if r.Type == "socket" {
			t.Errorf("got a socket record in a namespace without TCP sockets: %s", r.summary())
		}
	}
	all := startTracer(t, "--events", "stats").stop()
	if got := lastStats(all.records).Lost["decode"]; got != 0 {
		t.Errorf("%d records were not understood, want 0", got)
	}
}

// close() that waits (SO_LINGER) looks like shutdown() to the end; it must not be
// called one.
func TestALingeringCloseIsNotCalledAShutdown(t *testing.T) {
	t.Parallel()
	ns := newNetns(t)
	cli, srv := startAgent(t, ns, "cli"), startAgent(t, ns, "srv")
	l := srv.listen(anyPort4)
	tr := startTracer(t, "--netns", fmt.Sprint(ns.inode))
	c, d := pair(cli, l)
	srv.must(request{Op: "linger", FD: d.fd, N: 5})
	c.close()
	d.read("")
	d.close()
	tr.waitFor(func(records []record) bool { return len(connectionsOf(records, d.id())) > 0 })
	got := connectionsOf(tr.stop().records, d.id())
	if len(got) != 1 {
		t.Fatalf("got %d connections, want 1", len(got))
	}
	if call := orNull(got[0].CloseCall); call != "null" && call != "close" {
		t.Errorf("got close_call %s, want close or null", call)
	}
}

// The address does not tell whose queue a connection is in where several listen on it. What
// does is which of them are gone when one listens no more.
func TestListenersThatShareAPortAreToldApart(t *testing.T) {
	t.Parallel()
	var before, after *agent
	children := map[*agent][]*sock{}
	_, runs := playComplete(t, func(s *scene) {
		cli := s.agent("cli")
		before, after = s.agent("before"), s.agent("after")
		clear(children)
		listen := func(a *agent, at string) *sock {
			l := a.socket(at)
			l.setOption(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
			l.bind(at)
			a.must(request{Op: "listen", FD: l.fd, N: 512})
			return l
		}
		first := listen(before, anyPort4)
		s.trace()
		listen(after, first.local.String())

		var clients []*sock
		for range 16 {
			clients = append(clients, cli.dial(first))
		}
		s.await(func(records []record) bool {
			return !slices.ContainsFunc(clients, func(c *sock) bool {
				return len(storyOf(records, &sock{local: c.remote, remote: c.local})) < 2
			})
		})
		first.close() // what was in its queue is gone when this returns
		waiting := map[netip.AddrPort]bool{}
		for _, l := range s.list() {
			if l.local == first.local.String() && l.state == "ESTABLISHED" {
				waiting[netip.MustParseAddrPort(l.remote)] = true
			}
		}
		for _, c := range clients {
			of := before
			if waiting[c.local] {
				of = after
			}
			children[of] = append(children[of], &sock{local: c.remote, remote: c.local})
		}
	})
	for a, socks := range children {
		for _, d := range socks {
			story := storyOf(runs[0].records, d)
			if got := path(story); !strings.HasPrefix(got, "L SR E") {
				t.Errorf("path %q, want one that begins with L SR E", got)
			}
			wantOwner(t, story, "SYN_RECV", a, "listener", true)
		}
	}
	if len(children[before]) == 0 || len(children[after]) == 0 {
		t.Errorf("%d connections for one and %d for the other, want some for each", len(children[before]), len(children[after]))
	}
}
