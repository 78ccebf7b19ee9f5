package events

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
)

// Kind says which of the structs of bpf/tcptrace.h a record is.
type Kind uint8

// The kinds, numbered as enum event_kind.
const (
	Transition Kind = iota + 1
	Destroy
	Accept
	Socket
	Fork
	Minisocket
)

// Flags are those of enum event_flags.
type Flags uint8

// The flags. Owned is sk_lock.owned: set exactly when the event happened in
// process context, inside a system call on this socket (measured on 5.10 to
// 6.18); all other events run on top of a process that has nothing to do with
// the socket.
const (
	Owned     Flags = 1 << iota // in a system call on this socket; Proc is set
	HasSocket                   // sk_socket is set: accepted, and not yet closed
	Dead                        // SOCK_DEAD: close() was called
	Done                        // SOCK_DONE: the peer's FIN has arrived
	Exiting                     // the process is exiting
	KThread                     // in a kernel thread, or the agent itself: nobody's; Proc is not set
	Linger                      // SO_LINGER with a time: close() waits before it sets SOCK_DEAD
	Repair                      // TCP_REPAIR
)

// Addr is an address as the wire has it: IPv6, with IPv4 as ::ffff:a.b.c.d. It
// holds no pointer, unlike netip.Addr, so that a million of them cost the
// garbage collector nothing.
type Addr [16]byte

// Is4 reports whether a is an IPv4 address. One that reached the kernel through
// an IPv6 socket is IPv4 too: to TCP there is no difference.
func (a *Addr) Is4() bool {
	return [12]byte(a[:12]) == [12]byte{10: 0xff, 11: 0xff}
}

// IsUnspecified reports whether a is 0.0.0.0 or ::.
func (a *Addr) IsUnspecified() bool {
	return *a == Addr{} || *a == Addr{10: 0xff, 11: 0xff}
}

// Netip returns a as an IPv4 or an IPv6 address.
func (a *Addr) Netip() netip.Addr { return netip.AddrFrom16(*a).Unmap() }

// CommLen is the kernel's TASK_COMM_LEN.
const CommLen = 16

// Proc is a process in the agent's PID namespace. Pid 0 stands for none, and
// for one that is not visible from that namespace: Hidden is then its PID in the
// initial one, good for telling such processes apart and for nothing else.
type Proc struct {
	Pid    uint32
	Hidden uint32
	Comm   Comm
}

// Comm is a command name as the kernel holds it: any bytes, NUL-padded.
type Comm [CommLen]byte

// Bytes returns the name without its padding. The slice aliases c.
func (c *Comm) Bytes() []byte {
	if i := bytes.IndexByte(c[:], 0); i >= 0 {
		return c[:i]
	}
	return c[:]
}

// MakeComm returns s as the kernel would hold it, cut to 15 bytes.
func MakeComm(s string) (c Comm) {
	copy(c[:CommLen-1], s)
	return c
}

// Event is one record of any kind, decoded. What a kind does not carry is zero.
type Event struct {
	Ktime  uint64 // CLOCK_BOOTTIME, ns
	Skaddr uint64 // address of the struct sock: a name until Destroy, never dereferenced
	Cookie uint64 // the socket's cookie; 0 if the kernel has none (yet)
	Netns  uint32 // inode number of the network namespace
	Kind   Kind
	Flags  Flags
	Old    State // of Transition; Socket has its state in both
	New    State

	Proc   Proc // Transition with Owned but not KThread; Accept; Socket with Fd >= 0; Fork
	Parent Proc // Fork

	// Transition and Socket.
	Shutdown uint8  // sk_shutdown: 1 receiving, 2 sending is shut down
	Lport    uint16 // 0: not chosen yet
	Rport    uint16 // 0: none
	Laddr    Addr
	Raddr    Addr
	Listener uint64 // Skaddr of the listener, with Old == Listen; 0: not known
	Err      uint32 // sk_err, an errno
	Linger2  bool   // TCP_LINGER2 < 0: no FIN_WAIT2 without a process
	Taken    bool   // the first that is told of the socket: the kernel side has turned away what came before
	Unread   uint32 // bytes that the application has not read, and 1 for an unread FIN
	Sent     uint64 // payload bytes, retransmissions not counted
	Received uint64 // payload bytes, and 1 for a received FIN

	// Socket.
	Quiet  uint64 // at least so many ns in its state, or since the last segment that carried an ACK; 0: unknown
	Unsent uint64 // ns since data was sent last
	Queued uint32 // bytes written and not acknowledged, a FIN included
	Fd     int32  // -1: no descriptor was looked at
	Kernel bool   // the kernel's own: no process can have it
	Thread bool   // the descriptor is not the process's, but of a thread with descriptors of its own
	Fresh  bool   // never was connected
	// SO_KEEPALIVE or TCP_USER_TIMEOUT: a peer that is gone will be noticed.
	Guarded bool

	// Socket, of what stands in for a socket: a request_sock in SYN_RECV, a
	// minisocket in TIME_WAIT or FIN_WAIT2. Only the header and the ends are set.
	Mini bool

	// Minisocket, whose address is Skaddr. It begins, or its timer is set anew: New
	// is FinWait2 or TimeWait. Or it ends: New is Close, Old what it was. The header
	// and the ends are set.
	Why     Why
	Left    time.Duration // until its timer ends it; not positive: it may. Also of a Socket with Mini
	Stamped bool          // its peer sends timestamps (RFC 7323). Also of a Socket with Mini
}

