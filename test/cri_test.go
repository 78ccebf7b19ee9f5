package livetest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pauseEnv is set in the image of the pods: what has no other task there is the process
// that every pod has.
const pauseEnv = "TCPTRACE_TEST_PAUSE"

func init() {
	if os.Getenv(pauseEnv) != "" && os.Getenv(agentEnv) == "" {
		time.Sleep(agentLife)
		os.Exit(0)
	}
}

const podImage = "tcptrace.test/agent:1"

// A containerd is a container runtime of one scene, in namespaces and directories of
// its own: nothing of it is left when it ends. Its pods have the network of the scene.
type containerd struct {
	s      *scene
	dir    string
	cgroup string // of all pods
	client runtimeapi.RuntimeServiceClient
	log    *os.File
}

// podName is what Kubernetes calls a container.
type podName struct{ namespace, name, container string }

const containerdConfig = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[2]s"
  # Here and there root may not make itself less likely to be killed.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    # The one that works on any file system.
    snapshotter = "native"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "%[1]s/cni"
    bin_dir = "%[1]s/cni"
`

func startContainerd(s *scene) *containerd {
	s.t.Helper()
	dir, err := os.MkdirTemp("", "tt")
	if err != nil {
		s.t.Fatal(err)
	}
	c := &containerd{s: s, dir: dir, cgroup: filepath.Base(s.ns.name)}
	s.t.Cleanup(c.remove)
	config := filepath.Join(dir, "config.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, containerdConfig, dir, podImage), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if c.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		s.t.Fatal(err)
	}
	// Whatever it starts ends with it, as the first process of a PID namespace; and
	// /run is where it and its helpers meet.
	cmd := exec.Command("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
		"sh", "-c", `mount -t tmpfs tmpfs /run && exec containerd --config "$0"`, config)
	cmd.Stdout, cmd.Stderr = c.log, c.log
	s.ns.do(s.t, func() {
		if err := cmd.Start(); err != nil {
			s.t.Fatalf("start containerd: %v", err)
		}
	})
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	conn, err := grpc.NewClient("unix://"+c.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	c.client = runtimeapi.NewRuntimeServiceClient(conn)
	c.call("start", func(ctx context.Context) error {
		_, err := c.client.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
		return err
	})
	c.importImage()
	return c
}

func (c *containerd) socket() string { return filepath.Join(c.dir, "containerd.sock") }

// call makes a call that has to succeed.
func (c *containerd) call(what string, f func(context.Context) error) {
	c.s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*callTimeout)
	defer cancel()
	if err := f(ctx); err != nil {
		log, _ := os.ReadFile(c.log.Name())
		c.s.t.Fatalf("containerd: %s: %v\n%s", what, err, log)
	}
}

// importImage gives it an image of this program alone. For that, it has to be static.
func (c *containerd) importImage() {
	c.s.t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		c.s.t.Fatal(err)
	}
	layer := tarOf(c.s.t, map[string][]byte{"livetest": self})
	config, err1 := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/livetest"}, "Env": []string{pauseEnv + "=1"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	manifest, err2 := json.Marshal([]any{map[string]any{
		"Config": "config.json", "RepoTags": []string{podImage}, "Layers": []string{"layer.tar"},
	}})
	if err1 != nil || err2 != nil {
		c.s.t.Fatal(err1, err2)
	}
	ctr := exec.Command("ctr", "--address", c.socket(), "--namespace", "k8s.io", "images", "import", "--snapshotter", "native", "-")
	ctr.Stdin = bytes.NewReader(tarOf(c.s.t, map[string][]byte{"layer.tar": layer, "config.json": config, "manifest.json": manifest}))
	if out, err := ctr.CombinedOutput(); err != nil {
		c.s.t.Fatalf("import the image: %v\n%s", err, out)
	}
}

func tarOf(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// run starts a pod with one container, which is an agent, and returns its id too. A label
// that kubelet would set is not needed.
func (c *containerd) run(p podName) (a *agent, id string) {
	c.s.t.Helper()
	l, path := meetingPoint(c.s.t)
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: p.name, Namespace: p.namespace, Uid: p.name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/" + c.cgroup,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				// That of the runtime: any other is made by a CNI plugin.
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE},
			},
		},
	}
	c.call("run "+p.name, func(ctx context.Context) error {
		sandbox, err := c.client.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		if err != nil {
			return fmt.Errorf("%w (if this program is not found: it has to be static, CGO_ENABLED=0)", err)
		}
		made, err := c.client.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
			PodSandboxId: sandbox.PodSandboxId, SandboxConfig: config,
			Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: p.container},
				Image:    &runtimeapi.ImageSpec{Image: podImage},
				Envs:     []*runtimeapi.KeyValue{{Key: agentEnv, Value: []byte(path)}, {Key: agentNameEnv, Value: []byte(p.container)}},
				Mounts:   []*runtimeapi.Mount{{HostPath: filepath.Dir(path), ContainerPath: filepath.Dir(path)}},
			},
		})
		if err != nil {
			return err
		}
		id = made.ContainerId
		_, err = c.client.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		return err
	})
	a = meetAgent(c.s.t, l, p.container)
	c.s.agents = append(c.s.agents, a)
	a.pid = pidHere(c.s.t, a.pidfd)
	return a, id
}

// pidHere is the number that a process has in this PID namespace.
func pidHere(t *testing.T, pidfd int) (pid int) {
	t.Helper()
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", pidfd))
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(info), "\nPid:")
	if _, err := fmt.Sscan(line, &pid); err != nil {
		t.Fatalf("pidfd: %v in %q", err, info)
	}
	return pid
}

// remove takes away what outlives it: its files, and the cgroups of its pods, one in
// each hierarchy.
func (c *containerd) remove() {
	if err := os.RemoveAll(c.dir); err != nil {
		c.s.t.Error(err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		roots, err := filepath.Glob(pattern + c.cgroup)
		if err != nil {
			c.s.t.Fatal(err)
		}
		for _, root := range roots {
			removeCgroup(c.s.t, root)
		}
	}
}

func removeCgroup(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		if e.IsDir() {
			removeCgroup(t, filepath.Join(dir, e.Name()))
		}
	}
	// It is busy until the last process in it has been reaped.
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if err := os.Remove(dir); err == nil || os.IsNotExist(err) {
			return
		} else if time.Now().After(deadline) {
			t.Errorf("remove a cgroup: %v", err)
			return
		}
	}
}

// A real runtime with its real containers: one that was there before, some that start
// while tcptrace runs, and a process in none.
func TestPodsAreNamedAsTheirContainerRuntimeDoes(t *testing.T) {
	t.Parallel()
	live(t)
	web, sidecar, quiet := podName{"shop", "cart-0", "web"}, podName{"shop-canary", "cart-1", "sidecar"}, podName{"shop", "cart-2", "quiet"}
	recorded := filepath.Join(t.TempDir(), "pods.rec")
	var wants []leak
	pods := map[string]podName{} // by container id
	pids := map[int]string{}
	var snapshot []record
	_, runs := playComplete(t, func(s *scene) {
		clear(pods)
		clear(pids)
		wants = nil
		runtime := startContainerd(s)
		cli, outside := s.agents2()
		leaks := func(a *agent, l *sock) {
			c, d := pair(cli, l)
			want := closeWaitLeak(a.process(), []leaked{leakOf(c, d, "eof_unread")}, true)
			want.never = true
			wants = append(wants, want)
		}
		first, id := runtime.run(web)
		pods[id], pids[first.pid] = web, id
		l, other := first.listen(anyPort4), outside.listen(anyPort4)
		s.trace("--cri", "unix://"+runtime.socket(), "--close-wait-after", closeWaitAfter.String(), "--record", recorded)
		leaks(first, l)
		leaks(outside, other)
		second, id := runtime.run(sidecar)
		pods[id], pids[second.pid] = sidecar, id
		leaks(second, second.listen(anyPort4))
		// Nothing but the runtime's answer makes this one known: it leaks nothing.
		third, id := runtime.run(quiet)
		pods[id], pids[third.pid] = quiet, id
		l = third.listen(anyPort4)
		s.await(func(records []record) bool {
			c, d := pair(cli, l)
			d.close()
			c.close()
			return slices.ContainsFunc(records, func(r record) bool { return r.isTransition() && orNull(r.Pod) == quiet.name })
		})
		s.awaitFindings(wants)
		snapshot = runForRecords(t, 0, "snapshot", "--netns", fmt.Sprint(s.ns.inode), "--cri", runtime.socket(),
			"--close-wait-after", "1ms")
	})
	checkFindings(t, runs[0].records, wants)
	replayed := runForRecords(t, 0, "--replay", recorded)
	for name, records := range map[string][]record{"live": runs[0].records, "replay": replayed, "snapshot": snapshot} {
		named := map[string]bool{}
		for i := range records {
			r := &records[i]
			if r.Pid == nil {
				continue
			}
			id, inside := pids[*r.Pid]
			if !inside {
				if r.Container != nil || r.Pod != nil || r.Namespace != nil || r.ContainerName != nil {
					t.Errorf("%s: a process outside has a container: %s", name, r.summary())
				}
				continue
			}
			// Its listener is there before the runtime has answered.
			late := *r.Pid != wants[0].who.pid && name != "snapshot" && r.Type != "finding"
			if orNull(r.Container) != id || r.Pod == nil && !late {
				t.Errorf("%s: container %s, pod %s, want %s of %+v: %s", name, orNull(r.Container), orNull(r.Pod), id, pods[id], r.summary())
			}
			if got := (podName{orNull(r.Namespace), orNull(r.Pod), orNull(r.ContainerName)}); r.Pod != nil {
				if got != pods[id] {
					t.Errorf("%s: got %+v, want %+v: %s", name, got, pods[id], r.summary())
				}
				named[r.Type+" of "+got.name] = true
			}
		}
		want := []string{"socket of cart-0", "socket of cart-1", "finding of cart-0", "finding of cart-1"}
		if name != "snapshot" {
			want = []string{"socket of cart-0", "transition of cart-0", "transition of cart-2", "finding of cart-0", "finding of cart-1"}
		}
		for _, what := range want {
			if !named[what] {
				t.Errorf("%s: no %s with the names, want some", name, what)
			}
		}
	}
}

func TestACRISocketThatIsNotThereIsSaidAtOnce(t *testing.T) {
	t.Parallel()
	live(t)
	for _, command := range [][]string{nil, {"snapshot"}} {
		stdout, stderr, status := runCommand(t, append(command, "--cri", "unix:///nowhere/containerd.sock")...)
		want := `tcptrace: --cri "unix:///nowhere/containerd.sock": dial unix /nowhere/containerd.sock: connect: no such file or directory; give the socket of `
		if status != 1 || stdout != "" || !strings.HasPrefix(stderr, want) {
			t.Errorf("status %d, stdout %q, stderr %q; want 1, nothing, and %q", status, stdout, stderr, want)
		}
	}
}
