package events

// State is a TCP state as the kernel numbers it (include/net/tcp_states.h).
type State uint8

// The kernel's TCP states. NewSynRecv is that of a request_sock; the
// sock:inet_sock_set_state tracepoint never shows it, nor TimeWait, which is
// the state of a minisocket.
const (
	Established State = iota + 1
	SynSent
	SynRecv
	FinWait1
	FinWait2
	TimeWait
	Close
	CloseWait
	LastAck
	Listen
	Closing
	NewSynRecv

	// NumStates is one more than the largest State, the length of an array
	// that is indexed by State.
	NumStates = int(NewSynRecv) + 1
)

var stateNames = [NumStates]string{
	"", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT",
	"CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV",
}

// Valid reports whether s is a state that the kernel has.
func (s State) Valid() bool { return s >= Established && s <= NewSynRecv }

// String returns the kernel's name without its TCP_ prefix, and "" for a
// number that is no state.
func (s State) String() string {
	if int(s) < NumStates {
		return stateNames[s]
	}
	return ""
}
