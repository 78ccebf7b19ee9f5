package livetest

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dialPeer connects an agent to the packet-crafting peer.
func (a *agent) dialPeer(p *tunPeer) *sock {
	a.t.Helper()
	c := a.socket(p.local.String())
	c.connectLater(p.local)
	p.accept()
	c.connected()
	return c
}

// Both ends of these connections are not kernels: what one would never do on
// demand, a peer does that crafts its packets.
func TestWhatAPeerCanDo(t *testing.T) {
	runScenarios(t, []scenario{
		{name: "simultaneous-close", play: func(s *scene) []expect {
			cli, p := s.agent("cli"), s.peer()
			s.trace()
			c := cli.dialPeer(p)
			c.close()
			p.peek(fin | ack) // under way, while the peer's own FIN is
			p.send(fin | ack)
			p.expect(ack) // this one is past the kernel's FIN
			p.send(ack)
			return []expect{{who: "client", sock: c, path: "C SS E F1 CG TW", conn: []string{"client both fin close"}}}
		}},
		{name: "closing-dup", play: func(s *scene) []expect {
			cli, p := s.agent("cli"), s.peer()
			s.trace()
			c := cli.dialPeer(p)
			c.shutdownWrite()
			p.peek(fin | ack)
			p.send(fin | ack)
			p.expect(ack)
			c.close()
			p.send(ack)
			return []expect{{who: "client", sock: c, path: "C SS E F1 CG CG TW", conn: []string{"client both fin close"}}}
		}},
		{name: "close-in-fin-wait1", play: func(s *scene) []expect {
			cli, p := s.agent("cli"), s.peer()
			s.trace()
			c := cli.dialPeer(p)
			c.shutdownWrite()
			c.close()
			p.expect(fin | ack)
			p.send(ack)
			return []expect{{who: "client", sock: c, path: "C SS E F1 F1 F2 X", conn: []string{"client local aborted close"}}}
		}},
		{name: "lastack-dup", play: func(s *scene) []expect {
			cli, p := s.agent("cli"), s.peer()
			s.trace()
			c := cli.dialPeer(p)
			p.send(fin | ack)
			c.read("")
			c.shutdownWrite()
			c.close()
			p.expect(fin | ack)
			p.send(ack)
			return []expect{{who: "client", sock: c, path: "C SS E CW LA LA C", conn: []string{"client remote fin close"}}}
		}},
		{name: "lastack-ack-with-fd-open", play: func(s *scene) []expect {
			cli, p := s.agent("cli"), s.peer()
			s.trace()
			c := cli.dialPeer(p)
			p.send(fin | ack)
			c.read("")
			c.shutdownWrite()
			p.expect(fin | ack)
			p.send(ack)
			return []expect{{who: "client", sock: c, path: "C SS E CW LA C", conn: []string{"client remote fin shutdown"}}}
		}},
		{name: "server-accepts-peer", play: func(s *scene) []expect {
			srv, p := s.agent("srv"), s.peer()
			s.trace()
			l := srv.listen("10.99.0.1:0")
			p.connect(l.local)
			d := l.accept()
			p.send(fin | ack)
			d.read("")
			d.close()
			p.expect(fin | ack)
			p.send(ack)
			return []expect{{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}}}
		}},
		{name: "simultaneous-open", play: func(s *scene) []expect {
			cli, p := s.agent("cli"), s.peer()
			s.trace()
			c := p.openAtOnce(cli)
			p.send(ack)
			c.connected()
			c.close()
			p.expect(fin | ack)
			p.send(fin | ack)
			return []expect{{who: "client", sock: c, path: "C SS SR E F1 F2 TW", conn: []string{"client local fin close"}}}
		}},
		{name: "simultaneous-open-reset", play: func(s *scene) []expect {
			cli, p := s.agent("cli"), s.peer()
			s.trace()
			c := p.openAtOnce(cli)
			p.send(rst | ack)
			return []expect{{who: "client", sock: c, path: "C SS SR C", conn: []string{"client null reset_received null"}}}
		}},
		{name: "close-in-syn-sent", play: func(s *scene) []expect {
			cli, p := s.agent("cli"), s.peer()
			s.trace()
			c := cli.socket(p.local.String())
			c.connectLater(p.local)
			p.expect(syn)
			c.close()
			return []expect{{who: "client", sock: c, path: "C SS C", conn: []string{"client null aborted close"}}}
		}},
		{name: "syn-sent-reset", play: func(s *scene) []expect {
			cli, p := s.agent("cli"), s.peer()
			s.trace()
			c := cli.socket(p.local.String())
			c.connectLater(p.local)
			p.expect(syn)
			p.send(rst | ack)
			return []expect{{who: "client", sock: c, path: "C SS C", conn: []string{"client null refused null"}}}
		}},
		{name: "connect-timeout", play: func(s *scene) []expect {
			cli, p := s.agent("cli"), s.peer()
			s.trace()
			c := cli.socket(p.local.String())
			c.setOption(unix.IPPROTO_TCP, unix.TCP_SYNCNT, 1)
			c.connectFails(p.local, unix.ETIMEDOUT)
			return []expect{{who: "client", sock: c, path: "C SS C", conn: []string{"client null timeout null"}}}
		}},
		{name: "user-timeout", play: func(s *scene) []expect {
			cli, p := s.agent("cli"), s.peer()
			s.trace()
			c := cli.dialPeer(p)
			c.setOption(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 300)
			c.write("lost")
			c.readFails(unix.ETIMEDOUT)
			return []expect{{who: "client", sock: c, path: "C SS E C", conn: []string{"client null timeout null"}, sent: 4}}
		}},
		{name: "reset-in-established", play: resetIn(func(c *sock, p *tunPeer) {}, "C SS E C", "client null reset_received null")},
		// Data that comes for an orphan ends it with the same error as a reset
		// from the peer: the socket does not tell who reset.
		{name: "reset-in-fin-wait1", play: resetIn(func(c *sock, p *tunPeer) {
			c.close()
			p.peek(fin | ack)
		}, "C SS E F1 C", "client local null close")},
		{name: "reset-in-fin-wait2", play: resetIn(func(c *sock, p *tunPeer) {
			c.shutdownWrite()
			p.expect(fin | ack)
			p.send(ack)
		}, "C SS E F1 F2 C", "client local reset_received shutdown")},
		{name: "reset-in-closing", play: resetIn(func(c *sock, p *tunPeer) {
			c.close()
			p.peek(fin | ack)
			p.send(fin | ack)
			p.peek(ack)
		}, "C SS E F1 CG C", "client both reset_received close")},
		{name: "reset-in-close-wait", play: resetIn(func(c *sock, p *tunPeer) {
			p.send(fin | ack)
			c.read("")
		}, "C SS E CW C", "client remote reset_received null")},
		{name: "reset-in-last-ack", play: resetIn(func(c *sock, p *tunPeer) {
			p.send(fin | ack)
			c.read("")
			c.close()
			p.peek(fin | ack)
		}, "C SS E CW LA C", "client remote reset_received close")},
	})
}

// openAtOnce has both ends send a SYN, and ends when the kernel has answered
// the peer's.
func (p *tunPeer) openAtOnce(cli *agent) *sock {
	p.t.Helper()
	c := cli.socket(p.local.String())
	c.connectLater(p.local)
	p.expect(syn)
	p.send(syn)
	p.expect(syn | ack)
	return c
}

// resetIn brings a connection into a state, in which the peer resets it.
func resetIn(before func(*sock, *tunPeer), path, verdict string) func(*scene) []expect {
	return func(s *scene) []expect {
		cli, p := s.agent("cli"), s.peer()
		s.trace()
		c := cli.dialPeer(p)
		before(c, p)
		time.Sleep(lag)
		p.send(rst | ack)
		return []expect{{who: "client", sock: c, path: path, conn: []string{verdict}}}
	}
}
