package livetest

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// lag is how long the second end waits before it closes, long enough for the
// first one's FIN to be dealt with.
const lag = 20 * time.Millisecond

func TestHowConnectionsAreClosed(t *testing.T) {
	runScenarios(t, []scenario{
		{name: "active-passive", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			c.close()
			time.Sleep(lag)
			d.read("")
			d.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E F1 F2 TW", conn: []string{"client local fin close"}},
				{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}},
			}
		}},
		{name: "server-active", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			c.write("hello")
			d.read("hello")
			d.write("good day")
			c.read("good day")
			d.close()
			time.Sleep(lag)
			c.read("")
			c.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E CW LA C", conn: []string{"client remote fin close"}, sent: 5, received: 8},
				{who: "server", sock: d, path: "L SR E F1 F2 TW", conn: []string{"server local fin close"}, sent: 8, received: 5},
			}
		}},
		{name: "half-close", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			c.write("question")
			c.shutdownWrite()
			d.read("question")
			d.read("")
			d.write("a long answer")
			c.read("a long answer")
			d.close()
			c.read("")
			time.Sleep(lag)
			c.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E F1 F2 TW", conn: []string{"client local fin shutdown"}, sent: 8, received: 13},
				{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}, sent: 13, received: 8},
			}
		}},
		{name: "shutwr-then-close-first", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			c.shutdownWrite()
			d.read("")
			// The answer makes the acknowledgement of the FIN certain: a close
			// before it would find FIN_WAIT1.
			d.write("x")
			c.read("x")
			c.close()
			time.Sleep(lag)
			d.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E F1 F2 F2 TW", conn: []string{"client local fin close"}, received: 1},
				{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}, sent: 1},
			}
		}},
		{name: "unread-close-rst", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			c.write("hello")
			d.close()
			c.readFails(unix.ECONNRESET)
			c.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E C", conn: []string{"client null reset_received null"}, sent: 5},
				{who: "server", sock: d, path: "L SR E C", conn: []string{"server null reset_sent close"}, received: 5},
			}
		}},
		{name: "linger0", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			c.linger0()
			c.close()
			d.readFails(unix.ECONNRESET)
			d.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E C", conn: []string{"client null reset_sent close"}},
				{who: "server", sock: d, path: "L SR E C", conn: []string{"server null reset_received null"}},
			}
		}},
		{name: "closewait-unread-close", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			c.write("hello")
			c.close()
			time.Sleep(lag)
			d.close()
			return []expect{
				// Which one it is depends on when the server's kernel acknowledges the
				// FIN; see reset-in-fin-wait1.
				{who: "client", sock: c, path: "C SS E F1 C|C SS E F1 F2 X", conn: []string{"client local reset_received|null close"}, sent: 5},
				{who: "server", sock: d, path: "L SR E CW C", conn: []string{"server remote reset_sent close"}, received: 5},
			}
		}},
		{name: "closewait-rst-by-write", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			c.close()
			time.Sleep(lag)
			d.write("x")
			time.Sleep(lag)
			d.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E F1 F2 X", conn: []string{"client local reset_sent|null close"}},
				{who: "server", sock: d, path: "L SR E CW C", conn: []string{"server remote reset_received null"}, sent: 1},
			}
		}},
		{name: "exit", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			cli.exit()
			d.read("")
			time.Sleep(lag)
			d.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E F1 F2 TW", conn: []string{"client local fin exit"}},
				{who: "server", sock: d, path: "L SR E CW LA C", conn: []string{"server remote fin close"}},
			}
		}},
		{name: "exit-kill-unread", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			c, d := pair(cli, srv.listen(anyPort4))
			c.write("hello")
			srv.kill()
			c.readFails(unix.ECONNRESET)
			return []expect{
				{who: "client", sock: c, path: "C SS E C", conn: []string{"client null reset_received null"}, sent: 5},
				{who: "server", sock: d, path: "L SR E C", conn: []string{"server null reset_sent exit"}, received: 5},
			}
		}},
		{name: "listener-close-pending", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			l := srv.listen(anyPort4)
			c := cli.dial(l)
			d := l.pending(c)
			// The child is born by the handshake's last segment, which the client
			// does not wait for.
			s.await(func(records []record) bool {
				return len(transitionsOf(records, (&expect{sock: d}).id(records))) == 2
			})
			l.close()
			c.readFails(unix.ECONNRESET)
			return []expect{
				{who: "client", sock: c, path: "C SS E C", conn: []string{"client null reset_received null"}},
				{who: "child", sock: d, path: "L SR E C", conn: []string{"server null reset_sent close|null"}},
			}
		}},
		{name: "accept-queue", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			l := srv.listen(anyPort4)
			c := cli.dial(l)
			c.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E F1 F2 X", conn: []string{"client local aborted close"}},
				{who: "child", sock: l.pending(c), path: "L SR E CW"},
			}
		}},
		{name: "accepted-after-the-FIN", play: func(s *scene) []expect {
			cli, srv := s.agents2()
			s.trace()
			l := srv.listen(anyPort4)
			c := cli.dial(l)
			c.close()
			time.Sleep(lag)
			d := l.accept()
			d.read("")
			d.close()
			return []expect{
				{who: "client", sock: c, path: "C SS E F1 F2 TW", conn: []string{"client local fin close"}},
				{who: "server", sock: d, path: "L SR E CW LA C", acceptedAt: 3, conn: []string{"server remote fin close"}},
			}
		}},
	})
}

func TestTimeInCloseWaitIsThatOfTheServersClock(t *testing.T) {
	const sits = 500 * time.Millisecond
	for _, clientCloses := range []bool{true, false} {
		name := "the client closes first"
		if !clientCloses {
			name = "the server closes first"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var firstClose, eof, lastClose reply
			var passive *sock
			runScenario(t, scenario{
				play: func(s *scene) []expect {
					cli, srv := s.agents2()
					s.trace()
					c, d := pair(cli, srv.listen(anyPort4))
					active, client, server := c, "C SS E F1 F2 TW", "L SR E CW LA C"
					passive = d
					verdicts := []string{"client local fin close", "server remote fin close"}
					if !clientCloses {
						active, passive, client, server = d, c, "C SS E CW LA C", "L SR E F1 F2 TW"
						verdicts = []string{"client remote fin close", "server local fin close"}
					}
					firstClose = active.close()
					eof = passive.read("")
					time.Sleep(sits)
					lastClose = passive.close()
					return []expect{
						{who: "client", sock: c, path: client, conn: verdicts[:1]},
						{who: "server", sock: d, path: server, conn: verdicts[1:]},
					}
				},
				also: func(t *testing.T, run traced) {
					// The FIN arrives between the close that sends it and the read
					// that returns for it.
					least := time.Duration(lastClose.Before.Boot - eof.After.Boot)
					most := time.Duration(lastClose.After.Boot - firstClose.Before.Boot)
					for _, r := range transitionsOf(run.records, passive.id()) {
						if r.OldState != "CLOSE_WAIT" {
							continue
						}
						if r.DwellMs == nil || ms(*r.DwellMs) < least-time.Millisecond || ms(*r.DwellMs) > most+time.Millisecond {
							t.Errorf("dwell_ms in CLOSE_WAIT %s, want between %v and %v", orNull(r.DwellMs), least, most)
						}
					}
				},
			})
		})
	}
}