// Why says what has ended a Minisocket before its time.
type Why uint8

// The reasons, numbered as enum timewait_why.
const (
	WhyUnknown Why = iota
	WhyConnect     // a connect() took its port (tcp_tw_reuse)
	WhySyn         // a new SYN of its peer got a connection
	WhyReset       // what its peer has sent was answered with a reset
	WhyKilled      // by ss -K (SOCK_DESTROY), or with its network namespace
	WhyOther       // none of these: its time is up, or a reset has come
	WhyAgain       // of a beginning: it is none, its timer was set anew
)

// Look names a Minisocket.
type Look struct {
	Skaddr, Cookie uint64
}

// Network is what a network namespace allows, and what it has counted. What could
// not be read is 0.
type Network struct {
	Netns           uint32
	Cookie          uint64 // SO_NETNS_COOKIE: its number may be another's by now
	PortLow         uint16 // net.ipv4.ip_local_port_range
	PortHigh        uint16
	Reserved        uint16 // of these, net.ipv4.ip_local_reserved_ports
	ReusePolicy     uint8  // net.ipv4.tcp_tw_reuse: 0 never, 1 always, 2 on loopback
	Timestamps      uint8  // net.ipv4.tcp_timestamps
	MaxTimeWait     uint32 // net.ipv4.tcp_max_tw_buckets
	FinTimeout      uint32 // net.ipv4.tcp_fin_timeout, seconds
	TimeWaitSkipped uint64 // TcpExt TCPTimeWaitOverflow
}

// Scan says what a scan has looked for.
type Scan struct {
	Complete bool     // it has reached all sockets that it was to
	Every    bool     // these were sockets in every state, and every descriptor of one
	All      bool     // and, held or not, every socket and minisocket
	Walked   []uint32 // of these network namespaces
}

// Details is what /proc says of a process. What is not known is empty, 0.
type Details struct {
	Pid       uint32
	Gone      bool   // it has exited; nothing else is known
	OpenFiles uint32 // its descriptors
	FileLimit uint64 // RLIMIT_NOFILE, the soft one
	Exe       string // path of its program
	Container string // id of the container that it is in
}

// Container is a container, with its names in Kubernetes. Those are empty where no
// container runtime was asked, or where it does not know the container.
type Container struct {
	ID        string
	Name      string
	Pod       string
	Namespace string // of the pod
}

// The sizes that bpf/tcptrace.h asserts.
const (
	headerSize     = 32
	procSize       = 24
	transitionSize = 128
	acceptSize     = 56
	processSize    = 80
	timewaitSize   = 80

	// SocketSize is the size of a Socket record, the largest, and the only kind
	// that an iterator writes.
	SocketSize = 168
)

var sizes = [...]int{
	Transition: transitionSize, Destroy: headerSize, Accept: acceptSize,
	Socket: SocketSize, Fork: processSize, Minisocket: timewaitSize,
}

