package aggregate

import "github.com/tcptrace/tcptrace/pkg/events"

// conn is what the tracker knows of one socket, and of the connection that the
// socket carries now: connect(AF_UNSPEC) lets one socket carry several.
// It holds no pointers, so that a table of a million is invisible to the garbage
// collector.
type conn struct {
	ends
	past
	since    uint64 // Ktime at which state was entered; if not exact, not later than this
	asOf     uint64 // Ktime at which a scan found the socket; 0: known by its transitions
	listener uint64 // identity of the listener in whose queue it is or was
	prev     uint32 // as the next, see list
	next     uint32
	ports    uint32 // the portGroup that counts it
	startErr uint32 // sk_err that an earlier connection left behind

	exact     bool
	lastOld   events.State // the last transition, to tell a duplicate
	suspect   uint8        // the list that it is in
	end       End
	excluded  bool // by its ends, which is for good
	byProcess bool // a process that the filter asks for holds or held it
	byQueue   bool // such a process holds its listener, and nobody has accepted it yet
	sought    bool // waits for a scan to tell its owner
	handed    bool // a minisocket has taken over; the transition that says so was missed
	named     bool // in Tracker.listeners

	// What the scans say.
	examined bool  // one has found it in CLOSE_WAIT
	accepted bool  // somebody has, or had, a descriptor of it
	kernel   bool  // it is the kernel's own
	queued   bool  // found by the first scan in an accept queue
	missing  uint8 // complete scans of all in a row that have not found it
	busy     bool  // late, and in use when the last scan looked
	unseen   uint8 // complete scans since then that did not find it
	unheld   bool  // the last scan found no holder of it
	unread   uint32
	scan     uint32 // the last scan that found it; 0: none
	holder   uint32 // its last holder of that scan, in Tracker.holders; 0: none
	finding  uint32 // that it is a member of
	halfOpen uint32 // the last scan that found it established and silent; 0: none
	active   uint64 // Ktime at which it was last seen to be in use, in CLOSE_WAIT
	sent     uint64 // in CLOSE_WAIT, when it was last looked at; as is unread, where a FIN counts as 1
}

// begin makes c a new connection of the same socket, or the first. Who holds the
// socket does not change by that.
func (c *conn) begin(ev *events.Event) {
	*c = conn{
		ends:      ends{Cookie: c.Cookie, Netns: ev.Netns},
		past:      past{state: ev.Old, owner: c.owner, source: c.source},
		byProcess: c.byProcess,
		byQueue:   c.byQueue,
		named:     c.named,
		prev:      c.prev,
		next:      c.next,
		suspect:   c.suspect,
	}
}

// learn takes over what the event tells about the ends. An event may know less
// than an earlier one: a port is given back before CLOSE, a child of a kernel
// before 6.15 is announced without its peer.
func (c *conn) learn(ev *events.Event) {
	if ev.Cookie != 0 {
		c.Cookie = ev.Cookie
	}
	// A connect() that fails before a port was chosen may show one that an
	// earlier connection of the socket used.
	staleport := ev.Old == events.SynSent && ev.New == events.Close &&
		ev.Flags&events.Owned != 0 && ev.Err == 0 && ev.Shutdown == 0
	if ev.Lport != 0 && !staleport {
		c.Lport = ev.Lport
	}
	if ev.New == events.Listen || ev.Old == events.Listen && ev.New == events.Close {
		c.Laddr = ev.Laddr
		return // a listener that was a client before still wears its old peer
	}
	if ev.Rport != 0 {
		c.Rport, c.Raddr, c.Laddr = ev.Rport, ev.Raddr, ev.Laddr
	} else if c.Rport == 0 {
		c.Laddr = ev.Laddr
	}
}

// unnamed reports whether c is a child that was announced as a mere copy of its
// listener: before 6.15 it has no peer then, and an IPv4 child of a dual-stack
// listener looks like IPv6. The next transition, microseconds later, tells.
func (c *conn) unnamed() bool {
	return c.state == events.SynRecv && c.lastOld == events.Listen && c.Rport == 0
}
