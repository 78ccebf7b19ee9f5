package report

import (
	"maps"
	"slices"
)

// socket is one that has come into CLOSE_WAIT. It is kept until its connection has ended, since
// it knows what the record of that does not: who holds it, and a lower bound where the beginning
// was not seen.
type socket struct {
	connection
	process *process // that it is charged to
	charged int64    // when
	netns   uint32
	run     int // of the last record
	since   int64
	least   bool  // since is when it was in CLOSE_WAIT at the latest
	left    int64 // 0: it is in CLOSE_WAIT
}

func (in *Input) transition(r *record) {
	if r.Gap {
		in.gaps++
	}
	in.dwell.add(r.Oldstate, r.Dwell)
	key := r.key()
	delete(in.existing, key)
	if r.Oldstate == r.Newstate {
		return // close() after shutdown()
	}
	in.timeWait(r)
	s := in.open[key]
	if s != nil {
		s.fill(in, r)
	}
	switch {
	case r.Newstate == "CLOSE_WAIT":
		in.enter(key, r, r.at, false)
		in.process(r).entered++
		in.everyone.entered++
	case s != nil && s.left == 0:
		in.leave(s, r)
	case r.Oldstate == "CLOSE_WAIT":
		p := in.process(r)
		if in.strays > 0 { // it is one of these
			in.strays--
			p.set(in, r.at, r.Netns, p.held[r.Netns]-1)
		}
		in.left(p, r)
	}
	if s != nil && r.Newstate == "CLOSE" && in.counts["connection"] == 0 {
		// No record of the connection is to be expected; should one come, it counts.
		in.report.conns.add(s.row(in, false))
		delete(in.open, key)
	}
}

// enter follows a socket that is in CLOSE_WAIT.
func (in *Input) enter(key string, r *record, since int64, least bool) {
	s := in.open[key]
	if s == nil {
		s = &socket{}
		if len(in.open) >= maxSockets && in.departed >= maxSockets/8 {
			in.sweep()
		}
		if len(in.open) < maxSockets {
			in.open[key] = s
		} else {
			in.unfollowed++
			in.strays++
		}
	}
	if s.process != nil && s.left == 0 && s.run == in.run {
		in.release(s, r)
	}
	if r.Type == "socket" || s.process == nil {
		s.fill(in, r)
	}
	s.netns, s.run, s.left = r.Netns, in.run, 0
	if s.since == 0 || since < s.since {
		s.since, s.least = since, least
	}
	s.process, s.charged = in.process(r), r.at
	s.process.set(in, r.at, r.Netns, s.process.held[r.Netns]+1)
}

// charge has a socket in CLOSE_WAIT count against another process. What a summary has counted is right
// already.
func (in *Input) charge(s *socket, to *process, at int64) {
	if _, ok := in.summarized[s.netns]; ok || s.left != 0 || s.run != in.run {
		return
	}
	s.process.set(in, at, s.netns, s.process.held[s.netns]-1)
	s.process, s.charged = to, at
	to.set(in, at, s.netns, to.held[s.netns]+1)
}

// sweep makes room: what has left CLOSE_WAIT waits only for its connection's record, which may
// have been lost. It is worth while only for many.
func (in *Input) sweep() {
	in.departed = 0
	for _, key := range slices.Sorted(maps.Keys(in.open)) {
		if s := in.open[key]; s.left != 0 {
			in.report.conns.add(s.row(in, false))
			delete(in.open, key)
		}
	}
}

// leave takes a socket out of CLOSE_WAIT.
func (in *Input) leave(s *socket, r *record) {
	s.left = r.at
	in.departed++
	in.left(in.release(s, r), r)
}

func (in *Input) left(p *process, r *record) {
	for _, p := range []*process{p, &in.everyone} {
		p.left++
		if r.Oldstate == "CLOSE_WAIT" && r.Dwell != nil {
			p.waits.add(*r.Dwell)
		}
	}
}

// release takes a socket off the process that it counts against. That is the one that it was charged to;
// but a summary since then has counted it as whose it had become.
func (in *Input) release(s *socket, r *record) *process {
	p := s.process
	if at, ok := in.summarized[s.netns]; ok && at >= s.charged {
		if owner := in.process(r); owner.held[s.netns] > 0 {
			p = owner
		}
	}
	p.set(in, r.at, s.netns, p.held[s.netns]-1)
	return p
}

// socket takes one that was there before the start.
func (in *Input) socket(r *record) {
	if slices.Contains(states[:], r.State) {
		in.found[r.State]++
	}
	if r.State == "TIME_WAIT" {
		in.every.level.set(r.at, in.every.level.now+1)
	}
	key := r.key()
	if r.State != "CLOSE_WAIT" {
		switch {
		case len(in.existing) < maxExisting || in.existing[key] != nil:
			c := &connection{}
			c.fill(in, r)
			in.existing[key] = c
		case len(in.existing) < maxSockets:
			in.existing[key] = nil
		default:
			in.unfollowed++
		}
		return
	}
	since := r.at
	if r.Age != nil {
		since -= ns(*r.Age)
	}
	in.enter(key, r, since, true)
	if s := in.open[key]; s != nil {
		s.Holders, s.Verdict = r.Holders, r.Verdict
	}
}

// connection takes one that has ended.
func (in *Input) connection(r *record) {
	if r.Gap {
		in.gaps++
	}
	p := in.process(r)
	_, waited := r.Spent["CLOSE_WAIT"]
	for _, p := range []*process{p, &in.everyone} {
		p.conns++
		if waited {
			p.waited++
		}
		if failed(r.End) {
			p.failed++
		}
	}
	for state, ms := range r.Spent {
		in.spent.add(state, ms)
	}
	if _, ok := r.Spent["TIME_WAIT"]; ok {
		in.timeWaited(r)
	}
	key := r.key()
	c := &connection{}
	c.fill(in, r)
	delete(in.existing, key)
	if s := in.open[key]; s != nil {
		if s.left == 0 { // its transition was lost, or is not in the input
			in.leave(s, r)
		}
		c.learn(s.row(in, false))
		delete(in.open, key)
	}
	in.report.conns.add(c)
}

// row is what goes into the table without a record of the connection. It is still in CLOSE_WAIT,
// or what has become of it is not known.
func (s *socket) row(in *Input, still bool) *connection {
	c := &s.connection
	until := s.left
	switch {
	case until != 0:
	case still:
		until, s.least = in.to, true
	default: // it was there when it was last told of
		until, s.least = s.charged, true
		c.State = ""
	}
	waited := ms(until - s.since)
	c.Waited, c.Least, c.pieced = &waited, s.least, true
	return c
}

// failed says which ends are none that an application asked for.
func failed(end string) bool {
	switch end {
	case "reset_sent", "reset_received", "timeout", "refused", "aborted":
		return true
	}
	return false
}
