package livetest

import (
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A sock is a TCP socket of an agent, with all that the agent knows of it.
type sock struct {
	a      *agent
	maker  *agent // who made it, where another agent holds it by now
	fd     int
	cookie uint64 // 0 for a connection that was never accepted

	// The ends as tcptrace must show them; not valid where there is none.
	local, remote netip.AddrPort
	bound         bool // bound to its port before it connected

	listener *sock // that it came from, nil if it did not
	isListen bool
}

// id is the socket's cookie as tcptrace prints it.
func (s *sock) id() string { return strconv.FormatUint(s.cookie, 16) }

// overLoopback says whether both ends are the kernel's.
func (s *sock) overLoopback() bool { return s.remote.Addr().IsLoopback() }

// in is the same socket, held by another agent.
func (s *sock) in(a *agent, fd int) *sock {
	other := *s
	other.a, other.fd = a, fd
	return &other
}

const anyPort4 = "127.0.0.1:0"

// listen makes a listener; port 0 lets the kernel choose.
func (a *agent) listen(addr string) *sock {
	a.t.Helper()
	s := a.socket(addr)
	s.bind(addr)
	a.must(request{Op: "listen", FD: s.fd, N: 512})
	s.isListen = true
	return s
}

// socket makes a socket of the family of addr.
func (a *agent) socket(addr string) *sock {
	a.t.Helper()
	family := unix.AF_INET6
	if netip.MustParseAddrPort(addr).Addr().Is4() {
		family = unix.AF_INET
	}
	r := a.must(request{Op: "socket", N: family})
	return &sock{a: a, maker: a, fd: r.FD, cookie: r.Cookie}
}

func (s *sock) bind(addr string) {
	s.a.t.Helper()
	s.local = s.a.must(request{Op: "bind", FD: s.fd, Addr: netip.MustParseAddrPort(addr)}).Local
	s.bound = true
}

// dial connects a new socket to a listener.
func (a *agent) dial(to *sock) *sock {
	a.t.Helper()
	s := a.socket(to.local.String())
	s.connect(to.local)
	return s
}

// connect waits until the connection is established.
func (s *sock) connect(to netip.AddrPort) reply {
	s.a.t.Helper()
	r := s.a.must(request{Op: "connect", FD: s.fd, Addr: to})
	s.local, s.remote = r.Local, to
	return r
}

// connectFails is a connect that ends with an error.
func (s *sock) connectFails(to netip.AddrPort, want syscall.Errno) {
	s.a.t.Helper()
	s.remote = to
	if got := s.a.try(request{Op: "connect", FD: s.fd, Addr: to}).Errno; got != want {
		s.a.t.Fatalf("connect to %v: error %v, want %v", to, got, want)
	}
}

// connectLater sends the SYN and does not wait.
func (s *sock) connectLater(to netip.AddrPort) {
	s.a.t.Helper()
	s.local = s.a.must(request{Op: "connect nonblocking", FD: s.fd, Addr: to}).Local
	s.remote = to
}

// connected waits for the end of connectLater.
func (s *sock) connected() {
	s.a.t.Helper()
	s.a.must(request{Op: "poll", FD: s.fd, N: unix.POLLOUT})
}

// accept takes the next connection of a listener, which may be held by another
// agent too.
func (s *sock) accept() *sock {
	s.a.t.Helper()
	r := s.a.must(request{Op: "accept", FD: s.fd})
	return &sock{a: s.a, maker: s.a, fd: r.FD, cookie: r.Cookie, local: r.Local, remote: r.Remote, listener: s}
}

// pending is the server's end of a connection that nobody accepts.
func (s *sock) pending(client *sock) *sock {
	return &sock{a: s.a, maker: s.a, fd: -1, local: client.remote, remote: client.local, listener: s}
}

// pair opens a connection.
func pair(client *agent, l *sock) (c, s *sock) {
	client.t.Helper()
	c = client.dial(l)
	return c, l.accept()
}

// connections are those of a bulk call that ran at both ends.
type connections struct{ client, server []ends }

// bulkConnections opens and closes n connections, one after the other, as fast as the
// agents can. The first to close does so at once.
func bulkConnections(client *agent, l *sock, n int, clientFirst bool) connections {
	client.t.Helper()
	dial := request{Op: "dial", N: n, Addr: l.local, Order: "last"}
	serve := request{Op: "serve", N: n, FD: l.fd, Order: "first"}
	if clientFirst {
		dial.Order, serve.Order = serve.Order, dial.Order
	}
	l.a.begin(serve)
	out := connections{client: client.must(dial).Ends}
	served := l.a.finish(serve.Op)
	if served.Errno != 0 {
		client.t.Fatalf("agent %s: serve: %v", l.a.name, served.Errno)
	}
	out.server = served.Ends
	return out
}

func (s *sock) write(data string) {
	s.a.t.Helper()
	s.a.must(request{Op: "write", FD: s.fd, Data: []byte(data)})
}

// read takes exactly want; "" is the end of what the peer sends.
func (s *sock) read(want string) reply {
	s.a.t.Helper()
	r := s.a.must(request{Op: "read", FD: s.fd, N: max(len(want), 1)})
	if string(r.Data) != want {
		s.a.t.Fatalf("read %q, want %q", r.Data, want)
	}
	return r
}

// readFails waits until the socket has the given error, and takes it.
func (s *sock) readFails(want syscall.Errno) {
	s.a.t.Helper()
	if got := s.a.try(request{Op: "read", FD: s.fd, N: 1}).Errno; got != want {
		s.a.t.Fatalf("read: error %v, want %v", got, want)
	}
}

func (s *sock) shutdownWrite() {
	s.a.t.Helper()
	s.a.must(request{Op: "shutdown", FD: s.fd, N: unix.SHUT_WR})
}

func (s *sock) close() reply {
	s.a.t.Helper()
	return s.a.must(request{Op: "close", FD: s.fd})
}

func (s *sock) linger0() {
	s.a.t.Helper()
	s.a.must(request{Op: "linger", FD: s.fd})
}

// disconnect dissolves the connection and leaves the socket for another one.
func (s *sock) disconnect() {
	s.a.t.Helper()
	s.a.must(request{Op: "connect unspec", FD: s.fd})
}

func (s *sock) setOption(level, option, value int) {
	s.a.t.Helper()
	s.a.must(request{Op: "setsockopt", FD: s.fd, FDs: []int{level, option}, N: value})
}

// id is the cookie as tcptrace prints it.
func (e ends) id() string { return strconv.FormatUint(e.Cookie, 16) }

func portOf(a netip.AddrPort) string { return strconv.Itoa(int(a.Port())) }
