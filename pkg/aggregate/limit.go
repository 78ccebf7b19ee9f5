package aggregate

import (
	"math"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// The share of RLIMIT_NOFILE, in percent, at which a process is said to run out
// of descriptors; at which that is critical; and below which it no longer is so.
const (
	crowdedPercent  = 80
	criticalPercent = 95
	relievedPercent = 75
)

// How old a count of a process's sockets may be.
const recount = uint64(10 * time.Second)

// growth remembers how many sockets a process had in CLOSE_WAIT.
type growth struct {
	at   [8]uint64
	held [8]int
	n    int
}

func (g *growth) sample(ktime uint64, held int) {
	if g.n > 0 && ktime < g.at[g.n-1]+uint64(4*time.Second) {
		return
	}
	if g.n == len(g.at) {
		copy(g.at[:], g.at[1:])
		copy(g.held[:], g.held[1:])
		g.n--
	}
	g.at[g.n], g.held[g.n] = ktime, held
	g.n++
}

// forget drops the samples from before ktime.
func (g *growth) forget(ktime uint64) {
	old := 0
	for old < g.n && g.at[old] < ktime {
		old++
	}
	copy(g.at[:], g.at[old:g.n])
	copy(g.held[:], g.held[old:g.n])
	g.n -= old
}

// perMinute is false as long as there is too little to tell.
func (g *growth) perMinute() (float64, bool) {
	if g.n == 0 || g.at[g.n-1]-g.at[0] < uint64(5*time.Second) {
		return 0, false
	}
	minutes := time.Duration(g.at[g.n-1] - g.at[0]).Minutes()
	return float64(g.held[g.n-1]-g.held[0]) / minutes, true
}

// fds counts the descriptors of TCP sockets that a process has. Of what it owns, it
// may have passed on most.
type fds struct {
	scan    uint32 // that counted them last
	leaders int    // found by that one, of the first thread, and those who share them
	threads int    // of threads that do not: as it is too where the first thread has ended
	n       int    // by the last scan that looked for every socket
	ktime   uint64 // of that; 0: there was none
	waits   bool   // for the next
}

func (t *Tracker) countFd(p *events.Proc, thread bool) {
	f := &t.procs.all[t.procs.get(p.Pid, &p.Comm)].fds
	if f.scan != t.scan {
		f.scan, f.leaders, f.threads = t.scan, 0, 0
	}
	if thread {
		f.threads++
	} else {
		f.leaders++
	}
}

// countFds ends a scan that looked for every socket.
func (t *Tracker) countFds() {
	for _, q := range t.procs.all {
		if q == nil {
			continue
		}
		f := &q.fds
		f.n, f.ktime = 0, t.now
		switch {
		case f.scan != t.scan:
		case f.leaders > 0:
			f.n = f.leaders
		default:
			f.n = f.threads
		}
		if f.waits {
			f.waits = false
			t.limit(q)
		}
	}
}

// Details takes what /proc says of a process now.
func (t *Tracker) Details(d *events.Details) {
	if d.Pid == 0 {
		return
	}
	q := t.procs.describe(d)
	proc := t.procs.byPid[d.Pid]
	if d.Gone {
		t.close(subject{kind: FdLimit, proc: proc})
	}
	if d.FileLimit == 0 || !t.scanDone {
		return
	}
	q.growth.sample(t.now, q.history.Held)
	t.limit(q)
}

// Container takes the names of a container. One that no known process is in is
// ignored.
func (t *Tracker) Container(c *events.Container) {
	if known, ok := t.procs.containers[c.ID]; ok {
		known.Container = *c
	}
}

// WantsNames reports whether a process is in the container with this id, and its
// names were not given.
func (t *Tracker) WantsNames(id string) bool {
	c, ok := t.procs.containers[id]
	return ok && c.Pod == ""
}

// limit finds out whether a process is about to run out of descriptors, because of
// its sockets: one that is full of files or pipes is not our business.
func (t *Tracker) limit(q *process) {
	open, limit := uint64(q.details.OpenFiles), q.details.FileLimit
	percent := uint64(0)
	if limit < math.MaxUint64/100 {
		percent = open * 100 / limit
	}
	full, share := uint64(crowdedPercent), uint64(2)
	about := subject{kind: FdLimit, proc: t.procs.byPid[q.pid]}
	if t.procs.all[about.proc] != q {
		return // its PID is another's by now
	}
	if t.opened[about] != noFinding {
		full, share = relievedPercent, 3 // it takes more to take it back
	}
	counted := q.fds.ktime != 0 && t.now < q.fds.ktime+recount
	switch {
	case percent < full || !t.procs.asked(q):
	case !counted:
		t.wantOwners, q.fds.waits = true, true
		return
	case uint64(q.fds.n)*share >= open:
		f := t.findings[t.open(about)]
		f.members, f.fresh, f.count = 1, true, min(q.fds.n, int(open))
		f.severity = Warning
		if percent >= criticalPercent {
			f.severity = Critical
		}
		return
	}
	t.close(about)
}

// Watched returns the processes whose descriptors are worth a look: those that
// have many sockets, or a finding. It is good until the next call.
func (t *Tracker) Watched() []uint32 {
	const many = 8
	t.pids = t.pids[:0]
	for _, q := range t.procs.all[1:] {
		if q != nil && (max(q.owned, q.fds.n) >= many || q.findings > 0) {
			t.pids = append(t.pids, q.pid)
		}
	}
	return t.pids
}
