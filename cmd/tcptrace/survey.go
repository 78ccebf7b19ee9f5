package main

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tcptrace/tcptrace/internal/host"
	"github.com/tcptrace/tcptrace/internal/privilege"
	"github.com/tcptrace/tcptrace/internal/probe"
)

// items are in the order in which a reader should mend: what comes first may be the
// reason for what comes later.
func (s *survey) items() []item {
	all := []item{s.kernel(), s.types(), s.lockdown(), s.lsm(), s.userNamespace(), s.seccomp()}
	for _, c := range privilege.Used() {
		all = append(all, s.capability(c))
	}
	all = append(all,
		s.memlock(),
		s.pidNamespace(), s.proc(), s.processes(), s.networkNamespaces(), s.cgroup(),
		s.ftrace(), s.tracefs(),
		setting("unprivileged_bpf", s.UnprivilegedBPF, "is about who has no CAP_BPF"),
		setting("kptr_restrict", s.KptrRestrict, "tcptrace reads no addresses from /proc/kallsyms"))
	return append(all, s.facilities(all)...)
}

func found(name string, status string, format string, args ...any) item {
	f := fmt.Sprintf(format, args...)
	return item{Name: name, Status: status, Found: &f}
}

func unknown(name string, err error) item {
	return item{Name: name, Status: statusUnknown, Error: oneLine(err)}
}

