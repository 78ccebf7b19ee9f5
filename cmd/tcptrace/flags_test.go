package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// parse makes a configuration of a command line without running it.
func parse(args ...string) (*config, error) { return parseAs(false, args...) }

// parseAs does so, for a snapshot if so asked.
func parseAs(snapshot bool, args ...string) (*config, error) {
	var f flags
	fs := pflag.NewFlagSet("tcptrace", pflag.ContinueOnError)
	f.register(fs, snapshot)
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	return f.config()
}

// refusal runs a command line that must be a usage error, and returns the error.
// Should it be taken for a good one, it ends at a recording that does not exist.
func refusal(t *testing.T, args ...string) error {
	t.Helper()
	out, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	check(t, err)
	defer out.Close()
	args = append([]string{"--replay", filepath.Join(t.TempDir(), "none.rec")}, args...)
	err = run(t.Context(), env{stdout: out, stderr: io.Discard, args: args})
	if usage := (usageError{}); !errors.As(err, &usage) {
		t.Errorf("%q: got error %v, want a usage error", args, err)
	}
	if err == nil {
		return errors.New("none")
	}
	return err
}

// The id of a container is a SHA-256.
const id64 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func TestAGoodFlagBecomesItsFilter(t *testing.T) {
	prefixes := func(in ...string) (out []netip.Prefix) {
		for _, s := range in {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	comms := func(in ...string) (out []events.Comm) {
		for _, s := range in {
			var c events.Comm
			copy(c[:], s)
			out = append(out, c)
		}
		return out
	}
	for _, tt := range []struct {
		args string // separated by spaces
		want aggregate.Filter
	}{
		{"", aggregate.Filter{}},
		{"--pid 1", aggregate.Filter{Pids: []uint32{1}}},
		// The largest pid_max of a 64-bit kernel (proc(5)).
		{"-p 4194304", aggregate.Filter{Pids: []uint32{4194304}}},
		{"-p 1,2 --pid 3", aggregate.Filter{Pids: []uint32{1, 2, 3}}},
		{"-p 1 -f", aggregate.Filter{Pids: []uint32{1}, Follow: true}},
		{"--comm a --follow", aggregate.Filter{Comms: comms("a"), Follow: true}},
		{"--comm nginx,a-name-longer-than-the-kernel-keeps", aggregate.Filter{Comms: comms("nginx", "a-name-longer-t")}},
		{"-L 1 --localport 65535", aggregate.Filter{Lports: []uint16{1, 65535}}},
		{"-D 80,443 --remoteport 8080", aggregate.Filter{Rports: []uint16{80, 443, 8080}}},
		{"-4", aggregate.Filter{Family: 4}},
		{"--ipv6", aggregate.Filter{Family: 6}},
		{"--remote 10.0.0.0/8,fd00::/8", aggregate.Filter{Remotes: prefixes("10.0.0.0/8", "fd00::/8")}},
		{"--remote 192.0.2.1", aggregate.Filter{Remotes: prefixes("192.0.2.1/32")}},
		{"--remote 2001:db8::1", aggregate.Filter{Remotes: prefixes("2001:db8::1/128")}},
		{"--remote 10.1.2.3/8,2001:db8::1/32", aggregate.Filter{Remotes: prefixes("10.0.0.0/8", "2001:db8::/32")}},
		{"--remote 0.0.0.0/0,::/0", aggregate.Filter{Remotes: prefixes("0.0.0.0/0", "::/0")}},
		{"--remote ::ffff:192.0.2.1", aggregate.Filter{Remotes: prefixes("192.0.2.1/32")}},
		{"--remote ::ffff:192.0.2.1/120", aggregate.Filter{Remotes: prefixes("192.0.2.0/24")}},
		{"--remote ::ffff:0:0/96", aggregate.Filter{Remotes: prefixes("0.0.0.0/0")}},
		{"--netns 4026531840", aggregate.Filter{Netns: 4026531840}},
		{"--container 4ac0ffee", aggregate.Filter{Container: "4ac0ffee"}},
		{"--container 0", aggregate.Filter{Container: "0"}},
		{"--container " + id64, aggregate.Filter{Container: id64}},
		// As kubectl get pod -o jsonpath={..containerID} prints it.
		{"--container docker://" + id64, aggregate.Filter{Container: id64}},
		{"--container containerd://" + id64, aggregate.Filter{Container: id64}},
		{"--container cri-o://4ac0", aggregate.Filter{Container: "4ac0"}},
		{"--container 4ac0 -f", aggregate.Filter{Container: "4ac0", Follow: true}},
		{
			"-p 7 -L 80 -D 90 -4 --remote 10.0.0.0/8 --netns 1 --container a",
			aggregate.Filter{
				Pids: []uint32{7}, Lports: []uint16{80}, Rports: []uint16{90}, Family: 4,
				Remotes: prefixes("10.0.0.0/8"), Netns: 1, Container: "a",
			},
		},
	} {
		cfg, err := parse(strings.Fields(tt.args)...)
		if err != nil {
			t.Errorf("%q: got error %v, want none", tt.args, err)
			continue
		}
		same := cmp.Options{cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty()}
		if diff := cmp.Diff(tt.want, cfg.filter, same); diff != "" {
			t.Errorf("%q: got (+) and want (-) differ:\n%s", tt.args, diff)
		}
	}
}

func TestTheOtherFlagsBecomeTheConfiguration(t *testing.T) {
	all := map[string]bool{"transition": true, "connection": true, "socket": true, "finding": true, "summary": false, "stats": true}
	only := func(types ...string) map[string]bool {
		m := map[string]bool{}
		for typ := range all {
			m[typ] = false
		}
		for _, typ := range types {
			m[typ] = true
		}
		return m
	}
	for _, tt := range []struct {
		args   string
		change func(*config)
	}{
		{"", func(*config) {}},
		{"--events connection", func(c *config) { c.print = only("connection") }},
		{"--events socket,stats --events transition", func(c *config) { c.print = only("socket", "stats", "transition") }},
		{"-o json", func(*config) {}},
		{"--output text", func(c *config) { c.text = true }},
		{"--duration 1m30s", func(c *config) { c.duration = 90 * time.Second }},
		{"--record a.rec", func(c *config) { c.record = "a.rec" }},
		{"--replay a.rec", func(c *config) { c.replay = "a.rec" }},
		{"--max-sockets 1", func(c *config) { c.maxSockets = 1 }},
		{"--btf /boot/btf", func(c *config) { c.btf = "/boot/btf" }},
		{"--cri unix:///run/crio/crio.sock", func(c *config) { c.cri = "unix:///run/crio/crio.sock" }},
		{"--cri /run/crio/crio.sock", func(c *config) { c.cri = "/run/crio/crio.sock" }},
		{"-v", func(c *config) { c.verbose = true }},
		{"--close-wait-after 90s", func(c *config) { c.thresholds.CloseWaitAfter, c.chosen = 90*time.Second, set("close-wait-after") }},
		{"--close-wait-after 1ms", func(c *config) { c.thresholds.CloseWaitAfter, c.chosen = time.Millisecond, set("close-wait-after") }},
		{"--close-wait-after 48h", func(c *config) { c.thresholds.CloseWaitAfter, c.chosen = 48*time.Hour, set("close-wait-after") }},
		{"--fin-wait2-after 5s", func(c *config) { c.thresholds.FinWait2After, c.chosen = 5*time.Second, set("fin-wait2-after") }},
		{"--half-open-after 10m --ports-percent 100", func(c *config) {
			c.thresholds.HalfOpenAfter, c.thresholds.PortsPercent = 10*time.Minute, 100
			c.chosen = set("half-open-after", "ports-percent")
		}},
		{"--short-lived-rate 1", func(c *config) { c.thresholds.ShortLived, c.chosen = 1, set("short-lived-rate") }},
		{"--time-wait=false", func(c *config) { c.timeWait = false }},
		{"--fail-on close_wait_leak", func(c *config) { c.failOn = set("close_wait_leak") }},
		{"--fail-on never_closed,fd_limit --fail-on reset_fd_leak", func(c *config) { c.failOn = set("never_closed", "fd_limit", "reset_fd_leak") }},
		{"--fail-on any", func(c *config) { c.failOn = set(everyKind...) }},
		{"--fail-on fin_wait2_stuck,time_wait_ports", func(c *config) { c.failOn = set("fin_wait2_stuck", "time_wait_ports") }},
		{"--summary-interval 7s", func(c *config) { c.summaryInterval, c.print["summary"] = 7*time.Second, true }},
		{"--events summary", func(c *config) { c.print, c.summaryInterval = only("summary"), 10*time.Second }},
		{"--events stats --summary-interval 1m", func(c *config) { c.print, c.summaryInterval = only("stats", "summary"), time.Minute }},
		{"--ring-size 65536", func(c *config) { c.ringBytes = 1 << 16 }},
		{"--ring-size 64K", func(c *config) { c.ringBytes = 1 << 16 }},
		{"--ring-size 1M", func(c *config) { c.ringBytes = 1 << 20 }},
		{"--ring-size 1024M", func(c *config) { c.ringBytes = 1 << 30 }},
		{"--ring-size 1073741824", func(c *config) { c.ringBytes = 1 << 30 }},
		{fmt.Sprintf("--ring-size %d", os.Getpagesize()), func(c *config) { c.ringBytes = os.Getpagesize() }},
	} {
		want := config{
			print: maps.Clone(all), ringBytes: 16 << 20, maxSockets: 1 << 20, timeWait: true, thresholds: events.DefaultThresholds,
		}
		tt.change(&want)
		got, err := parse(strings.Fields(tt.args)...)
		if err != nil {
			t.Errorf("%q: got error %v, want none", tt.args, err)
			continue
		}
		if diff := cmp.Diff(&want, got, cmp.AllowUnexported(config{}), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q: got (+) and want (-) differ:\n%s", tt.args, diff)
		}
	}
}

// The kinds of the contract.
var everyKind = []string{
	"close_wait_leak", "never_closed", "reset_fd_leak", "fd_limit", "fin_wait2_stuck",
	"time_wait_ports", "time_wait_overflow", "short_lived", "half_open",
}

// set is a set of names.
func set(names ...string) map[string]bool {
	m := map[string]bool{}
	for _, n := range names {
		m[n] = true
	}
	return m
}

func TestASnapshotTakesTheFlagsThatMakeSenseForOneLook(t *testing.T) {
	for _, tt := range []struct {
		args   string
		change func(*config)
	}{
		{"", func(*config) {}},
		{"-o text", func(c *config) { c.text, c.print["stats"] = true, false }}, // a table is for eyes
		{"-o text --events stats,socket", func(c *config) { c.text, c.print["finding"] = true, false }},
		{"--events finding", func(c *config) { c.print["socket"], c.print["stats"] = false, false }},
		{"--close-wait-after 5m --fail-on any", func(c *config) {
			c.thresholds.CloseWaitAfter, c.failOn, c.chosen = 5*time.Minute, set(everyKind...), set("close-wait-after")
		}},
		{
			"-p 7 -f -L 80 -D 90 -4 --remote 10.0.0.0/8 --netns 1 --container a --comm x", func(c *config) {
				c.filter = aggregate.Filter{
					Pids: []uint32{7}, Comms: []events.Comm{events.MakeComm("x")}, Follow: true, Lports: []uint16{80}, Rports: []uint16{90},
					Family: 4, Remotes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Netns: 1, Container: "a",
				}
			},
		},
		{"--max-sockets 9 --btf /boot/btf --cri /c.sock -v", func(c *config) {
			c.maxSockets, c.btf, c.cri, c.verbose = 9, "/boot/btf", "/c.sock", true
		}},
	} {
		want := config{
			print: map[string]bool{"socket": true, "finding": true, "stats": true}, snapshot: true,
			ringBytes: 16 << 20, maxSockets: 1 << 20, thresholds: events.DefaultThresholds,
		}
		tt.change(&want)
		got, err := parseAs(true, strings.Fields(tt.args)...)
		if err != nil {
			t.Errorf("snapshot %q: got error %v, want none", tt.args, err)
			continue
		}
		same := cmp.Options{
			cmp.AllowUnexported(config{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty(),
		}
		if diff := cmp.Diff(&want, got, same); diff != "" {
			t.Errorf("snapshot %q: got (+) and want (-) differ:\n%s", tt.args, diff)
		}
	}
}

func TestASnapshotRefusesTheFlagsOfARun(t *testing.T) {
	for _, flag := range []string{"--duration=1s", "--record=a.rec", "--replay=a.rec", "--ring-size=1M", "--summary-interval=1s"} {
		if _, err := parseAs(true, flag); err == nil || !strings.Contains(err.Error(), strings.Split(flag, "=")[0]) {
			t.Errorf("snapshot %s: got error %v, want one that names the flag", flag, err)
		}
	}
	for _, typ := range []string{"transition", "connection", "summary", "sockets"} {
		_, err := parseAs(true, "--events", typ)
		if usage := (usageError{}); !errors.As(err, &usage) {
			t.Errorf("snapshot --events %s: got error %v, want a usage error", typ, err)
			continue
		}
		for _, want := range []string{"--events", typ, "socket, finding, stats"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("snapshot --events %s: got %q, want %q in it", typ, err, want)
			}
		}
	}
}

func TestAMalformedValueIsAUsageErrorThatNamesFlagAndValue(t *testing.T) {
	half := fmt.Sprint(os.Getpagesize() / 2)
	many := strings.TrimSuffix(strings.Repeat("10.0.0.1,", 1025), ",")
	for _, tt := range []struct {
		flag, value string
		named       string // "": value
	}{
		{flag: "--pid", value: "0"},
		{flag: "--pid", value: "-1"},
		{flag: "--pid", value: "+5"},
		{flag: "--pid", value: "abc"},
		{flag: "--pid", value: "0x10"},
		{flag: "--pid", value: "1.5"},
		{flag: "--pid", value: "4194305"},
		{flag: "--pid", value: "18446744073709551616"},
		{flag: "--pid", value: "1,,2", named: `""`},
		{flag: "--pid", value: "1,two", named: "two"},
		{flag: "--localport", value: "0"},
		{flag: "--localport", value: "65536"},
		{flag: "--localport", value: "80,65536", named: "65536"},
		{flag: "--localport", value: "http"},
		{flag: "--remoteport", value: "0"},
		{flag: "--remoteport", value: "65536"},
		{flag: "--remoteport", value: "-80"},
		{flag: "--comm", value: "nginx,", named: `"nginx,"`},
		{flag: "--remote", value: "10.0.0.0/33"},
		{flag: "--remote", value: "10.0.0.0/-1"},
		{flag: "--remote", value: "10.0.0"},
		{flag: "--remote", value: "10.0.0.256"},
		{flag: "--remote", value: "fd00::/129"},
		{flag: "--remote", value: "fe80::1%eth0"},
		{flag: "--remote", value: "example.org"},
		{flag: "--remote", value: "::ffff:10.0.0.0/95"},
		{flag: "--remote", value: "10.0.0.1,x", named: `"x"`},
		{flag: "--remote", value: many, named: "1025"},
		{flag: "--netns", value: "0"},
		{flag: "--netns", value: "-1"},
		{flag: "--netns", value: "4294967296"},
		{flag: "--netns", value: "/run/netns/does-not-exist"},
		{flag: "--container", value: "web"}, // a name
		{flag: "--container", value: "4AC0FFEE"},
		{flag: "--container", value: id64 + "0"},
		{flag: "--container", value: "docker://"},
		{flag: "--container", value: "docker://web"},
		{flag: "--container", value: "docker://containerd://4ac0"},
		{flag: "--container", value: "/docker/4ac0"},
		{flag: "--container", value: "4ac0,4ac1"},
		{flag: "--container", value: " 4ac0"},
		{flag: "--container", value: "4ac0\n4ac1", named: `"4ac0\n4ac1"`}, // "$(docker ps -q)" with two of them
		{flag: "--fail-on", value: "leaks"},
		{flag: "--fail-on", value: "ANY"},
		{flag: "--fail-on", value: "close_wait"},
		{flag: "--fail-on", value: "close-wait-leak"},
		{flag: "--fail-on", value: "any,none", named: `"none"`},
		{flag: "--fail-on", value: "fd_limit,", named: `""`},
		{flag: "--events", value: "transitions"},
		{flag: "--events", value: "connection,all", named: `"all"`},
		{flag: "--output", value: "xml"},
		{flag: "--output", value: ""},
		{flag: "--close-wait-after", value: "0s"},
		{flag: "--close-wait-after", value: "-1s"},
		{flag: "--close-wait-after", value: "60"},
		{flag: "--summary-interval", value: "-1s"},
		{flag: "--summary-interval", value: "often"},
		{flag: "--duration", value: "-1s"},
		{flag: "--duration", value: "10"},
		{flag: "--max-sockets", value: "0"},
		{flag: "--max-sockets", value: "-1"},
		{flag: "--max-sockets", value: "many"},
		{flag: "--ring-size", value: "0"},
		{flag: "--ring-size", value: "1"},
		{flag: "--ring-size", value: half},
		{flag: "--ring-size", value: "5000"},
		{flag: "--ring-size", value: "3M"},
		{flag: "--ring-size", value: "2048M"},
		{flag: "--ring-size", value: "2147483648"},
		{flag: "--ring-size", value: "16m"},
		{flag: "--ring-size", value: "1G"},
		{flag: "--ring-size", value: "M"},
		{flag: "--ring-size", value: "16 M"},
		{flag: "--ring-size", value: "-16M"},
		{flag: "--ring-size", value: "18446744073709551616M"},
		{flag: "--ring-size", value: ""},
	} {
		t.Run(tt.flag+" "+tt.value[:min(len(tt.value), 30)], func(t *testing.T) {
			named := tt.named
			if named == "" {
				named = tt.value
			}
			// With = a value may begin with a dash.
			got := refusal(t, tt.flag+"="+tt.value).Error()
			if !strings.Contains(got, tt.flag) || !strings.Contains(got, named) {
				t.Errorf("got %q, want %q and %q in it", got, tt.flag, named)
			}
			if strings.Contains(got, "\n") {
				t.Errorf("got %q, want one line", got)
			}
		})
	}
}

// A variable of a script that is not set must not turn a filter off.
func TestAnEmptyListIsAUsageErrorThatNamesTheFlag(t *testing.T) {
	for _, flag := range []string{"--pid", "--comm", "--localport", "--remoteport", "--remote", "--netns", "--container", "--fail-on", "--events"} {
		if got := refusal(t, flag, "").Error(); !strings.Contains(got, flag) {
			t.Errorf("got %q, want %q in it", got, flag)
		}
	}
}

// tcptrace --pid "$(pgrep nginx)": the PIDs stand on lines of their own. They may
// be taken or refused, but not dropped.
func TestAListOnSeveralLinesIsNotCutAfterTheFirst(t *testing.T) {
	for _, tt := range []struct {
		flag, value string
		count       func(*config) int
	}{
		{"--pid", "1\n2", func(c *config) int { return len(c.filter.Pids) }},
		{"--localport", "80\n443", func(c *config) int { return len(c.filter.Lports) }},
		{"--remote", "10.0.0.1\n10.0.0.2", func(c *config) int { return len(c.filter.Remotes) }},
	} {
		cfg, err := parse(tt.flag, tt.value)
		if err == nil && tt.count(cfg) != 2 {
			t.Errorf("%s %q: got %d of them, want 2 or an error", tt.flag, tt.value, tt.count(cfg))
		}
	}
}

func TestFlagsThatContradictEachOtherAreAUsageErrorThatNamesThem(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want []string
	}{
		{[]string{"-4", "-6"}, []string{"-4", "-6"}},
		{[]string{"--follow"}, []string{"--follow", "--pid", "--comm", "--container"}},
		{[]string{"--container", "web"}, []string{"--container", `"web"`, "hexadecimal", "docker ps", "crictl ps"}},
		{[]string{"--fail-on", "x"}, []string{"--fail-on", `"x"`, "close_wait_leak, never_closed, reset_fd_leak, fd_limit, ", "half_open, and any"}},
		{[]string{"--close-wait-after", "0"}, []string{"--close-wait-after", "0s", "more than 0"}},
		{[]string{"--close-wait-after", "60"}, []string{"--close-wait-after", `"60"`, "--help"}},
		{[]string{"--record", "a.rec", "--replay", "b.rec"}, []string{"--record", "a.rec", "--replay"}},
		{[]string{"--no-such-flag"}, []string{"--no-such-flag", "--help"}},
		{[]string{"-x"}, []string{"-x", "--help"}},
		{[]string{"stray"}, []string{`"stray"`, "--help"}},
	} {
		got := refusal(t, tt.args...).Error()
		for _, want := range tt.want {
			if !strings.Contains(got, want) {
				t.Errorf("%q: got %q, want %q in it", tt.args, got, want)
			}
		}
	}
}

func TestNetnsTakesAPathOrAnInodeNumber(t *testing.T) {
	// net:[4026531840], see namespaces(7).
	link, err := os.Readlink("/proc/self/ns/net")
	check(t, err)
	var own uint32
	if _, err := fmt.Sscanf(link, "net:[%d]", &own); err != nil {
		t.Fatalf("%s: %v", link, err)
	}
	for _, value := range []string{"/proc/self/ns/net", fmt.Sprintf("/proc/%d/ns/net", os.Getpid()), fmt.Sprint(own)} {
		if cfg := parseFlags(t, "--netns", value); cfg.filter.Netns != own {
			t.Errorf("--netns %s: got %d, want %d", value, cfg.filter.Netns, own)
		}
	}
}

func TestNetnsRefusesWhatIsNoNetworkNamespace(t *testing.T) {
	guard(t)
	dir := t.TempDir()
	file, fifo := filepath.Join(dir, "file"), filepath.Join(dir, "fifo")
	check(t, os.WriteFile(file, []byte("4026531840"), 0o600))
	check(t, unix.Mkfifo(fifo, 0o600))
	for _, path := range []string{"/proc/self/ns/pid", "/proc/self/ns/mnt", file, dir, "/dev/null", filepath.Join(dir, "none"), fifo} {
		got := refusal(t, "--netns", path).Error()
		for _, want := range []string{"--netns", path, "/run/netns/NAME"} {
			if !strings.Contains(got, want) {
				t.Errorf("got %q, want %q in it", got, want)
			}
		}
	}
}
