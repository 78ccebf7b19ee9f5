package aggregate

import "github.com/tcptrace/tcptrace/pkg/events"

// Census is what there is now in all network namespaces, of what the filter lets through.
type Census struct {
	// States is the number of sockets, minisockets included; Close is not one. What is no
	// socket yet (SynRecv) was counted by the last scan of all.
	States    [events.NumStates]int
	CloseWait map[Program]int // States[CloseWait], by who is to close them; in an accept queue, whose that is
	Findings  [numKinds]int   // that are open
}

// Program is what the processes of one container with the same name have in common.
type Program struct {
	Comm      events.Comm // of none if it is not known
	Container string
}

// Census counts. Unlike Summarize it changes nothing.
func (t *Tracker) Census() Census {
	n := Census{CloseWait: map[Program]int{}}
	closeWait := make([]int, len(t.procs.all))
	for _, c := range t.table.all() {
		if c.verdict != yes || c.state == events.Close {
			continue
		}
		n.States[c.state]++
		if c.state == events.CloseWait {
			closeWait[t.procs.names[c.owner].proc]++
		}
	}
	for _, m := range t.minis.all() {
		if m.verdict == yes && m.ended == 0 {
			n.States[m.state]++
		}
	}
	for _, net := range t.nets {
		if net.walked {
			for st, k := range net.minis {
				n.States[st] += k
			}
		}
	}
	for proc, k := range closeWait {
		if k > 0 {
			q := t.procs.all[proc]
			n.CloseWait[Program{q.comm, q.container().ID}] += k
		}
	}
	for _, f := range t.findings {
		if f != nil && f.members > 0 {
			n.Findings[f.kind]++
		}
	}
	return n
}
