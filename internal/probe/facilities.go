package probe

import "slices"

// None is the way of a facility that is done without.
const None = "none"

// A Facility is something that tcptrace wants of the kernel. Its ways are tried in their
// order, and the first that the kernel takes is used: no version is compared.
type Facility struct {
	Name string
	What string // what it is for
	Ways []Way
	Lost string // what is not known without it
}

// A Way is one way to provide a facility.
type Way struct {
	Name  string
	Needs string
	Loses string // what is known less well than with the way before it
}

// Facilities returns all of them, in the order in which they are tried.
func Facilities() []Facility { return slices.Clone(facilities) }

var facilities = []Facility{
	{
		Name: "transitions", What: "every state transition",
		Ways: []Way{
			{Name: tpBTF, Needs: "the kernel's own BTF"},
			{Name: rawTP, Needs: "bpf_probe_read_kernel", Loses: "all that iterators and trampolines tell: sockets from before the start, who accepted, who holds what, TIME_WAIT; and what happens while the program is running already"},
		},
		Lost: "nothing can be traced",
	},
	{
		Name: "nested", What: "transitions that interrupt another on the same CPU",
		Ways: []Way{{Name: tpBTF, Needs: "the kernel's own BTF"}},
		Lost: "up to 0.5% of the transitions in a storm (from 6.1 on), counted as lost",
	},
	{
		Name: "destroy", What: "the end of a socket",
		Ways: []Way{{Name: tpBTF, Needs: "the kernel's own BTF"}, {Name: rawTP, Needs: "bpf_probe_read_kernel"}},
		Lost: "ended sockets are forgotten only when their address is used again, and dead connections whose descriptor is open are not told from closed ones",
	},
	{
		Name: "processes", What: "who is whose child",
		Ways: []Way{{Name: tpBTF, Needs: "the kernel's own BTF"}, {Name: rawTP, Needs: "bpf_probe_read_kernel"}},
		Lost: "--follow knows the children from before the start only",
	},
	{
		Name: "tasks", What: "the process that is in a system call",
		Ways: []Way{
			{Name: "task_btf", Needs: "5.11"},
			{Name: probeRead, Needs: "bpf_probe_read_kernel: not under lockdown=confidentiality"},
		},
		Lost: "who connects, listens, accepts and closes: owners come from scans of the descriptors only",
	},
	{
		Name: "pid_namespace", What: "PIDs as tcptrace's own PID namespace has them",
		Ways: []Way{
			{Name: "initial", Needs: "tcptrace in the initial PID namespace"},
			{Name: "direct", Needs: "6.6"},
			{Name: probeRead, Needs: "bpf_probe_read_kernel: not under lockdown=confidentiality"},
		},
		Lost: "no process is named",
	},
	{
		Name: "cookies", What: "the identity of a socket",
		Ways: []Way{{Name: "helper", Needs: "5.12"}},
		Lost: "cookie is null, except for sockets that something else has asked about, ss -e for example; a socket is known by its address in memory",
	},
	{
		Name: "pid_filter", What: "--pid: others' sockets are turned away in the kernel",
		Ways: []Way{{Name: "sk_storage", Needs: "5.12; and before 6.2 bpf_probe_read_kernel: not under lockdown=confidentiality"}},
		Lost: "nothing that is traced; with --pid the host and tcptrace pay for every socket, as without it",
	},
	{
		Name: "descriptors", What: "who holds which socket",
		Ways: []Way{
			{Name: iter, Needs: "5.11"},
			{Name: iterProbeRead, Needs: "5.8, and bpf_probe_read_kernel: not under lockdown=confidentiality", Loses: "MPTCP listeners"},
		},
		Lost: "findings of descriptors; owners of sockets from before the start",
	},
	{
		Name: "sockets", What: "the sockets that exist, held or not",
		Ways: []Way{{Name: iter, Needs: "5.9"}},
		Lost: "sockets that no process holds; TIME_WAIT from before the start",
	},
	{
		Name: "accept", What: "who accepts",
		Ways: []Way{
			{Name: fexit, Needs: "trampolines"},
			{Name: "sys_exit", Needs: "6.2", Loses: "accept through io_uring (a scan finds the owner), and 0.1 us at the end of every system call of the host"},
		},
		Lost: "the owner of an accepted socket, until it closes or a scan finds its holder",
	},
	{
		Name: "time_wait", What: "TIME_WAIT, and FIN_WAIT2 without a process",
		Ways: []Way{
			{Name: fentry, Needs: "trampolines"},
			{Name: "timer", Needs: "6.2", Loses: "some milliseconds of when TIME_WAIT began (a jiffy); ends come 20 to 120 ms late"},
		},
		Lost: "all after FIN_WAIT2 -> CLOSE: TIME_WAIT and its end",
	},
	{
		Name: "time_wait_end", What: "what ends TIME_WAIT early",
		Ways: []Way{
			{Name: fexit, Needs: "trampolines, 5.17"},
			{Name: "fexit_args", Needs: "trampolines"},
			{Name: tpBTF, Needs: "6.10", Loses: "resets that are received, which look like ss -K"},
		},
		Lost: "time_wait_end is null where it is not expired",
	},
}

// Names of ways that several facilities have.
const (
	tpBTF         = "tp_btf"
	rawTP         = "raw_tp"
	fentry        = "fentry"
	fexit         = "fexit"
	iter          = "iter"
	probeRead     = "probe_read"
	iterProbeRead = "iter_probe_read"
)
