package aggregate

import (
	"cmp"
	"hash/maphash"
	"math"
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// The share of the ports, in percent, at which it is critical that they run out; and the
// share of what makes a finding below which it is over.
const (
	criticalPorts = 90
	relievedPorts = 80
)

// portKey names the connections that differ in one port only: so many may there be as
// there are ports for that end.
type portKey struct {
	netns uint32
	port  uint16      // the end that is not ephemeral
	ours  bool        // and it is here: the other end's ports are counted
	near  events.Addr // our address
	far   events.Addr
}

// portGroup counts the ports that such connections hold. It holds no pointers.
type portGroup struct {
	live    uint32 // connections; of ours, they are not counted
	waiting uint32 // minisockets
	orphans uint32 // of these, in FIN_WAIT2
	plain   uint32 // of those in TIME_WAIT, without timestamps: no connect() takes their ports
	finding uint32
	rate    uint32 // in Tracker.rates; 0: none, as long as there are few
}

// enter counts a minisocket that is in its state from now on.
func (g *portGroup) enter(m *minisocket) {
	switch {
	case m.state == events.FinWait2:
		g.orphans++
	case !m.stamped:
		g.plain++
	}
}

// leave counts it no more.
func (g *portGroup) leave(m *minisocket) {
	switch {
	case m.state == events.FinWait2:
		g.orphans--
	case !m.stamped:
		g.plain--
	}
}

// A server has as many groups as peers, and in nearly all of them nothing but a few
// minisockets. So these are at first counted by a hash of the key, and have a group of
// their own only when so many have come together: a few, and a share of all that there
// are, so that there are few such groups.
const (
	crowdMin   = 32
	crowdShare = 256
	crowdSlots = 1 << 17

	inCrowd = math.MaxUint32 // instead of the number of a group
)

// isCrowd counts a minisocket that has no group. It reports whether there are enough for
// one.
func (t *Tracker) isCrowd(k portKey) bool {
	n := &t.crowds[k.slot()]
	if int(*n) >= min(max(crowdMin, t.minis.len()/crowdShare), math.MaxUint16) {
		return true
	}
	*n++
	return false
}

// crowdKey is the key of the group that m is to have, of those that are counted by the
// hash.
func (m *minisocket) crowdKey() portKey {
	return portKey{netns: m.Netns, ours: true, port: m.Lport, near: m.Laddr, far: m.Raddr}
}

// gather puts the minisockets of a group in it that have been counted by the hash so far.
func (t *Tracker) gather(k portKey, i uint32) {
	for _, m := range t.minis.all() {
		if m.ports == inCrowd && m.crowdKey() == k {
			m.ports = i
			t.crowds[k.slot()]--
			t.groups.at(i).waiting++
			t.groups.at(i).enter(m)
		}
	}
}

// The seed keeps peers from choosing their slots and buckets.
var portSeed = maphash.MakeSeed()

func (k portKey) hash() uint32 { return uint32(maphash.Comparable(portSeed, k)) }

func (k portKey) slot() uint32 { return k.hash() % crowdSlots }

// portKeyOf names the group that a connection with these ends counts in; false if in
// none.
func (t *Tracker) portKeyOf(e *ends, role Role) (portKey, bool) {
	n := t.net(e.Netns)
	if role == RoleUnknown {
		role = Server
		if n.known && e.Lport != 0 && n.ephemeral(e.Lport) {
			role = Client
		}
	}
	k := portKey{netns: e.Netns, near: e.Laddr, far: e.Raddr, port: e.Rport}
	if role == Server {
		k.ours, k.port = true, e.Lport
		return k, true
	}
	return k, k.port != 0 && (!n.known || n.ephemeral(e.Lport)) // else bound to one that connect() never chooses
}

// portGroup returns the number of a group. It may be new.
func (t *Tracker) portGroup(k portKey) uint32 {
	if t.group != 0 && *t.groups.key(t.group) == k {
		return t.group // one connection after the other goes to the same destination
	}
	i := t.groups.find(k)
	if i == 0 {
		i = t.groups.add(k)
		if !k.ours {
			t.net(k.netns).clients++
		}
	}
	t.dismissGroup()
	t.group = i
	return i
}

// takePort counts a connection that begins, or that a scan has found.
func (t *Tracker) takePort(c *conn) {
	if c.ports != 0 {
		return
	}
	k, counts := t.portKeyOf(&c.ends, c.role)
	if !counts || k.ours {
		return // of ours, only those in TIME_WAIT are of interest
	}
	c.ports = t.portGroup(k)
	g := t.groups.at(c.ports)
	g.live++
	if g.rate != 0 && c.start != 0 {
		r := &t.rates[g.rate]
		r.count(&r.taken, c.start)
	}
	t.weighPorts(c.ports)
}

// givePort counts it no more.
func (t *Tracker) givePort(c *conn) {
	if c.ports == 0 {
		return
	}
	i := c.ports
	c.ports = 0
	t.groups.at(i).live--
	t.leaveGroup(i)
}

// keepPort counts a port that goes over from a connection to its minisocket; c is nil
// if that is not known.
func (t *Tracker) keepPort(c *conn, m *minisocket) {
	if c != nil && c.ports != 0 {
		m.ports, c.ports = c.ports, 0
		t.groups.at(m.ports).live--
	} else {
		k, counts := t.portKeyOf(&m.ends, m.role)
		if !counts {
			return
		}
		anew := k.ours && t.groups.find(k) == 0
		if anew && !t.isCrowd(k) {
			m.ports = inCrowd
			return
		}
		m.ports = t.portGroup(k)
		if anew {
			t.gather(k, m.ports)
		}
		if g := t.groups.at(m.ports); g.rate != 0 && m.start != 0 {
			r := &t.rates[g.rate]
			r.count(&r.taken, m.start)
		}
	}
	g := t.groups.at(m.ports)
	g.waiting++
	g.enter(m)
	if g.rate != 0 && m.state == events.TimeWait {
		r := &t.rates[g.rate]
		r.count(&r.entered, m.enteredTimeWait())
	}
	t.weighPorts(m.ports)
}

// portWaits notes that a minisocket goes from FIN_WAIT2 to TIME_WAIT; its state is the
// new one already.
func (t *Tracker) portWaits(m *minisocket) {
	if m.ports == 0 || m.ports == inCrowd {
		return
	}
	g := t.groups.at(m.ports)
	g.orphans--
	g.enter(m)
	if g.rate != 0 {
		r := &t.rates[g.rate]
		r.count(&r.entered, m.enteredTimeWait())
	}
}

// freePort counts it no more.
func (t *Tracker) freePort(m *minisocket) {
	switch m.ports {
	case 0:
		return
	case inCrowd:
		t.crowds[m.crowdKey().slot()]--
		return
	}
	g := t.groups.at(m.ports)
	g.waiting--
	g.leave(m)
	t.leaveGroup(m.ports)
}

func (t *Tracker) leaveGroup(i uint32) {
	g := t.groups.at(i)
	if g.rate != 0 {
		r := &t.rates[g.rate]
		r.count(&r.given, t.now)
	}
	if g.finding != noFinding {
		t.weighPorts(i)
	}
	t.forgetGroup(i)
}

// dismissGroup is done with the group that was asked for last.
func (t *Tracker) dismissGroup() {
	if i := t.group; i != 0 {
		t.group = 0
		t.forgetGroup(i)
	}
}

// forgetGroup lets go of a group that has nothing any more, unless it is at hand.
func (t *Tracker) forgetGroup(i uint32) {
	g := t.groups.at(i)
	if g.live > 0 || g.waiting > 0 || g.finding != noFinding || i == t.group {
		return
	}
	k := t.groups.key(i)
	if n := t.nets[k.netns]; n != nil && !k.ours {
		n.clients--
	}
	if g.rate != 0 {
		t.freeRates = append(t.freeRates, g.rate)
	}
	t.groups.remove(i)
}

// used is how many ports of the group a connect() cannot have now.
func (t *Tracker) used(k *portKey, g *portGroup) int {
	n := t.net(k.netns)
	if g.rate != 0 && !k.ours && n.reuses(&k.near, &k.far) {
		// Those that have been in TIME_WAIT for more than a second are free to it.
		r := &t.rates[g.rate]
		r.roll(t.now)
		return int(g.live + g.orphans + max(g.plain, min(g.waiting-g.orphans, sum(&r.entered))))
	}
	return int(g.live + g.waiting)
}

// weighPorts finds out whether the ports run out.
func (t *Tracker) weighPorts(i uint32) {
	k, g := t.groups.key(i), t.groups.at(i)
	n := t.net(k.netns)
	total := n.ports()
	used := int(g.live + g.waiting)
	percent := int(t.thresholds.PortsPercent)
	if g.finding == noFinding && used*2*100 < total*percent {
		return // far from it: this is the way of nearly all connections
	}
	if !n.known || !t.scanDone {
		return
	}
	if g.rate == 0 {
		t.watchRate(i)
	}
	used = t.used(k, g)
	switch {
	case used*100 >= total*percent:
		if g.finding == noFinding {
			if !n.certain {
				n.urgent = true // what it allows may have changed, or be another's
				return
			}
			if t.filter.ByProcess() {
				r := &t.rates[g.rate]
				if t.now < r.asked+second {
					return
				}
				if r.asked = t.now; len(t.makers(i)) == 0 {
					return
				}
			}
			g.finding = t.open(subject{kind: TimeWaitPorts, group: i})
		}
		f := t.findings[g.finding]
		f.members, f.fresh, f.count = 1, true, used
		f.severity = Warning
		switch {
		case k.ours:
			f.severity = Info // a new SYN may take the place of one in TIME_WAIT
		case used*100 >= total*criticalPorts:
			f.severity = Critical
		}
		if t.due(f) {
			t.urgent = true
		}
	case g.finding != noFinding && (used == 0 || used*100 < total*percent*relievedPorts/100):
		t.findings[g.finding].members = 0
	}
}

// tickPorts weighs anew those that run out: ports in TIME_WAIT may be free to connect()
// after a second.
func (t *Tracker) tickPorts() {
	t.dismissGroup()
	for _, f := range t.findings {
		if f != nil && f.kind == TimeWaitPorts {
			t.weighPorts(f.group)
		}
	}
}

// Maker is a process that has made some of the connections that a finding is about.
type Maker struct {
	Pid   uint32
	Comm  events.Comm
	Count int
}

const maxMakers = 8

// makers returns the processes that hold the ports of a group, those with most first,
// as many as a finding has. Ports of connections whose process is not known are not
// among them. It looks at all that there is, which takes milliseconds: it is called
// when there is something to say.
func (t *Tracker) makers(i uint32) []Maker {
	count := map[uint32]int{}
	for _, m := range t.minis.all() {
		if m.ports == i {
			count[t.procs.of(&m.past)]++
		}
	}
	if t.groups.at(i).live > 0 {
		for _, c := range t.table.all() {
			if c.ports == i {
				count[t.procs.of(&c.past)]++
			}
		}
	}
	return t.rank(count, true)
}

// rank returns the processes of count, or those of them that the filter asks for.
func (t *Tracker) rank(count map[uint32]int, asked bool) []Maker {
	var ms []Maker
	for n, k := range count {
		if q := t.procs.all[n]; n != nobody && (!asked || t.procs.asked(q)) {
			ms = append(ms, Maker{Pid: q.pid, Comm: q.comm, Count: k})
		}
	}
	slices.SortFunc(ms, func(a, b Maker) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Pid, b.Pid))
	})
	return ms[:min(len(ms), maxMakers)]
}

