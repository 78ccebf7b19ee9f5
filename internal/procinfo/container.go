package procinfo

import (
	"bytes"
	"errors"
	"io/fs"
)

// Container returns the id of the container that the process is in, "" if it is
// in none or that cannot be told: the id is in the names of the process's
// cgroups, and a reader in a cgroup namespace of its own does not see all of them.
func (f FS) Container(pid uint32) (string, error) {
	cgroup, err := f.read(pid, "cgroup")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // a kernel without cgroups
	}
	if err != nil {
		return "", err
	}
	return container(cgroup), nil
}

// container finds the id in the content of a cgroup file: a line
// hierarchy:controllers:path for each hierarchy.
func container(cgroup []byte) string {
	id, deepest := "", 0
	for line := range bytes.Lines(cgroup) {
		fields := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(":"), 3)
		if len(fields) < 3 {
			continue
		}
		// cgroup v1 has many hierarchies, and not every runtime uses all of them: a
		// new controller's line stays at "/", or at the outer one of two containers.
		if ids := containers(fields[2]); len(ids) > deepest {
			id, deepest = ids[len(ids)-1], len(ids)
		}
	}
	return id
}

// containers returns the ids on the path of a cgroup: what a container runs as
// containers is below its own.
func containers(path []byte) []string {
	path = bytes.TrimSuffix(path, []byte(" (deleted)")) // that of a zombie
	var ids []string
	var below bool // right below the last of them
	for name := range bytes.SplitSeq(path, []byte("/")) {
		id := containerOf(name)
		if below && string(name) == "conmon" {
			// podman's monitor of the container is not in it.
			ids = ids[:len(ids)-1]
		}
		if below = id != ""; below {
			ids = append(ids, id)
		}
	}
	return ids
}

// idLen is how many hexadecimal digits an id has. Pods have UUIDs, and other
// things other lengths.
const idLen = 64

// containerOf returns the id in the name of a container's cgroup, "" if it is
// another cgroup's name. With cgroupfs as its driver, a runtime names it ID or
// RUNTIME-ID; with systemd as its driver RUNTIME-ID.scope, and SLICE:RUNTIME:ID
// where a runtime with the one was told by an orchestrator with the other.
//
// Services and slices are named after ids too (podman's health checks, its pods):
// they are no containers.
func containerOf(name []byte) string {
	name = bytes.TrimSuffix(name, []byte(".scope"))
	if len(name) < idLen {
		return ""
	}
	before, id := name[:len(name)-idLen], name[len(name)-idLen:]
	for _, c := range id {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return ""
		}
	}
	if len(before) == 0 {
		return string(id)
	}
	if runtime, ok := bytes.CutSuffix(before, []byte(":")); ok {
		before = runtime[bytes.LastIndexByte(runtime, ':')+1:]
	} else if before, ok = bytes.CutSuffix(before, []byte("-")); !ok {
		return ""
	}
	switch string(before) {
	// Not crio-conmon and libpod-conmon, which are outside of the container that
	// they monitor; and not a scope that a user gave such a name to.
	case "docker", "nerdctl", "cri-containerd", "crio", "libpod", "libpod-payload":
		return string(id)
	}
	return ""
}
