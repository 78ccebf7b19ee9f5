package aggregate

import "github.com/tcptrace/tcptrace/pkg/events"

// A late socket that so many scans have not found has gone, and its end was
// missed.
const unseenScans = 2

// A finding is an open problem of one process. What it says is put together anew
// after every scan.
type finding struct {
	subject
	serial  uint64
	id      string
	retry   uint64 // when it may be told, after it was refused
	was     culprit
	members int // late sockets that it is about; of what is no set of sockets, 1 as long as it is so
	fresh   bool

	count    int
	first    uint64 // when the oldest became a suspect; 0: there are none
	holders  []SocketHolder
	evidence Evidence
	severity Severity

	reported     bool
	said         *Finding // as it was told last, of a Kind that walks
	lastCount    int      // as reported last
	lastAge      uint64
	lastSeverity Severity
	peakCount    int
	peakAge      uint64
}

// subject is what a finding is about: there is one open finding about it at most.
type subject struct {
	kind  Kind
	proc  uint32
	group uint32 // of TimeWaitPorts, the portGroup
	netns uint32
	rport uint16
	raddr events.Addr
}

// noFinding is the number of what a conn that belongs to no finding belongs to.
const noFinding = 0

// join makes a conn a member of a finding, and of no other.
func (t *Tracker) join(i, f uint32) {
	c := t.table.at(i)
	if c.finding == f {
		return
	}
	if c.finding != noFinding {
		t.findings[c.finding].members--
	}
	if f != noFinding {
		t.findings[f].members++
	}
	c.finding = f
}

// findingOf returns the number of the open finding of this kind about a process.
// It may be new.
func (t *Tracker) findingOf(kind Kind, proc uint32) uint32 {
	return t.open(subject{kind: kind, proc: proc})
}

// open returns the number of the open finding about s. It may be new.
func (t *Tracker) open(s subject) uint32 {
	n, ok := t.opened[s]
	if ok {
		return n
	}
	t.serial++
	f := &finding{subject: s, serial: t.serial, severity: Warning}
	if k := len(t.freeFindings); k > 0 {
		n, t.freeFindings = t.freeFindings[k-1], t.freeFindings[:k-1]
		t.findings[n] = f
	} else {
		n = uint32(len(t.findings))
		t.findings = append(t.findings, f)
	}
	t.opened[s] = n
	t.openOf[s.kind]++
	t.procs.all[s.proc].findings++
	return n
}

// close says that the finding about s, if there is one, is over.
func (t *Tracker) close(s subject) {
	if n := t.opened[s]; n != noFinding {
		t.findings[n].members = 0
	}
}

// forget lets go of a finding that is over and reported.
func (t *Tracker) forget(n uint32) {
	f := t.findings[n]
	delete(t.opened, f.subject)
	t.openOf[f.kind]--
	t.findings[n] = nil
	t.freeFindings = append(t.freeFindings, n)
	t.procs.all[f.proc].findings--
	t.procs.release(f.proc)
	if f.group != 0 {
		t.groups.at(f.group).finding = noFinding
		t.forgetGroup(f.group)
	}
}

// aboutLate reports whether it is about late sockets: findLeaks puts it together.
func (k Kind) aboutLate() bool { return k == CloseWaitLeak || k == ResetFdLeak }

// findLeaks weighs the late sockets by what the scan that has just ended says of
// them. With complete, those that it has not found are not there any more, or
// have gone meanwhile.
func (t *Tracker) findLeaks(complete bool) {
	for _, f := range t.findings {
		if f != nil && f.kind.aboutLate() {
			f.count, f.first, f.holders, f.evidence = 0, 0, f.holders[:0], Evidence{}
			f.fresh = true
		}
	}
	t.inSight = 0
	var gone []uint32
	for i := t.list(late).head; i != 0; i = t.table.at(i).next {
		if t.accuse(i, complete) {
			gone = append(gone, i)
		}
	}
	for _, i := range gone {
		t.vanish(i, t.now)
	}
	for _, f := range t.findings {
		if f != nil && f.kind.aboutLate() {
			t.weigh(f)
		}
	}
}

