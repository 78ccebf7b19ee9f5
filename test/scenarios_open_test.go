package livetest

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mapped4 is where an IPv4 socket reaches a listener on both families.
func mapped4(l *sock) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), l.local.Port())
}

func TestHowConnectionsAreOpened(t *testing.T) {
	runScenarios(t, []scenario{
		{name: "refused", play: func(s *scene) []expect {
			cli := s.agent("cli")
			s.trace()
			c := cli.socket(anyPort4)
			c.connectFails(netip.MustParseAddrPort("127.0.0.1:9"), unix.ECONNREFUSED)
			c.close()
			return []expect{{who: "client", sock: c, path: "C SS C", conn: []string{"client null refused null"}}}
		}, also: func(t *testing.T, run traced) {
			for _, r := range run.records {
				if r.NewState == "CLOSE" && r.Lport == nil {
					t.Error("lport null after the connect that chose it, want the port")
				}
			}
		}},
		{name: "refused-bound", play: func(s *scene) []expect {
			cli := s.agent("cli")
			s.trace()
			c := cli.socket(anyPort4)
			c.bind(anyPort4)
			c.connectFails(netip.MustParseAddrPort("127.0.0.1:9"), unix.ECONNREFUSED)
			c.close()
			return []expect{{who: "client", sock: c, path: "C SS C", conn: []string{"client null refused null"}}}
		}},
		{name: "connect-eaddrnotavail", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			l := srv.listen(anyPort4)
			s.ns.sysctl(s.t, "ipv4/ip_local_port_range", "40001 40001")
			s.trace()
			c, d := pair(cli, l)
			none := cli.socket(anyPort4)
			none.connectFails(l.local, unix.EADDRNOTAVAIL)
			none.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E"},
				{who: "server", sock: d, path: "L SR E"},
				{who: "client without a port", sock: none, path: "C SS C", conn: []string{"client null aborted null"}},
			}
		}, also: func(t *testing.T, run traced) {
			for _, r := range run.records {
				if r.Type == "connection" && r.Lport != nil {
					t.Errorf("lport %d of a connection that never got one, want null", *r.Lport)
				}
			}
		}},
		{name: "self-connect", play: func(s *scene) []expect {
			cli := s.agent("cli")
			s.trace()
			c := cli.socket(anyPort4)
			c.bind(anyPort4)
			c.connect(c.local)
			c.close()
			return []expect{{who: "the socket", sock: c, path: "C SS SR E F1 CG TW", conn: []string{"client both fin close"}}}
		}},
		{name: "bound-client", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			l := srv.listen(anyPort4)
			c := cli.socket(anyPort4)
			c.bind(anyPort4)
			c.connect(l.local)
			d := l.accept()
			d.close()
			c.read("")
			time.Sleep(lag)
			c.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E CW LA C", conn: []string{"client remote fin close"}},
				{who: "server", sock: d, path: "L SR E F1 F2 TW", conn: []string{"server local fin close"}},
			}
		}},
		{name: "disconnect-unspec", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			l := srv.listen(anyPort4)
			c, first := pair(cli, l)
			firstLocal := c.local
			c.disconnect()
			first.readFails(unix.ECONNRESET)
			first.close()
			c.connect(l.local)
			second := l.accept()
			c.close()
			time.Sleep(lag)
			second.read("")
			second.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E C SS E F1 F2 TW", firstLocal: firstLocal,
					conn: []string{"client null reset_sent null", "client local fin close"}},
				{who: "first server", sock: first, path: "L SR E C", conn: []string{"server null reset_received null"}},
				{who: "second server", sock: second, path: "L SR E CW LA C", conn: []string{"server remote fin close"}},
			}
		}},
		{name: "ipv6", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen("[::1]:0"))
			c.write("six")
			d.read("six")
			c.close()
			time.Sleep(lag)
			d.read("")
			d.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E F1 F2 TW", conn: []string{"client local fin close"}, sent: 3},
				{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}, received: 3},
			}
		}},
		{name: "ipv4-mapped", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			l := srv.listen("[::]:0")
			c := cli.socket(anyPort4)
			c.connect(mapped4(l))
			d := l.accept()
			// The other way round: an IPv6 socket that connects to an IPv4 address.
			mapped := cli.socket("[::]:0")
			mapped.connect(netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), l.local.Port()))
			mapped.remote = netip.AddrPortFrom(mapped.remote.Addr().Unmap(), mapped.remote.Port())
			e := l.accept()
			for _, close := range []*sock{c, mapped, d, e} {
				close.close()
				time.Sleep(lag)
			}
			var wants []expect
			for _, c := range []*sock{c, mapped} {
				wants = append(wants, expect{who: "client", sock: c, path: "C SS E F1 F2 TW", conn: []string{"client local fin close"}})
			}
			for _, d := range []*sock{d, e} {
				wants = append(wants, expect{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}})
			}
			return wants
		}},
		{name: "wildcard-listener", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			l := srv.listen("0.0.0.0:0")
			c := cli.socket(anyPort4)
			c.connect(netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), l.local.Port()))
			d := l.accept()
			l.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E"},
				{who: "server", sock: d, path: "L SR E"},
			}
		}, also: func(t *testing.T, run traced) {
			for _, r := range run.records {
				if r.isTransition() && r.OldState == "LISTEN" && r.NewState == "CLOSE" {
					return
				}
			}
			t.Error("no LISTEN -> CLOSE, want one")
		}},
	})
}
