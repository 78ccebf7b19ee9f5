package aggregate

import (
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// Census is what there is now in all network namespaces, of what the filter lets through.
type Census struct {
	// States is the number of sockets, minisockets included; Close is not one. What is no
	// socket yet (SynRecv) was counted by the last scan of all.
	States    [events.NumStates]int
	CloseWait map[Program]Waits            // States[CloseWait], by who is to close them; in an accept queue, whose that is
	Findings  [numKinds][numSeverities]int // that are open
	// Ports is the share of the ephemeral ports that is taken to the one destination to which most
	// are, TIME_WAIT included; negative if that is not known. Whose the connections are makes no
	// difference; so with a filter that hides those of others it is not known.
	Ports float64
}

// Program is what the processes of one container with the same name have in common.
type Program struct {
	Comm      events.Comm // of none if it is not known
	Container string
}

// Waits is the sockets of a program in CLOSE_WAIT.
type Waits struct {
	Sockets int
	Oldest  time.Duration // at the least, of one that was there before tracing started
}

// Add takes in those of another.
func (w *Waits) Add(other Waits) {
	w.Sockets += other.Sockets
	w.Oldest = max(w.Oldest, other.Oldest)
}

// Census counts. Unlike Summarize it changes nothing.
func (t *Tracker) Census() Census {
	n := Census{CloseWait: map[Program]Waits{}, Ports: t.portsTaken()}
	closeWait := make([]Waits, len(t.procs.all))
	for _, c := range t.table.all() {
		if c.verdict != yes || c.state == events.Close {
			continue
		}
		n.States[c.state]++
		if c.state == events.CloseWait {
			ktime, _ := c.entered()
			closeWait[t.procs.names[c.owner].proc].Add(Waits{1, time.Duration(t.now - min(ktime, t.now))})
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
	for proc, w := range closeWait {
		if w.Sockets > 0 {
			q := t.procs.all[proc]
			p := Program{q.comm, q.container().ID}
			w.Add(n.CloseWait[p])
			n.CloseWait[p] = w
		}
	}
	for _, f := range t.findings {
		if f != nil && f.members > 0 {
			n.Findings[f.kind][f.severity]++
		}
	}
	return n
}

// portsTaken is Census.Ports.
func (t *Tracker) portsTaken() float64 {
	if t.filter.hidesPorts() || !t.seesMinis {
		return -1 // others may have more
	}
	most, unknown := 0.0, false
	for i, g := range t.groups.all() {
		k := t.groups.key(i)
		if k.ours {
			continue
		}
		total := t.net(k.netns).ports()
		if total <= 0 {
			unknown = true
			continue
		}
		most = max(most, min(float64(t.used(k, g))/float64(total), 1))
	}
	if unknown && most == 0 {
		return -1
	}
	return most
}
