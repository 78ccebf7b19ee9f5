package aggregate

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// MaxRows is how many rows a list of a View has at the most.
const MaxRows = 256

// Order is what a list is sorted by, with what wants attention first.
type Order uint8

// The orders: of processes; of destinations; of connections.
const (
	ByCloseWait Order = iota
	ByOldest
	ByGrowth
	BySockets

	ByTimeWait
	ByPortsLeft
	ByLive

	ByAge
	ByState
	ByPeer

	numOrders
)

var orderNames = [numOrders]string{
	"close_wait", "oldest", "growth", "sockets", "time_wait", "left", "live", "age", "state", "peer",
}

func (o Order) String() string { return orderNames[o] }

// Query says what a View is to show.
type Query struct {
	Find         string // only rows that have this in them, in lower case
	Processes    Order
	Destinations Order

	Scope       Scope // the connections to list; the zero one for none
	FindIn      string
	Connections Order
	Conn        ConnID // the one to show; the zero one for none
	Finding     string // the ID of the one to show; "" for none
}

// best collects the first rows by an order, whatever the number of all.
type best[T any] struct {
	rows  []T
	all   int
	order func(a, b T) int
}

func (b *best[T]) add(row T) {
	b.all++
	if b.rows = append(b.rows, row); len(b.rows) == 2*MaxRows {
		b.cut()
	}
}

func (b *best[T]) cut() []T {
	slices.SortFunc(b.rows, b.order)
	b.rows = b.rows[:min(len(b.rows), MaxRows)]
	return b.rows
}

func orderFindings(a, b Finding) int {
	return cmp.Or(cmp.Compare(b.Severity, a.Severity), cmp.Compare(b.Count, a.Count), cmp.Compare(a.ID, b.ID))
}

func (q *Query) orderProcesses(a, b ProcessRow) int {
	first := 0
	switch q.Processes {
	case ByOldest:
		first = cmp.Compare(b.Oldest, a.Oldest)
	case ByGrowth:
		first = cmp.Compare(b.PerMinute, a.PerMinute)
	case BySockets:
		first = cmp.Compare(b.Sockets, a.Sockets)
	}
	return cmp.Or(first, cmp.Compare(b.CloseWait, a.CloseWait), cmp.Compare(b.Dead, a.Dead), cmp.Compare(b.Sockets, a.Sockets),
		cmp.Compare(b.TimeWait, a.TimeWait), cmp.Compare(a.Pid, b.Pid))
}

func (q *Query) orderDestinations(a, b DestinationRow) int {
	first := 0
	switch q.Destinations {
	case ByPortsLeft:
		first = cmp.Or(cmp.Compare(min(b.Ports, 1), min(a.Ports, 1)), cmp.Compare(a.Left, b.Left)) // those that are known
	case ByLive:
		first = cmp.Compare(b.Live, a.Live)
	}
	return cmp.Or(first, cmp.Compare(b.TimeWait, a.TimeWait), cmp.Compare(b.Live, a.Live), bytes.Compare(a.Far[:], b.Far[:]),
		cmp.Compare(a.Port, b.Port), bytes.Compare(a.Near[:], b.Near[:]), cmp.Compare(a.Netns, b.Netns))
}

func (q *Query) orderConns(a, b ConnRow) int {
	first := 0
	switch q.Connections {
	case ByAge:
		first = cmp.Compare(b.Age, a.Age)
	case ByState:
		first = cmp.Compare(a.State.String(), b.State.String())
	}
	return cmp.Or(first, bytes.Compare(a.Raddr[:], b.Raddr[:]), cmp.Compare(a.Rport, b.Rport),
		bytes.Compare(a.Laddr[:], b.Laddr[:]), cmp.Compare(a.Lport, b.Lport), cmp.Compare(a.Cookie, b.Cookie))
}

// A finder says whether a row has in it what is looked for, in a text such as is shown.
type finder struct{ want, text []byte }

func (f *finder) found() bool {
	ascii := true
	for i, c := range f.text {
		if 'A' <= c && c <= 'Z' {
			f.text[i] = c + 'a' - 'A'
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	if !ascii {
		return bytes.Contains(bytes.ToLower(f.text), f.want)
	}
	return bytes.Contains(f.text, f.want)
}

func (f *finder) addr(a *events.Addr, port uint16) {
	f.text = append(netip.AddrPortFrom(a.Netip(), port).AppendTo(f.text), ' ')
}

func (f *finder) proc(pid uint32, comm *events.Comm) {
	if pid != 0 {
		f.text = append(f.text, comm.Bytes()...)
		f.text = append(strconv.AppendUint(append(f.text, '['), uint64(pid), 10), ']', ' ')
	}
}

func (f *finder) finding(r *Finding) bool {
	if len(f.want) == 0 {
		return true
	}
	f.text = append(append(append(f.text[:0], r.Kind.String()...), ' '), r.Message...)
	return f.found()
}

func (f *finder) process(r *ProcessRow) bool {
	if len(f.want) == 0 {
		return true
	}
	f.text = f.text[:0]
	f.proc(r.Pid, &r.Comm)
	c := &r.Container
	f.text = append(f.text, strings.Join([]string{c.ID, c.Name, c.Namespace + "/" + c.Pod, r.Verdict.String()}, " ")...)
	return f.found()
}

func (f *finder) destination(r *DestinationRow) bool {
	if len(f.want) == 0 {
		return true
	}
	f.text = f.text[:0]
	if r.Ours {
		f.addr(&r.Near, r.Port)
	} else {
		f.addr(&r.Far, r.Port)
	}
	return f.found()
}

func (f *finder) conn(r *ConnRow) bool {
	if len(f.want) == 0 {
		return true
	}
	f.text = append(append(f.text[:0], r.State.String()...), ' ')
	f.addr(&r.Laddr, r.Lport)
	f.addr(&r.Raddr, r.Rport)
	f.proc(r.Owner.Pid, &r.Owner.Comm)
	f.text = append(f.text, r.Verdict.String()...)
	return f.found()
}
