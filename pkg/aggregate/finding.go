package aggregate

import (
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// Kind says what a finding is about.
type Kind uint8

// The kinds.
const (
	CloseWaitLeak Kind = iota
	NeverClosed
	ResetFdLeak
	FdLimit
	FinWait2Stuck
	TimeWaitPorts
	TimeWaitOverflow
	ShortLived
	HalfOpen

	numKinds
)

var kindNames = [numKinds]string{
	"close_wait_leak", "never_closed", "reset_fd_leak", "fd_limit", "fin_wait2_stuck",
	"time_wait_ports", "time_wait_overflow", "short_lived", "half_open",
}

// Kinds returns the names of all kinds.
func Kinds() []string { return kindNames[:] }

func (k Kind) String() string { return kindNames[k] }

// Status says where a finding is in its life. A NeverClosed is about the past: it
// is only ever Open.
type Status uint8

// The statuses. Update: it got worse, its count or its age has doubled.
const (
	Open Status = iota
	Update
	Resolved
)

var statusNames = [...]string{"open", "update", "resolved"}

func (s Status) String() string { return statusNames[s] }

// Severity says how urgent a finding is.
type Severity uint8

// The severities. Critical: connections will soon fail, for want of descriptors or
// ports. Info: nothing fails.
const (
	Info Severity = iota
	Warning
	Critical

	numSeverities
)

var severityNames = [numSeverities]string{"info", "warning", "critical"}

func (s Severity) String() string { return severityNames[s] }

// SocketHolder is a Holder and the socket that it holds.
type SocketHolder struct {
	Holder
	Cookie uint64
}

// MaxFindingHolders bounds the holders of a finding.
const MaxFindingHolders = 16

// A Finding is something that a person should act on. One with a Pid of 0 is
// about sockets that no visible process holds, or about no process here.
type Finding struct {
	Ktime     uint64
	ID        string // the same for every record about the same problem
	Kind      Kind
	Status    Status
	Severity  Severity
	Pid       uint32
	Comm      events.Comm
	Exe       string           // "": not known
	Container events.Container // no ID: none, or not known
	Count     int
	Oldest    time.Duration  // Unknown if there is none
	Holders   []SocketHolder // at most 16, those of the oldest sockets first
	Evidence  Evidence
	Message   string // may hold any bytes of Comm
	Advice    string
}

// Evidence is the numbers that a finding rests on. Which are set depends on its
// kind.
type Evidence struct {
	Verdict      Verdict          // that of most of the sockets
	Verdicts     [numVerdicts]int // sockets by verdict
	Unread       uint64           // bytes that the process has not read
	NoDescriptor int              // sockets that no visible process has a descriptor of
	Exact        bool             // Oldest is the age, and not a lower bound
	Ends         CommonEnds
	Listeners    []SocketHolder // of sockets that wait to be accepted
	Ended        [numEnds]int   // dead connections, by how they ended
	History      *History

	// FdLimit. Of NeverClosed and the leaks, OpenFiles and FileLimit may be 0: not known.
	OpenFiles uint32
	FileLimit uint64
	Sockets   int
	CloseWait int
	PerMinute float64       // growth of CloseWait
	Measured  bool          // PerMinute is known
	Exhausted time.Duration // until the last descriptor is taken at that rate; or Unknown

	Peer    *PeerEvidence   // FinWait2Stuck
	Ports   *PortsEvidence  // TimeWaitPorts
	Churn   *ChurnEvidence  // ShortLived
	Network *events.Network // TimeWaitOverflow
	Makers  []Maker         // TimeWaitOverflow: of the connections that skipped it

	// Resolved.
	PeakCount  int
	PeakOldest time.Duration
}

// CommonEnds is what the sockets of a finding have in common; 0 and unspecified
// where they differ.
type CommonEnds struct {
	Lport uint16
	Rport uint16
	Raddr events.Addr
}

func (a *CommonEnds) meet(e *ends, first bool) {
	if first {
		*a = CommonEnds{Lport: e.Lport, Rport: e.Rport, Raddr: e.Raddr}
		return
	}
	if a.Lport != e.Lport {
		a.Lport = 0
	}
	if a.Rport != e.Rport {
		a.Rport = 0
	}
	if a.Raddr != e.Raddr {
		a.Raddr = events.Addr{}
	}
}
