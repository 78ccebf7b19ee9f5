package aggregate

import "github.com/tcptrace/tcptrace/pkg/events"

// A socket that no list of suspects has is in the list of the idle ones. Each sign of life
// puts it at the end of that, but not more than once in so long: to find the one that has
// been idle longest is worth no more to each event.
const idleGrain = second

// One that has shown a sign of life within so long is not idle.
const idleAfter = second

// alive notes a sign of life at ktime of a socket whose last was at before.
func (t *Tracker) alive(i uint32, c *conn, before, ktime uint64) {
	if before/idleGrain != ktime/idleGrain && c.suspect == notSuspect && c.next != 0 {
		t.move(i, notSuspect)
	}
}

// So many sockets that must be kept are passed over in search of one that need not.
const mostPassed = 64

// makeRoom reports whether there is a place for another socket or minisocket. In a full
// table it takes that of the socket that has been idle longest. It keeps listeners, which
// their children need; suspects, and members of findings, since they are what is looked
// for, and idle by nature; and the socket with this cookie, which goes over into the
// minisocket that the place is for.
func (t *Tracker) makeRoom(ktime, cookie uint64) bool {
	if !t.full() {
		return true
	}
	if !t.scanDone {
		return false // what has been found is in no order yet
	}
	for range mostPassed {
		i := t.list(notSuspect).head
		if i == 0 {
			return false
		}
		c := t.table.at(i)
		if ktime < c.since+idleAfter {
			return false // and so are all others
		}
		keep := c.state == events.Listen || c.finding != noFinding || t.isHalfOpen(c) || cookie != 0 && c.Cookie == cookie
		if !keep {
			t.evict(i)
			return true
		}
		t.move(i, notSuspect)
	}
	return false
}

// evict forgets a socket that there is. Nothing is told of its connection; if there comes
// more of it, that is a gap.
func (t *Tracker) evict(i uint32) {
	t.counts.Evicted++
	t.counts.Shed += uint64(len(t.letGo(i)))
	t.drop(i)
}

// overflowed reports whether an unknown socket may be one that had no place.
func (t *Tracker) overflowed() bool {
	return t.counts.Evicted > 0 || t.counts.TableFull > 0 || t.counts.NoPlace > 0
}

// usedLately reports whether a row shows that something has come since all sockets were
// looked at last.
func usedLately(ev *events.Event) bool {
	return ev.Quiet < uint64(lookAtAllAfter)
}

// Lists of what is waited for hold at most so many for each place in the table: what has
// gone is taken out before they grow further.
const waitersPerSocket = 2

// wait adds to a list of waiters; there says which of them are not gone.
func (t *Tracker) wait(ws []waiter, w waiter, there func(waiter) bool) []waiter {
	if len(ws) >= waitersPerSocket*t.max {
		n := 0
		for _, w := range ws {
			if there(w) {
				ws[n], n = w, n+1
			}
		}
		ws = ws[:n]
	}
	return append(ws, w)
}

// rest returns what is left of a list of waiters without the first n. After a rush it
// gives the memory back.
func rest(ws []waiter, n int) []waiter {
	left := ws[:copy(ws, ws[n:])]
	if cap(left) > 1<<12 && len(left) < cap(left)/8 {
		return append([]waiter(nil), left...)
	}
	return left
}
