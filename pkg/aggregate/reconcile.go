package aggregate

import (
	"slices"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// reconcile holds what is known against what a scan of all sockets has found: what
// neither the kernel nor any counter has told comes to light here. Only of the network
// namespaces that were walked can anything be missing.
func (t *Tracker) reconcile(s *events.Scan) {
	t.scannedAll = t.now
	for _, inode := range s.Walked {
		t.net(inode)
	}
	for inode, n := range t.nets {
		n.minis, n.counting = n.counting, [events.NumStates]int{}
		n.walked = slices.Contains(s.Walked, inode)
		n.whole = n.whole || n.walked
	}
	for k := range t.newcomers {
		ev := &t.newcomers[k]
		if !t.newcomer[ev.Skaddr] || t.table.find(ev.Skaddr) != 0 {
			continue
		}
		if !t.makeRoom(t.now, 0) {
			t.counts.NoPlace++
			continue
		}
		i := t.table.add(ev.Skaddr)
		t.enlist(i, notSuspect)
		t.found(i, ev)
		if ev.Fd >= 0 {
			t.own(i, &ev.Proc, SourceFd)
		}
		t.table.at(i).scan = t.scan
		t.decide(i)
	}
	t.findStrays(t.now, uint64(time.Millisecond)) // what there is of news has been read
	if t.scanFrom == 0 {
		return
	}
	var gone []uint32
	for i, c := range t.table.all() {
		switch {
		case c.scan == t.scan:
			c.missing = 0
		case c.state == events.Close || max(c.since, c.asOf) >= t.scanFrom || !t.net(c.Netns).walked:
			// No iterator finds it; or it is newer than the scan, or out of reach.
		default:
			if c.missing++; c.missing == unseenScans {
				gone = append(gone, i)
			}
		}
	}
	for _, i := range gone {
		t.vanish(i, t.now)
	}
	gone = gone[:0]
	for i, m := range t.minis.all() {
		if m.scan == uint16(t.scan) || m.ended != 0 || m.begun >= t.scanFrom || !t.net(m.Netns).walked {
			continue
		}
		if m.missing++; m.missing == unseenScans {
			gone = append(gone, i)
		}
	}
	for _, i := range gone {
		t.endMini(i)
	}
}

// expireLostMinis ends minisockets whose end has not come though their time is up.
func (t *Tracker) expireLostMinis() {
	var gone []uint32
	for i, m := range t.minis.all() {
		if m.ended == 0 && t.now > m.expires+endMissed {
			gone = append(gone, i)
		}
	}
	for _, i := range gone {
		t.endMini(i)
	}
}
