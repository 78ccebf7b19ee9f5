package aggregate

import (
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// What a network namespace allows is looked up again after this time, as long as there
// are connections from it.
const networkAge = uint64(5 * time.Second)

// An overflow is over when none has followed for so long: TIME_WAIT, and so what
// has filled the table, lasts that long.
const overflowOver = uint64(time.Minute)

// network is what is known of a network namespace.
type network struct {
	events.Network
	known    bool
	wanted   bool           // what it allows has to be looked up
	at       uint64         // when it was
	base     uint64         // TimeWaitSkipped when it was first looked up
	seen     uint64         // connections that seem to have skipped TIME_WAIT,
	matching uint64         // those of them that the filter asks for, and
	by       map[uint32]int // who had them
	skipped  uint64         // TimeWaitSkipped since then
	grown    uint64         // when that was more than before
	urgent   bool           // at once
	certain  bool           // it has just been
	clients  int            // port groups of connections from it

	// In the interval of the summary.
	opened, closed uint64
	minis          [events.NumStates]int // what the last scan of all has found that is no socket, and
	counting       [events.NumStates]int // that of the scan under way
	walked         bool                  // by the last scan of all
	whole          bool                  // by one of them at least: nothing that was there before is missing
}

// net returns the network namespace with this inode number.
func (t *Tracker) net(inode uint32) *network {
	if t.lastNet != nil && t.lastNet.Netns == inode {
		return t.lastNet // nearly always
	}
	n := t.nets[inode]
	if n == nil {
		n = &network{wanted: true}
		n.Netns = inode
		if len(t.nets) < manyProcesses {
			t.nets[inode] = n
		}
	}
	t.lastNet = n
	return n
}

// WantNetworks returns the network namespaces that a Network is wanted of now; or those
// only for which it is urgent, because a finding waits for it.
func (t *Tracker) WantNetworks(urgent bool) []uint32 {
	t.pids = t.pids[:0]
	for inode, n := range t.nets {
		watched := n.clients > 0 || n.grown != 0
		if n.urgent || urgent {
			if n.urgent {
				t.pids = append(t.pids, inode)
			}
			continue
		}
		if n.wanted && t.now >= n.at+second || watched && t.now >= n.at+networkAge {
			t.pids = append(t.pids, inode)
		}
	}
	return t.pids
}

// Network takes what a network namespace allows. What is no longer there is known by
// its number only.
func (t *Tracker) Network(w *events.Network) {
	n := t.net(w.Netns)
	urgent := n.urgent
	n.wanted, n.urgent, n.at = false, false, t.now
	if w.PortHigh == 0 {
		return
	}
	if !n.known || n.Cookie != w.Cookie { // another may have its number by now
		n.known, n.skipped, n.grown = true, 0, 0
		n.base = w.TimeWaitSkipped - min(n.seen, w.TimeWaitSkipped)
	}
	n.Network = *w
	if s := w.TimeWaitSkipped - min(n.base, w.TimeWaitSkipped); s > n.skipped {
		n.skipped, n.grown = s, t.now
	}
	t.overflow(n)
	if urgent {
		t.weighAll(n)
	}
}

// weighAll weighs the ports of a network namespace of which it is certain what it allows.
func (t *Tracker) weighAll(n *network) {
	n.certain = true
	for i, g := range t.groups.all() {
		if t.groups.key(i).netns == n.Netns && g.live+g.waiting > 0 && g.finding == noFinding {
			t.weighPorts(i)
		}
	}
	n.certain = false
}

// skipTimeWait notes a connection that should have gone into TIME_WAIT and has not: most
// likely there was no place for it. The kernel's own count decides.
func (t *Tracker) skipTimeWait(c *conn) {
	n := t.net(c.Netns)
	n.wanted = true
	n.seen++
	if c.verdict == yes {
		n.matching++
	}
	proc := t.procs.of(&c.past)
	if proc == nobody || c.verdict != yes || n.by[proc] == 0 && len(n.by) >= maxSkippers {
		return
	}
	if n.by == nil {
		n.by = map[uint32]int{}
	}
	if n.by[proc] == 0 {
		t.procs.all[proc].pins++
	}
	n.by[proc]++
}

// So many processes are kept that had connections which skipped TIME_WAIT.
const maxSkippers = 64

// acquit forgets who had connections that seem to have skipped TIME_WAIT.
func (t *Tracker) acquit(n *network) {
	for proc := range n.by {
		t.procs.all[proc].pins--
		t.procs.release(proc)
	}
	n.by = nil
}

// overflow finds out whether connections skip TIME_WAIT in a network namespace.
func (t *Tracker) overflow(n *network) {
	s := subject{kind: TimeWaitOverflow, netns: n.Netns}
	if n.grown == 0 {
		t.acquit(n) // something else has kept them from it
	}
	switch {
	case n.grown == 0 || !t.filter.lets(n.Netns) || t.filter.narrows() && n.matching == 0:
	case t.now >= n.grown+overflowOver:
		n.grown = 0
		t.acquit(n)
		t.close(s)
	default:
		f := t.findings[t.open(s)]
		f.members, f.fresh, f.count, f.severity = 1, true, int(n.skipped), Warning
		if t.filter.narrows() {
			f.count = int(min(n.matching, n.skipped))
		}
		f.evidence.Network = &n.Network
	}
}

// forgetNetworks lets go of network namespaces that have no sockets any more.
func (t *Tracker) forgetNetworks() {
	used := map[uint32]bool{}
	for _, c := range t.table.all() {
		used[c.Netns] = true
	}
	for _, m := range t.minis.all() {
		used[m.Netns] = true
	}
	for inode, n := range t.nets {
		if !used[inode] && n.grown == 0 && n.by == nil && n.clients <= 0 && n.opened == 0 && n.closed == 0 {
			delete(t.nets, inode)
			t.lastNet = nil
		}
	}
}

// ephemeral reports whether connect() may choose this port. Unknown counts as yes.
func (n *network) ephemeral(port uint16) bool {
	return port == 0 || port >= n.PortLow && port <= n.PortHigh
}

// ports is how many ports connect() may choose from; 0: not known.
func (n *network) ports() int {
	if n.PortHigh == 0 || n.PortHigh < n.PortLow {
		return 0
	}
	return int(n.PortHigh) - int(n.PortLow) + 1 - int(n.Reserved)
}

// reuses reports whether connect() may take a port from TIME_WAIT, to this
// destination, after a second (tcp_twsk_unique).
func (n *network) reuses(a, b *events.Addr) bool {
	if n.Timestamps == 0 {
		return false
	}
	return n.ReusePolicy == 1 || n.ReusePolicy == 2 && (a.Netip().IsLoopback() || b.Netip().IsLoopback())
}
