package livetest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var oracleSeed = flag.Uint64("oracle-seed", uint64(time.Now().UnixNano()), "the random walk to take, as a failed run has logged it")

// Sockets driven at random through whatever their processes may do end up, for
// tcptrace, in the states that the kernel lists.
func TestAfterARandomWalkTheStatesAreThoseThatSsLists(t *testing.T) {
	t.Parallel()
	t.Logf("-oracle-seed=%d", *oracleSeed)
	var listed map[string]string
	_, runs := playComplete(t, func(s *scene) {
		w := newWalk(s, rand.New(rand.NewPCG(*oracleSeed, 0)))
		s.trace()
		for range 2000 {
			w.step()
		}
		listed = s.atRest()
	})
	got := lastStates(runs[0].records)
	for id, want := range listed {
		if got[id] != want {
			t.Errorf("socket %s: last newstate %q, want %q as ss lists it", id, got[id], want)
		}
	}
	counts := map[string]int{}
	for id, state := range got {
		counts[state]++
		if listed[id] == "" && state != "CLOSE" {
			t.Errorf("socket %s: last newstate %q, want CLOSE: ss does not list it", id, state)
		}
	}
	t.Logf("%d sockets came to rest: %v", len(got), counts)
}

// lastStates maps each cookie to the last state that the stream told.
func lastStates(records []record) map[string]string {
	out := map[string]string{}
	for _, r := range records {
		if r.isTransition() && r.Cookie != nil {
			out[*r.Cookie] = r.NewState
		}
	}
	return out
}

// atRest is what ss lists when nothing is under way any more and it agrees with
// the stream, or at last when it does not come to that.
func (s *scene) atRest() map[string]string {
	s.t.Helper()
	var listed map[string]string
	// A FIN that comes for an orphan makes itself felt when the orphan is looked at.
	s.short = !s.tr.waitLong(8*time.Second, func(records []record) bool {
		listed = map[string]string{}
		for cookie, l := range s.list() {
			listed[l.name(cookie, records)] = l.state
		}
		got := lastStates(records)
		for id, state := range got {
			// These wait for the peer's kernel, which may take its time to
			// acknowledge.
			if slices.Contains([]string{"FIN_WAIT1", "LAST_ACK", "CLOSING"}, state) {
				return false
			}
			if (state == "CLOSE") != (listed[id] == "") || state != "CLOSE" && listed[id] != state {
				return false
			}
		}
		return len(got) > 0
	}) || s.short
	return listed
}

// ssStates are the names of ss for the kernel's.
var ssStates = map[string]string{
	"LISTEN": "LISTEN", "ESTAB": "ESTABLISHED", "SYN-SENT": "SYN_SENT", "SYN-RECV": "SYN_RECV", "FIN-WAIT-1": "FIN_WAIT1",
	"FIN-WAIT-2": "FIN_WAIT2", "CLOSE-WAIT": "CLOSE_WAIT", "LAST-ACK": "LAST_ACK", "CLOSING": "CLOSING",
	"TIME-WAIT": "TIME_WAIT",
}

// ss maps the cookies of the namespace's sockets to their states. What only stands
// in for a socket, in TIME_WAIT or as an orphan in FIN_WAIT2, has the socket's.
func (s *scene) ss() map[string]string {
	s.t.Helper()
	states := map[string]string{}
	for cookie, l := range s.list() {
		states[cookie] = l.state
	}
	return states
}

// ssLine is a socket as ss shows it.
type ssLine struct {
	state         string
	local, remote string
}

// list is the namespace's sockets by their cookies.
func (s *scene) list() map[string]ssLine {
	s.t.Helper()
	out := map[string]ssLine{}
	for line := range strings.Lines(s.ns.ss(s.t, "-tanOeH")) {
		_, cookie, ok := strings.Cut(line, " sk:")
		if !ok {
			continue
		}
		f := strings.Fields(line)
		if f[0] == "UNCONN" {
			continue // the kernel has taken it off the list for ss, and it has ended before ss was told its state
		}
		name, known := ssStates[f[0]]
		if !known {
			s.t.Errorf("ss lists a socket as %q, which this test does not know", f[0])
		}
		out[strings.Fields(cookie)[0]] = ssLine{state: name, local: unmapped(f[3]), remote: unmapped(f[4])}
	}
	return out
}

// unmapped is an end that ss prints as tcptrace shows it: IPv4-mapped is IPv4.
func unmapped(end string) string {
	if ap, err := netip.ParseAddrPort(end); err == nil {
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
	}
	return end // of a listener
}

// A walk is a number of processes that open, use and close connections among
// them at random.
type walk struct {
	rand      *rand.Rand
	agents    []*agent
	listeners []*sock
	open      []*walker
}

// A walker is one end of a connection and what was done to it.
type walker struct {
	*sock
	shut bool
}

func newWalk(s *scene, r *rand.Rand) *walk {
	w := &walk{rand: r}
	for i := range 3 {
		w.agents = append(w.agents, s.agent(fmt.Sprintf("walker%d", i)))
	}
	return w
}

// step does one random thing. Calls that fail are part of the walk: a peer may
// have reset the connection.
func (w *walk) step() {
	if len(w.listeners) < len(w.agents) {
		w.listeners = append(w.listeners, w.agents[len(w.listeners)].listen(anyPort4))
		return
	}
	dice := w.rand.IntN(100)
	if len(w.open) < 20 || dice < 20 && len(w.open) < 300 {
		w.connect()
		return
	}
	i := w.rand.IntN(len(w.open))
	s := w.open[i]
	switch {
	case dice < 45 && !s.shut:
		s.a.try(request{Op: "shutdown", FD: s.fd, N: 1})
		s.shut = true
	case dice < 65 && !s.shut:
		s.a.try(request{Op: "write", FD: s.fd, Data: []byte("step")})
	case dice < 68:
		s.linger0()
		w.close(i)
	default:
		w.close(i)
	}
}

// connect opens a connection. Some are left in the accept queue.
func (w *walk) connect() {
	l := w.listeners[w.rand.IntN(len(w.listeners))]
	c := w.agents[w.rand.IntN(len(w.agents))].dial(l)
	w.open = append(w.open, &walker{sock: c})
	if w.rand.IntN(10) > 0 {
		w.open = append(w.open, &walker{sock: l.accept()})
	}
}

func (w *walk) close(i int) {
	w.open[i].close()
	w.open[i] = w.open[len(w.open)-1]
	w.open = w.open[:len(w.open)-1]
}
