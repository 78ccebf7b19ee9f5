package aggregate

import (
	"github.com/tcptrace/tcptrace/pkg/events"
)

// A peer that does not close: connections that this side has closed wait for its FIN.
// Some have a process here that still holds them, shut down for sending: these wait
// for as long as it takes. The others are minisockets; the kernel ends them.

// stuckKey names a peer: a service that processes here connect to; or, of connections
// that it has opened, its address.
type stuckKey struct {
	netns uint32
	rport uint16
	raddr events.Addr
}

func (e *Ends) peer(role Role) stuckKey {
	k := stuckKey{netns: e.Netns, rport: e.Rport, raddr: e.Raddr}
	if role == Server {
		k.rport = 0
	}
	return k
}

func (k *stuckKey) subject() subject {
	return subject{kind: FinWait2Stuck, netns: k.netns, raddr: k.raddr, rport: k.rport}
}

// tickOrphans looks at the minisockets whose time to wait for the FIN is up.
func (t *Tracker) tickOrphans(ktime uint64) {
	after := uint64(t.thresholds.FinWait2After)
	t.orphans = t.expireMinis(t.orphans, ktime, after, func(_ waiter, _ uint32, m *minisocket) {
		// Whoever has come to a server and gone again need not answer: browsers do
		// not, and the kernel's timer is there for it.
		if m.state != events.FinWait2 || m.ended != 0 || m.stuck || m.role == Server || m.verdict != yes {
			return
		}
		m.stuck = true
		k := m.peer(m.role)
		f := t.findings[t.open(k.subject())]
		f.members++
		f.fresh = true
	})
}

// unstick takes a minisocket out of its finding.
func (t *Tracker) unstick(m *minisocket) {
	if !m.stuck {
		return
	}
	m.stuck = false
	k := m.peer(m.role)
	if n := t.opened[k.subject()]; n != noFinding {
		t.findings[n].members--
	}
}

// findStuck finds, after a scan of every socket, those that their process holds in
// FIN_WAIT2 while nothing comes from the peer.
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
		k := c.peer(c.role)
		t.join(i, t.open(k.subject()))
		t.findings[c.finding].fresh = true
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

// peerEvidence draws the sum. It looks at all that there is, as makers does.
func (t *Tracker) peerEvidence(f *finding) *PeerEvidence {
	s := f.subject
	k := stuckKey{netns: s.netns, raddr: s.raddr, rport: s.rport}
	e := &PeerEvidence{Raddr: k.raddr, Rport: k.rport, FinTimeout: t.net(k.netns).FinTimeout}
	closers, mine := map[uint32]int{}, map[stuckEnds]uint64{}
	first := uint64(0)
	add := func(ends *Ends, proc uint32, since uint64) {
		closers[proc]++
		mine[ends.seenByPeer()] = ends.Cookie
		if since != 0 && (first == 0 || since < first) {
			first = since
		}
	}
	for _, m := range t.minis.all() {
		if m.stuck && m.peer(m.role) == k {
			e.Orphans++
			add(&m.Ends, m.proc, m.since)
		}
	}
	n := t.opened[s]
	for _, c := range t.table.all() {
		if c.finding == n {
			e.Held++
			ktime, _ := c.entered()
			add(&c.Ends, c.proc, ktime)
		}
	}
	peers := map[uint32]int{}
	for _, c := range t.table.all() {
		// Our FIN is acknowledged, so the other end is in CLOSE_WAIT. Every network
		// namespace has its own loopback.
		cookie, ok := mine[c.ends()]
		if !ok || c.state != events.CloseWait || c.Netns != k.netns && (c.Laddr.Netip().IsLoopback() || c.Raddr.Netip().IsLoopback()) {
			continue
		}
		peers[c.proc]++
		if len(e.Pairs) < maxFindingHolders {
			e.Pairs = append(e.Pairs, Pair{Cookie: cookie, Peer: c.Cookie, Owner: c.Owner})
		}
	}
	e.Closers, e.Peers = t.rank(closers, false), t.rank(peers, false)
	f.count, f.first = e.Held+e.Orphans, first
	return e
}

// stuckEnds are the ends of a connection, in whatever network namespace.
type stuckEnds struct {
	laddr, raddr events.Addr
	lport, rport uint16
}

func (e *Ends) ends() stuckEnds { return stuckEnds{e.Laddr, e.Raddr, e.Lport, e.Rport} }

func (e *Ends) seenByPeer() stuckEnds { return stuckEnds{e.Raddr, e.Laddr, e.Rport, e.Lport} }

// findHalfOpen finds, after a scan of every socket, the established ones of each process
// that have been silent for so long, and that nobody watches over.
func (t *Tracker) findHalfOpen() {
	for _, f := range t.findings {
		if f != nil && f.kind == HalfOpen {
			f.count, f.first, f.holders, f.evidence, f.members = 0, 0, f.holders[:0], Evidence{}, 0
			f.fresh = true
		}
	}
	for _, i := range t.silent {
		c := t.table.at(i)
		if c.scan != t.scan || c.silent == 0 {
			continue
		}
		proc := t.culprit(c)
		if c.verdict != yes || c.state != events.Established || proc == nobody {
			continue
		}
		f := t.findings[t.findingOf(HalfOpen, proc)]
		f.evidence.Ends.meet(&c.Ends, f.count == 0)
		f.evidence.Exact = true
		f.members++
		f.count++
		f.fresh, f.severity = true, Info
		if f.first == 0 || c.silent < f.first {
			f.first = c.silent
		}
		f.holders = t.addHolders(f.holders, c)
	}
	t.silent = t.silent[:0]
}

// sees takes over what a row says of a socket that nobody has done anything wrong with
// yet.
func (t *Tracker) sees(i uint32, ev *events.Event) {
	c := t.table.at(i)
	switch {
	case ev.Fd < 0 || ev.Kernel || ev.New != c.state:
	case ev.New == events.Established && !ev.Guarded && ev.Queued == 0 && ev.Quiet >= uint64(t.thresholds.HalfOpenAfter):
		c.silent = ev.Ktime - min(ev.Quiet, ev.Ktime)
		t.silent = append(t.silent, i)
	case ev.New == events.FinWait2 && ev.Quiet >= uint64(t.thresholds.FinWait2After):
		t.halfClosed = append(t.halfClosed, i)
	}
}
