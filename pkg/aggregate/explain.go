package aggregate

import (
	"fmt"
	"net/netip"
	"strings"
)

// explainNetwork is explain for the findings that are not about a process's own
// descriptors.
func explainNetwork(r *Finding, who, conns, since string) (message, advice string) {
	e := &r.Evidence
	switch r.Kind {
	case FinWait2Stuck:
		peer := e.Peer.Raddr.Netip().String()
		if e.Peer.Rport != 0 {
			peer = netip.AddrPortFrom(e.Peer.Raddr.Netip(), e.Peer.Rport).String()
		}
		if r.Pid != 0 {
			peer += " (" + who + " on this host)"
		}
		if e.Peer.Raddr.IsUnspecified() {
			peer = "each of many other peers"
		}
		message = fmt.Sprintf("%s does not close: %s that this side has closed in FIN_WAIT2%s", peer, conns, since)
		advice = "The peer has to close its end when it reads end-of-file."
		switch {
		case e.Peer.Held > 0:
			advice += " Here nothing ends a connection that is shut down and still open: close() it after a time, and the kernel ends it tcp_fin_timeout later."
		case e.Peer.FinTimeout != 0:
			advice += fmt.Sprintf(" Here the kernel ends each after %d s (tcp_fin_timeout); until then it holds its port.", e.Peer.FinTimeout)
		}
	case TimeWaitPorts:
		return explainPorts(e.Ports, who, r)
	case TimeWaitOverflow:
		message = fmt.Sprintf("%s skipped TIME_WAIT: all %d places for it were taken (tcp_max_tw_buckets)", conns, e.Network.MaxTimeWait)
		advice = "Without TIME_WAIT a lost last ACK becomes a reset to the peer: keep connections open instead of closing one for each request, or raise net.ipv4.tcp_max_tw_buckets."
	case ShortLived:
		c := e.Churn
		message = fmt.Sprintf("%s opens %.0f connections a second to %s and is done with half of them within %s",
			who, c.PerSecond, netip.AddrPortFrom(c.Raddr.Netip(), c.Rport), rounded(c.MedianLife))
		advice = fmt.Sprintf("A pool, or keep-alive, would save most of %.0f handshakes a second, and a port in TIME_WAIT for each.", c.PerSecond)
	case HalfOpen:
		message = fmt.Sprintf("%s keeps %s on which nothing has come%s, and nothing would notice if the peer were gone", who, conns,
			strings.Replace(since, ", the oldest for", " for up to", 1))
		advice = "Set SO_KEEPALIVE (and TCP_KEEPIDLE), or close what is idle for long."
	}
	return message, advice
}

func explainPorts(p *PortsEvidence, who string, r *Finding) (message, advice string) {
	used := p.Live + p.TimeWait
	if p.Ours {
		message = fmt.Sprintf("%d connections from %s to port %d here are in TIME_WAIT; a client like this host has %d ports",
			p.TimeWait, p.Raddr.Netip(), p.Port, p.Total)
		return message, fmt.Sprintf("If that is a load balancer or NAT, its ports come round at more than %d connections a second (ports / 60 s), and a SYN for one in TIME_WAIT may be refused: let the client close first, keep connections open, or give it more addresses.", p.Total/60)
	}
	to := netip.AddrPortFrom(p.Raddr.Netip(), p.Port)
	message = fmt.Sprintf("%d of %d ports from %s to %s are taken, %d of them in TIME_WAIT", used, p.Total, p.Laddr.Netip(), to, p.TimeWait)
	if r.Pid != 0 {
		message += ", most by " + who
	}
	if p.Exhausted != Unknown {
		message += "; at this rate connect() fails in " + rounded(p.Exhausted)
	}
	advice = "When none is left connect() fails with EADDRNOTAVAIL: keep connections open (a pool, keep-alive), or widen net.ipv4.ip_local_port_range."
	switch {
	case p.Reuses:
		advice += " Those in TIME_WAIT for more than a second are taken again (tcp_tw_reuse)."
	case p.Network.Timestamps == 0:
		advice += " net.ipv4.tcp_tw_reuse would help, but needs tcp_timestamps, which are off."
	default:
		advice += fmt.Sprintf(" net.ipv4.tcp_tw_reuse=1 (it is %d) lets connect() take a port after one second in TIME_WAIT.", p.Network.ReusePolicy)
	}
	return message, advice
}
