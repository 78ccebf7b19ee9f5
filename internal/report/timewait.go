package report

import (
	"encoding/json"
	"math"
)

// placeKey is what TIME_WAIT takes ports of. To a client that is one destination, from one address
// here; to a server, one of its own ports, from one peer.
type placeKey struct {
	input        int
	netns        uint32
	laddr, raddr string
	port         uint16 // remote of a client, local of a server
	server       bool
}

type place struct {
	placeKey
	level   gauge // in TIME_WAIT
	entered uint64
	ended   uint64 // connections that were in TIME_WAIT
	by      []maker
	others  uint64 // entered by others than these
}

// maker is a process that has closed first.
type maker struct {
	Pid   uint32 `json:"pid"`
	Comm  string `json:"comm"`
	Count uint64 `json:"count"`
}

const maxMakers = 8

func (p *place) weight() uint64 {
	return uint64(min(p.level.peak, math.MaxInt32))<<32 | min(p.entered+p.ended, math.MaxUint32)
}

type network struct {
	input int
	netns uint32
}

// ports is how many ephemeral ports a namespace has.
type ports struct {
	Total int    `json:"ports"`
	Range [2]int `json:"ip_local_port_range"`
}

// place returns the one that the socket counts in, nil if its side is not known.
func (in *Input) place(r *record, server bool) *place {
	k := placeKey{input: in.number, netns: r.Netns, laddr: r.Laddr, raddr: r.Raddr, port: r.Rport, server: server}
	if server {
		k.port = r.Lport
	}
	p, made := in.report.places.at(k)
	if made {
		p.placeKey = k
	}
	return p
}

// timeWait counts a socket into TIME_WAIT, or out of it.
func (in *Input) timeWait(r *record) {
	step := 0
	switch "TIME_WAIT" {
	case r.Newstate:
		step = 1
	case r.Oldstate:
		step = -1
	default:
		return
	}
	in.seesTimeWait = true
	all := &in.every
	all.level.set(r.at, max(all.level.now+step, 0))
	if step > 0 {
		all.entered++
	}
	var p *place
	switch r.OwnerSource {
	case "connect":
		p = in.place(r, false)
	case "accept", "listener":
		p = in.place(r, true)
	default:
		if step > 0 {
			in.report.sideless++
		}
		return
	}
	p.level.set(r.at, max(p.level.now+step, 0))
	if step > 0 {
		p.entered++
		p.make(r)
	}
}

// make counts for the process that has closed first.
func (p *place) make(r *record) {
	for i := range p.by {
		if m := &p.by[i]; m.Pid == r.Pid && m.Comm == r.Comm {
			m.Count++
			return
		}
	}
	if len(p.by) == maxMakers || r.Pid == 0 {
		p.others++
		return
	}
	p.by = append(p.by, maker{r.Pid, r.Comm, 1})
}

// timeWaited counts a connection that was in TIME_WAIT.
func (in *Input) timeWaited(r *record) {
	in.every.ended++
	if r.Role != "" {
		in.place(r, r.Role == "server").ended++
	}
}

// learnPorts takes the port range of a namespace from the evidence of a finding.
func (in *Input) learnPorts(r *record) {
	var e struct {
		Netns uint32 `json:"netns"`
		ports
	}
	if r.Kind == "time_wait_ports" && len(in.report.ports) < maxNetworks && json.Unmarshal(r.Evidence, &e) == nil && e.Total > 0 {
		in.report.ports[network{in.number, e.Netns}] = e.ports
	}
}
