package livetest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// granted is the capabilities that the container of a manifest in
// deploy/kubernetes is given. It has no others.
func granted(t *testing.T, manifest string) (capabilities []string) {
	t.Helper()
	for _, name := range listed(t, manifest, `drop: \[ALL\]\n(?: +#.*\n)* +add`) {
		capabilities = append(capabilities, "CAP_"+name)
	}
	return capabilities
}

// listed is the list that a manifest has on one line, after a key.
func listed(t *testing.T, manifest, key string) []string {
	t.Helper()
	text, err := os.ReadFile("../deploy/kubernetes/" + manifest)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^ +` + key + `: \[(.+)\]$`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("%s has no %s", manifest, key)
	}
	return strings.Split(strings.ReplaceAll(string(m[1]), `"`, ""), ", ")
}

// A pod is where containers of a test run: below one cgroup, as kubelet has it.
// runc runs them.
type pod struct {
	t      *testing.T
	dir    string
	cgroup string
}

var podCount atomic.Uint32

func newPod(t *testing.T) *pod {
	t.Helper()
	live(t)
	p := &pod{t: t, dir: t.TempDir(), cgroup: fmt.Sprintf("/tt-%d-%d", os.Getpid(), podCount.Add(1))}
	t.Cleanup(func() {
		// runc removes the containers' cgroups, in each hierarchy, and not what is above them.
		for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			dirs, _ := filepath.Glob(pattern + p.cgroup) // a pattern that is right gives no error
			for _, dir := range dirs {
				if err := os.Remove(dir); err != nil {
					t.Errorf("remove the pod's cgroup: %v", err)
				}
			}
		}
	})
	return p
}

// container writes the bundle of a container as a container runtime does for an
// unprivileged one on a node with cgroup v2: its defaults are containerd's. join
// are the namespaces, by type, that it shares with others: the paths of theirs, ""
// for the host's. It returns the container's id.
func (p *pod) container(root string, user uint32, capabilities []string, join map[specs.LinuxNamespaceType]string, args ...string) string {
	p.t.Helper()
	id := containerID()
	spec := &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: root, Readonly: true},
		Process: &specs.Process{
			User:            specs.User{UID: user, GID: user},
			Args:            args,
			Env:             []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cwd:             "/",
			Capabilities:    &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
			NoNewPrivileges: true,
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: p.cgroup + "/" + id,
			MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/scsi"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.NetworkNamespace, specs.IPCNamespace,
		specs.UTSNamespace, specs.MountNamespace, specs.CgroupNamespace} {
		if path, joined := join[kind]; !joined || path != "" {
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
		}
	}
	// The profile that a runtime calls its default depends on the capabilities.
	var err error
	if spec.Linux.Seccomp, err = seccomp.GetDefaultProfile(spec); err != nil {
		p.t.Fatal(err)
	}
	config, err := json.Marshal(spec)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(p.dir, id), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, id, "config.json"), config, 0o600); err != nil {
		p.t.Fatal(err)
	}
	return id
}

func (p *pod) runc(args ...string) *exec.Cmd {
	return exec.Command("runc", append([]string{"--root", filepath.Join(p.dir, "state")}, args...)...)
}

// run is the command that runs the container: it passes signals on to it, and
// has its output and its exit status.
func (p *pod) run(id string, options ...string) *exec.Cmd {
	p.t.Cleanup(func() {
		// Fails if the container has ended, as it may have.
		_ = p.runc("delete", "--force", id).Run()
	})
	return p.runc(append(append([]string{"run", "--bundle", filepath.Join(p.dir, id)}, options...), id)...)
}

// pid is that of the container's first process on the host.
func (p *pod) pid(id string) int {
	p.t.Helper()
	var state specs.State
	text, err := p.runc("state", id).Output()
	if err == nil {
		err = json.Unmarshal(text, &state)
	}
	if err != nil {
		p.t.Fatalf("runc state: %v", err)
	}
	return state.Pid
}

// appRoot is the file system of the application's containers: the leaker, and
// what a shell in it would have.
func (p *pod) appRoot() string {
	p.t.Helper()
	leaker, err := compiledLeaker()
	if err != nil {
		p.t.Fatal(err)
	}
	root := filepath.Join(p.dir, "app")
	for _, dir := range []string{"proc", "dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			p.t.Fatal(err)
		}
	}
	if out, err := exec.Command("cp", leaker, "/bin/busybox", root).CombinedOutput(); err != nil {
		p.t.Fatalf("cp: %v: %s", err, out)
	}
	return root
}

// An app is a leaker in a container of its own.
type app struct {
	*leaker
	id   string
	host int // the PID of its first process on the host
}

