package aggregate

import (
	"syscall"
	"time"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// sk_shutdown (include/net/sock.h).
const shutdownBoth = 3

// firstFin says who closed first, from the transition that shows the first FIN
// of a connection.
func firstFin(was Closer, old, next events.State) Closer {
	switch next {
	case events.FinWait1:
		if was == CloserUnknown {
			return CloserLocal
		}
	case events.CloseWait:
		return CloserRemote
	case events.Closing:
		// tcp_fin() in FIN_WAIT1: the FINs have crossed.
		if old == events.FinWait1 {
			return CloserBoth
		}
	}
	return was
}

// foundIn says who closed first of a connection that is in st, if how it got
// there was not seen.
func (c *conn) foundIn(st events.State) {
	if c.closer != CloserUnknown {
		return
	}
	switch st {
	case events.FinWait1, events.FinWait2:
		c.closer = CloserLocal
	case events.CloseWait, events.LastAck:
		c.closer = CloserRemote
	case events.Closing:
		c.closer = CloserBoth
	}
}

// endOf says what ended the connection, from its transition to CLOSE. The
// reasoning follows the callers of tcp_set_state(sk, TCP_CLOSE) in net/ipv4.
func endOf(ev *events.Event) End {
	owned := ev.Flags&events.Owned != 0
	switch syscall.Errno(ev.Err) {
	case 0:
	case syscall.ECONNREFUSED:
		return EndRefused
	case syscall.ECONNRESET:
		if ev.Flags&events.Dead != 0 && (ev.Old == events.FinWait1 || ev.Old == events.FinWait2) {
			// Data for an orphan ends it with this very error (tcp_reset() in
			// tcp_rcv_state_process()), and then the reset is ours.
			return EndUnknown
		}
		return EndResetReceived
	case syscall.EPIPE:
		return EndResetReceived
	case syscall.ETIMEDOUT:
		return EndTimeout
	case syscall.ECONNABORTED:
		return EndAborted
	default:
		// tcp_write_err() reports the last ICMP error instead of ETIMEDOUT when
		// it gives up. But the error may be an older one that nobody has read:
		// of an earlier connection of the socket, or kept by IP_RECVERR. And in
		// SYN_SENT an ICMP error itself can be the end (tcp_v4_err).
		if ev.Old == events.SynSent || owned || ev.Flags&events.Done != 0 {
			return EndUnknown
		}
		return EndTimeout
	}

	switch ev.Old {
	case events.SynSent, events.SynRecv:
		// close() or shutdown() before it was established, or a child that
		// could not be inserted.
		return EndAborted
	case events.LastAck, events.Closing:
		if ev.Flags&events.Done != 0 {
			return EndFin
		}
		return EndUnknown
	case events.FinWait2:
		// Done in FIN_WAIT2 is tcp_fin() at work; after it there is no such
		// socket any more.
		if ev.Flags&events.Done != 0 {
			return EndFin
		}
		if ev.Flags&events.Dead != 0 {
			if ev.Linger2 {
				return EndResetSent // tcp_rcv_state_process(), __tcp_close()
			}
			// There was no place for a minisocket (tcp_max_tw_buckets), or data came
			// for an orphan; or a minisocket took over, and these are not seen.
			return EndUnknown
		}
	}
	switch {
	case ev.Flags&events.Repair != 0:
		return EndAborted
	case owned && ev.Flags&events.Dead == 0:
		// __tcp_close() with unread data or SO_LINGER 0, or connect(AF_UNSPEC):
		// a reset goes out.
		return EndResetSent
	case !owned && ev.Flags&(events.HasSocket|events.Dead) == 0:
		// inet_child_forget(): the listener was closed, the child not accepted.
		return EndResetSent
	case ev.Flags&events.Dead != 0:
		// tcp_out_of_resources(): too many orphans.
		return EndAborted
	}
	return EndUnknown
}

// mayBeHandedOver reports whether the connection may live on in a FIN_WAIT2
// minisocket after this transition to CLOSE (tcp_time_wait), where these are not
// seen: its time in FIN_WAIT2 has then not ended.
func mayBeHandedOver(ev *events.Event) bool {
	return ev.Old == events.FinWait2 && ev.New == events.Close && ev.Err == 0 &&
		ev.Flags&(events.Done|events.Dead) == events.Dead && !ev.Linger2
}

// endsInTimeWait reports whether TIME_WAIT begins with this transition to CLOSE, unless
// there is no place for it (tcp_time_wait, called by tcp_fin or in CLOSING).
func endsInTimeWait(ev *events.Event) bool {
	return (ev.Old == events.FinWait2 || ev.Old == events.Closing) && ev.New == events.Close && ev.Err == 0 &&
		ev.Flags&events.Done != 0
}

// orphanTimedOut reports whether a socket that no minisocket has taken over has ended
// because tcp_fin_timeout was over (tcp_keepalive_timer). The kernel keeps the socket if
// its FIN is acknowledged while close() has it locked. Where there is no place for a
// minisocket, FIN_WAIT2 ends as soon as it has begun.
func orphanTimedOut(ev *events.Event, dwell time.Duration) bool {
	return ev.Old == events.FinWait2 && ev.New == events.Close && ev.Err == 0 && !ev.Linger2 &&
		ev.Flags&(events.Dead|events.Done|events.Owned) == events.Dead && dwell >= 500*time.Millisecond
}

// lettingGo reports whether the process closed or shut down the socket in this
// transition. Reset, time-out, and ss -K (ECONNABORTED, whose caller has nothing
// to do with the socket) are not that; nor is connect(AF_UNSPEC), which leaves
// sk_shutdown 0.
func lettingGo(ev *events.Event) bool {
	if ev.Flags&events.Owned == 0 || syscall.Errno(ev.Err) == syscall.ECONNABORTED {
		return false
	}
	if ev.Old == ev.New {
		// tcp_close_state(): close() after shutdown(SHUT_WR).
		return ev.Old != events.Listen && ev.Old != events.Close
	}
	switch ev.New {
	case events.FinWait1, events.LastAck:
		return true
	case events.Close:
		switch ev.Old {
		case events.Listen:
			// An MPTCP one is not shut down first (mptcp_check_listen_stop), nor is one
			// that is killed from outside; but whoever kills is not exiting.
			return ev.Err == 0 && (ev.Shutdown == shutdownBoth || ev.Flags&events.Exiting != 0)
		case events.LastAck, events.Closing:
			return false
		case events.FinWait2:
			if ev.Flags&events.Done != 0 {
				return false // the peer's FIN, processed in this process's context
			}
		}
		return ev.Err == 0 && ev.Shutdown == shutdownBoth
	}
	return false
}
