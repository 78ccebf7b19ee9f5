package aggregate

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// A process that exits closes its sockets one by one. The last is behind when
// none has followed for so long.
const exitSettled = uint64(200 * time.Millisecond)

// exit counts what only the exit of a process has closed.
type exit struct {
	count    int
	last     uint64
	oldest   time.Duration
	evidence Evidence
}

// neverClosed notes a socket that leaves CLOSE_WAIT because proc exits.
func (t *Tracker) neverClosed(i uint32, ev *events.Event, proc uint32) {
	c := t.table.at(i)
	ktime, exact := c.entered()
	age := ev.Ktime - min(ktime, ev.Ktime)
	// One in use was cut off, not left behind: it was when the last scan looked, or it
	// has been since.
	inUse := c.busy || ev.Ktime < c.active+t.closeWaitAfter ||
		ev.Sent > c.sent || c.examined && ev.Unread < c.unread
	// Of one that is no suspect it comes to light only now that its peer had closed.
	if c.suspect == notSuspect || age < t.closeWaitAfter || inUse || c.verdict != yes || proc == nobody {
		return
	}
	x := &t.procs.all[proc].exit
	if x.count == 0 {
		t.exits = append(t.exits, proc)
	}
	x.evidence.Ends.meet(&c.ends, x.count == 0)
	x.count++
	x.last = ev.Ktime
	if d := time.Duration(age); d > x.oldest {
		x.oldest, x.evidence.Exact = d, exact
	}
	switch {
	case c.source == SourceListener:
		x.evidence.Verdicts[NotAccepted]++
	case ev.Unread == 0:
		x.evidence.Verdicts[EOFRead]++
	default:
		x.evidence.Verdicts[EOFUnread]++
	}
	x.evidence.Unread += uint64(max(ev.Unread, 1) - 1)
}

// What has to go through all that there is for its evidence is told so often at a time.
const maxWalks = 8

// Such a finding, if the output has refused it, is not put together again before this
// time.
const retryAfter = uint64(200 * time.Millisecond)

func (k Kind) walks() bool { return k == FinWait2Stuck || k == TimeWaitPorts }

// report says what is new; of what needs a walk, not more than so much.
func (t *Tracker) report(walks int) {
	t.urgent = false
	for n, f := range t.findings {
		if f == nil || t.now < f.retry {
			continue
		}
		q := t.procs.all[f.proc]
		if f.kind == FdLimit && t.procs.byPid[q.pid] != f.proc {
			f.members = 0 // it has exited, and its PID is another's
		}
		if f.kind == FinWait2Stuck {
			f.count = f.members
		}
		if f.kind.aboutLate() {
			f.severity = Warning
			if l := q.details.FileLimit; l != 0 && uint64(f.count) >= l/2 {
				f.severity = Critical
			}
		}
		if t.due(f) {
			if f.kind.walks() && f.members > 0 {
				if walks == 0 {
					continue // for another time
				}
				walks--
			}
			if !t.tell(f) {
				if f.kind.walks() {
					f.retry = t.now + retryAfter
				}
				continue // until there is room
			}
		}
		f.fresh = false
		if f.members == 0 {
			t.forget(uint32(n))
		}
	}
	t.reportExits(exitSettled)
}

// reportExits says of processes that have exited that long ago what they left.
func (t *Tracker) reportExits(settled uint64) {
	kept := t.exits[:0]
	for _, n := range t.exits {
		x := &t.procs.all[n].exit
		if t.now < x.last+settled || !t.tellExit(n, x) {
			kept = append(kept, n)
			continue
		}
		*x = exit{}
		t.procs.release(n)
	}
	t.exits = kept
}

// Finish ends the run: what would have been said a moment later is said now. It
// returns how many findings the output has refused.
func (t *Tracker) Finish() (refused int) {
	for _, w := range t.ending {
		if i := t.minis.find(w.addr); i != 0 && t.minis.at(i).ended != 0 {
			t.endMini(i)
		}
	}
	t.ending = nil
	for _, f := range t.findings {
		if f != nil {
			f.retry = 0
		}
	}
	t.report(len(t.findings))
	t.reportExits(0)
	refused = len(t.exits)
	for _, f := range t.findings {
		if f != nil && t.due(f) {
			refused++
		}
	}
	return refused
}

// due reports whether there is something to say about f.
func (t *Tracker) due(f *finding) bool {
	switch {
	case f.members == 0:
		return f.reported
	case !f.fresh:
		return false
	}
	return !f.reported || f.count >= 2*f.lastCount || f.severity > f.lastSeverity ||
		f.first != 0 && t.age(f) >= 2*f.lastAge
}

func (t *Tracker) age(f *finding) uint64 { return t.now - min(f.first, t.now) }

