package aggregate

import (
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// A Scope is a set of connections: those of a row of another list.
type Scope struct {
	kind scopeKind
	proc uint32 // Tracker.procs
	pid  uint32
	dest portKey
}

type scopeKind uint8

const (
	noScope scopeKind = iota
	ofProcess
	ofDestination
)

// ConnID names a connection from its first state to its last: in TIME_WAIT too.
type ConnID struct{ e ends }

func (id *ConnID) is(e *ends) bool {
	if id.e.Cookie != 0 && e.Cookie != 0 {
		return id.e.Cookie == e.Cookie
	}
	was, is := id.e, *e
	was.Cookie, is.Cookie = 0, 0 // one may have been given since
	return was == is
}

// View is what somebody sees who looks at a Tracker. Nothing changes it any more.
type View struct {
	Query   *Query
	Ktime   uint64
	Census  Census
	Dead    int  // connections that are over, and their descriptor open: ss does not show them
	Orphans int  // of States[FinWait2], those that no process holds
	Traced  bool // what is in TIME_WAIT is in the lists too
	Counts  Counts

	Findings        []Finding // that are open and were told, the most severe first; without Evidence
	AllFindings     int       // rows that there would be without a limit; likewise below
	Finding         *Finding  // Query.Finding, whatever is in the list; nil if it is not open (any more)
	Processes       []ProcessRow
	AllProcesses    int
	Destinations    []DestinationRow
	AllDestinations int
	Connections     []ConnRow // of Query.Scope
	AllConnections  int
	Conn            *ConnView // of Query.Conn; nil if it is not there (any more)
}

// ProcessRow is a process that has sockets; with Pid 0, those of which that is not known.
type ProcessRow struct {
	Scope     Scope
	Pid       uint32
	Comm      events.Comm
	Container events.Container
	CloseWait int           // those in its accept queue too
	Dead      int           // connections that are over, and their descriptor open
	Oldest    time.Duration // of these two; Unknown if there are none
	Exact     bool          // Oldest is not a lower bound
	PerMinute float64       // growth of CloseWait
	Measured  bool          // PerMinute is known
	Verdict   Verdict       // of its findings
	Sockets   int           // in whatever state
	TimeWait  int           // of connections that it closed first
}

// DestinationRow is where connections in TIME_WAIT went to: Port of Far. Those that this
// side did not open, Ours, came to Port of Near, from whatever peers.
type DestinationRow struct {
	Scope     Scope
	Netns     uint32
	Near, Far events.Addr
	Port      uint16
	Ours      bool
	TimeWait  int
	Live      int
	Ports     int  // that there are for connections to it; 0: not known who has them, or Ours
	Left      int  // of these, that connect() may have
	AtLeast   bool // Left is a lower bound: those in TIME_WAIT may be taken again
}

// ConnRow is one connection, or a listener.
type ConnRow struct {
	Ends
	ID      ConnID
	State   events.State
	Age     time.Duration // in State; of a minisocket it may be Unknown
	Exact   bool          // Age is not a lower bound
	Verdict Verdict
	Mini    bool // nobody holds it: in TIME_WAIT, or FIN_WAIT2 without a process
}

// ConnView is all that is known of a connection.
type ConnView struct {
	ConnRow
	Start     uint64 // Ktime; 0: before tracing began
	Times     Spent  // in the states before State
	Role      Role
	Closer    Closer
	Call      CloseCall
	Gap       bool // transitions were missed
	Container events.Container
	Looked    bool          // it was looked at in CLOSE_WAIT,
	Unread    uint32        // which shows this: bytes not read, and 1 for the FIN
	Expires   time.Duration // with Mini, until it ends
	Holders   []Holder
	HeldAt    uint64 // Ktime at which these were looked for; 0: they were not
}

// viewer is what is kept for the next View.
type viewer struct {
	growth  map[uint32]*processGrowth // by process; of those in the last View with sockets in CLOSE_WAIT
	conn    ConnID                    // of the last Query
	at      uint32                    // the conn, if it is one
	asked   uint64                    // when a scan was asked for, for its holders
	holders []Holder                  // its, of the last scan that has found it
	heldAt  uint64
}

type processGrowth struct {
	growth
	pid uint32
}

// Growth is that of the last half a minute: of longer ago than this nothing is kept.
const growthOver = uint64(32 * time.Second)

// Who holds the connection that is shown is looked for again after this time.
const lookForHoldersAfter = uint64(5 * time.Second)

// Started reports whether the first scan is over: what was there before is known.
func (t *Tracker) Started() bool { return t.scanDone }

// View looks at all that there is, as Census does. What it costs grows with that.
func (t *Tracker) View(q *Query) *View {
	v := &View{
		Query: q, Ktime: t.now, Census: t.Census(), Counts: t.Counts(), Traced: t.seesMinis,
	}
	if t.viewer.conn != q.Conn {
		t.viewer.conn, t.viewer.at, t.viewer.asked, t.viewer.holders, t.viewer.heldAt = q.Conn, 0, 0, nil, 0
	}
	procs := make([]ProcessRow, len(t.procs.all))
	conns := best[ConnRow]{order: q.orderConns}
	find := finder{want: []byte(q.FindIn)}
	live := map[uint32]int{} // by group, of those that the filter lets through; without one by process that is all
	lists, shows := q.Scope.kind != noScope, q.Conn != (ConnID{})
	for i, c := range t.table.all() {
		if c.verdict != yes || c.state == events.Close && c.suspect == notSuspect {
			continue
		}
		proc := t.procs.names[c.owner].proc
		r := &procs[proc]
		r.Sockets++
		switch c.state {
		case events.Close:
			r.Dead++
			v.Dead++
		case events.CloseWait:
			r.CloseWait++
		}
		if c.suspect != notSuspect {
			ktime, exact := c.entered()
			if age := time.Duration(t.now - min(ktime, t.now)); r.CloseWait+r.Dead == 1 || age > r.Oldest {
				r.Oldest, r.Exact = age, exact
			}
		}
		if c.ports != 0 && t.filter.ByProcess() {
			live[c.ports]++
		}
		if lists && t.inScope(&q.Scope, proc, &c.ends, c.role) {
			if row := t.connRow(c); find.conn(&row) {
				conns.add(row)
			}
		}
		if shows && q.Conn.is(&c.ends) {
			v.Conn = t.connView(i, c)
		}
	}
	byGroup, byKey := map[uint32]int{}, map[portKey]int{}
	for _, m := range t.minis.all() {
		if m.verdict != yes || m.ended != 0 {
			continue
		}
		proc := t.procs.names[m.owner].proc
		if m.state == events.TimeWait {
			procs[proc].TimeWait++
			if m.ports != 0 && m.ports != inCrowd && !t.groups.key(m.ports).ours {
				byGroup[m.ports]++
			} else {
				byKey[t.destination(&m.ends, m.role)]++
			}
		} else {
			v.Orphans++
		}
		if lists && t.inScope(&q.Scope, proc, &m.ends, m.role) {
			if row := t.miniRow(m); find.conn(&row) {
				conns.add(row)
			}
		}
		if shows && q.Conn.is(&m.ends) {
			v.Conn = t.miniView(m)
		}
	}
	v.Connections, v.AllConnections = conns.cut(), conns.all
	t.viewFindings(v)
	t.viewProcesses(v, procs)
	t.viewDestinations(v, live, byGroup, byKey)
	return v
}

// viewFindings says of each finding what there is to say now; of those of which only a walk
// tells that, what was said last.
func (t *Tracker) viewFindings(v *View) {
	rows := best[Finding]{order: orderFindings}
	find := finder{want: []byte(v.Query.Find)}
	for _, f := range t.findings {
		if f == nil || !f.reported || f.members == 0 {
			continue
		}
		var r Finding
		if f.kind.walks() {
			r = *f.said
		} else {
			r = t.record(f)
		}
		r.Severity, r.Holders, r.Evidence = f.severity, slices.Clone(r.Holders), Evidence{} // the tracker's own
		if r.ID == v.Query.Finding {
			shown := r
			v.Finding = &shown
		}
		if find.finding(&r) {
			rows.add(r)
		}
	}
	v.Findings, v.AllFindings = rows.cut(), rows.all
}

// viewProcesses makes the rows of processes of what was counted for each.
func (t *Tracker) viewProcesses(v *View, counted []ProcessRow) {
	growing := make(map[uint32]*processGrowth)
	rows := best[ProcessRow]{order: v.Query.orderProcesses}
	find := finder{want: []byte(v.Query.Find)}
	for n := range counted {
		r, q := &counted[n], t.procs.all[n]
		if r.Sockets == 0 {
			continue
		}
		proc := uint32(n)
		r.Scope = Scope{kind: ofProcess, proc: proc, pid: q.pid}
		r.Pid, r.Comm, r.Container = q.pid, q.comm, q.container()
		if r.CloseWait+r.Dead == 0 {
			r.Oldest = Unknown
		}
		g := t.viewer.growth[proc]
		if r.CloseWait > 0 || g != nil && g.pid == q.pid {
			if g == nil || g.pid != q.pid {
				g = &processGrowth{pid: q.pid}
			}
			g.forget(t.now - min(growthOver, t.now))
			g.sample(t.now, r.CloseWait)
			growing[proc] = g
			r.PerMinute, r.Measured = g.perMinute()
		}
		if f := t.opened[subject{kind: CloseWaitLeak, proc: proc}]; f != noFinding && t.findings[f].members > 0 {
			r.Verdict = t.findings[f].evidence.Verdict
		} else if f := t.opened[subject{kind: ResetFdLeak, proc: proc}]; f != noFinding && t.findings[f].members > 0 {
			r.Verdict = Dead
		}
		if find.process(r) {
			rows.add(*r)
		}
	}
	t.viewer.growth = growing
	v.Processes, v.AllProcesses = rows.cut(), rows.all
}

// viewDestinations makes the rows of destinations of those in TIME_WAIT, by port group or,
// where they are in none, by where they went; and of those whose ports are getting few.
func (t *Tracker) viewDestinations(v *View, live, byGroup map[uint32]int, byKey map[portKey]int) {
	rows := best[DestinationRow]{order: v.Query.orderDestinations}
	find := finder{want: []byte(v.Query.Find)}
	add := func(r DestinationRow, k portKey) {
		r.Scope = Scope{kind: ofDestination, dest: k}
		r.Netns, r.Near, r.Far, r.Port, r.Ours = k.netns, k.near, k.far, k.port, k.ours
		if find.destination(&r) {
			rows.add(r)
		}
	}
	for i, g := range t.groups.all() {
		k := t.groups.key(i)
		timeWait := byGroup[i] + byKey[*k]
		delete(byKey, *k)
		if k.ours || timeWait == 0 && (g.rate == 0 || t.filter.narrows()) {
			continue
		}
		n := t.net(k.netns)
		r := DestinationRow{TimeWait: timeWait, Live: int(g.live)}
		if t.filter.ByProcess() {
			r.Live = live[i]
		}
		if n.known && t.seesMinis && !t.filter.hidesPorts() {
			r.Ports = n.ports()
			r.Left = max(r.Ports-t.used(k, g), 0)
			r.AtLeast = g.rate == 0 && n.reuses(&k.near, &k.far)
		}
		add(r, *k)
	}
	for k, timeWait := range byKey {
		add(DestinationRow{TimeWait: timeWait}, k)
	}
	v.Destinations, v.AllDestinations = rows.cut(), rows.all
}

// destination is the key of the row that a connection counts in.
func (t *Tracker) destination(e *ends, role Role) portKey {
	k, _ := t.portKeyOf(e, role)
	if k.ours {
		k.far = events.Addr{}
	}
	return k
}

func (t *Tracker) inScope(s *Scope, proc uint32, e *ends, role Role) bool {
	if s.kind == ofProcess {
		return s.proc == proc && s.pid == t.procs.all[proc].pid
	}
	return s.dest == t.destination(e, role)
}

func (t *Tracker) connRow(c *conn) ConnRow {
	since := c.since
	if !c.exact && !dated(c.state) {
		since = max(since, c.asOf)
	}
	r := ConnRow{ID: ConnID{c.ends}, State: c.state, Age: time.Duration(t.now - min(since, t.now)), Exact: c.exact}
	t.procs.write(&r.Ends, &c.ends, &c.past)
	switch {
	case c.finding == noFinding || c.suspect != late:
	case c.kernel && c.source == SourceListener:
		r.Verdict = NotAccepted // which verdictOf can tell while a scan is under way
	default:
		r.Verdict = t.verdictOf(c)
	}
	return r
}

func (t *Tracker) miniRow(m *minisocket) ConnRow {
	r := ConnRow{ID: ConnID{m.ends}, State: m.state, Age: Unknown, Exact: m.since != 0, Mini: true}
	t.procs.write(&r.Ends, &m.ends, &m.past)
	if m.since != 0 || m.state == events.TimeWait {
		// Each FIN that is repeated begins the minute anew: of one whose beginning was
		// not seen, that is a lower bound.
		r.Age = time.Duration(t.now - min(m.enteredTimeWait(), t.now))
	}
	return r
}

func (t *Tracker) connView(i uint32, c *conn) *ConnView {
	v := &ConnView{
		ConnRow: t.connRow(c), Start: c.start, Role: c.role, Closer: c.closer, Call: c.call, Gap: c.missed,
		Container: t.container(&c.past), Looked: c.examined && c.state == events.CloseWait, Unread: c.unread,
		Holders: t.viewer.holders, HeldAt: t.viewer.heldAt,
	}
	c.spentIn(&v.Times)
	if w := &t.viewer; t.scanDone && (w.asked == 0 || t.now >= max(w.asked, w.heldAt)+lookForHoldersAfter) {
		w.at, w.asked, t.wantOwners = i, t.now, true
	}
	if v.HeldAt == 0 && c.finding != noFinding {
		// Until it is looked for, or in a replay, what its finding says.
		for _, h := range t.findings[c.finding].holders {
			if h.Cookie == c.Cookie && c.Cookie != 0 {
				v.Holders, v.HeldAt = append(v.Holders, h.Holder), t.judged
			}
		}
	}
	return v
}

func (t *Tracker) miniView(m *minisocket) *ConnView {
	v := &ConnView{
		ConnRow: t.miniRow(m), Start: m.start, Role: m.role, Closer: m.closer, Call: m.call, Gap: m.missed,
		Container: t.container(&m.past), Expires: time.Duration(m.expires - min(t.now, m.expires)),
	}
	m.spentIn(&v.Times)
	return v
}

// keepHolders keeps, at the end of a scan, the holders of the connection that is shown.
func (t *Tracker) keepHolders() {
	w := &t.viewer
	if w.at == 0 || !w.conn.is(&t.table.at(w.at).ends) {
		return
	}
	if c := t.table.at(w.at); c.scan == t.scan {
		w.holders, w.heldAt = slices.Clone(t.holdersOf(c)), t.now
	}
}
