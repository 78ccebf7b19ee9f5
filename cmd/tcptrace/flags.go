package main

import (
	"context"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/cri"
	"github.com/tcptrace/tcptrace/internal/probe"
	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// The default of --max-sockets: 200 to 300 bytes each, when they exist.
const defaultMaxSockets = 1 << 20

// The default of --ring-size, probe.DefaultRingBytes.
const defaultRing = "16M"

// What --remote can hold in the kernel (bpf/tcptrace.bpf.c, remotes).
const maxRemotes = 1024

// flags is the command line as it was typed.
type flags struct {
	pids, comms, lports, rports, remotes list
	follow, ipv4, ipv6                   bool
	netns, container                     name
	events, failOn                       list
	thresholds                           events.Thresholds
	summaryInterval                      time.Duration
	duration                             time.Duration
	output                               string
	record, replay, otlp                 name
	metrics, metricsConfig               name
	ringSize                             string
	maxSockets                           int
	btf, cri                             name
	verbose                              bool
	snapshot                             bool
	timeWait                             bool
	ways                                 list
	given                                func(flag string) bool
}

// register declares the flags of a command: a snapshot takes those that make sense
// for one look.
func (f *flags) register(fs *pflag.FlagSet, snapshot bool) {
	fs.SortFlags = false
	fs.VarP(&f.pids, "pid", "p", "only sockets that these processes hold or held (`PID`,...)")
	fs.BoolVarP(&f.follow, "follow", "f", false, "with --pid, --comm or --container: their children too")
	fs.Var(&f.comms, "comm", "only processes with this command `NAME`,...")
	fs.VarP(&f.lports, "localport", "L", "only these local `PORT`,...")
	fs.VarP(&f.rports, "remoteport", "D", "only these remote `PORT`,...")
	fs.BoolVarP(&f.ipv4, "ipv4", "4", false, "only IPv4, also on IPv6 sockets")
	fs.BoolVarP(&f.ipv6, "ipv6", "6", false, "only IPv6")
	fs.Var(&f.remotes, "remote", "only peers within `CIDR`,...")
	fs.Var(&f.netns, "netns", "only this network namespace (`PATH` of it, or its inode number)")
	fs.Var(&f.container, "container", "only processes in the container with this `ID`, or a prefix of it")
	f.snapshot, f.given = snapshot, fs.Changed
	if snapshot {
		fs.Var(&f.events, "events", "print only records of these `TYPE`,...: socket, finding, stats")
	} else {
		fs.Var(&f.events, "events", "print only records of these `TYPE`,...: transition, connection, socket, finding, summary, stats (default all but summary)")
	}
	d := events.DefaultThresholds
	fs.DurationVar(&f.thresholds.CloseWaitAfter, "close-wait-after", d.CloseWaitAfter, "time in CLOSE_WAIT, or dead with its descriptor open, after which a socket is a finding")
	fs.DurationVar(&f.thresholds.FinWait2After, "fin-wait2-after", d.FinWait2After, "time that a peer may take to close after this side has")
	fs.DurationVar(&f.thresholds.HalfOpenAfter, "half-open-after", d.HalfOpenAfter, "silence after which an established connection without keep-alive is a finding")
	if !snapshot {
		fs.Uint32Var(&f.thresholds.ShortLived, "short-lived-rate", d.ShortLived, "connections a second from one process to one destination, most shorter than 1s, from which on they are a finding")
	} else {
		f.thresholds.ShortLived = d.ShortLived
	}
	fs.Uint32Var(&f.thresholds.PortsPercent, "ports-percent", d.PortsPercent, "share of the ephemeral ports to one destination, in percent, from which on they are said to run out (critical from 90)")
	fs.Var(&f.failOn, "fail-on", "exit with status 3 if there was a finding of these `KIND`,...: "+strings.Join(findingKinds, ", ")+"; or any")
	fs.StringVarP(&f.output, "output", "o", "json", "`FORMAT`: json (one record a line) or text (columns)")
	if !snapshot {
		fs.DurationVar(&f.summaryInterval, "summary-interval", 0, "print a summary that often (default 10s if --events asks for summaries)")
		fs.DurationVar(&f.duration, "duration", 0, "stop after this time")
		fs.BoolVar(&f.timeWait, "time-wait", true, "trace TIME_WAIT, and FIN_WAIT2 without a process; with =false, FIN_WAIT2 -> CLOSE is all that is seen of them")
		fs.Var(&f.record, "record", "keep the raw events in `FILE`")
		fs.Var(&f.replay, "replay", "take the events from `FILE`: no root, no kernel")
		fs.Var(&f.metrics, "metrics", "serve Prometheus metrics at `ADDR`, 127.0.0.1:9464 for example, or :9464 for all addresses of this host")
		fs.Var(&f.metricsConfig, "metrics-config", "TLS and passwords for --metrics, from a `FILE` as Prometheus' exporters take it with --web.config.file")
		fs.Var(&f.otlp, "otlp", "send findings, and connections unless --events leaves them out, to the OpenTelemetry collector at this `ENDPOINT`, http://127.0.0.1:4317 for example")
		fs.StringVar(&f.ringSize, "ring-size", defaultRing, "ring buffer `BYTES`, a power of two, K and M allowed")
	} else {
		f.ringSize = defaultRing
	}
	fs.IntVar(&f.maxSockets, "max-sockets", defaultMaxSockets, "track at most `N` sockets at once; a new one takes the place of the one idle longest")
	fs.Var(&f.btf, "btf", "kernel types from `FILE`, where /sys/kernel/btf/vmlinux is not to be had")
	fs.Var(&f.cri, "cri", "name pods and containers as Kubernetes does: ask the container runtime at this `ENDPOINT`, its CRI socket")
	fs.Var(&f.ways, "probe", "provide a facility in this way or not at all (`FACILITY=WAY`,...; see docs/requirements.md): for tests")
	_ = fs.MarkHidden("probe") // it was declared just now
	fs.BoolVarP(&f.verbose, "verbose", "v", false, "debug log on stderr")
}

// config is the command line, understood.
type config struct {
	filter          aggregate.Filter
	print           map[string]bool // record types
	failOn          map[string]bool // kinds of findings
	thresholds      events.Thresholds
	chosen          map[string]bool // the flags of thresholds that were given
	summaryInterval time.Duration
	text            bool
	snapshot        bool
	timeWait        bool
	duration        time.Duration
	record          string
	replay          string
	metrics         string
	metricsConfig   string
	otlp            string
	ringBytes       int
	maxSockets      int
	btf             string
	cri             string            // an endpoint that cri.Open takes
	ways            map[string]string // facility -> way
	verbose         bool
}

var findingKinds = aggregate.Kinds()

// The default of --summary-interval where summaries are asked for.
const summaryInterval = 10 * time.Second

var (
	recordTypes   = []string{"transition", "connection", "socket", "finding", "summary", "stats"}
	snapshotTypes = []string{"socket", "finding", "stats"}
)

// config checks the flags. All its errors are usage errors that name the flag,
// its value, and what would be right.
func (f *flags) config() (*config, error) {
	c := &config{
		snapshot: f.snapshot, timeWait: f.timeWait, thresholds: f.thresholds, chosen: map[string]bool{},
		summaryInterval: f.summaryInterval, duration: f.duration, record: string(f.record), replay: string(f.replay), metrics: string(f.metrics), metricsConfig: string(f.metricsConfig),
		otlp: string(f.otlp), maxSockets: f.maxSockets, btf: string(f.btf), cri: string(f.cri), verbose: f.verbose,
	}
	for _, step := range []func(*config) error{f.filter, f.what, f.limits} {
		if err := step(c); err != nil {
			return nil, err
		}
	}
	return c, nil
}

func (f *flags) filter(c *config) error {
	var err error
	flt := &c.filter
	if flt.Pids, err = numbers[uint32]("--pid", f.pids, 1, 1<<22, "a process ID"); err != nil {
		return err
	}
	if flt.Lports, err = numbers[uint16]("--localport", f.lports, 1, 65535, "a port from 1 to 65535"); err != nil {
		return err
	}
	if flt.Rports, err = numbers[uint16]("--remoteport", f.rports, 1, 65535, "a port from 1 to 65535"); err != nil {
		return err
	}
	for _, name := range f.comms {
		if name == "" {
			return usagef("--comm %q: an empty name; give a command name as in ps -o comm", strings.Join(f.comms, ","))
		}
		// The kernel cuts names at 15 bytes; so did ps when it showed this one.
		flt.Comms = append(flt.Comms, events.MakeComm(name))
	}
	flt.Follow = f.follow
	if flt.Container, err = container(string(f.container)); err != nil {
		return err
	}
	if f.follow && !flt.ByProcess() {
		return usagef("--follow: follows the children of a process; give it with --pid, --comm or --container")
	}
	switch {
	case f.ipv4 && f.ipv6:
		return usagef("-4 and -6: no connection is both; leave both out to see both")
	case f.ipv4:
		flt.Family = 4
	case f.ipv6:
		flt.Family = 6
	}
	for _, r := range f.remotes {
		p, err := prefix(r)
		if err != nil {
			return err
		}
		flt.Remotes = append(flt.Remotes, p)
	}
	if len(flt.Remotes) > maxRemotes {
		return usagef("--remote: %d prefixes; at most %d", len(flt.Remotes), maxRemotes)
	}
	if f.netns != "" {
		flt.Netns, err = netns(string(f.netns))
	}
	return err
}

func numbers[T uint16 | uint32](flag string, in []string, low, high uint64, want string) ([]T, error) {
	var out []T
	for _, s := range in {
		n, err := strconv.ParseUint(strings.TrimSpace(s), 10, 64)
		if err != nil || n < low || n > high {
			return nil, usagef("%s %q: not %s", flag, s, want)
		}
		out = append(out, T(n))
	}
	return out, nil
}

// container takes an id as runtimes print it, or as kubectl does: docker://ID,
// containerd://ID.
func container(s string) (string, error) {
	id := s
	if _, after, ok := strings.Cut(s, "://"); ok {
		id = after
	}
	if len(id) > 64 || strings.Trim(id, "0123456789abcdef") != "" || id == "" && s != "" {
		return "", usagef("--container %q: not an id of up to 64 hexadecimal digits, as docker ps or crictl ps show it", s)
	}
	return id, nil
}

func prefix(s string) (netip.Prefix, error) {
	s = strings.TrimSpace(s)
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, usagef("--remote %q: not an address or a prefix such as 10.0.0.0/8 or fd00::/8", s)
	}
	if a := p.Addr(); a.Is4In6() {
		if p.Bits() < 96 {
			return p, usagef("--remote %q: a prefix of IPv4-mapped addresses has at least 96 bits; IPv4 connections are matched by their IPv4 address", s)
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// netns takes an inode number, or a path to a network namespace.
func netns(s string) (uint32, error) {
	if n, err := strconv.ParseUint(s, 10, 32); err == nil && n > 0 {
		return uint32(n), nil
	}
	fd, err := unix.Open(s, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // a FIFO must not block
	if err != nil {
		return 0, usagef("--netns %q: %w; give a path such as /proc/PID/ns/net or /run/netns/NAME, or an inode number", s, err)
	}
	defer func() { _ = unix.Close(fd) }()
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return 0, usagef("--netns %q: not a network namespace; give a path such as /proc/PID/ns/net or /run/netns/NAME", s)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, usagef("--netns %q: %w", s, err)
	}
	return uint32(st.Ino), nil
}

// types are the types of records that --events may name.
func (f *flags) types() []string {
	if f.snapshot {
		return snapshotTypes
	}
	return recordTypes
}

// what takes the flags that say what is printed.
func (f *flags) what(c *config) error {
	types := f.types()
	c.print = map[string]bool{}
	for _, t := range types {
		c.print[t] = len(f.events) == 0 && t != "summary"
	}
	if f.snapshot && f.output == "text" && len(f.events) == 0 {
		c.print["stats"] = false // a table is for eyes
	}
	for _, t := range f.events {
		t = strings.TrimSpace(t)
		if _, ok := c.print[t]; !ok {
			return usagef("--events %q: no such record type; there are %s", t, strings.Join(types, ", "))
		}
		c.print[t] = true
	}
	if err := f.failures(c); err != nil {
		return err
	}
	switch f.output {
	case "json":
	case "text":
		c.text = true
	default:
		return usagef("--output %q: no such format; there are json and text", f.output)
	}
	if f.summaryInterval < 0 {
		return usagef("--summary-interval %s: must not be negative", f.summaryInterval)
	}
	switch {
	case f.given("summary-interval") && f.summaryInterval == 0:
		return usagef("--summary-interval %s: must be more than 0", f.summaryInterval)
	case f.summaryInterval > 0:
		c.print["summary"] = true
	case c.print["summary"]:
		c.summaryInterval = summaryInterval
	}
	return f.findings(c)
}

// findings checks what a finding is.
func (f *flags) findings(c *config) error {
	for _, flag := range []string{"close-wait-after", "fin-wait2-after", "half-open-after", "short-lived-rate", "ports-percent"} {
		if f.given(flag) {
			c.chosen[flag] = true
		}
	}
	t := &f.thresholds
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{
		{"close-wait-after", t.CloseWaitAfter}, {"fin-wait2-after", t.FinWait2After}, {"half-open-after", t.HalfOpenAfter},
	} {
		if d.value <= 0 {
			return usagef("--%s %s: must be more than 0", d.flag, d.value)
		}
	}
	if t.ShortLived == 0 {
		return usagef("--short-lived-rate 0: must be at least 1")
	}
	if t.PortsPercent < 1 || t.PortsPercent > 100 {
		return usagef("--ports-percent %d: not from 1 to 100", t.PortsPercent)
	}
	return nil
}

// over returns the thresholds of the command line, and those of was where it has none.
func (c *config) over(was events.Thresholds) events.Thresholds {
	t := c.thresholds
	t.SummaryInterval = was.SummaryInterval
	if !c.chosen["close-wait-after"] {
		t.CloseWaitAfter = was.CloseWaitAfter
	}
	if !c.chosen["fin-wait2-after"] {
		t.FinWait2After = was.FinWait2After
	}
	if !c.chosen["half-open-after"] {
		t.HalfOpenAfter = was.HalfOpenAfter
	}
	if !c.chosen["short-lived-rate"] {
		t.ShortLived = was.ShortLived
	}
	if !c.chosen["ports-percent"] {
		t.PortsPercent = was.PortsPercent
	}
	return t
}

// failures takes --fail-on.
func (f *flags) failures(c *config) error {
	c.failOn = map[string]bool{}
	for _, k := range f.failOn {
		k = strings.TrimSpace(k)
		switch {
		case k == "any":
			for _, k := range findingKinds {
				c.failOn[k] = true
			}
		case slices.Contains(findingKinds, k):
			c.failOn[k] = true
		default:
			return usagef("--fail-on %q: no such kind of finding; there are %s, and any", k, strings.Join(findingKinds, ", "))
		}
	}
	return nil
}

// limits takes the flags that bound the run.
func (f *flags) limits(c *config) error {
	if f.duration < 0 {
		return usagef("--duration %s: must not be negative", f.duration)
	}
	if f.maxSockets < 1 {
		return usagef("--max-sockets %d: must be at least 1", f.maxSockets)
	}
	if f.record != "" && f.replay != "" {
		return usagef("--record %q with --replay: a replay is of a recording; copy the file instead", f.record)
	}
	if err := f.endpoint(); err != nil {
		return err
	}
	if err := f.collector(); err != nil {
		return err
	}
	if f.cri != "" && f.replay != "" {
		return usagef("--cri %q with --replay: a recording has the names that were known when it was made; leave --cri out", f.cri)
	}
	var err error
	if f.cri != "" {
		if _, err := cri.Path(c.cri); err != nil {
			return usagef("--cri %q: %w", f.cri, err)
		}
	}
	if c.ways, err = ways(f.ways); err != nil {
		return err
	}
	c.ringBytes, err = ringBytes(f.ringSize)
	return err
}

// endpoint checks --metrics. Whether the host is one of this host's addresses, listening
// on it tells.
func (f *flags) endpoint() error {
	if f.metrics == "" {
		if f.metricsConfig != "" {
			return usagef("--metrics-config %q: says how --metrics is served; give that too", string(f.metricsConfig))
		}
		return nil
	}
	_, port, err := net.SplitHostPort(string(f.metrics))
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return usagef("--metrics %q: not an address and a port, such as 127.0.0.1:9464, [::1]:9464, or :9464 for all addresses of this host", string(f.metrics))
	}
	if f.replay != "" {
		return usagef("--metrics %q with --replay: a recording is over before it is scraped; leave one of them out", string(f.metrics))
	}
	return nil
}

func ringBytes(s string) (int, error) {
	digits, shift := s, 0
	switch {
	case strings.HasSuffix(s, "K"):
		digits, shift = strings.TrimSuffix(s, "K"), 10
	case strings.HasSuffix(s, "M"):
		digits, shift = strings.TrimSuffix(s, "M"), 20
	}
	n, err := strconv.ParseUint(digits, 10, 31)
	n <<= shift
	page := uint64(os.Getpagesize())
	if err != nil || bits.OnesCount64(n) != 1 || n < page || n > 1<<30 {
		return 0, usagef("--ring-size %q: not a power of two from %d to 1024M (default %dM)", s, page, probe.DefaultRingBytes>>20)
	}
	return int(n), nil
}

// bounded is over when --duration is, counted from now.
func (c *config) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.duration > 0 {
		return context.WithTimeout(ctx, c.duration)
	}
	return ctx, func() {}
}

// String shows the effective filter for the debug log.
func (c *config) String() string {
	return fmt.Sprintf("%+v", c.filter)
}
