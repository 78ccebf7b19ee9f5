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
		if t.settled != 0 || ev.New == events.Close {
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
	if t.settled == 0 && ev.Proc.Pid != 0 {
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
	t.scanned = append(t.scanned, i)
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
	for _, i := range t.scanned {
		c := t.table.at(i)
		if !c.queued || c.Owner.Source != SourceNone {
			continue
		}
		var owner Owner
		for n, l := range at[place{c.Netns, c.Lport}] {
			o := t.table.at(l).listenersOwner()
			if n > 0 && o != owner {
				owner = Owner{}
				break
			}
			owner = o
		}
		c.Owner = owner
	}
}