// Decode reads one record into ev, which it overwrites as a whole. It refuses
// a record that is not exactly of its kind's size, or that names a state the
// kernel does not have; ev is then undefined. It does not keep b.
func Decode(b []byte, ev *Event) error {
	if len(b) < headerSize {
		return fmt.Errorf("record of %d bytes is shorter than its header", len(b))
	}
	le := binary.LittleEndian
	kind := Kind(b[28])
	if kind == 0 || int(kind) >= len(sizes) {
		return fmt.Errorf("record of unknown kind %d", kind)
	}
	if len(b) != sizes[kind] {
		return fmt.Errorf("record of kind %d has %d bytes, want %d", kind, len(b), sizes[kind])
	}
	*ev = Event{
		Ktime:  le.Uint64(b),
		Skaddr: le.Uint64(b[8:]),
		Cookie: le.Uint64(b[16:]),
		Netns:  le.Uint32(b[24:]),
		Kind:   kind,
		Old:    State(b[29]),
		New:    State(b[30]),
		Flags:  Flags(b[31]),
		Fd:     -1,
	}
	switch kind {
	case Destroy:
		return nil
	case Minisocket:
		return decodeMinisocket(b, ev)
	}
	decodeProc(b[headerSize:], &ev.Proc)

	switch kind {
	case Transition:
		return decodeSocket(b, ev)
	case Socket:
		ev.Quiet = le.Uint64(b[128:])
		ev.Unsent = le.Uint64(b[136:])
		ev.Fd = int32(le.Uint32(b[144:]))
		ev.Queued = le.Uint32(b[148:])
		ev.Kernel = b[152] != 0
		ev.Mini = b[153] != 0
		ev.Thread = b[154] != 0
		ev.Fresh = b[155] != 0
		ev.Guarded = b[156] != 0
		ev.Stamped = b[157] != 0
		ev.Left = time.Duration(le.Uint64(b[160:]))
		return decodeSocket(b, ev)
	case Fork:
		decodeProc(b[56:], &ev.Parent)
	}
	return nil
}

// Ktime returns the time of a record that is at least as long as its header.
func Ktime(raw []byte) uint64 { return binary.LittleEndian.Uint64(raw) }

// Pid returns the process that does something with a socket, by a record that is
// at least as long as its header; 0 if there is none.
func Pid(raw []byte) uint32 {
	if len(raw) < headerSize+procSize || Kind(raw[28]) == Fork || Kind(raw[28]) == Minisocket {
		return 0
	}
	return binary.LittleEndian.Uint32(raw[headerSize:])
}

func decodeProc(b []byte, p *Proc) {
	p.Pid = binary.LittleEndian.Uint32(b)
	p.Hidden = binary.LittleEndian.Uint32(b[4:])
	// Older kernels (5.10) leave what was there before behind the NUL, which is no part of
	// the name.
	name := b[8:procSize]
	if n := bytes.IndexByte(name, 0); n >= 0 {
		name = name[:n]
	}
	p.Comm = Comm{}
	copy(p.Comm[:], name)
}

func decodeSocket(b []byte, ev *Event) error {
	if !ev.Old.Valid() || !ev.New.Valid() {
		return fmt.Errorf("record with states %d and %d", ev.Old, ev.New)
	}
	le := binary.LittleEndian
	ev.Lport = le.Uint16(b[58:])
	ev.Rport = le.Uint16(b[60:])
	ev.Shutdown = b[62]
	ev.Linger2 = b[63]&1 != 0
	ev.Taken = b[63]&2 != 0
	ev.Laddr = Addr(b[64:80])
	ev.Raddr = Addr(b[80:96])
	ev.Listener = le.Uint64(b[96:])
	ev.Err = le.Uint32(b[104:])
	ev.Unread = le.Uint32(b[108:])
	ev.Sent = le.Uint64(b[112:])
	ev.Received = le.Uint64(b[120:])
	return nil
}

func decodeMinisocket(b []byte, ev *Event) error {
	if ev.New != FinWait2 && ev.New != TimeWait && (ev.New != Close || ev.Old != FinWait2 && ev.Old != TimeWait) {
		return fmt.Errorf("minisocket with states %d and %d", ev.Old, ev.New)
	}
	le := binary.LittleEndian
	ev.Left = time.Duration(le.Uint64(b[32:]))
	ev.Lport = le.Uint16(b[42:])
	ev.Rport = le.Uint16(b[44:])
	ev.Why = Why(b[46])
	ev.Stamped = b[47] != 0
	ev.Laddr = Addr(b[48:64])
	ev.Raddr = Addr(b[64:80])
	return nil
}

// AppendFork appends a Fork record to b. The agent makes these itself for
// processes that were there before it, and they must look like the kernel's in a
// recording.
func AppendFork(b []byte, ktime uint64, child, parent Proc) []byte {
	var r [processSize]byte
	binary.LittleEndian.PutUint64(r[:], ktime)
	r[28] = byte(Fork)
	for i, p := range []Proc{child, parent} {
		at := headerSize + i*procSize
		binary.LittleEndian.PutUint32(r[at:], p.Pid)
		binary.LittleEndian.PutUint32(r[at+4:], p.Hidden)
		copy(r[at+8:], p.Comm[:])
	}
	return append(b, r[:]...)
}
