package aggregate

import (
	"math"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// ends is Ends without the owner, which is a number as long as no record is made of it.
type ends struct {
	Cookie uint64
	Netns  uint32
	Lport  uint16
	Rport  uint16
	Laddr  events.Addr
	Raddr  events.Addr
}

func endsOf(ev *events.Event) ends {
	return ends{Cookie: ev.Cookie, Netns: ev.Netns, Lport: ev.Lport, Rport: ev.Rport, Laddr: ev.Laddr, Raddr: ev.Raddr}
}

// write puts the ends of a connection into a record.
func (p *processes) write(r *Ends, e *ends, s *past) {
	r.Cookie, r.Netns, r.Lport, r.Rport = e.Cookie, e.Netns, e.Lport, e.Rport
	r.Laddr, r.Raddr = e.Laddr, e.Raddr
	c := &p.names[s.owner] // field by field: a copy would have to wait for all of them
	r.Owner.Pid, r.Owner.Comm, r.Owner.Source = c.pid, c.comm, s.source
}

// mark is what a socket and its minisocket have in common: the cookie, or where the kernel
// has given none, the ends.
type mark struct {
	cookie       uint64
	netns        uint32
	lport, rport uint16
	laddr, raddr events.Addr
}

func (e *ends) mark() mark {
	if e.Cookie != 0 {
		return mark{cookie: e.Cookie}
	}
	return mark{netns: e.Netns, lport: e.Lport, rport: e.Rport, laddr: e.Laddr, raddr: e.Raddr}
}

// past is what is known of a connection that goes over from its socket to its
// minisocket.
type past struct {
	start     uint64 // Ktime of the connection's first transition; 0: not seen
	spent     [phases]uint64
	owner     uint32 // in Tracker.procs, by name; of a SourceListener, the listener's
	unprinted uint16
	visited   uint8 // sets of phase.bit
	unknown   uint8 // of these
	source    Source
	state     events.State
	verdict   verdict
	role      Role
	closer    Closer
	call      CloseCall
	gap       bool // a transition was missed since the last one that was reported
	missed    bool // a transition was missed
}

// shed notes that a record was not taken.
func (p *past) shed() {
	if p.unprinted < math.MaxUint16 {
		p.unprinted++
	}
}

// phase says where the time that a connection spends in a state is kept: in ns, by
// the states that it can be in one after the other.
type phase struct {
	bit    uint8 // 0: of this state it is not kept
	slot   uint8
	shares uint8 // bits of the states that a connection is in instead of this one
}

const phases = 5

var phaseOf = [events.NumStates]phase{
	events.SynSent:     {bit: 1, slot: 0},
	events.SynRecv:     {bit: 1 << 1, slot: 1}, // after SYN_SENT, if both sides open
	events.Established: {bit: 1 << 2, slot: 2},
	events.FinWait1:    {bit: 1 << 3, slot: 3, shares: 1 << 4},
	events.CloseWait:   {bit: 1 << 4, slot: 3, shares: 1 << 3},
	events.FinWait2:    {bit: 1 << 5, slot: 4, shares: 1<<6 | 1<<7},
	events.Closing:     {bit: 1 << 6, slot: 4, shares: 1<<5 | 1<<7},
	events.LastAck:     {bit: 1 << 7, slot: 4, shares: 1<<5 | 1<<6},
}

// spend adds time that was spent in a state.
func (p *past) spend(st events.State, d time.Duration) {
	f := &phaseOf[st]
	known := p.visited &^ p.unknown
	p.visited |= f.bit
	switch {
	case d == Unknown:
		if known&f.bit != 0 {
			p.spent[f.slot] = 0
		}
		p.unknown |= f.bit
	case p.unknown&f.bit == 0 && f.bit != 0:
		if known&f.shares != 0 {
			// It was in states that exclude each other: what lies between was missed, and
			// they are not of one connection.
			p.unknown |= f.shares & known
			p.spent[f.slot] = 0
		}
		p.spent[f.slot] += uint64(d)
	}
}

// spentIn writes the times out for a record.
func (p *past) spentIn(all *Spent) {
	*all = Spent{}
	for st := range phaseOf {
		f := &phaseOf[st]
		if p.visited&f.bit == 0 {
			continue
		}
		all.visited |= 1 << st
		if p.unknown&f.bit != 0 {
			all.unknown |= 1 << st
		} else {
			all.ns[st] = p.spent[f.slot]
		}
	}
}
