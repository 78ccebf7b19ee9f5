package aggregate

import (
	"github.com/tcptrace/tcptrace/pkg/events"
)

// A peer that does not close: connections that this side has closed wait for its FIN.
// Some have a process here that still holds them, shut down for sending: these wait
// for as long as it takes. The others are minisockets; the kernel ends them.

// A service that processes here connect to is one peer; of connections that it has
// opened, its address. There are findings about so many peers, and one about all others
// in the network namespace.
const maxStuckPeers = 64

// stuckWith returns the number of the finding about the peer of a connection.
func (t *Tracker) stuckWith(e *ends, role Role) uint32 {
	s := subject{kind: FinWait2Stuck, netns: e.Netns, rport: e.Rport, raddr: e.Raddr}
	if role == Server {
		s.rport = 0
	}
	if t.opened[s] == noFinding && t.openOf[FinWait2Stuck] >= maxStuckPeers {
		s.rport, s.raddr = 0, events.Addr{}
	}
	return t.open(s)
}

// tickOrphans looks at the minisockets whose time to wait for the FIN is up.
func (t *Tracker) tickOrphans(ktime uint64) {
	after := uint64(t.thresholds.FinWait2After)
	t.orphans = t.expireMinis(t.orphans, ktime, after, func(w waiter, _ uint32, m *minisocket) {
		// Whoever has come to a server and gone again need not answer: browsers do
		// not, and the kernel's timer is there for it.
		if m.state != events.FinWait2 || m.ended != 0 || m.begun > w.ktime || m.finding != noFinding ||
			m.role == Server || m.verdict != yes || m.tie == silent {
			return
		}
		m.finding = t.stuckWith(&m.ends, m.role)
		f := t.findings[m.finding]
		f.members++
		f.fresh, f.severity = true, Warning
	})
}

// unstick takes a minisocket out of its finding.
func (t *Tracker) unstick(m *minisocket) {
	if m.finding != noFinding {
		t.findings[m.finding].members--
		m.finding = noFinding
	}
}

// findStuck finds, after a scan of every socket, those that their process holds in
// FIN_WAIT2 while nothing comes from the peer. It may be at work on an answer.
func (t *Tracker) findStuck() {
	for _, i := range t.stuck {
		if c := t.table.at(i); c.state == events.FinWait2 {
			t.join(i, noFinding)
		}
	}
	t.stuck = t.stuck[:0]
	for _, i := range t.halfClosed {
		c := t.table.at(i)
		if c.scan != t.scan || c.verdict != yes || c.state != events.FinWait2 {
			continue
		}
		n := t.stuckWith(&c.ends, c.role)
		f := t.findings[n]
		if f.members == 0 && !f.reported {
			f.severity = Info
		}
		t.join(i, n)
		f.fresh = true
		t.stuck = append(t.stuck, i)
	}
	t.halfClosed = t.halfClosed[:0]
}

// PeerEvidence is what a finding about a peer that does not close rests on.
type PeerEvidence struct {
	Raddr      events.Addr
	Rport      uint16 // 0: several
	Held       int    // connections that a process here still holds
	Orphans    int    // those that the kernel will end
	FinTimeout uint32 // after so many seconds, unless TCP_LINGER2 says otherwise; 0: not known
	Closers    []Maker
	Peers      []Maker // processes on this host that have the other end
	Pairs      []Pair  // of the oldest
}

// Pair is a connection, and the socket that is its other end.
type Pair struct {
	Cookie, Peer uint64
	Owner        Owner // of the other end
}

