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
	key     portKey
	live    uint32 // connections; of ours, they are not counted
	waiting uint32 // minisockets
	orphans uint32 // of these, in FIN_WAIT2
	plain   uint32 // of those in TIME_WAIT, without timestamps: no connect() takes their ports
	finding uint32
	rate    uint32 // in Tracker.rates; 0: none, as long as there are few
	asked   uint64 // Ktime at which the filter was last found not to ask for any of its processes
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

// rate is what happened in a group within the last second, by tenths of one.
type rate struct {
	slot    uint64
	taken   [rateSlots]uint32 // connections begun
	given   [rateSlots]uint32 // ports given back
	entered [rateSlots]uint32 // TIME_WAITs begun
}

const (
	rateSlots = 11 // the one under way, and a second before it
	slotLen   = uint64(100 * time.Millisecond)
	second    = uint64(time.Second)
)

// count adds one to a row, for what has happened at ktime.
func (r *rate) count(row *[rateSlots]uint32, ktime uint64) {
	r.roll(ktime)
	if back := r.slot - ktime/slotLen; back < rateSlots {
		row[back]++
	}
}

func (r *rate) roll(ktime uint64) {
	slot := ktime / slotLen
	if slot <= r.slot {
		return
	}
	by := min(slot-r.slot, rateSlots)
	r.slot = slot
	for _, row := range []*[rateSlots]uint32{&r.taken, &r.given, &r.entered} {
		copy(row[by:], row[:])
		clear(row[:by])
	}
}

func sum(row *[rateSlots]uint32) (n uint32) {
	for _, k := range row {
		n += k
	}
	return n
}

// perSecond returns how many a second a row has, at ktime. What has just begun has not
// gone on for a second.
func (r *rate) perSecond(row *[rateSlots]uint32, ktime uint64) float64 {
	r.roll(ktime)
	oldest := rateSlots - 1
	for n := sum(row); n > rateSlots && oldest > 0 && row[oldest] == 0; oldest-- {
	}
	return float64(sum(row)) / time.Duration(ktime%slotLen+uint64(oldest)*slotLen+1).Seconds()
}

// watchRate begins to keep the rate of a group, with what is known of the last second.
func (t *Tracker) watchRate(i uint32) {
	n := uint32(len(t.rates))
	if l := len(t.freeRates); l > 0 {
		n, t.freeRates = t.freeRates[l-1], t.freeRates[:l-1]
	} else {
		t.rates = append(t.rates, rate{})
	}
	t.groups[i].rate = n
	r := &t.rates[n]
	*r = rate{slot: t.now / slotLen}
	for _, m := range t.minis.all() {
		if m.ports != i {
			continue
		}
		if m.start != 0 {
			r.count(&r.taken, m.start)
		}
		if m.state == events.TimeWait {
			r.count(&r.entered, m.enteredTimeWait())
		}
	}
	for _, c := range t.table.all() {
		if c.ports == i && c.start != 0 {
			r.count(&r.taken, c.start)
		}
	}
}

// enteredTimeWait returns when the minisocket came into TIME_WAIT, as far as its timer
// tells.
func (m *minisocket) enteredTimeWait() uint64 {
	if m.since != 0 {
		return m.since
	}
	return m.expires - min(uint64(timeWaitLen), m.expires)
}

// A server has as many groups as peers, and in nearly all of them nothing but a few
// minisockets. So these are at first counted by a hash of the key, and have a group of
// their own only when so many have come together: a few, and a share of all that there
// are, so that there are few such groups.
const (
	crowdMin   = 32
	crowdShare = 256
	crowdSlots = 1 << 17
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
		if m.crowd && m.crowdKey() == k {
			m.crowd, m.ports = false, i
			t.crowds[k.slot()]--
			t.groups[i].waiting++
			t.groups[i].enter(m)
		}
	}
}

// The seed keeps peers from choosing their slot.
var crowdSeed = maphash.MakeSeed()

func (k portKey) slot() uint32 { return uint32(maphash.Comparable(crowdSeed, k) % crowdSlots) }

// portKeyOf names the group that a connection with these ends counts in; false if in
// none.
func (t *Tracker) portKeyOf(e *Ends, role Role) (portKey, bool) {
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
	return k, !n.known || n.ephemeral(e.Lport) // else bound to one that connect() never chooses
}

// portGroup returns the number of a group. It may be new.
func (t *Tracker) portGroup(k portKey) uint32 {
	i, ok := t.groupOf[k]
	if !ok {
		if l := len(t.freeGroups); l > 0 {
			i, t.freeGroups = t.freeGroups[l-1], t.freeGroups[:l-1]
		} else {
			i = uint32(len(t.groups))
			t.groups = append(t.groups, portGroup{})
		}
		t.groups[i] = portGroup{key: k}
		t.groupOf[k] = i
		if !k.ours {
			t.net(k.netns).clients++
		}
	}
	return i
}