// costs adds what it costs, and what mends it, each of the lines alone.
func (i item) costs(cost string, mend ...string) item {
	i.Cost, i.Mend = cost, mend
	return i
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// What refuses though we have every capability.
const policy = "an LSM of the host (lsm, above) or its kernel refuses, whatever the capabilities: another policy, or another host"

func (s *survey) kernel() item {
	if s.Release.Err != nil {
		return unknown("kernel", s.Release.Err)
	}
	return found("kernel", statusInfo, "%s %s", s.Release.Value, runtime.GOARCH)
}

func (s *survey) types() item {
	if s.Types == nil {
		return found("btf", statusOK, btfFile)
	}
	mend := []string{
		"mount -t sysfs sysfs /sys   # if nothing is mounted there",
		"docker run -v /sys/kernel/btf:/sys/kernel/btf:ro ...",
		"volumes: [{name: btf, hostPath: {path: /sys/kernel/btf}}]   # and mount it at the same path",
		"a kernel that is built with CONFIG_DEBUG_INFO_BTF=y   # if the host has no such file either",
	}
	i := found("btf", statusDegraded, "--btf %s, in place of the kernel's own", s.btf).costs("transitions are all that can be traced", mend...)
	if s.btf == "" {
		i = found("btf", statusMissing, "none").costs("nothing can be loaded without the kernel's types",
			append(mend, "tcptrace --btf FILE   # the types of this very kernel: transitions are all that can be traced then")...)
	}
	i.Error = oneLine(s.Types)
	return i
}

const mountSecurityfs = "mount -t securityfs securityfs /sys/kernel/security   # on the host"

func (s *survey) lockdown() item {
	if s.Lockdown.Err != nil {
		return unknown("lockdown", s.Lockdown.Err).costs("", mountSecurityfs)
	}
	c := found("lockdown", statusOK, "%s", s.Lockdown.Value)
	if s.Lockdown.Value == "confidentiality" {
		c.Status = statusDegraded
		return c.costs("no program may call bpf_probe_read: see the facilities below; and without trampolines, that ss -K ended a TIME_WAIT is not known",
			"lockdown=integrity   # on the kernel's command line")
	}
	return c
}

func (s *survey) lsm() item {
	if s.LSMs.Err != nil {
		return unknown("lsm", s.LSMs.Err).costs("", mountSecurityfs)
	}
	return found("lsm", statusInfo, "%s", s.LSMs.Value)
}

func (s *survey) userNamespace() item {
	switch {
	case s.InitialUser.Err != nil:
		return unknown("user_namespace", s.InitialUser.Err)
	case s.InitialUser.Value:
		return found("user_namespace", statusOK, "the host's")
	}
	return found("user_namespace", statusMissing, "not the host's").costs(
		"the capabilities that we have here count for nothing when it comes to BPF",
		"hostUsers: true   # in the pod's spec",
		"docker run --userns=host ...",
		"sudo podman run ...   # instead of rootless",
		"sudo tcptrace ...   # outside of unshare --user and bubblewrap")
}

func (s *survey) seccomp() item {
	self := s.Self.Value
	switch {
	case s.Self.Err != nil:
		return unknown("seccomp", s.Self.Err)
	case !self.Filtered:
		return found("seccomp", statusOK, "no filter")
	case s.called == nil:
		return found("seccomp", statusOK, "a filter, which allows bpf(2)")
	case !s.mayLoad():
		c := unknown("seccomp", fmt.Errorf("%w, which may be for want of CAP_BPF too", s.called))
		return c.costs("", "see CAP_BPF")
	}
	c := found("seccomp", statusMissing, "a filter, which refuses bpf(2)").costs("nothing can be loaded",
		"securityContext: {seccompProfile: {type: Unconfined}}",
		"securityContext: {seccompProfile: {type: Localhost, localhostProfile: FILE}}   # one that allows bpf",
		"docker run --security-opt seccomp=unconfined ...")
	c.Error = oneLine(s.called)
	return c
}

// effective reports whether a capability, by its number, is in effect and counts.
func (s *survey) effective(bit int) bool {
	return s.Self.Value.Effective>>bit&1 != 0 && s.InitialUser.Value
}

// mayLoad reports whether there is the first of the capabilities that loading takes.
func (s *survey) mayLoad() bool { return s.effective(unix.CAP_BPF) || s.effective(unix.CAP_SYS_ADMIN) }

func (s *survey) capability(c privilege.Capability) item {
	self := s.Self.Value
	missing := found(c.Name, statusMissing, "not effective").costs(c.Without, s.give(c)...)
	switch {
	case s.Self.Err != nil:
		return unknown(c.Name, s.Self.Err)
	case s.InitialUser.Err == nil && !s.InitialUser.Value:
		missing = found(c.Name, statusMissing, "not in the host's user namespace").costs(c.Without, "see user_namespace")
	case c.In(self.Effective):
		return found(c.Name, statusOK, "effective")
	}
	switch {
	case c.ToLoad() && s.effective(unix.CAP_SYS_ADMIN):
		return found(c.Name, statusOK, "CAP_SYS_ADMIN stands in for it")
	case c.ToLoad():
		return missing
	case s.idle(c):
		return found(c.Name, statusInfo, "%s, and nothing here needs it now", *missing.Found)
	}
	missing.Status = statusDegraded
	return missing
}

// idle reports whether all that there is can be seen without the capability.
func (s *survey) idle(c privilege.Capability) bool {
	if c.Name == "CAP_SYS_ADMIN" {
		return s.unreached == nil && s.entered == s.networks && !s.more
	}
	return s.Processes.Err == nil && s.Processes.Value.Closed == 0
}

// give says how to get a capability.
func (s *survey) give(c privilege.Capability) []string {
	self, short := s.Self.Value, strings.TrimPrefix(c.Name, "CAP_")
	if !c.In(self.Bounding) {
		if self.Uid != 0 {
			// What is added is effective for root only.
			return []string{
				"securityContext: {runAsUser: 0, capabilities: {add: [" + short + "]}}",
				"docker run --user=0 --cap-add=" + short + " ...",
				"AmbientCapabilities=" + c.Name + "   # and CapabilityBoundingSet=" + c.Name + ", two more lines in a systemd unit",
			}
		}
		return []string{
			"securityContext: {capabilities: {add: [" + short + "]}}",
			"docker run --cap-add=" + short + " ...",
			"CapabilityBoundingSet=" + c.Name + "   # another line of that name in a systemd unit",
		}
	}
	var mend []string
	if !self.NoNewPrivs { // which sudo refuses
		mend = append(mend, "sudo tcptrace ...")
	}
	if self.Uid != 0 {
		mend = append(mend, "securityContext: {runAsUser: 0}   # capabilities.add counts for root only")
	}
	if self.NoNewPrivs {
		return append(mend, "AmbientCapabilities="+c.Name+"   # another line in a systemd unit",
			"securityContext: {allowPrivilegeEscalation: true}   # for a tcptrace that has file capabilities")
	}
	// setcap sets all of them: those that we have must not be lost by it, nor those that a
	// line above has set.
	var names []string
	above := true
	for _, u := range privilege.Used() {
		above = above && u.Name != c.Name
		if u.ToLoad() || u.Name == c.Name || u.In(self.Effective) || above && !s.idle(u) {
			names = append(names, strings.ToLower(u.Name))
		}
	}
	return append(mend, "setcap "+strings.Join(names, ",")+"+ep /PATH/OF/tcptrace")
}

func (s *survey) memlock() item {
	const name = "memlock"
	limit := s.Memlock.Value
	switch {
	case s.Memlock.Err != nil:
		return unknown(name, s.Memlock.Err)
	case limit == "unlimited":
		return found(name, statusOK, "%s", limit)
	case s.lifted == nil:
		return found(name, statusOK, "%s bytes, which bind nothing here", limit)
	case s.called != nil || !s.mayLoad():
		c := unknown(name, errors.New("whether this kernel charges BPF memory to it shows only to those who may load programs"))
		return c.costs("", "see CAP_BPF, user_namespace, seccomp")
	case s.refused == nil:
		return found(name, statusOK, "%s bytes, which is enough", limit)
	}
	return found(name, statusMissing, "%s bytes, to which this kernel charges BPF memory", limit).costs("there is no room for the ring buffer",
		"ulimit -l unlimited",
		"securityContext: {capabilities: {add: [SYS_RESOURCE]}}",
		"docker run --ulimit memlock=-1 ...",
		"LimitMEMLOCK=infinity   # in a systemd unit")
}

func (s *survey) pidNamespace() item {
	switch {
	case s.InitialPid.Err != nil:
		return unknown("pid_namespace", s.InitialPid.Err)
	case s.InitialPid.Value:
		return found("pid_namespace", statusOK, "the host's")
	}
	return found("pid_namespace", statusDegraded, "nested").costs(
		"processes outside of it have no number here: sockets that they hold have pid and comm null",
		"hostPID: true   # in the pod's spec; for the pod's other containers shareProcessNamespace: true is enough",
		"docker run --pid=host ...")
}

func (s *survey) proc() item {
	const name = "proc"
	const mount = "mount -t proc proc /proc   # in the PID namespace that tcptrace runs in"
	self := s.Self.Value
	switch {
	case s.Self.Err != nil:
		c := found(name, statusMissing, "shows nothing of tcptrace itself").costs(
			"nothing is known of processes, and namespaces cannot be entered", mount)
		c.Error = oneLine(s.Self.Err)
		return c
	case self.Stranger:
		return found(name, statusDegraded, "of another PID namespace").costs(
			"its numbers are not ours: program, container and --pid are those of other processes",
			mount, "hostPID: true   # in the pod's spec, where /proc is the host's")
	case s.Hidepid.Err != nil:
		return unknown(name, s.Hidepid.Err)
	case s.Hidepid.Value != "" && !s.effective(unix.CAP_SYS_PTRACE):
		return found(name, statusDegraded, "hidepid=%s", s.Hidepid.Value).costs(
			"of other users' processes, program, container, parent and descriptors are not known",
			"mount -o remount,hidepid=0 /proc", "see CAP_SYS_PTRACE")
	}
	return found(name, statusOK, "of our PID namespace")
}

func (s *survey) processes() item {
	n := s.Processes.Value
	if s.Processes.Err != nil {
		return unknown("processes", s.Processes.Err)
	}
	mend := "see CAP_SYS_PTRACE"
	switch {
	case n.Closed == 0:
		return found("processes", statusOK, "%d visible", n.Visible)
	case s.effective(unix.CAP_SYS_PTRACE):
		mend = policy
	}
	return found("processes", statusDegraded, "%d visible, %d of them do not show what they run", n.Visible, n.Closed).costs(
		"of these, exe is null, and network namespaces that only they are in are not found", mend)
}

func (s *survey) networkNamespaces() item {
	const name = "network_namespaces"
	if s.unreached != nil {
		return unknown(name, s.unreached)
	}
	mend := "see CAP_SYS_ADMIN"
	switch {
	case s.entered == s.networks && s.more:
		return found(name, statusDegraded, "%d found, all can be entered; some processes do not show theirs", s.networks).costs(
			"in those that were not found, sockets from before the start that no process holds are not known, nor are the limits of ports",
			"see CAP_SYS_PTRACE")
	case s.entered == s.networks:
		return found(name, statusOK, "%d found, all can be entered", s.networks)
	case s.effective(unix.CAP_SYS_ADMIN):
		mend = "securityContext: {seccompProfile: {type: Unconfined}}   # or one that allows setns"
	}
	return found(name, statusDegraded, "%d found, %d can be entered", s.networks, s.entered).costs(
		"in the others, sockets from before the start that no process holds are not known, nor are the limits of ports", mend)
}

func (s *survey) cgroup() item {
	switch {
	case s.Cgroup.Err != nil:
		return unknown("cgroup", s.Cgroup.Err)
	case errors.Is(s.InitialCgroup.Err, fs.ErrNotExist): // a kernel without them
	case s.InitialCgroup.Err != nil:
		return unknown("cgroup", s.InitialCgroup.Err)
	case !s.InitialCgroup.Value:
		return found("cgroup", statusDegraded, "%s, in a namespace of its own", s.Cgroup.Value).costs(
			"the id of the container that tcptrace runs in is not seen; those of others are",
			"docker run --cgroupns=host ...   # in a pod it stays so, unless it is privileged")
	}
	return found("cgroup", statusOK, "%s", s.Cgroup.Value)
}

func (s *survey) ftrace() item {
	switch {
	case errors.Is(s.FtraceEnabled.Err, fs.ErrNotExist) && s.Release.Err == nil: // else there is no /proc/sys
		return found("ftrace", statusInfo, "this kernel has no kernel.ftrace_enabled")
	case s.FtraceEnabled.Err != nil:
		return unknown("ftrace", s.FtraceEnabled.Err)
	case s.FtraceEnabled.Value != "0":
		return found("ftrace", statusOK, "kernel.ftrace_enabled is %s", s.FtraceEnabled.Value)
	}
	return found("ftrace", statusDegraded, "kernel.ftrace_enabled is 0").costs(
		"functions cannot be hooked: see the facilities below that have to do without", "sysctl -w kernel.ftrace_enabled=1")
}

func (s *survey) tracefs() item {
	if s.Tracefs.Err != nil {
		return unknown("tracefs", s.Tracefs.Err)
	}
	is := "mounted"
	if !s.Tracefs.Value {
		is = "not mounted"
	}
	return found("tracefs", statusInfo, "%s; tcptrace needs none", is)
}

// setting is one that people ask about, though tcptrace does not depend on it.
func setting(name string, v host.Known[string], why string) item {
	if v.Err != nil {
		return unknown(name, v.Err)
	}
	return found(name, statusInfo, "%s; %s", v.Value, why)
}

// facilities are what tcptrace has in the kernel, and the way in which it is provided.
// earlier are the items that may explain it.
func (s *survey) facilities(earlier []item) []item {
	all := probe.Facilities()
	if s.refused != nil {
		return []item{s.refusal(all[0], earlier)}
	}
	var items []item
	for _, f := range all {
		if at := slices.IndexFunc(s.variants, func(v probe.Variant) bool { return v.Facility == f.Name }); at >= 0 {
			items = append(items, s.facility(f, s.variants[at]))
		}
	}
	return items
}

func (s *survey) facility(f probe.Facility, v probe.Variant) item {
	name := "probe." + f.Name
	var loses, needs []string // what the ways that are better than that in use would not lose, and need
	for _, w := range f.Ways {
		if w.Loses != "" {
			loses = append(loses, w.Loses)
		}
		if w.Name == v.Name {
			if len(loses) == 0 {
				return found(name, statusOK, "%s", v.Name)
			}
			i := found(name, statusDegraded, "%s", v.Name).costs(strings.Join(loses, "; "), s.otherKernel(v.Err, needs)...)
			i.Error = oneLine(v.Err)
			return i
		}
		needs = append(needs, w.Name+" needs "+w.Needs)
	}
	i := found(name, statusMissing, probe.None).costs(f.Lost, s.otherKernel(v.Err, needs)...)
	i.Error = oneLine(v.Err)
	return i
}

// refusal says why transitions cannot be traced: by what is missing, else by what the kernel says.
func (s *survey) refusal(f probe.Facility, earlier []item) item {
	var names []string
	for _, i := range earlier {
		if i.Status == statusMissing {
			names = append(names, i.Name)
		}
	}
	i := found("probe."+f.Name, statusMissing, probe.None)
	if len(names) > 0 {
		return i.costs("nothing can be traced", "see "+strings.Join(names, ", "))
	}
	i.Error = oneLine(s.refused)
	return i.costs("nothing can be traced", s.otherKernel(s.refused, []string{"docs/requirements.md says which"})...)
}

// otherKernel tells from what the kernel has refused which kernel would not refuse.
func (s *survey) otherKernel(err error, needs []string) []string {
	switch {
	case s.Types != nil:
		return []string{"see btf"}
	case s.refused != nil && s.btf != "":
		return []string{"tcptrace check   # without --btf: this kernel has types of its own"}
	case s.FtraceEnabled.Value == "0" && strings.Contains(err.Error(), "ftrace_enabled"):
		return []string{"see ftrace"}
	case errors.Is(err, unix.EPERM):
		return []string{policy}
	}
	return []string{"another kernel: " + strings.Join(needs, "; ")}
}
