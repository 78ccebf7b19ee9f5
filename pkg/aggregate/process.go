package aggregate

import (
	"slices"
	"strings"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// A process is one process that has, or had, TCP sockets.
type process struct {
	pid     uint32
	comm    events.Comm
	details events.Details // but for the container
	known   bool           // details was asked for
	in      *container     // nil: none, or not known

	name                    uint32 // the last that it was told of by
	named                   int    // sockets and minisockets whose owner it is, by whatever name
	owned                   int    // sockets that it owns; of nobody, it says nothing
	timeWait                int    // minisockets of connections that it owned
	fds                     fds
	history                 History
	growth                  growth
	exit                    exit
	findings                int    // that are open
	pins                    int    // other things that refer to it
	lastEntered, lastClosed uint64 // of history, at the last summary
}

// nobody is the process that owns what no process is known to own.
const nobody = 0

// Beyond so many processes, those that own nothing are forgotten.
const manyProcesses = 1 << 12

// processes are the processes that are told of, and what a filter by process has
// learned of them. A process is named by its number here, which outlives its PID:
// that may be another's before the last socket of the first is gone.
type processes struct {
	filter   *Filter
	pids     map[uint32]bool // of Filter.Pids, those that no other process has now
	children map[uint32]bool // descendants of a process that matches

	all        []*process // nil: free
	free       []uint32
	byPid      map[uint32]uint32
	names      []name // number 0 is nobody's
	freeNames  []uint32
	nameOf     map[called]uint32
	sweepAt    int
	containers map[string]*container // by id; those that processes are in
	hidden     map[uint32]struct{}   // those that are not visible from our PID namespace
}

// A name is a process as it was called when it became the owner of a socket: exec()
// gives it another name. It is kept as long as such a socket, or its minisocket, is
// there, and the process with it.
type name struct {
	called
	pid     uint32 // the process's
	sockets int
}

// called is a process by its number, and what it is called.
type called struct {
	proc uint32
	comm events.Comm
}

// A container is shared by the processes that are in it, so that its names, which
// are known later than its id, are known of all of them at once.
type container struct {
	events.Container
	processes int
}

func newProcesses(f *Filter) processes {
	p := processes{
		filter: f, pids: map[uint32]bool{}, children: map[uint32]bool{},
		all: []*process{{}}, byPid: map[uint32]uint32{}, sweepAt: manyProcesses,
		names: make([]name, 1), nameOf: map[called]uint32{},
		containers: map[string]*container{}, hidden: map[uint32]struct{}{},
	}
	for _, pid := range f.Pids {
		p.pids[pid] = true
	}
	return p
}

// get returns the number of the process, which may be new.
func (p *processes) get(pid uint32, comm *events.Comm) uint32 {
	if pid == 0 {
		return nobody
	}
	n, ok := p.byPid[pid]
	if !ok {
		n = p.add(pid)
	}
	if comm != nil {
		p.all[n].comm = *comm
	}
	return n
}

func (p *processes) add(pid uint32) uint32 {
	if len(p.byPid) >= p.sweepAt {
		p.sweep()
		p.sweepAt = max(manyProcesses, 2*len(p.byPid))
	}
	n := uint32(len(p.all))
	if k := len(p.free); k > 0 {
		n, p.free = p.free[k-1], p.free[:k-1]
		p.all[n] = &process{pid: pid}
	} else {
		p.all = append(p.all, &process{pid: pid})
	}
	p.byPid[pid] = n
	return n
}

func (p *processes) sweep() {
	for pid, n := range p.byPid {
		if p.all[n].idle() {
			delete(p.byPid, pid)
			p.release(n)
		}
	}
}

// take returns the number of the present name of a process, for one more socket to be
// owned by.
func (p *processes) take(pid uint32, comm *events.Comm) uint32 {
	n := p.get(pid, comm)
	if n == nobody {
		return 0
	}
	q := p.all[n]
	if q.name == 0 || p.names[q.name].comm != *comm {
		was := q.name
		q.name = p.called(n, comm)
		p.unname(was)
	}
	p.keep(q.name)
	return q.name
}

// called returns the number of a name, which may be new.
func (p *processes) called(n uint32, comm *events.Comm) uint32 {
	c := called{n, *comm}
	i, ok := p.nameOf[c]
	if !ok {
		i = uint32(len(p.names))
		if k := len(p.freeNames); k > 0 {
			i, p.freeNames = p.freeNames[k-1], p.freeNames[:k-1]
		} else {
			p.names = append(p.names, name{})
		}
		p.names[i] = name{called: c, pid: p.all[n].pid}
		p.nameOf[c] = i
	}
	return i
}

// keep notes that one more socket has an owner by this name, give that one has no more.
func (p *processes) keep(i uint32) {
	if i != 0 {
		p.names[i].sockets++
		p.all[p.names[i].proc].named++
	}
}

func (p *processes) give(i uint32) {
	if i == 0 {
		return
	}
	n := p.names[i].proc
	p.names[i].sockets--
	p.all[n].named--
	p.unname(i)
	p.release(n)
}

// unname forgets a name that no socket needs, unless its process still goes by it.
func (p *processes) unname(i uint32) {
	c := &p.names[i]
	if i == 0 || c.sockets > 0 || p.all[c.proc].name == i {
		return
	}
	delete(p.nameOf, c.called)
	*c = name{}
	p.freeNames = append(p.freeNames, i)
}

// owner says who has a connection.
func (p *processes) owner(s *past) Owner {
	c := &p.names[s.owner]
	return Owner{Pid: c.pid, Comm: c.comm, Source: s.source}
}

// of returns the process that a connection is counted for: nobody's is one that nobody
// has accepted yet.
func (p *processes) of(s *past) uint32 {
	if s.source == SourceListener {
		return nobody
	}
	return p.names[s.owner].proc
}

// idle reports whether nothing refers to the process.
func (q *process) idle() bool {
	return q.named == 0 && q.exit.count == 0 && q.findings == 0 && q.pins == 0
}

// release forgets a process that has lost its PID, once nothing refers to it.
func (p *processes) release(n uint32) {
	q := p.all[n]
	if n == nobody || !q.idle() || p.byPid[q.pid] == n {
		return
	}
	p.leave(q)
	i := q.name
	q.name = 0
	p.unname(i)
	p.all[n] = nil
	p.free = append(p.free, n)
}

// describe takes over what is known of a process; what is not stays.
func (p *processes) describe(d *events.Details) *process {
	q := p.all[p.get(d.Pid, nil)]
	q.known = true
	if d.Container != "" {
		p.enter(q, d.Container)
	}
	if d.Exe != "" {
		q.details.Exe = d.Exe
	}
	if d.FileLimit != 0 {
		q.details.OpenFiles, q.details.FileLimit = d.OpenFiles, d.FileLimit
	}
	return q
}

// enter notes that q is in the container with this id.
func (p *processes) enter(q *process, id string) {
	c, ok := p.containers[id]
	if !ok {
		c = &container{Container: events.Container{ID: id}}
		p.containers[id] = c
	}
	c.processes++ // before it leaves, which may be the same one
	p.leave(q)
	q.in = c
}

// leave forgets a container once no process is in it.
func (p *processes) leave(q *process) {
	if q.in == nil {
		return
	}
	if q.in.processes--; q.in.processes == 0 {
		delete(p.containers, q.in.ID)
	}
	q.in = nil
}

// container returns the container of the process with this number, the zero one for
// none.
func (p *processes) container(n uint32) events.Container {
	if len(p.containers) == 0 {
		return events.Container{}
	}
	return p.all[n].container()
}

func (q *process) container() events.Container {
	if q.in == nil {
		return events.Container{}
	}
	return q.in.Container
}

// match reports whether f asks for this process.
func (p *processes) match(pid uint32, comm *events.Comm) bool {
	if pid == 0 {
		return false
	}
	if !p.filter.ByProcess() || p.children[pid] {
		return true
	}
	if len(p.filter.Pids) > 0 && !p.pids[pid] {
		return false
	}
	if len(p.filter.Comms) > 0 && !slices.Contains(p.filter.Comms, *comm) {
		return false
	}
	if p.filter.Container == "" {
		return true
	}
	n, ok := p.byPid[pid]
	return ok && strings.HasPrefix(p.container(n).ID, p.filter.Container)
}

// asked reports whether the filter asks for what this process does.
func (p *processes) asked(q *process) bool {
	return !p.filter.ByProcess() || p.match(q.pid, &q.comm)
}

// forked takes a fork; or, if old, that child was parent's when tracing started.
func (p *processes) forked(parent, child *events.Proc, old bool) {
	if !old {
		// Whoever had this PID before has exited. Its exit itself would come
		// too early: the sockets are closed after it.
		delete(p.pids, child.Pid)
		delete(p.children, child.Pid)
		if n, ok := p.byPid[child.Pid]; ok {
			delete(p.byPid, child.Pid)
			p.release(n)
		}
		// Until it is looked at; and it may be gone by then.
		if id := p.container(p.byPid[parent.Pid]).ID; id != "" && child.Pid != 0 {
			c := p.get(child.Pid, &child.Comm)
			p.enter(p.all[c], id)
		}
	}
	if p.filter.Follow && child.Pid != 0 && p.match(parent.Pid, &parent.Comm) {
		p.children[child.Pid] = true
	}
}

// hide counts a process that is not visible; not more than so many.
func (p *processes) hide(hostPid uint32) {
	if hostPid != 0 && len(p.hidden) < manyProcesses {
		p.hidden[hostPid] = struct{}{}
	}
}