// peerEvidence draws the sum of finding number n. It looks at all that there is, as
// makers does.
func (t *Tracker) peerEvidence(n uint32) *PeerEvidence {
	f := t.findings[n]
	e := &PeerEvidence{Raddr: f.raddr, Rport: f.rport, FinTimeout: t.net(f.netns).FinTimeout}
	closers, mine := map[uint32]int{}, map[pairEnds]*match{}
	var order []*match
	f.count, f.first = 0, 0
	add := func(ends *ends, proc uint32, since uint64) {
		f.count++
		closers[proc]++
		m := &match{cookie: ends.Cookie}
		mine[pairEnds{ends.Raddr, ends.Laddr, ends.Rport, ends.Lport}] = m
		order = append(order, m)
		if since != 0 && (f.first == 0 || since < f.first) {
			f.first = since
		}
	}
	for _, m := range t.minis.all() {
		if m.finding == n {
			e.Orphans++
			add(&m.ends, t.procs.of(&m.past), m.since)
		}
	}
	for _, c := range t.table.all() {
		if c.finding == n {
			e.Held++
			ktime, _ := c.entered()
			add(&c.ends, t.procs.of(&c.past), ktime)
		}
	}
	for _, c := range t.table.all() {
		// Our FIN is acknowledged, so the other end is in CLOSE_WAIT. Every network
		// namespace has its own loopback.
		m := mine[pairEnds{c.Laddr, c.Raddr, c.Lport, c.Rport}]
		if m == nil || c.state != events.CloseWait || c.Netns != f.netns && (c.Laddr.Netip().IsLoopback() || c.Raddr.Netip().IsLoopback()) {
			continue
		}
		// One in the same namespace it is; of several elsewhere, nothing tells which.
		switch near := c.Netns == f.netns; {
		case m.peer == nil || near && !m.near:
			m.peer, m.near, m.several = c, near, false
		case near == m.near:
			m.several = true
		}
	}
	peers := map[uint32]int{}
	for _, m := range order {
		if m.peer == nil || m.several {
			continue
		}
		peers[t.procs.of(&m.peer.past)]++
		if len(e.Pairs) < MaxFindingHolders {
			e.Pairs = append(e.Pairs, Pair{Cookie: m.cookie, Peer: m.peer.Cookie, Owner: t.procs.owner(&m.peer.past)})
		}
	}
	e.Closers, e.Peers = t.rank(closers, false), t.rank(peers, false)
	return e
}

// pairEnds are the ends of a connection, as one of them has them.
type pairEnds struct {
	laddr, raddr events.Addr
	lport, rport uint16
}

// match is a connection of ours, and what may be its other end.
type match struct {
	cookie        uint64
	peer          *conn
	near, several bool
}

// findHalfOpen finds, after a scan of every socket, the established ones of each process
// that have been silent for so long, and that nobody watches over.
func (t *Tracker) findHalfOpen() {
	for _, f := range t.findings {
		if f != nil && f.kind == HalfOpen {
			f.count, f.first, f.holders, f.evidence, f.members = 0, 0, f.holders[:0], Evidence{}, 0
			f.fresh = true
		}
	}
	for _, w := range t.silent {
		i := t.table.find(w.addr)
		if i == 0 || t.table.at(i).scan != t.scan || t.table.at(i).since >= t.scanFrom {
			continue // it has gone, and another has its address
		}
		c := t.table.at(i)
		proc := t.culprit(c)
		if c.verdict != yes || c.state != events.Established || proc == nobody {
			continue
		}
		f := t.findings[t.findingOf(HalfOpen, proc)]
		f.evidence.Ends.meet(&c.ends, f.count == 0)
		f.evidence.Exact = true
		f.members++
		f.count++
		f.fresh, f.severity = true, Info
		if f.first == 0 || w.ktime < f.first {
			f.first = w.ktime
		}
		f.holders = t.addHolders(f.holders, c)
	}
	t.silent = t.silent[:0]
}

// isHalfOpen reports whether c is one of those that the last scan of every socket, or the one
// under way, has found to be silent.
func (t *Tracker) isHalfOpen(c *conn) bool {
	return c.halfOpen != 0 && (c.halfOpen == t.everyScan || c.halfOpen == t.scan)
}

// sees takes over what a row says of a socket that nobody has done anything wrong with
// yet.
func (t *Tracker) sees(i uint32, ev *events.Event) {
	c := t.table.at(i)
	switch {
	case ev.Fd < 0 || ev.Kernel || ev.New != c.state:
	case ev.New == events.Established && !c.Raddr.Netip().IsLoopback() && !ev.Guarded && ev.Queued == 0 && ev.Quiet >= uint64(t.thresholds.HalfOpenAfter):
		c.halfOpen = t.scan
		t.silent = append(t.silent, waiter{ev.Skaddr, ev.Ktime - min(ev.Quiet, ev.Ktime)})
	case ev.New == events.FinWait2 && ev.Quiet >= uint64(t.thresholds.FinWait2After):
		t.halfClosed = append(t.halfClosed, i)
	case usedLately(ev):
		t.alive(i, c, 0, ev.Ktime)
	}
}
