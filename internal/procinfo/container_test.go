package procinfo

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Ids of containers, and of one that has another within.
const (
	ctr   = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
	outer = "0f6d6b4b4d1d1f9d7e3b34f1e6a9c2b8a7d4c1e05f3928b7160d8e4c2b9a7f35"
	pod   = "e3c5a1b0d2f4968778695a4b3c2d1e0ffedcba98765432100123456789abcdef"
)

// Paths of cgroups, as they stand in the line of any hierarchy.
var cgroupPaths = []struct{ what, path, want string }{
	// No container.
	{"the root", "/", ""},
	{"init", "/init.scope", ""},
	{"a service", "/system.slice/nginx.service", ""},
	{"a runtime", "/system.slice/docker.service", ""},
	{"a login", "/user.slice/user-1000.slice/session-3.scope", ""},
	{"a user's service", "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service", ""},
	{"a pod's own", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2c48913c_b29f_11e7_9350_020968147796.slice", ""},
	{"a pod's own, cgroupfs", "/kubepods/burstable/pod2c48913c-b29f-11e7-9350-020968147796", ""},
	{"a pod's own, podman", "/machine.slice/machine-libpod_pod_" + pod + ".slice", ""},
	{"a static pod, whose UID is a hash", "/kubepods/burstable/podf1a2b3c4d5e6f708192a3b4c5d6e7f80", ""},
	{"a service named as a container", "/system.slice/docker-" + ctr + ".service", ""},
	{"podman's health check", "/system.slice/" + ctr + ".service", ""},
	{"podman's health check, newer", "/system.slice/" + ctr + "-3a5b7c9d1e2f4a6b.service", ""},
	{"a user's scope", "/user.slice/user-1000.slice/user@1000.service/app.slice/build-" + ctr + ".scope", ""},
	{"a digit short", "/docker/" + ctr[1:], ""},
	{"a digit more", "/docker/a" + ctr, ""},
	{"a digit short, systemd", "/system.slice/docker-" + ctr[1:] + ".scope", ""},
	{"a digit more, systemd", "/system.slice/docker-a" + ctr + ".scope", ""},
	{"twice as many digits", "/docker/" + outer + ctr, ""},
	{"no hexadecimal digits", "/docker/" + strings.Repeat("z", 64), ""},
	{"upper case", "/docker/" + strings.ToUpper(ctr), ""},
	{"no runtime", "/system.slice/-" + ctr + ".scope", ""},
	{"a shim", "/system.slice/containerd.service", ""},

	// Docker.
	{"docker, cgroupfs", "/docker/" + ctr, ctr},
	{"docker, systemd", "/system.slice/docker-" + ctr + ".scope", ctr},
	{"docker, old", "/" + ctr, ctr},
	{"docker, rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-" + ctr + ".scope", ctr},
	{"docker, a parent of the user's", "/my.slice/my-own.slice/docker-" + ctr + ".scope", ctr},
	{"docker, ECS", "/ecs/8f3b1c6e2d7a4e5f9b0c1d2e3f4a5b6c/" + ctr, ctr},
	{"docker, ECS, systemd", "/ecstasks.slice/ecstasks-8f3b1c6e2d7a4e5f9b0c1d2e3f4a5b6c.slice/docker-" + ctr + ".scope", ctr},
	{"docker, with systemd inside", "/system.slice/docker-" + ctr + ".scope/system.slice/nginx.service", ctr},
	{"docker, in the middle of its start", "/system.slice:docker:" + ctr, ctr},

	// Kubernetes.
	{"dockershim", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2c48913c_b29f_11e7_9350_020968147796.slice/docker-" + ctr + ".scope", ctr},
	{"containerd, systemd", "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod72f7f152_440c_66ac_9084_e0fc1d8a910c.slice/cri-containerd-" + ctr + ".scope", ctr},
	{"containerd, guaranteed", "/kubepods.slice/kubepods-pod72f7f152_440c_66ac_9084_e0fc1d8a910c.slice/cri-containerd-" + ctr + ".scope", ctr},
	{"containerd, cgroupfs", "/kubepods/burstable/poddaa5c7ee-3484-4533-af39-3591564fd03e/" + ctr, ctr},
	{"containerd, cgroupfs, guaranteed", "/kubepods/poddaa5c7ee-3484-4533-af39-3591564fd03e/" + ctr, ctr},
	{"containerd that was told wrong", "/system.slice/containerd.service/kubepods-besteffort-pod72f7f152_440c_66ac_9084_e0fc1d8a910c.slice:cri-containerd:" + ctr, ctr},
	{"containerd that was told wrong, at the root", "/kubepods-burstable-pod57e67067_89e4_4001_bdd4_8632d39ea02b.slice:cri-containerd:" + ctr, ctr},
	{"CRI-O, systemd", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2c48913c_b29f_11e7_9350_020968147796.slice/crio-" + ctr + ".scope", ctr},
	{"CRI-O, systemd, crun", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2c48913c_b29f_11e7_9350_020968147796.slice/crio-" + ctr + ".scope/container", ctr},
	{"CRI-O, cgroupfs", "/kubepods/besteffort/pod2c48913c-b29f-11e7-9350-020968147796/crio-" + ctr, ctr},
	{"CRI-O's monitor", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod2c48913c_b29f_11e7_9350_020968147796.slice/crio-conmon-" + ctr + ".scope", ""},
	{"CRI-O's monitor, cgroupfs", "/kubepods/besteffort/pod2c48913c-b29f-11e7-9350-020968147796/crio-conmon-" + ctr, ""},
	{"CRI-O's monitor, elsewhere", "/system.slice/crio-conmon-" + ctr + ".scope", ""},

	// Podman and nerdctl.
	{"podman, systemd", "/machine.slice/libpod-" + ctr + ".scope", ctr},
	{"podman, systemd, crun", "/machine.slice/libpod-" + ctr + ".scope/container", ctr},
	{"podman, in a pod", "/machine.slice/machine-libpod_pod_" + pod + ".slice/libpod-" + ctr + ".scope/container", ctr},
	{"podman, in a pod, cgroupfs", "/libpod_parent/" + pod + "/libpod-" + ctr, ctr},
	{"podman, cgroupfs", "/libpod_parent/libpod-" + ctr, ctr},
	{"podman 1, cgroupfs", "/libpod_parent/libpod-" + ctr + "/ctr", ctr},
	{"podman, rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + ctr + ".scope/container", ctr},
	{"podman, rootless, in a pod", "/user.slice/user-1000.slice/user@1000.service/user.slice/user-libpod_pod_" + pod + ".slice/libpod-" + ctr + ".scope", ctr},
	{"podman, quadlet", "/system.slice/web.service/libpod-payload-" + ctr, ctr},
	{"podman, with systemd inside", "/machine.slice/libpod-" + ctr + ".scope/container/system.slice/nginx.service", ctr},
	{"podman's monitor", "/machine.slice/libpod-conmon-" + ctr + ".scope", ""},
	{"podman's monitor, of a pod", "/machine.slice/machine-libpod_pod_" + pod + ".slice/libpod-conmon-" + ctr + ".scope", ""},
	{"podman's monitor, rootless", "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-conmon-" + ctr + ".scope", ""},
	{"podman's monitor, cgroupfs", "/libpod_parent/conmon", ""},
	{"podman's monitor, of a pod, cgroupfs", "/libpod_parent/" + pod + "/conmon", ""},
	{"podman 1's monitor, cgroupfs", "/libpod_parent/libpod-" + ctr + "/conmon", ""},
	{"podman's monitor, quadlet", "/system.slice/web.service/supervisor", ""},
	{"nerdctl, systemd", "/system.slice/nerdctl-" + ctr + ".scope", ctr},
	{"nerdctl, cgroupfs", "/default/" + ctr, ctr},

	// In a cgroup namespace other than the reader's.
	{"beside, docker", "/../docker-" + ctr + ".scope", ctr},
	{"beside, cgroupfs", "/../" + ctr, ctr},
	{"beside, CRI-O", "/../crio-" + ctr + ".scope", ctr},
	{"beside, of another pod", "/../../poddaa5c7ee-3484-4533-af39-3591564fd03e/" + ctr, ctr},
	{"beside, its monitor", "/../crio-conmon-" + ctr + ".scope", ""},
	{"above", "/../../../init.scope", ""},

	// One in another.
	{"docker in docker", "/docker/" + outer + "/docker/" + ctr, ctr},
	{"docker in docker, systemd", "/system.slice/docker-" + outer + ".scope/docker/" + ctr, ctr},
	{"kind", "/docker/" + outer + "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod2c48913c_b29f_11e7_9350_020968147796.slice/cri-containerd-" + ctr + ".scope", ctr},
	{"kind, cgroupfs", "/docker/" + outer + "/kubelet/kubepods/besteffort/poddaa5c7ee-3484-4533-af39-3591564fd03e/" + ctr, ctr},
	{"kind's kubelet", "/docker/" + ctr + "/kubelet.slice/kubelet.service", ctr},
	{"the monitor of an inner one", "/docker/" + ctr + "/machine.slice/libpod-conmon-" + outer + ".scope", ctr},
	{"the monitor of an inner one, cgroupfs", "/docker/" + ctr + "/libpod_parent/conmon", ctr},
	{"the monitor of an inner one, podman 1", "/docker/" + ctr + "/libpod_parent/libpod-" + outer + "/conmon", ctr},

	{"a zombie's, which is gone", "/system.slice/docker-" + ctr + ".scope (deleted)", ctr},
	{"with colons and blanks on the way", "/a:b/c d/docker/" + ctr, ctr},
}

func TestAContainerIsReadFromWhicheverRuntimesPath(t *testing.T) {
	for _, c := range cgroupPaths {
		for version, lines := range map[string]string{
			"v2": "0::PATH\n",
			"v1": "12:memory:PATH\n11:cpu,cpuacct:PATH\n1:name=systemd:PATH\n",
			// systemd's hybrid mode: the second version is there, with or without the path.
			"v1 with an empty v2":     "3:memory:PATH\n1:name=systemd:PATH\n0::/\n",
			"v1 with services' in v2": "3:memory:PATH\n1:name=systemd:PATH\n0::/system.slice/containerd.service\n",
			"v1 in part":              "13:misc:/\n12:rdma:/\n3:memory:PATH\n0::PATH\n",
			"cut off":                 "0::PATH",
		} {
			f := newFixture(t)
			f.file("42", "cgroup", strings.ReplaceAll(lines, "PATH", c.path))
			if got, err := Open(f.root).Container(42); got != c.want || err != nil {
				t.Errorf("%s, %s: got %q, error %v; want %q", c.what, version, got, err, c.want)
			}
		}
	}
}

// Docker in docker on cgroup v1, where the inner docker is older than the kernel
// and does not know the first of these controllers.
func TestTheInnermostContainerIsReadWhereHierarchiesDiffer(t *testing.T) {
	f := newFixture(t)
	f.file("42", "cgroup", strings.Join([]string{
		"13:misc:/docker/" + outer,
		"12:rdma:/",
		"11:memory:/docker/" + outer + "/docker/" + ctr,
		"1:name=systemd:/docker/" + outer + "/docker/" + ctr,
		"0::/docker/" + outer,
		"",
	}, "\n"))
	if got, err := Open(f.root).Container(42); got != ctr || err != nil {
		t.Errorf("got %q, error %v; want %q", got, err, ctr)
	}
}

func TestACgroupFileThatIsNoneIsNoContainer(t *testing.T) {
	for _, content := range []string{"", "\n", ctr, "0:" + ctr, ":", "::", "0::\n\n::::\n", "/docker/" + ctr + "\n"} {
		f := newFixture(t)
		f.file("42", "cgroup", content)
		if got, err := Open(f.root).Container(42); got != "" || err != nil {
			t.Errorf("content %q: got %q, error %v; want none", content, got, err)
		}
	}
}

func TestAKernelWithoutCgroupsHasNoContainers(t *testing.T) {
	f := newFixture(t)
	f.process(42, 42, 1, "nginx")
	if got, err := Open(f.root).Container(42); got != "" || err != nil {
		t.Errorf("got %q, error %v; want none", got, err)
	}
	if got, err := Open(f.root).Container(43); !errors.Is(err, ErrNoProcess) {
		t.Errorf("a process that never was: got %q, error %v; want ErrNoProcess", got, err)
	}
}

func TestACgroupFileThatCannotBeReadIsAnErrorThatNamesIt(t *testing.T) {
	f := newFixture(t)
	want := filepath.Join(f.root, "42", "cgroup")
	if err := os.MkdirAll(want, 0o755); err != nil {
		t.Fatal(err)
	}
	if got, err := Open(f.root).Container(42); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %q, error %v; want an error with %s", got, err, want)
	}
}

func FuzzContainer(f *testing.F) {
	for _, c := range cgroupPaths {
		f.Add([]byte("0::" + c.path + "\n"))
		f.Add([]byte("13:misc:/\n2:cpu,cpuacct:" + c.path + "\n1:name=systemd:" + c.path + "\n0::/docker/" + outer))
	}
	f.Fuzz(func(t *testing.T, cgroup []byte) {
		id := container(cgroup)
		if id == "" {
			return
		}
		if len(id) != 64 || strings.Trim(id, "0123456789abcdef") != "" {
			t.Errorf("got %q, want an id", id)
		}
		if !strings.Contains(string(cgroup), id) {
			t.Errorf("got %q, which is not in %q", id, cgroup)
		}
	})
}