// takePort counts a connection that begins, or that a scan has found.
func (t *Tracker) takePort(c *conn) {
	if c.Rport == 0 || c.ports != 0 {
		return
	}
	k, counts := t.portKeyOf(&c.Ends, c.role)
	if !counts || k.ours {
		return // of ours, only those in TIME_WAIT are of interest
	}
	c.ports = t.portGroup(k)
	g := &t.groups[c.ports]
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
	t.groups[i].live--
	t.leaveGroup(i)
}

// keepPort counts a port that goes over from a connection to its minisocket; c is nil
// if that is not known.
func (t *Tracker) keepPort(c *conn, m *minisocket) {
	if c != nil && c.ports != 0 {
		m.ports, c.ports = c.ports, 0
		t.groups[m.ports].live--
	} else {
		k, counts := t.portKeyOf(&m.Ends, m.role)
		if !counts {
			return
		}
		anew := k.ours && t.groupOf[k] == 0
		if anew && !t.isCrowd(k) {
			m.crowd = true
			return
		}
		m.ports = t.portGroup(k)
		if anew {
			t.gather(k, m.ports)
		}
		if g := &t.groups[m.ports]; g.rate != 0 && m.start != 0 {
			r := &t.rates[g.rate]
			r.count(&r.taken, m.start)
		}
	}
	g := &t.groups[m.ports]
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
	if m.ports == 0 {
		return
	}
	g := &t.groups[m.ports]
	g.orphans--
	g.enter(m)
	if g.rate != 0 {
		r := &t.rates[g.rate]
		r.count(&r.entered, m.enteredTimeWait())
	}
}

// freePort counts it no more.
func (t *Tracker) freePort(m *minisocket) {
	if m.crowd {
		t.crowds[m.crowdKey().slot()]--
	}
	if m.ports == 0 {
		return
	}
	g := &t.groups[m.ports]
	g.waiting--
	g.leave(m)
	t.leaveGroup(m.ports)
}

func (t *Tracker) leaveGroup(i uint32) {
	g := &t.groups[i]
	if g.rate != 0 {
		r := &t.rates[g.rate]
		r.count(&r.given, t.now)
	}
	if g.finding != noFinding {
		t.weighPorts(i)
	}
	t.forgetGroup(i)
}

// forgetGroup lets go of a group that has nothing any more.
func (t *Tracker) forgetGroup(i uint32) {
	g := &t.groups[i]
	if g.live > 0 || g.waiting > 0 || g.finding != noFinding {
		return
	}
	delete(t.groupOf, g.key)
	if n := t.nets[g.key.netns]; n != nil && !g.key.ours {
		n.clients--
	}
	if g.rate != 0 {
		t.freeRates = append(t.freeRates, g.rate)
	}
	*g = portGroup{}
	t.freeGroups = append(t.freeGroups, i)
}

// used is how many ports of the group a connect() cannot have now.
func (t *Tracker) used(g *portGroup) int {
	n := t.net(g.key.netns)
	if g.rate != 0 && !g.key.ours && n.reuses(&g.key.near, &g.key.far) {
		// Those that have been in TIME_WAIT for more than a second are free to it.
		r := &t.rates[g.rate]
		r.roll(t.now)
		return int(g.live + g.orphans + max(g.plain, min(g.waiting-g.orphans, sum(&r.entered))))
	}
	return int(g.live + g.waiting)
}

// weighPorts finds out whether the ports run out.
func (t *Tracker) weighPorts(i uint32) {
	g := &t.groups[i]
	n := t.net(g.key.netns)
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
	used = t.used(g)
	switch {
	case used*100 >= total*percent:
		if g.finding == noFinding {
			if !n.certain {
				n.urgent = true // what it allows may have changed, or be another's
				return
			}
			if t.filter.ByProcess() {
				if t.now < g.asked+second {
					return
				}
				if g.asked = t.now; len(t.makers(i)) == 0 {
					return
				}
			}
			g.finding = t.open(subject{kind: TimeWaitPorts, group: i})
		}
		f := t.findings[g.finding]
		f.members, f.fresh, f.count = 1, true, used
		f.severity = Warning
		switch {
		case g.key.ours:
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
			count[m.proc]++
		}
	}
	if t.groups[i].live > 0 {
		for _, c := range t.table.all() {
			if c.ports == i {
				count[c.proc]++
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
	g := &t.groups[i]
	r := &t.rates[g.rate]
	n := t.net(g.key.netns)
	e := &PortsEvidence{
		Laddr: g.key.near, Raddr: g.key.far, Port: g.key.port, Ours: g.key.ours,
		Total: n.ports(), Live: int(g.live), TimeWait: int(g.waiting), Exhausted: Unknown,
		Reuses: !g.key.ours && n.reuses(&g.key.near, &g.key.far), Network: n.Network, Makers: t.makers(i),
		PerSecond: r.perSecond(&r.taken, t.now),
	}
	growth := e.PerSecond - r.perSecond(&r.given, t.now)
	if left := e.Total - t.used(g); growth > 0 && !e.Reuses {
		e.Exhausted = time.Duration(float64(max(left, 0)) / growth * float64(time.Second))
	}
	return e
}