// tell makes the record of a finding. It returns false if the output had no place
// for it: it is then tried again.
func (t *Tracker) tell(f *finding) bool {
	r := t.record(f)
	if f.members > 0 {
		f.peakCount = max(f.peakCount, f.count)
		if f.first != 0 {
			f.peakAge = max(f.peakAge, t.age(f))
		}
		f.was = culpritOf(&r)
	}
	if !t.out.Finding(&r) {
		return false
	}
	if !f.reported {
		t.counts.Findings[f.kind]++
	}
	f.reported, f.lastCount, f.lastAge, f.lastSeverity = true, f.count, t.age(f), f.severity
	if f.kind.walks() {
		f.said = &r
	}
	return true
}

// record is what there is to say about a finding now.
func (t *Tracker) record(f *finding) Finding {
	q := t.procs.all[f.proc]
	r := Finding{
		Ktime: t.now, Kind: f.kind, Severity: f.severity,
		Pid: q.pid, Comm: q.comm, Exe: q.details.Exe, Container: q.container(),
		Oldest: Unknown, Holders: f.holders, Evidence: f.evidence,
	}
	e := &r.Evidence
	e.History, e.OpenFiles, e.FileLimit = &q.history, q.details.OpenFiles, q.details.FileLimit
	e.Exhausted = Unknown
	if f.members > 0 {
		t.evidence(f, &r)
	}
	if f.id == "" {
		f.id = identify(f.kind, r.Pid, f.serial)
	}
	r.ID = f.id
	if f.members == 0 {
		r.Status, r.Holders = Resolved, nil
		e.PeakCount, e.PeakOldest = f.peakCount, Unknown
		if f.peakAge != 0 {
			e.PeakOldest = time.Duration(f.peakAge)
		}
		f.was.blame(&r)
		if c, ok := t.procs.containers[r.Container.ID]; ok {
			r.Container = c.Container // its names may have come since
		}
	} else {
		r.Count = f.count
		if f.first != 0 {
			r.Oldest = time.Duration(t.age(f))
		}
		if f.reported {
			r.Status = Update
		}
	}
	r.Message, r.Advice = explain(&r)
	return r
}

// evidence fills in what only looking at other things than the finding's own sockets
// tells; and who it is about, if that is not settled by its subject.
func (t *Tracker) evidence(f *finding, r *Finding) {
	e := &r.Evidence
	switch f.kind {
	case FdLimit:
		q := t.procs.all[f.proc]
		e.Sockets, e.CloseWait = f.count, q.history.Held
		if e.PerMinute, e.Measured = q.growth.perMinute(); e.Measured && e.PerMinute > 0 {
			left := float64(e.FileLimit - min(uint64(e.OpenFiles), e.FileLimit))
			e.Exhausted = time.Duration(min(left/e.PerMinute*float64(time.Minute), math.MaxInt64/2))
		}
	case FinWait2Stuck:
		e.Peer = t.peerEvidence(t.opened[f.subject])
		e.Exact = f.first != 0
		t.accuseFirst(r, e.Peer.Peers)
	case TimeWaitPorts:
		e.Ports = t.portsEvidence(f.group)
		t.accuseFirst(r, e.Ports.Makers)
	case TimeWaitOverflow:
		e.Makers = t.rank(t.net(f.netns).by, true)
		t.accuseFirst(r, e.Makers)
	}
}

// accuseFirst makes r about the process that has most to do with it.
func (t *Tracker) accuseFirst(r *Finding, ms []Maker) {
	if len(ms) == 0 {
		return
	}
	r.Pid, r.Comm = ms[0].Pid, ms[0].Comm
	if n, ok := t.procs.byPid[r.Pid]; ok {
		r.Exe, r.Container = t.procs.all[n].details.Exe, t.procs.container(n)
	}
}

// culprit is who a finding was about when it was reported last.
type culprit struct {
	pid       uint32
	comm      events.Comm
	exe       string
	container events.Container
}

func culpritOf(r *Finding) culprit { return culprit{r.Pid, r.Comm, r.Exe, r.Container} }

func (c *culprit) blame(r *Finding) {
	r.Pid, r.Comm, r.Exe, r.Container = c.pid, c.comm, c.exe, c.container
}

func (t *Tracker) tellExit(n uint32, x *exit) bool {
	q := t.procs.all[n]
	r := Finding{
		Ktime: t.now, ID: identify(NeverClosed, q.pid, t.serial+1), Kind: NeverClosed, Severity: Warning,
		Pid: q.pid, Comm: q.comm, Exe: q.details.Exe, Container: q.container(),
		Count: x.count, Oldest: x.oldest, Evidence: x.evidence,
	}
	r.Evidence.History = &q.history
	r.Message, r.Advice = explain(&r)
	if !t.out.Finding(&r) {
		return false
	}
	t.serial++
	t.counts.Findings[NeverClosed]++
	return true
}