// PortsEvidence is what a finding about ports rests on.
type PortsEvidence struct {
	Laddr, Raddr events.Addr
	Port         uint16 // the peer's; with Ours, our own
	Ours         bool   // the connections come from one address to this port of ours
	Total        int    // ports that there are
	Live         int    // taken by connections
	TimeWait     int    // taken by minisockets
	PerSecond    float64
	Exhausted    time.Duration // until none is left, at this rate; Unknown if they do not get fewer
	Reuses       bool          // connect() may take those that have been in TIME_WAIT for a second
	Network      events.Network
	Makers       []Maker
}

// portsEvidence draws the sum of a group.
func (t *Tracker) portsEvidence(i uint32) *PortsEvidence {
	k, g := t.groups.key(i), t.groups.at(i)
	r := &t.rates[g.rate]
	n := t.net(k.netns)
	e := &PortsEvidence{
		Laddr: k.near, Raddr: k.far, Port: k.port, Ours: k.ours,
		Total: n.ports(), Live: int(g.live), TimeWait: int(g.waiting), Exhausted: Unknown,
		Reuses: !k.ours && n.reuses(&k.near, &k.far), Network: n.Network, Makers: t.makers(i),
		PerSecond: r.perSecond(&r.taken, t.now),
	}
	growth := e.PerSecond - r.perSecond(&r.given, t.now)
	if left := e.Total - t.used(k, g); growth > 0 && !e.Reuses {
		e.Exhausted = time.Duration(float64(max(left, 0)) / growth * float64(time.Second))
	}
	return e
}
