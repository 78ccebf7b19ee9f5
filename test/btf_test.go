package livetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// withoutBTF is a root whose kernel has no types of its own, as far as it can see.
var withoutBTF = user{by: []string{"unshare", "--mount", "sh", "-c", `mount -t tmpfs none /sys/kernel/btf && exec "$0" "$@"`}}

func TestAKernelWithoutTypesIsTracedByThoseOfAFile(t *testing.T) {
	t.Parallel()
	live(t)
	types, err := os.ReadFile("/sys/kernel/btf/vmlinux")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "vmlinux.btf")
	if err := os.WriteFile(file, types, 0o644); err != nil {
		t.Fatal(err)
	}
	var cli, srv *agent
	var c, d *sock
	_, runs := playComplete(t, func(s *scene) {
		cli, srv = s.agents2()
		s.add(startTracerAs(t, withoutBTF, "--netns", fmt.Sprint(s.ns.inode), "--btf", file))
		c, d = pair(cli, srv.listen(anyPort4))
		c.close()
		time.Sleep(lag)
		d.close()
		s.await(func(rs []record) bool { return len(storyOf(rs, c)) >= 5 && len(storyOf(rs, d)) >= 5 })
	})
	run := runs[0]
	for facility, way := range lastStats(run.records).Probes {
		// These need no types of sockets, functions or files.
		can := map[string]string{"transitions": "raw_tp", "destroy": "raw_tp", "processes": "raw_tp", "tasks": "probe_read", "pid_namespace": "initial"}
		if way != can[facility] {
			t.Errorf("probes: %s is %q, want %q", facility, way, can[facility])
		}
	}
	client, server := storyOf(run.records, c), storyOf(run.records, d)
	if got := path(client); got != "C SS E F1 F2 C" {
		t.Errorf("client: path %q, want %q", got, "C SS E F1 F2 C")
	}
	if got := path(server); got != "L SR E CW LA C" {
		t.Errorf("server: path %q, want %q", got, "L SR E CW LA C")
	}
	wantOwner(t, client, "SYN_SENT", cli, "connect", true)
	wantOwner(t, server, "CLOSE_WAIT", srv, "", false)
	wantOwner(t, server, "LAST_ACK", srv, "close", true)
}

func TestAKernelWithoutTypesIsSaidToHaveNone(t *testing.T) {
	t.Parallel()
	live(t)
	stderr, status := withoutBTF.run(t, "--duration", "1ms")
	if want := "--btf FILE"; status != 1 || !strings.Contains(stderr, want) {
		t.Errorf("exit status %d, stderr %q; want 1, and %q in it", status, stderr, want)
	}
}