// app starts one, as another user than root and without capabilities, in the
// network namespace of the scene. With pause, it is in the PID namespace of a
// container that does nothing: so it is where the containers of a pod share theirs.
func (p *pod) app(s *scene, pause bool) app {
	p.t.Helper()
	root := p.appRoot()
	join := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "/run/netns/" + s.ns.name}
	if pause {
		id := p.container(root, 65535, nil, join, "/busybox", "sleep", "120")
		if err := p.run(id, "--detach").Run(); err != nil {
			p.t.Fatalf("runc run: %v", err)
		}
		join[specs.PIDNamespace] = fmt.Sprintf("/proc/%d/ns/pid", p.pid(id))
	}
	id := p.container(root, 1000, nil, join, "/leak-c", "eof")
	out, outWrite := newPipe(p.t)
	cmd := p.run(id)
	cmd.Stdout, cmd.Stderr = outWrite, os.Stderr
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	outWrite.Close()
	go func() { _ = cmd.Wait() }()
	// Not adopted: the PIDs that it says are of another namespace.
	l := &leaker{s: s, shape: "eof", out: out, lines: bufio.NewScanner(out)}
	l.at = &sock{local: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(l.next("listening")[0]))}
	return app{l, id, p.pid(id)}
}

// capabilityNumbers are those of linux/capability.h.
var capabilityNumbers = map[string]int{"CAP_BPF": unix.CAP_BPF, "CAP_PERFMON": unix.CAP_PERFMON,
	"CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE, "CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN}

// trace runs tcptrace's image in a container of the pod, and makes sure that it
// is confined there.
func (p *pod) trace(img image, capabilities []string, join map[specs.LinuxNamespaceType]string, args ...string) *tracer {
	p.t.Helper()
	args = slices.Concat(img.entrypoint, []string{"--duration", tracerLife}, args)
	id := p.container(img.root, 0, capabilities, join, args...)
	cmd := p.run(id)
	tr := startTracerBy(p.t, cmd, cmd.Start)
	tr.pid = p.pid(id)
	var mask uint64
	for _, name := range capabilities {
		mask |= 1 << capabilityNumbers[name]
	}
	proc := fmt.Sprintf("/proc/%d/", tr.pid)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		p.t.Fatal(err)
	}
	for _, want := range []string{fmt.Sprintf("CapBnd:\t%016x\n", mask), "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
		if !strings.Contains(string(status), want) {
			p.t.Errorf("tcptrace runs without %q, want a confined one:\n%s", want, status)
		}
	}
	mounts, err := os.ReadFile(proc + "mounts")
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		// source target type options
		f := strings.Fields(line)
		if f[2] == "tracefs" || (f[1] == "/" || f[1] == "/sys") && !strings.HasPrefix(f[3], "ro,") {
			p.t.Errorf("tcptrace has a mount that it must not have: %s", line)
		}
	}
	return tr
}