func identify(k Kind, pid uint32, serial uint64) string {
	return fmt.Sprintf("%s-%d-%d", k, pid, serial)
}

// explain says it in one sentence, and what to do about it in another.
func explain(r *Finding) (message, advice string) {
	who := "no visible process"
	if r.Pid != 0 {
		who = fmt.Sprintf("%s[%d]", r.Comm.Bytes(), r.Pid)
	}
	if c := &r.Container; c.Pod != "" {
		who += fmt.Sprintf(" in pod %s/%s (container %s)", c.Namespace, c.Pod, c.Name)
	}
	e := &r.Evidence
	conns := "1 connection"
	if r.Count != 1 {
		conns = fmt.Sprintf("%d connections", r.Count)
	}
	since := ""
	if r.Oldest != Unknown {
		since = ", the oldest for " + rounded(r.Oldest)
		if !e.Exact {
			since = ", the oldest for at least " + rounded(r.Oldest)
		}
	}
	switch {
	case r.Status == Resolved:
		message = fmt.Sprintf("%s is over", strings.ReplaceAll(r.Kind.String(), "_", " "))
		if r.Pid != 0 {
			message = who + ": " + message
		}
		return message, "Nothing is left to do."
	case r.Kind >= FinWait2Stuck:
		return explainNetwork(r, who, conns, since)
	case r.Kind == CloseWaitLeak && r.Pid == 0 && e.Verdict == NotAccepted:
		message = fmt.Sprintf("%s in CLOSE_WAIT%s: nobody has called accept(), and whose listener it is cannot be told", conns, since)
		advice = cures[NotAccepted]
	case r.Kind == CloseWaitLeak && r.Pid == 0:
		message = fmt.Sprintf("no visible process has a descriptor of %s in CLOSE_WAIT%s", conns, since)
		advice = "Run tcptrace where all processes are visible (the host's PID namespace); or the descriptors are in flight in a Unix socket that nobody reads."
	case r.Kind == CloseWaitLeak:
		message = fmt.Sprintf("%s keeps %s in CLOSE_WAIT%s: the peer has closed, and %s", who, conns, since, failures(e, r.Count))
		advice = cures[e.Verdict]
	case r.Kind == NeverClosed:
		message = fmt.Sprintf("%s exited with %s in CLOSE_WAIT%s: nothing but its exit has closed them", who, conns, since)
		advice = "The process leaked them; without the exit they would still be there. Close the descriptor when read() returns 0."
	case r.Kind == ResetFdLeak:
		message = fmt.Sprintf("%s keeps the descriptors of %s that ended%s; ss does not show them", who, conns, since)
		advice = "Close the descriptor when a call on it fails (ECONNRESET, EPIPE, ETIMEDOUT) or poll reports POLLERR or POLLHUP."
	case r.Kind == FdLimit:
		message = fmt.Sprintf("%s has %d of at most %d descriptors open, %d of them TCP sockets, %d in CLOSE_WAIT",
			who, e.OpenFiles, e.FileLimit, e.Sockets, e.CloseWait)
		if e.Exhausted != Unknown {
			message += "; at this rate none is left in " + rounded(e.Exhausted)
		}
		advice = "At the limit accept(), connect() and open() fail with EMFILE: close what is not needed, or raise RLIMIT_NOFILE (LimitNOFILE= of a systemd unit)."
	}
	return message, advice
}

var (
	faults = [numVerdicts]string{
		EOFRead:     "the process has read end-of-file and not called close()",
		EOFUnread:   "the process has not read that far",
		NotAccepted: "nobody has called accept()",
	}
	cures = [numVerdicts]string{
		EOFRead:     "Close the descriptor when read() returns 0, on every path, those for errors too.",
		EOFUnread:   "Find out where the process waits instead of reading: read until read() returns 0, or handle EPOLLRDHUP, then close() the descriptor.",
		NotAccepted: "Find out what keeps the accepting thread from accept(). A process that has run out of descriptors cannot accept either.",
	}
)

// failures says what was not done, and of how many if it is not the same of all.
func failures(e *Evidence, n int) string {
	var parts []string
	for v := EOFRead; v <= NotAccepted; v++ {
		switch e.Verdicts[v] {
		case 0:
		case n:
			return faults[v]
		default:
			parts = append(parts, fmt.Sprintf("%s (%d)", faults[v], e.Verdicts[v]))
		}
	}
	return strings.Join(parts, ", or ")
}

// rounded never says more than is true: an age may be a lower bound.
func rounded(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return d.Truncate(time.Microsecond).String()
	case d < 100*time.Millisecond:
		return d.Truncate(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Truncate(100 * time.Millisecond).String()
	}
	return d.Truncate(time.Second).String()
}
