package livetest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"
)

// A tunPeer is the far end of one TCP connection over a TUN device. It sends
// exactly the segments that a test tells it to, and so plays what no kernel
// would do on demand: both ends closing at once, or no answer at all.
type tunPeer struct {
	t      *testing.T
	tun    *os.File
	local  netip.AddrPort // the peer's end
	remote netip.AddrPort // the kernel's end
	next   uint32         // sequence number of the peer's next byte
	acked  uint32         // the kernel's next byte, as far as the peer admits to have it
}

// The flags of a TCP segment.
const (
	fin = 1 << iota
	syn
	rst
	psh
	ack
)

// A segment is what the kernel sent.
type segment struct {
	flags    byte
	seq, ack uint32
	payload  []byte
}

// peer makes a TUN device and a peer on it.
func (s *scene) peer() *tunPeer {
	s.t.Helper()
	tun, kernel := s.ns.openTUN(s.t)
	return &tunPeer{
		t: s.t, tun: tun, next: 1_000_000,
		local: netip.AddrPortFrom(kernel.Next(), 7000), remote: netip.AddrPortFrom(kernel, 0),
	}
}

// accept plays the server in the handshake of a kernel's connect.
func (p *tunPeer) accept() {
	p.t.Helper()
	p.expect(syn)
	p.send(syn | ack)
	p.expect(ack)
}

// connect plays the client in a handshake with a kernel's listener.
func (p *tunPeer) connect(to netip.AddrPort) {
	p.t.Helper()
	p.remote = to
	p.send(syn)
	p.expect(syn | ack)
	p.send(ack)
}

// expect waits for the kernel's next segment with exactly these flags, PSH
// aside, and passes over others. What it carries counts as arrived; it is not
// acknowledged before the next send.
func (p *tunPeer) expect(flags byte) segment {
	p.t.Helper()
	s := p.peek(flags)
	p.acked = s.seq + uint32(len(s.payload))
	if flags&(syn|fin) != 0 {
		p.acked++
	}
	return s
}

// peek is expect for a segment that the peer behaves not to have got.
func (p *tunPeer) peek(flags byte) segment {
	p.t.Helper()
	if err := p.tun.SetReadDeadline(time.Now().Add(callTimeout)); err != nil {
		p.t.Fatal(err)
	}
	packet := make([]byte, 2048)
	for {
		n, err := p.tun.Read(packet)
		if err != nil {
			p.t.Fatalf("no segment with flags %s: %v", flagNames(flags), err)
		}
		s, ports, err := parseSegment(packet[:n])
		if err != nil || ports[1] != p.local.Port() || s.flags&^psh != flags {
			continue
		}
		if p.remote.Port() == 0 {
			p.remote = netip.AddrPortFrom(p.remote.Addr(), ports[0])
		}
		return s
	}
}

// send sends one segment that acknowledges all that expect took.
func (p *tunPeer) send(flags byte) {
	p.t.Helper()
	p.sendData(flags, "")
}

func (p *tunPeer) sendData(flags byte, data string) {
	p.t.Helper()
	acked := p.acked
	if flags&ack == 0 {
		acked = 0
	}
	if _, err := p.tun.Write(p.packet(flags, acked, data)); err != nil {
		p.t.Fatalf("send segment with flags %s: %v", flagNames(flags), err)
	}
	p.next += uint32(len(data))
	if flags&(syn|fin) != 0 {
		p.next++
	}
}

// packet makes a segment. The length of data has to be even.
func (p *tunPeer) packet(flags byte, acked uint32, data string) []byte {
	const ipLen, tcpLen = 20, 20
	b := make([]byte, ipLen+tcpLen, ipLen+tcpLen+len(data))
	b = append(b, data...)
	src, dst := p.local.Addr().As4(), p.remote.Addr().As4()
	b[0] = 4<<4 | ipLen/4
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	b[8] = 64 // time to live
	b[9] = 6  // TCP
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[10:], checksum(b[:ipLen], 0))

	tcp := b[ipLen:]
	binary.BigEndian.PutUint16(tcp[0:], p.local.Port())
	binary.BigEndian.PutUint16(tcp[2:], p.remote.Port())
	binary.BigEndian.PutUint32(tcp[4:], p.next)
	binary.BigEndian.PutUint32(tcp[8:], acked)
	tcp[12] = tcpLen / 4 << 4
	tcp[13] = flags
	binary.BigEndian.PutUint16(tcp[14:], 65535) // window
	// The pseudo header: addresses, protocol, length.
	pseudo := uint32(6 + len(tcp))
	for _, a := range [][4]byte{src, dst} {
		pseudo += uint32(binary.BigEndian.Uint16(a[:2])) + uint32(binary.BigEndian.Uint16(a[2:]))
	}
	binary.BigEndian.PutUint16(tcp[16:], checksum(tcp, pseudo))
	return b
}

// checksum is the Internet checksum of an even number of bytes.
func checksum(b []byte, sum uint32) uint16 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// parseSegment decodes an IPv4 packet with a TCP segment. ports are those of
// source and destination.
func parseSegment(b []byte) (s segment, ports [2]uint16, err error) {
	if len(b) < 40 || b[0]>>4 != 4 || b[9] != 6 {
		return s, ports, errors.New("not TCP over IPv4")
	}
	tcp := b[int(b[0]&15)*4:]
	header := int(tcp[12]>>4) * 4
	if len(tcp) < header {
		return s, ports, errors.New("segment shorter than its header")
	}
	ports = [2]uint16{binary.BigEndian.Uint16(tcp[0:]), binary.BigEndian.Uint16(tcp[2:])}
	s = segment{
		flags: tcp[13], seq: binary.BigEndian.Uint32(tcp[4:]), ack: binary.BigEndian.Uint32(tcp[8:]),
		payload: tcp[header:],
	}
	return s, ports, nil
}

func flagNames(flags byte) string {
	var out string
	for i, name := range []string{"FIN", "SYN", "RST", "PSH", "ACK"} {
		if flags&(1<<i) != 0 {
			out += " " + name
		}
	}
	return fmt.Sprintf("[%s ]", out)
}
