package aggregate

import (
	"net/netip"
	"slices"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// Filter says which sockets records are made for. Its parts combine with AND;
// an empty part lets everything through. All but Comms and Container can be decided in
// the kernel too, which does so early where it can: by Pids and Follow, as far as none of
// these processes is known to have the socket.
type Filter struct {
	Pids      []uint32 // processes that hold or held the socket, in the agent's PID namespace
	Comms     []events.Comm
	Container string // a prefix of the id of the container that such a process is in
	Follow    bool   // the children of the processes above too
	Lports    []uint16
	Rports    []uint16
	Family    int // 4, 6, or 0 for both
	Remotes   []netip.Prefix
	Netns     uint32
}

// ByProcess reports whether f looks at the process.
func (f *Filter) ByProcess() bool {
	return len(f.Pids) > 0 || len(f.Comms) > 0 || f.Container != ""
}

// lets reports whether f lets a network namespace through.
func (f *Filter) lets(netns uint32) bool { return f.Netns == 0 || f.Netns == netns }

// narrows reports whether f asks for a part only of what is in a network namespace.
func (f *Filter) narrows() bool {
	return f.ByProcess() || len(f.Lports)+len(f.Rports)+len(f.Remotes) > 0 || f.Family != 0
}

// hidesPorts reports whether f keeps from us who else has ports to where those go that it lets
// through: the kernel side turns them away.
func (f *Filter) hidesPorts() bool { return len(f.Pids)+len(f.Lports) > 0 }

// verdict is what a filter says of a socket: undecided as long as what it asks
// about is not known.
type verdict uint8

const (
	undecided verdict = iota
	yes
	no
)

// byEnds judges the part of f that looks at the ends of the socket.
func (f *Filter) byEnds(e *ends, listening bool) verdict {
	v := yes
	check := func(known, match bool) {
		switch {
		case !known:
			if v == yes {
				v = undecided
			}
		case !match:
			v = no
		}
	}
	if f.Netns != 0 {
		check(true, e.Netns == f.Netns)
	}
	if len(f.Lports) > 0 {
		check(e.Lport != 0, slices.Contains(f.Lports, e.Lport))
	}
	// A listener has no peer, and never will.
	peerKnown := listening || e.Rport != 0
	if len(f.Rports) > 0 {
		check(peerKnown, slices.Contains(f.Rports, e.Rport))
	}
	if f.Family != 0 {
		check(peerKnown, is4(&e.Laddr, &e.Raddr) == (f.Family == 4))
	}
	if len(f.Remotes) > 0 {
		check(peerKnown, !listening && containsAddr(f.Remotes, e.Raddr.Netip()))
	}
	return v
}

func containsAddr(ps []netip.Prefix, a netip.Addr) bool {
	for _, p := range ps {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
