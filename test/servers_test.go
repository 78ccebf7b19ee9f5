package livetest

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Where the servers are, each in a network namespace that is all theirs.
const (
	nginxAddr   = "127.0.0.1:8080"
	haproxyAddr = "127.0.0.1:8081"
	redisAddr   = "127.0.0.1:6379"
)

// serverLife bounds a server's life, should test and cleanup both fail to end it.
const serverLife = "150s"

// Their time-outs are such that the idle come to know them within a short load.
// What takes longer than --close-wait-after is /slow, of slowSize at slowRate.
const (
	nginxConf = `
daemon off;
user root;
worker_processes 2;
pid DIR/nginx.pid;
error_log stderr;
events { worker_connections 512; }
http {
	access_log off;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	keepalive_timeout 3s;
	client_header_timeout 3s;
	server {
		listen 127.0.0.1:8080;
		root DIR/files;
		location = / { return 200 "hello\n"; }
		location = /slow { limit_rate 32k; }
	}
}
`
	slowSize = 160 << 10
	bigSize  = 4 << 20

	// An nginx that is told to reload closes the connections that wait for a request, also
	// those that haproxy has just taken for one: without retries that is a 502. Each
	// retry may meet the next such connection, until there are none left.
	haproxyConf = `
global
	nbthread 2
	maxconn 400
defaults
	mode http
	timeout connect 3s
	timeout client 10s
	timeout server 10s
	timeout http-request 3s
	timeout http-keep-alive 3s
	retry-on empty-response
	retries 100
frontend web
	bind 127.0.0.1:8081
	default_backend nginx
backend nginx
	http-reuse always
	server nginx 127.0.0.1:8080 check inter 500ms
`

	redisConf = `
bind 127.0.0.1
port 6379
timeout 3
save ""
dir DIR
`
)

// serve starts all servers in the namespace, and returns the directory of their
// files.
func serve(t *testing.T, ns *netns) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "files"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"nginx.conf":   nginxConf,
		"haproxy.conf": haproxyConf,
		"redis.conf":   redisConf,
		"files/slow":   strings.Repeat("s", slowSize),
		"files/big":    strings.Repeat("b", bigSize),
	} {
		content = strings.ReplaceAll(content, "DIR", dir)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	conf := func(name string) string { return filepath.Join(dir, name+".conf") }
	startServer(t, ns, nginxAddr, "nginx", "-p", dir, "-c", conf("nginx"))
	startServer(t, ns, haproxyAddr, "haproxy", "-W", "-db", "-f", conf("haproxy"))
	startServer(t, ns, redisAddr, "redis-server", conf("redis"))
	return dir
}

// startServer starts a server and waits until it listens.
func startServer(t *testing.T, ns *netns, addr, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%v: run scripts/install-deps test", err)
	}
	// It passes SIGTERM on, and ends when the server does.
	cmd := exec.Command("timeout", slices.Concat([]string{"--kill-after=5s", serverLife, path}, args)...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	ns.do(t, func() {
		if err := cmd.Start(); err != nil {
			t.Fatalf("start %s: %v", name, err)
		}
	})
	t.Cleanup(func() {
		if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
			t.Errorf("end %s: %v", name, err)
		}
		_ = cmd.Wait() // some end with a status that says SIGTERM
		if t.Failed() {
			t.Logf("%s says:\n%s", name, log.String())
		}
	})
	for deadline := time.Now().Add(callTimeout); ; time.Sleep(20 * time.Millisecond) {
		var c net.Conn
		ns.do(t, func() { c, err = net.Dial("tcp", addr) })
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen within %v: %v", name, callTimeout, err)
		}
	}
}

// Whoever runs tcptrace in production runs it beside such servers, and beside
// clients that behave as badly as these. Where nobody leaks, it must say nothing;
// and where one does, name that one.
func TestServersUnderLoadAreNotFoundToLeakButOneThatLeaksIs(t *testing.T) {
	ns := newNetns(t)
	bin := buildLoad(t)
	dir := serve(t, ns)
	duration := 60 * time.Second
	if testing.Short() {
		duration = 20 * time.Second
	}

	load := exec.Command(bin, "-nginx", nginxAddr, "-haproxy", haproxyAddr, "-redis", redisAddr, "-for", duration.String())
	var out bytes.Buffer
	load.Stdout, load.Stderr = &out, &out
	ns.do(t, func() {
		if err := load.Start(); err != nil {
			t.Fatal(err)
		}
	})
	ended := make(chan error, 1)
	go func() { ended <- load.Wait() }()
	t.Cleanup(func() { _ = load.Process.Kill() }) // fails if it has ended, as it should have

	// In the middle of it: what tcptrace finds at its start is under load too.
	time.Sleep(2 * time.Second)
	tr := startTracer(t, "--netns", fmt.Sprint(ns.inode), "--close-wait-after", "2s", "--events", "finding,stats")

	// nginx closes it for being silent; it reads that, and keeps it.
	leaky := startAgent(t, ns, "leaky")
	lost := leaked{verdict: "eof_read", before: time.Now()}
	kept := leaky.dial(&sock{local: netip.MustParseAddrPort(nginxAddr)})
	kept.read("")
	lost.after = time.Now()
	lost.cookie, lost.local, lost.remote = kept.id(), kept.local, kept.remote
	lost.holders = []holder{{leaky.pid, leaky.name, kept.fd, kept.id()}}
	want := closeWaitLeak(leaky.process(), []leaked{lost}, true)
	want.never = true

	// And nginx gets other workers: the old ones leave with all that they have open.
	time.Sleep(duration / 4)
	reload(t, filepath.Join(dir, "nginx.pid"))

	if err := <-ended; err != nil {
		t.Fatalf("load: %v\n%s", err, out.Bytes())
	}
	t.Logf("load: %s", bytes.TrimSpace(out.Bytes()))
	tr.waitFor(func(records []record) bool { return want.worst(records) != nil })
	// That the load is made of short connections is no leak.
	churn := func(r record) bool {
		return r.Type == "finding" && r.Kind == "short_lived" && orNull(r.Comm) == filepath.Base(bin)
	}
	checkFindings(t, slices.DeleteFunc(tr.stop().records, churn), []leak{want})
}

func buildLoad(t *testing.T) string {
	t.Helper()
	bin, err := program(t.TempDir(), "load", "./load", "go", "build")
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// reload makes nginx start new workers and end the old ones.
func reload(t *testing.T, pidFile string) {
	t.Helper()
	content, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(content)))
	if err == nil {
		err = unix.Kill(pid, unix.SIGHUP)
	}
	if err != nil {
		t.Fatalf("reload nginx: %v", err)
	}
}
