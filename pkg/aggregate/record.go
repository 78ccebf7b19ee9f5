package aggregate

import (
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// Unknown is a duration that is not known.
const Unknown = time.Duration(-1)

// Source says how a socket's owner is known.
type Source uint8

// The sources. Listener is the weakest: the socket has not been accepted, and
// the process is the one that its listener belongs to.
const (
	SourceNone Source = iota
	SourceConnect
	SourceListen
	SourceAccept
	SourceClose
	SourceFd
	SourceListener
)

var sourceNames = [...]string{"", "connect", "listen", "accept", "close", "fd", "listener"}

func (s Source) String() string { return sourceNames[s] }

// Owner is the process that a socket belongs to; Pid 0 if it is not known.
type Owner struct {
	Pid    uint32
	Comm   events.Comm
	Source Source
}

// Holder is a process that has a descriptor of a socket.
type Holder struct {
	Pid  uint32
	Comm events.Comm
	Fd   int32
}

// Ends is what identifies a socket to people, with its owner. A port of 0 is not
// known (yet), and so is an unspecified Raddr.
type Ends struct {
	Cookie uint64
	Netns  uint32
	Lport  uint16
	Rport  uint16
	Laddr  events.Addr
	Raddr  events.Addr
	Owner  Owner
}

// Is4 reports whether the socket speaks IPv4. Of a dual-stack listener's child
// the peer tells; of a listener, the address that it listens on.
func (e *Ends) Is4() bool { return is4(&e.Laddr, &e.Raddr) }

func is4(laddr, raddr *events.Addr) bool {
	if raddr.IsUnspecified() {
		return laddr.Is4()
	}
	return raddr.Is4()
}

// Transition is one step of one socket.
type Transition struct {
	Ends
	Ktime     uint64
	Old, New  events.State
	Dwell     time.Duration    // in Old; Unknown if its beginning or its end was not seen
	Mini      bool             // of a minisocket: the tracepoint does not show it
	Gap       bool             // transitions of this socket before this one were missed
	Unprinted uint32           // records of this socket that were shed before this one
	Container events.Container // that the owner is in; no ID if none, or not known
}

// Socket is one socket that was there when tracing started.
type Socket struct {
	Ends
	Ktime     uint64
	State     events.State
	Age       time.Duration // at least that long in State; or Unknown
	Holders   []Holder
	Unread    uint32        // in CLOSE_WAIT: bytes not read, and 1 for the FIN
	Mini      bool          // stands in for a socket: a request_sock or a minisocket
	Expires   time.Duration // of a minisocket, until it ends
	Verdict   Verdict       // what its process has failed to do
	Container events.Container
}

// Spent is the time that a connection spent in each state.
type Spent struct {
	ns      [events.NumStates]uint64
	visited uint16 // bit sets by State
	unknown uint16
}

func (s *Spent) add(st events.State, d time.Duration) {
	s.visited |= 1 << st
	if d == Unknown {
		s.unknown |= 1 << st
		return
	}
	s.ns[st] += uint64(d)
}

// In returns the time spent in st, and whether the connection was in it at all.
// The time is Unknown if part of it was not seen.
func (s *Spent) In(st events.State) (d time.Duration, visited bool) {
	switch {
	case s.visited&(1<<st) == 0:
		return 0, false
	case s.unknown&(1<<st) != 0:
		return Unknown, true
	}
	return time.Duration(s.ns[st]), true
}

// Role is the side that a socket took in the handshake.
type Role uint8

// The roles.
const (
	RoleUnknown Role = iota
	Client
	Server
)

var roleNames = [...]string{"", "client", "server"}

func (r Role) String() string { return roleNames[r] }

// Closer says who sent the first FIN.
type Closer uint8

// The closers. CloserBoth is a simultaneous close (RFC 9293, figure 13).
const (
	CloserUnknown Closer = iota
	CloserLocal
	CloserRemote
	CloserBoth
)

var closerNames = [...]string{"", "local", "remote", "both"}

func (c Closer) String() string { return closerNames[c] }

// End says what ended a connection.
type End uint8

// The ends.
const (
	EndUnknown End = iota
	EndFin
	EndResetSent
	EndResetReceived
	EndTimeout
	EndRefused
	EndAborted

	numEnds
)

var endNames = [numEnds]string{"", "fin", "reset_sent", "reset_received", "timeout", "refused", "aborted"}

func (e End) String() string { return endNames[e] }

// TimeWaitEnd says what has ended the time in TIME_WAIT.
type TimeWaitEnd uint8

// The ends. Reused: a connection with the same ends took its place, by connect()
// (tcp_tw_reuse) or by a new SYN. Killed: a reset, ss -K, or the end of its network
// namespace.
const (
	TimeWaitEndUnknown TimeWaitEnd = iota
	Expired
	Reused
	Killed
)

var timeWaitEndNames = [...]string{"", "expired", "reused", "killed"}

func (e TimeWaitEnd) String() string { return timeWaitEndNames[e] }

// CloseCall says how the process let go of the socket.
type CloseCall uint8

// The calls. CallExit: the descriptor was closed because its process ended.
const (
	CallUnknown CloseCall = iota
	CallClose
	CallShutdown
	CallExit
)

var callNames = [...]string{"", "close", "shutdown", "exit"}

func (c CloseCall) String() string { return callNames[c] }

// Connection is a connection whose last state has ended.
type Connection struct {
	Ends
	Ktime       uint64
	Start       uint64 // 0: before tracing started
	Role        Role
	Closer      Closer
	End         End
	CloseCall   CloseCall
	Spent       *Spent
	TimeWaitEnd TimeWaitEnd
	Payload     bool   // Sent and Received are known
	Sent        uint64 // payload bytes
	Received    uint64
	Ended       bool   // its end was seen; else Ktime is when that was noticed
	Gap         bool   // transitions were missed
	Unprinted   uint32 // records that were shed
	Container   events.Container
}

// Stats is the books: how many transitions there were, and what became of them.
// Seen = Delivered + Filtered + Lost.Sum().
type Stats struct {
	Ktime       uint64
	Seen        uint64
	Delivered   uint64
	Filtered    uint64
	Lost        Lost
	RecordsLost uint64 // what the kernel side could not hand over, and is no transition
	Records     Records
	Unprinted   uint64
	Tracked     int
	Evicted     uint64 // sockets that were forgotten to make room for others
	Hidden      int    // processes with sockets that our PID namespace does not show
	Probes      []Probe
	Exported    *Exported // nil: no collector was asked for
}

// Exported is what became of the records for a collector.
type Exported struct {
	Sent, Unsent uint64
}

// Lost is the number of transitions lost, by cause.
type Lost struct {
	RingFull, Nested, TableFull, Decode uint64
}

// Sum returns all that was lost.
func (l Lost) Sum() uint64 { return l.RingFull + l.Nested + l.TableFull + l.Decode }

// Records is the number of records printed, by type.
type Records struct {
	Transition, Connection, Socket, Finding, Summary, Stats uint64
}

// Probe names the variant in use for a facility of the kernel side; Variant is
// empty if there is none.
type Probe struct {
	Facility, Variant string
}

// Output takes the records. Each method reports whether the record was taken;
// what was not is counted against the connection and shown on its next record.
// The records are the tracker's and good only during the call.
type Output interface {
	Transition(*Transition) bool
	Connection(*Connection) bool
	Socket(*Socket) bool
	Finding(*Finding) bool
	Summary(*Summary)
}
