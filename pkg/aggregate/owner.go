package aggregate

import "github.com/tcptrace/tcptrace/pkg/events"

// attribute learns the owner from a transition. Only what happened in process
// context says anything: all other transitions run on top of a bystander.
func (t *Tracker) attribute(i uint32, ev *events.Event) {
	c := t.table.at(i)
	if ev.Flags&events.HasSocket != 0 && c.Owner.Source == SourceListener {
		// Accepted, and not by a way that announces itself. Its listener may
		// be shared by many processes.
		c.Owner = Owner{}
		t.accepted(i)
	}
	if ev.Flags&events.Owned != 0 && ev.Flags&events.KThread == 0 {
		switch {
		case ev.Old == events.Close && ev.New == events.SynSent:
			t.own(i, &ev.Proc, SourceConnect)
		case ev.New == events.Listen:
			t.own(i, &ev.Proc, SourceListen)
		case lettingGo(ev):
			t.own(i, &ev.Proc, SourceClose)
		case ev.New != events.Close:
			// Packets that came while the process was in a system call on this
			// socket are processed at the end of the call (release_sock).
			t.own(i, &ev.Proc, SourceFd)
		}
	}
	if c.Owner.Source == SourceNone && !c.sought && ev.Flags&(events.HasSocket|events.Dead) == events.HasSocket {
		c.sought = true
		t.ownerless = append(t.ownerless, waiter{c.skaddr, ev.Ktime})
	}
}

// queue ties a socket that nobody has accepted to its listener l.
func (t *Tracker) queue(i, l uint32) {
	c, lc := t.table.at(i), t.table.at(l)
	c.Owner = lc.listenersOwner()
	c.byQueue = lc.byProcess
	// listen() on an unbound socket is announced before it has a port.
	if lc.Lport == 0 {
		lc.Lport = c.Lport
		t.decide(l)
	}
}

// accepted unties it again: whoever listens, somebody else may have it now.
func (t *Tracker) accepted(i uint32) {
	c := t.table.at(i)
	if c.byQueue && !c.byProcess && c.verdict == yes {
		c.verdict = undecided
	}
	c.byQueue = false
}

// listenersOwner is the owner that a child of listener c has until somebody
// accepts it.
func (c *conn) listenersOwner() Owner {
	if c.Owner.Pid == 0 {
		return Owner{}
	}
	return Owner{Pid: c.Owner.Pid, Comm: c.Owner.Comm, Source: SourceListener}
}

// own notes that p holds the socket. Who connected, listened, accepted or
// closed replaces an owner; who merely holds it only fills a gap, since a
// socket may have many holders.
func (t *Tracker) own(i uint32, p *events.Proc, src Source) {
	c := t.table.at(i)
	if p.Pid == 0 {
		if src != SourceFd && c.Owner.Source == SourceListener {
			c.Owner = Owner{}
		}
		return
	}
	if t.procs.match(p.Pid, &p.Comm) {
		c.byProcess = true
	}
	switch c.Owner.Source {
	case SourceNone, SourceListener:
	default:
		if src == SourceFd || src == SourceClose && c.Owner.Pid == p.Pid {
			return
		}
	}
	c.Owner = Owner{Pid: p.Pid, Comm: p.Comm, Source: src}
}

// row takes one socket, or one descriptor of one, that a scan found.
func (t *Tracker) row(ev *events.Event) {
	i := t.table.find(ev.Skaddr)
	if i == 0 {
		// After the first scan a socket that is not known is one whose events
		// are still to be read, or that has just gone. One that never was
		// connected has no story yet.
		if t.scanDone || ev.New == events.Close {
			return
		}
		if i = t.table.add(ev.Skaddr); i == 0 {
			return
		}
		t.found(i, ev)
	}
	c := t.table.at(i)
	if ev.Fd < 0 || ev.Cookie != 0 && c.Cookie != 0 && ev.Cookie != c.Cookie {
		return
	}
	t.own(i, &ev.Proc, SourceFd)
	if !t.scanDone && ev.Proc.Pid != 0 {
		t.holders[i] = append(t.holders[i], Holder{Pid: ev.Proc.Pid, Comm: ev.Proc.Comm, Fd: ev.Fd})
	}
	t.decide(i)
}

// found starts the story of a socket that was there before.
func (t *Tracker) found(i uint32, ev *events.Event) {
	c := t.table.at(i)
	c.begin(ev)
	c.asOf = ev.Ktime
	c.learn(ev)
	c.foundIn(ev.New)
	c.quiet, c.unread = ev.Quiet, ev.Unread
	c.queued = ev.Flags&(events.HasSocket|events.Dead) == 0
	if ev.New == events.Listen && ev.Cookie != 0 {
		t.listeners[ev.Cookie] = i
	}
	t.scanned = append(t.scanned, waiter{ev.Skaddr, ev.Ktime})
}

// stillThere returns the conn that the first scan found, unless the socket has
// gone since.
func (t *Tracker) stillThere(w waiter) uint32 {
	if i := t.table.find(w.skaddr); i != 0 && t.table.at(i).asOf == w.ktime {
		return i
	}
	return 0
}

// ownQueued gives the sockets that the first scan found in an accept queue to
// their listener's owner. Only the address ties them to it; where several
// listeners share it (SO_REUSEPORT), nothing tells which.
func (t *Tracker) ownQueued() {
	type place struct {
		netns uint32
		lport uint16
	}
	at := map[place][]uint32{}
	for _, i := range t.listeners {
		c := t.table.at(i)
		p := place{c.Netns, c.Lport}
		at[p] = append(at[p], i)
	}
	for _, w := range t.scanned {
		i := t.stillThere(w)
		if i == 0 || !t.table.at(i).queued || t.table.at(i).Owner.Source != SourceNone {
			continue
		}
		c := t.table.at(i)
		ls := at[place{c.Netns, c.Lport}]
		for n, l := range ls {
			if n > 0 && t.table.at(l).listenersOwner() != t.table.at(ls[0]).listenersOwner() {
				ls = nil
				break
			}
		}
		if len(ls) > 0 {
			t.queue(i, ls[0])
		}
	}
}