// inCloseWait is what a shell in the container shows, as kubectl exec gives one:
// the descriptors of a process there whose sockets are in CLOSE_WAIT.
func (p *pod) inCloseWait(id string, pid int) (fds []int) {
	p.t.Helper()
	busybox := func(args ...string) string {
		out, err := p.runc(append([]string{"exec", id, "/busybox"}, args...)...).CombinedOutput()
		if err != nil {
			p.t.Fatalf("runc exec %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	waiting := map[string]bool{} // inodes
	for line := range strings.Lines(busybox("cat", fmt.Sprintf("/proc/%d/net/tcp", pid))) {
		// sl local_address rem_address st tx_queue:rx_queue tr:tm->when retrnsmt uid timeout inode
		if f := strings.Fields(line); f[3] == "08" {
			waiting[f[9]] = true
		}
	}
	links := busybox("ls", "-l", fmt.Sprintf("/proc/%d/fd", pid))
	for _, m := range regexp.MustCompile(`(\d+) -> socket:\[(\d+)\]`).FindAllStringSubmatch(links, -1) {
		if waiting[m[2]] {
			fd, err := strconv.Atoi(m[1])
			if err != nil {
				p.t.Fatal(err)
			}
			fds = append(fds, fd)
		}
	}
	slices.Sort(fds)
	return fds
}

// leak makes the app leak two connections, and is what has to be said of it from
// within its own PID namespace.
func (p *pod) leak(a app, peer *agent) leak {
	p.t.Helper()
	sockets := make([]leaked, 2)
	var pid int
	var fds []int
	for i := range sockets {
		c := peer.dial(a.at)
		held := a.next("held")
		pid = int(held[0])
		fds = append(fds, int(held[1]))
		cookie := strconv.FormatUint(held[2], 16)
		sockets[i] = leaked{cookie: cookie, local: c.remote, remote: c.local, verdict: "eof_read",
			holders: []holder{{pid, "leak-c", int(held[1]), cookie}}}
		sockets[i].closedBy(c)
	}
	var shown []int
	for deadline := time.Now().Add(3 * time.Second); !slices.Equal(shown, fds) && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		shown = p.inCloseWait(a.id, pid)
	}
	if !slices.Equal(shown, fds) {
		p.t.Fatalf("a shell in the container shows descriptors %v of %d in CLOSE_WAIT, want %v", shown, pid, fds)
	}
	want := closeWaitLeak(process{pid, "leak-c", "/leak-c"}, sockets, true)
	want.never = true
	return want
}

// checkContainer checks that each finding names the container.
func checkContainer(t *testing.T, records []record, id string) {
	t.Helper()
	for i := range records {
		if r := &records[i]; r.Type == "finding" && orNull(r.Container) != id {
			t.Errorf("%s of container %s, want %s", r.Kind, orNull(r.Container), id)
		}
	}
}

// From a container beside it, as deploy/kubernetes/ has them, the leak is named
// by what a shell in the leaking container itself shows.
func TestFromAContainerOfItsPodTheLeakIsNamedAsThere(t *testing.T) {
	for _, tt := range []struct {
		manifest string
		shared   bool // the PID namespace is the pod's, not the leaking container's
		args     []string
	}{
		{"debug.yaml", false, []string{"--pid", "1", "--netns", "/proc/self/ns/net"}},
		{"sidecar.yaml", true, append(listed(t, "sidecar.yaml", "args"), "--events", "stats")}, // the books, for this test
	} {
		t.Run(tt.manifest, func(t *testing.T) {
			t.Parallel()
			img := theImage(t)
			var want leak
			var leaking app
			_, runs := playComplete(t, func(s *scene) {
				p := newPod(t)
				leaking = p.app(s, tt.shared)
				peer, stranger := s.agent("peer"), s.agent("stranger")
				if !tt.shared {
					c, d := pair(peer, stranger.listen(anyPort4))
					leakOf(c, d, "eof_unread") // outside the container: nothing must be said of it
				}
				s.add(p.trace(img, granted(t, tt.manifest), map[specs.LinuxNamespaceType]string{
					specs.PIDNamespace:     fmt.Sprintf("/proc/%d/ns/pid", leaking.host),
					specs.NetworkNamespace: fmt.Sprintf("/proc/%d/ns/net", leaking.host),
				}, append([]string{"--close-wait-after", closeWaitAfter.String()}, tt.args...)...))
				want = p.leak(leaking, peer)
				s.awaitFindings([]leak{want})
				time.Sleep(lag)
			})
			if (want.who.pid == 1) == tt.shared {
				t.Errorf("the application has PID %d: not the set-up that this test is about", want.who.pid)
			}
			checkFindings(t, runs[0].records, []leak{want})
			checkContainer(t, runs[0].records, leaking.id)
		})
	}
}

// askFor asks the container of a process for a page, as kubelet and Prometheus do,
// until it is there with the text.
func askFor(t *testing.T, pid int, path, text string) {
	t.Helper()
	var out []byte
	var err error
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		out, err = exec.Command("nsenter", "-t", strconv.Itoa(pid), "-n", "busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:9464"+path).CombinedOutput()
		if err == nil && strings.Contains(string(out), text) {
			return
		}
	}
	t.Errorf("%s: %v, want %q in:\n%s", path, err, text, out)
}

// With the host's PIDs and a network namespace of its own.
func TestFromADaemonSetTheLeakOfAnotherPodIsNamed(t *testing.T) {
	t.Parallel()
	img := theImage(t)
	var want leak
	var leaking app
	_, runs := playComplete(t, func(s *scene) {
		p := newPod(t)
		leaking = p.app(s, false)
		peer := s.agent("peer")
		args := append(listed(t, "daemonset.yaml", "args"), "--events", "stats", // the books, for this test
			"--netns", fmt.Sprint(s.ns.inode), "--close-wait-after", closeWaitAfter.String())
		s.add(newPod(t).trace(img, granted(t, "daemonset.yaml"), map[specs.LinuxNamespaceType]string{specs.PIDNamespace: ""}, args...))
		want = p.leak(leaking, peer)
		want.who.pid = leaking.host
		for _, l := range want.sockets {
			l.holders[0].Pid = leaking.host
		}
		s.awaitFindings([]leak{want})
		time.Sleep(lag)
		askFor(t, s.tr.pid, "/healthz", "")
		askFor(t, s.tr.pid, "/readyz", "")
		askFor(t, s.tr.pid, "/metrics", `tcptrace_findings_open{kind="close_wait_leak",severity="warning"} 1`)
	})
	checkFindings(t, runs[0].records, []leak{want})
	checkContainer(t, runs[0].records, leaking.id)
}
