package report

import (
	"cmp"
	"container/heap"
	"slices"
)

// connection is a row of the table: a connection that has ended, or a socket.
type connection struct {
	Input       int      `json:"input"`
	Cookie      string   `json:"cookie,omitempty"`
	Netns       uint32   `json:"netns,omitempty"`
	Laddr       string   `json:"laddr"`
	Lport       uint16   `json:"lport"`
	Raddr       string   `json:"raddr"`
	Rport       uint16   `json:"rport"`
	Pid         uint32   `json:"pid,omitempty"`
	Comm        string   `json:"comm"`
	OwnerSource string   `json:"owner_source,omitempty"`
	Where       string   `json:"where,omitempty"`
	Role        string   `json:"role,omitempty"`
	Start       *float64 `json:"start"` // ms of Unix time, as all times on the page
	Time        float64  `json:"time"`  // of the last record
	Duration    *float64 `json:"duration_ms"`
	Spent       []spent  `json:"states,omitempty"`
	Closer      string   `json:"closer,omitempty"`
	End         string   `json:"end,omitempty"`
	CloseCall   string   `json:"close_call,omitempty"`
	Sent        *uint64  `json:"sent_bytes"`
	Received    *uint64  `json:"received_bytes"`
	TimeWaitEnd string   `json:"time_wait_end,omitempty"`
	Gap         bool     `json:"gap,omitempty"`
	Waited      *float64 `json:"close_wait_ms"`
	Least       bool     `json:"at_least,omitempty"` // it waited for that long at least
	State       string   `json:"state,omitempty"`    // that it was in when the input ended
	Holders     []holder `json:"holders,omitempty"`
	Verdict     string   `json:"verdict,omitempty"`

	number uint64 // in the order in which they came
	pieced bool   // together from transitions, for want of the connection's own record
}

type spent struct {
	State string   `json:"state"`
	Ms    *float64 `json:"ms"`
}

// fill takes what a record of any type says of the socket.
func (c *connection) fill(in *Input, r *record) {
	c.Input, c.Cookie, c.Netns = in.number, r.Cookie, r.Netns
	c.Laddr, c.Lport, c.Raddr, c.Rport = r.Laddr, r.Lport, r.Raddr, r.Rport
	c.Pid, c.Comm, c.OwnerSource, c.Where = r.Pid, r.Comm, r.OwnerSource, r.where()
	c.Time = ms(r.at)
	c.Gap = c.Gap || r.Gap
	switch r.Type {
	case "transition":
		c.State = r.Newstate
		if len(c.Spent) < len(states) {
			c.Spent = append(c.Spent, spent{r.Oldstate, r.Dwell})
		}
	case "socket":
		c.State, c.Verdict, c.Holders = r.State, r.Verdict, r.Holders
	case "connection":
		c.Role, c.Duration, c.Closer, c.End, c.CloseCall = r.Role, r.Duration, r.Closer, r.End, r.CloseCall
		c.Sent, c.Received, c.TimeWaitEnd = r.Sent, r.Received, r.TimeWaitEnd
		if at, err := stamp(r.Start); err == nil {
			start := ms(at)
			c.Start = &start
		}
		for _, s := range states {
			if d, ok := r.Spent[s]; ok {
				c.Spent = append(c.Spent, spent{s, d})
			}
		}
		c.Waited = r.Spent["CLOSE_WAIT"]
	}
}

// Of connections, so many are kept: those that were longest in CLOSE_WAIT, the last that failed, and
// the last of all.
const (
	keptWorst  = 1000
	keptFailed = 400
	keptLatest = 600
)

// connections is a choice of all.
type connections struct {
	seen   uint64
	worst  byWait
	failed ring
	latest ring
}

func (cs *connections) add(c *connection) {
	cs.seen++
	c.number = cs.seen
	if c.Waited != nil {
		if len(cs.worst) < keptWorst {
			heap.Push(&cs.worst, c)
		} else if *c.Waited > *cs.worst[0].Waited {
			cs.worst[0] = c
			heap.Fix(&cs.worst, 0)
		}
	}
	if failed(c.End) {
		cs.failed.add(c, keptFailed)
	}
	cs.latest.add(c, keptLatest)
}

// chosen returns what is kept, longest in CLOSE_WAIT first, then the latest.
func (cs *connections) chosen() []*connection {
	all := slices.Concat(cs.worst, cs.failed.all, cs.latest.all)
	slices.SortFunc(all, func(x, y *connection) int { return cmp.Compare(x.number, y.number) })
	all = slices.Compact(all)
	// What was made of transitions gives way to the connection's own record.
	type key struct {
		input        int
		cookie       string // "" where there are none
		netns        uint32
		laddr, raddr string
		lport, rport uint16
	}
	of := func(c *connection) key { return key{c.Input, c.Cookie, c.Netns, c.Laddr, c.Raddr, c.Lport, c.Rport} }
	told := map[key]*connection{}
	for _, c := range all {
		if !c.pieced {
			told[of(c)] = c
		}
	}
	all = slices.DeleteFunc(all, func(c *connection) bool {
		own := told[of(c)]
		if !c.pieced || own == nil || own.number < c.number { // an earlier one is another's, whose ports are used again
			return false
		}
		own.learn(c)
		return true
	})
	slices.SortStableFunc(all, func(x, y *connection) int {
		return cmp.Or(cmp.Compare(orLess(y.Waited), orLess(x.Waited)), cmp.Compare(y.number, x.number))
	})
	return all
}

// learn takes from another row of the same connection what its own record does not have.
func (c *connection) learn(from *connection) {
	c.Holders, c.Verdict = from.Holders, from.Verdict
	if c.Waited == nil {
		c.Waited, c.Least = from.Waited, from.Least
	}
}

func orLess(ms *float64) float64 {
	if ms == nil {
		return -1
	}
	return *ms
}

// byWait is a heap, that with the shortest time in CLOSE_WAIT on top.
type byWait []*connection

func (h byWait) Len() int           { return len(h) }
func (h byWait) Less(i, j int) bool { return *h[i].Waited < *h[j].Waited }
func (h byWait) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *byWait) Push(c any) { *h = append(*h, c.(*connection)) }

// Pop implements heap.Interface; nothing is ever popped.
func (h *byWait) Pop() any { panic("unused") }

// ring has the last that were added.
type ring struct {
	all  []*connection
	next int
}

func (r *ring) add(c *connection, limit int) {
	if len(r.all) < limit {
		r.all = append(r.all, c)
		return
	}
	r.all[r.next] = c
	r.next = (r.next + 1) % limit
}
