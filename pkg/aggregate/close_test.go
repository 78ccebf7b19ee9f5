package aggregate

import (
	"testing"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// The ways to CLOSE.
func TestHowAConnectionEndsIsReadOffItsLastTransition(t *testing.T) {
	const (
		own  = events.Owned
		held = events.HasSocket
		done = events.Done
		dead = events.Dead
	)
	for _, tt := range []struct {
		name  string
		from  string
		flags events.Flags
		shut  uint8
		err   uint32
		want  End
	}{
		{"normal passive close", "LA", dead | done, 3, 0, EndFin},
		{"passive close, the peer's TIME_WAIT does not exist", "LA", dead | done, 3, 104, EndResetReceived},
		{"TIME_WAIT takes over", "F2", dead | done, 3, 0, EndFin},
		{"TIME_WAIT takes over while a read() processes the FIN", "F2", own | held | done, 3, 0, EndFin},
		{"TIME_WAIT takes over after a simultaneous close", "CG", dead | done, 3, 0, EndFin},
		{"a FIN_WAIT2 minisocket takes over, or LINGER2 < 0", "F2", dead, 3, 0, EndUnknown},
		{"a FIN_WAIT2 minisocket takes over in close()", "F2", own | dead, 3, 0, EndUnknown},
		{"refused", "SS", held, 0, 111, EndRefused},
		{"connect() timed out", "SS", held, 0, 110, EndTimeout},
		{"closed in SYN_SENT", "SS", own | held, 3, 0, EndAborted},
		{"no local port left", "SS", own | held, 0, 0, EndAborted},
		{"host unreachable while connecting", "SS", held, 0, 113, EndUnknown},
		{"child could not be inserted", "SR", 0, 0, 0, EndAborted},
		{"reset in a simultaneous open", "SR", held, 0, 104, EndResetReceived},
		{"reset while established", "E", held, 0, 104, EndResetReceived},
		{"reset in CLOSE_WAIT", "CW", held | done, 1, 32, EndResetReceived},
		{"close() with unread data", "E", own | held, 3, 0, EndResetSent},
		{"close() with unread data in CLOSE_WAIT", "CW", own | held | done, 3, 0, EndResetSent},
		{"SO_LINGER 0", "E", own | held, 3, 0, EndResetSent},
		{"connect(AF_UNSPEC)", "E", own | held, 0, 0, EndResetSent},
		{"listener closed, child not accepted", "E", 0, 3, 0, EndResetSent},
		{"listener closed, child not accepted, in CLOSE_WAIT", "CW", done, 3, 0, EndResetSent},
		{"retransmission timed out", "E", held, 0, 110, EndTimeout},
		{"retransmission timed out, with an ICMP error", "E", held, 0, 113, EndTimeout},
		{"keepalive in CLOSE_WAIT", "CW", held | done, 1, 110, EndTimeout},
		{"data or a reset for an orphan", "F1", dead, 3, 104, EndUnknown},
		{"an unread error at a normal end", "LA", dead | done, 3, 113, EndUnknown},
		{"orphan timed out", "F1", dead, 3, 110, EndTimeout},
		{"too many orphans", "F1", dead, 3, 0, EndAborted},
		{"ss -K", "E", own | held, 3, 103, EndAborted},
		{"TCP_REPAIR", "E", own | held | events.Repair, 3, 0, EndAborted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ev := events.Event{
				Old: abbreviations[tt.from], New: events.Close,
				Flags: tt.flags, Shutdown: tt.shut, Err: tt.err,
			}
			if got := endOf(&ev); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestWhoClosedFirst(t *testing.T) {
	for _, tt := range []struct {
		steps string
		want  Closer
	}{
		{"C>SS SS>E E>F1 F1>F2 F2>C", CloserLocal},
		{"L>SR SR>E E>CW CW>LA LA>C", CloserRemote},
		{"C>SS SS>E E>F1 F1>CG CG>C", CloserBoth},
		{"L>SR SR>F1 F1>F2 F2>C", CloserLocal}, // TCP Fast Open
		{"C>SS SS>E E>C", CloserUnknown},
		{"C>SS SS>C", CloserUnknown},
		{"C>SS SS>E E>F1 F1>F1 F1>F2 F2>F2 F2>C", CloserLocal},
		{"C>SS SS>E E>CW CW>LA LA>LA LA>C", CloserRemote},
	} {
		s := newStory(t, Filter{})
		s.steps(client, tt.steps, with(orphan|events.Done))
		got := s.lines(" closer=" + tt.want.String() + " ")
		if len(got) != 1 {
			t.Errorf("%s: want one connection with closer=%s, got %q", tt.steps, tt.want, s.lines("connection"))
		}
	}
}

func TestBytesAreThePayload(t *testing.T) {
	s := newStory(t, Filter{})
	var got Connection
	s.tr.out = take{connection: func(c *Connection) { got = *c }}
	s.steps(server, "L>SR SR>E E>CW CW>LA")
	s.step(server, "LA>C", with(orphan|events.Done), func(ev *events.Event) { ev.Sent, ev.Received = 7, 11 })
	if got.Sent != 7 || got.Received != 10 || !got.Ended {
		t.Errorf("got %d sent, %d received; want 7 and 10: the FIN is no payload", got.Sent, got.Received)
	}
}

// take is an Output that hands on what a test asks for.
type take struct {
	connection func(*Connection)
	transition func(*Transition)
}

func (o take) Transition(r *Transition) bool {
	if o.transition != nil {
		o.transition(r)
	}
	return true
}

func (o take) Connection(r *Connection) bool {
	if o.connection != nil {
		o.connection(r)
	}
	return true
}

func (take) Socket(*Socket) bool   { return true }
func (take) Finding(*Finding) bool { return true }
func (take) Summary(*Summary)      {}