// accuse makes a late socket a member of the finding that it belongs to. It reports
// whether the socket has gone.
func (t *Tracker) accuse(i uint32, complete bool) (gone bool) {
	c := t.table.at(i)
	v := t.verdictOf(c)
	c.busy = v == VerdictNone
	if v == NotAccepted && c.verdict != yes {
		t.yieldTo(i)
	}
	t.inSight++
	if c.verdict != yes || v == VerdictNone {
		t.join(i, noFinding)
		return false
	}
	if c.scan != t.scan {
		if complete && c.unseen < unseenScans {
			c.unseen++
		}
		switch {
		case c.unseen == unseenScans && c.state == events.Close:
			t.inSight--
			t.join(i, noFinding) // no iterator finds it but by its descriptor
		case c.unseen == unseenScans:
			return true
		case c.finding != noFinding:
			t.count(t.findings[c.finding], c, v) // it is as it was, as far as is known
		}
		return false
	}
	kind, proc := t.charge(i, v)
	n := c.finding
	// One that nobody has for a moment is on its way from one to another.
	if proc != nobody || n == noFinding || c.unheld {
		n = t.findingOf(kind, proc)
	}
	c.unheld = proc == nobody
	t.findings[n].fresh = true
	t.join(i, n)
	t.count(t.findings[n], c, v)
	return false
}

// yieldTo lets a filter by process have a socket in the queue of a listener that a
// process which it asks for has got hold of since.
func (t *Tracker) yieldTo(i uint32) {
	if l := t.listenerOf(t.table.at(i)); l != nil && l.byProcess {
		t.table.at(i).byQueue = true
		t.yield(i)
	}
}

// charge says what of, and whom, a socket accuses. A process that was passed the
// descriptor, or that has inherited it, is the owner once nobody else is.
func (t *Tracker) charge(i uint32, v Verdict) (Kind, uint32) {
	c := t.table.at(i)
	if v == NotAccepted {
		if l := t.listenerOf(c); l != nil {
			return CloseWaitLeak, t.culprit(l)
		}
		return CloseWaitLeak, nobody
	}
	proc := t.culprit(c)
	if q := t.procs.all[proc]; proc != nobody && q.pid != t.procs.names[c.owner].pid {
		t.setOwner(i, t.procs.take(q.pid, &q.comm), SourceFd)
	}
	if v == Dead {
		return ResetFdLeak, proc
	}
	return CloseWaitLeak, proc
}

// count adds one socket to what a finding says.
func (t *Tracker) count(f *finding, c *conn, v Verdict) {
	e := &f.evidence
	e.Ends.meet(&c.ends, f.count == 0)
	f.count++
	e.Verdicts[v]++
	if ktime, exact := c.entered(); f.first == 0 || ktime < f.first {
		f.first, e.Exact = ktime, exact
	}
	switch v {
	case Dead:
		e.Ended[c.end]++
	case NotAccepted:
		if l := t.listenerOf(c); l != nil {
			e.Listeners = t.addHolders(e.Listeners, l)
		}
	default:
		if c.scan == t.scan && c.holder == 0 {
			e.NoDescriptor++
		}
	}
	if v != Dead {
		e.Unread += uint64(max(c.unread, 1) - 1) // without the FIN
	}
	f.holders = t.addHolders(f.holders, c)
}

// addHolders adds the holders of c that are not in hs yet, as many as it may have.
func (t *Tracker) addHolders(hs []SocketHolder, c *conn) []SocketHolder {
	if len(hs) == MaxFindingHolders {
		return hs
	}
next:
	for _, h := range t.holdersOf(c) {
		h := SocketHolder{Holder: h, Cookie: c.Cookie}
		for _, known := range hs {
			if known == h {
				continue next
			}
		}
		if hs = append(hs, h); len(hs) == MaxFindingHolders {
			break
		}
	}
	return hs
}

// weigh draws the sum of a finding about sockets.
func (t *Tracker) weigh(f *finding) {
	e := &f.evidence
	for v := EOFRead; v <= NotAccepted; v++ {
		if e.Verdicts[v] > e.Verdicts[e.Verdict] {
			e.Verdict = v
		}
	}
	f.peakCount = max(f.peakCount, f.count) // told or not
}

// Wanted returns the processes that Details are wanted of for the findings that
// the next Tick reports. It is good until the next call.
func (t *Tracker) Wanted() []uint32 {
	t.pids = t.pids[:0]
	for _, f := range t.findings {
		if f != nil && f.proc != nobody && t.due(f) && f.members > 0 {
			t.pids = append(t.pids, t.procs.all[f.proc].pid)
		}
	}
	return t.pids
}

// Knows reports whether Details were given for this process.
func (t *Tracker) Knows(pid uint32) bool {
	n, ok := t.procs.byPid[pid]
	return ok && t.procs.all[n].known
}
