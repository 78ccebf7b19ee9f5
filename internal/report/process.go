package report

import "math"

type processKey struct {
	input int
	pid   uint32
	comm  string
}

// process is what the sockets of one process have done. One that is not known has the PID 0.
type process struct {
	processKey
	where   string         // its container
	held    map[uint32]int // in CLOSE_WAIT now, by network namespace
	level   gauge          // all of these
	entered uint64         // CLOSE_WAIT, seen
	left    uint64         // likewise
	waits   histogram      // in CLOSE_WAIT
	conns   uint64         // whose last state has ended
	waited  uint64         // of these, that were in CLOSE_WAIT
	failed  uint64         // of these, that a reset or a timeout has ended
}

// gauge is a number that goes up and down.
type gauge struct {
	now, peak int
	curve     curve
	retired   bool // nobody will look at the curve
}

func (g *gauge) retire() { g.retired, g.curve = true, curve{} }

func (g *gauge) set(at int64, level int) {
	if level == g.now {
		return
	}
	g.now, g.peak = level, max(g.peak, level)
	if !g.retired {
		g.curve.set(at, level)
	}
}

// weight has what leaks first, then what is busy.
func (p *process) weight() uint64 {
	return uint64(min(p.level.peak, math.MaxInt32))<<32 | min(p.entered+p.conns, math.MaxUint32)
}

// set gives the number of sockets in CLOSE_WAIT that the process has in a namespace.
func (p *process) set(in *Input, at int64, netns uint32, n int) {
	n = max(n, 0) // one that was not seen to enter is no debt
	change := n - p.held[netns]
	if p.held == nil {
		p.held = map[uint32]int{}
	}
	switch {
	case n == 0:
		delete(p.held, netns)
	case len(p.held) < maxNetworks || p.held[netns] > 0:
		p.held[netns] = n
	default:
		return
	}
	p.level.set(at, p.level.now+change)
	in.everyone.level.set(at, in.everyone.level.now+change)
}

// process returns the one that a record names as the owner.
func (in *Input) process(r *record) *process {
	p := in.processOf(r.Pid, r.Comm)
	if p.where == "" {
		p.where = r.where()
	}
	return p
}

func (in *Input) processOf(pid uint32, comm string) *process {
	k := processKey{in.number, pid, comm}
	p, made := in.report.processes.at(k)
	if made {
		p.processKey = k
	}
	return p
}

// releaseAll lets go of all that the processes have, and of all in TIME_WAIT.
func (in *Input) releaseAll(at int64) {
	for _, s := range in.open {
		if s.left == 0 { // its process may have given way on the board
			s.process.set(in, at, s.netns, 0)
		}
	}
	in.every.level.set(at, 0)
	for k, p := range in.report.places.rows {
		if k.input == in.number {
			p.level.set(at, 0)
		}
	}
	for _, k := range in.report.processes.keys {
		if p := in.report.processes.rows[k]; k.input == in.number {
			for netns := range p.held {
				p.set(in, at, netns, 0)
			}
		}
	}
}

// summary corrects what the transitions have led to believe, where there are any.
func (in *Input) summary(r *record) {
	if len(in.summarized) < maxNetworks {
		in.summarized[r.Netns] = r.at
	}
	named := map[*process]bool{}
	for _, p := range r.Processes {
		row := in.processOf(p.Pid, clip(p.Comm, maxName))
		row.set(in, r.at, r.Netns, p.CloseWait)
		named[row] = true
	}
	if len(r.Processes) >= summaryProcesses {
		return // others may have some too
	}
	for _, k := range in.report.processes.keys {
		if p := in.report.processes.rows[k]; k.input == in.number && p.held[r.Netns] > 0 && !named[p] {
			p.set(in, r.at, r.Netns, 0)
		}
	}
}
