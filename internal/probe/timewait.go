package probe

import (
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/pkg/events"
)

// traceTimeWait attaches what sees minisockets.
func (p *Probe) traceTimeWait(l *loader) error {
	// What a minisocket is ended by is watched before its end is.
	p.trace(l, "time_wait_end",
		variant{name: fexit, attach: []string{tcptraceProgTimewaitPacketBegins, tcptraceProgTimewaitPacket}, trampoline: true},
		variant{
			name: "fexit_args", attach: []string{tcptraceProgTimewaitPacketBegins, tcptraceProgTimewaitPacketOfThree},
			trampoline: true, prepare: func() error { return takesThree(l) },
		},
		variant{name: tpBTF, attach: []string{tcptraceProgTimerReset}})
	if p.Has("time_wait_end") {
		if err := p.core.Variables[tcptraceVarSeesPackets].Set(uint8(1)); err != nil {
			return fmt.Errorf("set sees_packets: %w", err)
		}
	}
	functions := []string{
		tcptraceProgTimewaitConnect, tcptraceProgTimewaitConnected, tcptraceProgTimewaitAbort,
		tcptraceProgTimewaitSchedule, tcptraceProgTimewaitKill,
	}
	p.trace(l, "time_wait",
		variant{
			name: fentry, attach: append([]string{tcptraceProgTimewaitHashdance}, functions...), trampoline: true,
			prepare: func() error { return hasFunction(l, "inet_twsk_hashdance_schedule") }, prove: p.proveMinisockets,
		},
		variant{name: fentry, attach: functions, trampoline: true, prove: p.proveMinisockets},
		variant{
			name: "timer", attach: []string{tcptraceProgTimerEnds, tcptraceProgTimerBegins},
			load: []string{tcptraceProgLookTimewait}, prepare: p.learnTimer, prove: p.proveLook,
		})
	return nil
}

// proveLook looks once, at nothing. The first run of all asks for privileges: cilium/ebpf
// loads a program to see whether programs can be run.
func (p *Probe) proveLook(coll *ebpf.Collection) error {
	look := coll.Programs[tcptraceProgLookTimewait]
	if _, err := look.Run(&ebpf.RunOptions{}); err != nil {
		return fmt.Errorf("look at minisockets: %w", err)
	}
	p.look = look
	return nil
}

// takesThree says what is wrong with the number of arguments that
// tcp_timewait_state_process() has.
func takesThree(l *loader) error {
	types, err := l.opts.Cache.Kernel()
	if err != nil {
		return err
	}
	var f *btf.Func
	if err := types.TypeByName("tcp_timewait_state_process", &f); err != nil {
		return err
	}
	if proto, ok := f.Type.(*btf.FuncProto); !ok || len(proto.Params) != 3 {
		return errors.New("tcp_timewait_state_process has not three arguments")
	}
	return nil
}

// MaxLooks is how many minisockets can be looked at in one call of Look.
const MaxLooks = len(tcptraceLooks{}.At)

// Look makes Minisocket records of those that have gone from FIN_WAIT2 to TIME_WAIT.
// They come with Read. It takes at most MaxLooks.
func (p *Probe) Look(at []events.Look) error {
	if p.look == nil || len(at) == 0 {
		return nil
	}
	l := tcptraceLooks{N: uint32(len(at))}
	for k, a := range at {
		l.At[k].Twaddr, l.At[k].Cookie = a.Skaddr, a.Cookie
	}
	if err := p.core.Maps[tcptraceMapLooks].Put(uint32(0), &l); err != nil {
		return fmt.Errorf("look at minisockets: %w", err)
	}
	if _, err := p.look.Run(&ebpf.RunOptions{}); err != nil {
		return fmt.Errorf("look at minisockets: %w", err)
	}
	return nil
}

// hasFunction says so if the kernel has no such function.
func hasFunction(l *loader, name string) error {
	types, err := l.opts.Cache.Kernel()
	if err != nil {
		return err
	}
	var f *btf.Func
	return types.TypeByName(name, &f)
}

// proveMinisockets makes a minisocket and says what of it the programs were not told of.
func (p *Probe) proveMinisockets(*ebpf.Collection) error {
	vars := p.core.Variables
	set := func(name string, to uint8) error { return vars[name].Set(to) }
	has := func(name string) error {
		var is uint8
		for range patience {
			if err := vars[name].Get(&is); err != nil || is != 0 {
				return err
			}
			time.Sleep(time.Millisecond)
		}
		return fmt.Errorf("nothing comes of a minisocket (%s)", name)
	}
	if err := set(tcptraceVarProving, 1); err != nil {
		return err
	}
	made := false
	err := p.withMinisocket(func() error {
		made = true
		return has(tcptraceVarProvenBegin)
	})
	switch {
	case !made:
		err = nil // without one (no loopback device that is up) nothing speaks against it
	case err == nil:
		err = has(tcptraceVarProvenEnd)
	}
	return errors.Join(err, set(tcptraceVarProving, 0))
}

// patience is for how many milliseconds news of a minisocket is awaited. The FIN is
// acknowledged at once, as a rule; on a busy machine, when ksoftirqd comes to it.
const patience = 250

// learnTimer finds out which function the timers of minisockets have: it makes a
// minisocket and shows it to an iterator.
func (p *Probe) learnTimer() error {
	var fn uint64
	handler := p.core.Variables[tcptraceVarTwHandler]
	if err := handler.Get(&fn); err != nil || fn != 0 {
		return err
	}
	if p.tcp == nil {
		return errors.New("no iterator to learn the timer's function with")
	}
	if err := p.want(0); err != nil {
		return err
	}
	return p.withMinisocket(func() error {
		for range patience {
			r, err := p.tcp.Open()
			if err != nil {
				return err
			}
			_, err = io.Copy(io.Discard, r)
			if err := errors.Join(err, r.Close()); err != nil {
				return err
			}
			if err := handler.Get(&fn); err != nil || fn != 0 {
				return err
			}
			time.Sleep(time.Millisecond)
		}
		return errors.New("no minisocket to learn the timer's function from")
	})
}

// withMinisocket calls f while there is a minisocket in FIN_WAIT2 in this thread's network
// namespace. Where that is allowed, it is one of its own, where there is nothing else.
func (p *Probe) withMinisocket(f func() error) error {
	err := p.home.elsewhere(newNetwork, func() error { return withMinisocket(f) })
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) { // a seccomp filter's word
		err = withMinisocket(f)
	}
	return err
}

// newNetwork takes this thread into a network namespace that has nothing but lo.
func newNetwork() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("new network namespace: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// withMinisocket does so in this thread's network namespace. The reset of the minisocket's
// peer ends it, so that nothing stays behind.
func withMinisocket(f func() error) error {
	var fds []int
	defer func() {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}()
	socket := func() (int, error) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			fds = append(fds, fd)
		}
		return fd, err
	}
	listener, err := socket()
	if err != nil {
		return err
	}
	if err := unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return err
	}
	if err := unix.Listen(listener, 1); err != nil {
		return err
	}
	at, err := unix.Getsockname(listener)
	if err != nil {
		return err
	}
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(client, at); err != nil {
		return errors.Join(err, unix.Close(client))
	}
	server, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return errors.Join(err, unix.Close(client))
	}
	fds = append(fds, server)
	if err := unix.SetsockoptLinger(server, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return errors.Join(err, unix.Close(client))
	}
	if err := unix.Close(client); err != nil {
		return err
	}
	return f()
}
