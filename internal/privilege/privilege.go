// Package privilege knows the capabilities that tcptrace uses: what each of them buys,
// which are missing, and which may go once the programs are attached. Whether the kernel
// also keeps its word (security modules, seccomp, user namespaces) it does not know.
package privilege

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A Capability is one that tcptrace uses.
type Capability struct {
	Name    string // as capabilities(7) spells it
	Buys    string
	Without string // what is lost, as a sentence goes on after "without CAP_…:"
	Later   bool   // scans need it, as long as the run lasts
	bit     int
	// Whether this kernel asks for it; nil if every kernel does.
	asked func() bool
}

// all is the table of docs/privileges.md.
var all = []Capability{
	{
		Name: "CAP_BPF", bit: unix.CAP_BPF,
		Buys:    "making BPF maps and loading BPF programs",
		Without: "nothing can be loaded",
	},
	{
		Name: "CAP_PERFMON", bit: unix.CAP_PERFMON,
		Buys:    "programs that read the kernel's own data",
		Without: "nothing can be loaded",
	},
	{
		Name: "CAP_SYS_PTRACE", bit: unix.CAP_SYS_PTRACE, Later: true,
		Buys: "which program a process runs, and which network namespace it is in, " +
			"for processes of other users or with more capabilities",
		Without: "exe is null for processes of other users, and a network namespace that only such processes are in is not known",
	},
	{
		Name: "CAP_SYS_ADMIN", bit: unix.CAP_SYS_ADMIN, Later: true,
		Buys: "entering other network namespaces",
		Without: "other network namespaces are not entered: sockets in them that no process holds " +
			"(accept queues, TIME_WAIT from before the start) and their limits are not known",
	},
	{
		Name: "CAP_DAC_READ_SEARCH", bit: unix.CAP_DAC_READ_SEARCH, Later: true,
		Buys:    "how many descriptors the processes of other users have open",
		Without: "nothing is found about the descriptor limits of other users' processes",
		asked:   func() bool { return !countsDescriptors() },
	},
}

// countsDescriptors reports whether the kernel tells anybody how many descriptors a process
// has open: since 6.2 it is the size of the directory, which else only its owner may list.
func countsDescriptors() bool {
	fd, err := os.Stat("/proc/self/fd")
	return err != nil || fd.Size() > 0 // without /proc no capability helps
}

// Used returns the capabilities that tcptrace uses on this kernel.
func Used() []Capability {
	var used []Capability
	for _, c := range all {
		if c.asked == nil || c.asked() {
			used = append(used, c)
		}
	}
	return used
}

// Has reports whether this thread has a capability in effect, by its number.
func Has(bit int) bool {
	have, err := current()
	// capget(2) cannot fail; if it does, what is wrong will show elsewhere.
	return err != nil || have.effective.has(bit)
}

// Held reports whether this thread may do what the capability allows.
func (c Capability) Held() bool {
	if c.ToLoad() {
		return Has(c.bit) || Has(unix.CAP_SYS_ADMIN) // of which they were once a part
	}
	return Has(c.bit)
}

// In reports whether the capability is in a set, as /proc/PID/status has them.
func (c Capability) In(s uint64) bool { return set(s).has(c.bit) }

// ToLoad reports whether it is one of those without which nothing can be loaded.
func (c Capability) ToLoad() bool { return c.bit == unix.CAP_BPF || c.bit == unix.CAP_PERFMON }

// Missing returns those of the capabilities in use that this thread has not.
func Missing() []Capability {
	var missing []Capability
	for _, c := range Used() {
		if !c.Held() {
			missing = append(missing, c)
		}
	}
	return missing
}

// MissingToLoad names those without which nothing can be loaded; "" if they are there.
func MissingToLoad() string {
	var names []string
	for _, c := range Missing() {
		if c.ToLoad() {
			names = append(names, c.Name)
		}
	}
	return strings.Join(names, " and ")
}
