package livetest

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/probe"
)

// Each way of each facility is used on some kernel that is not at hand. Wherever the
// kernel at hand takes it, it has to do what the table says, and nothing else may suffer.
func TestEachWayOfEachFacilityTellsTheSameStory(t *testing.T) {
	for _, f := range probe.Facilities() {
		ways := []string{probe.None}
		for _, w := range f.Ways {
			ways = append(ways, w.Name)
		}
		for _, w := range ways {
			if f.Name == "transitions" && w == probe.None {
				continue // there is nothing without them
			}
			t.Run(f.Name+"="+w, func(t *testing.T) {
				t.Parallel()
				live(t)
				tryWay(t, f, w)
			})
		}
	}
}

func tryWay(t *testing.T, f probe.Facility, way string) {
	nested := f.Name == "pid_namespace" && way != "initial"
	if why := refusal(t, nested, f.Name, way); why != "" {
		chosen := startTracer(t).stop()
		if lastStats(chosen.records).Probes[f.Name] == way {
			t.Errorf("is in use unasked, but refused when asked for: %s", why)
		}
		t.Logf("refused: %s", why)
		return
	}
	var cli, srv *agent
	var old, c, d *sock
	_, runs := playComplete(t, func(s *scene) {
		force := []string{"--netns", fmt.Sprint(s.ns.inode), "--probe", f.Name + "=" + way}
		start := func() { s.add(startTracer(t, force...)) }
		if nested {
			out, outWrite := newPipe(t)
			log, logWrite := newPipe(t)
			first := startInit(t, s.ns, "init", outWrite, logWrite)
			outWrite.Close()
			logWrite.Close()
			cli, srv = s.spawn(first, "cli"), s.spawn(first, "srv")
			start = func() { s.add(tracerUnder(t, first, out, log, force...)) }
		} else {
			cli, srv = s.agents2()
		}
		l := srv.listen(anyPort4)
		_, old = pair(cli, l)
		start()
		c, d = pair(cli, l)
		c.close()
		time.Sleep(lag)
		d.close()
		// What comes last, comes by the tracepoint whatever is done without.
		s.await(func(rs []record) bool {
			return len(storyOf(rs, c)) >= 5 && len(storyOf(rs, d)) >= 5
		})
	})
	run := runs[0]
	stats := lastStats(run.records)
	has := func(facility string) bool { return stats.Probes[facility] != "" }
	if got := stats.Probes[f.Name]; got != strings.TrimPrefix(way, probe.None) {
		t.Errorf("probes: %s is %q, want %s", f.Name, got, way)
	}
	is := func(facility string, ways ...string) bool {
		return f.Name == facility && slices.Contains(ways, way)
	}

	client, server := storyOf(run.records, c), storyOf(run.records, d)
	if got := path(server); got != "L SR E CW LA C" {
		t.Errorf("server: path %q, want %q", got, "L SR E CW LA C")
	}
	waits := has("time_wait")
	if got := path(client); !strings.HasPrefix(got, "C SS E F1 F2 TW") && waits || !waits && got != "C SS E F1 F2 C" {
		t.Errorf("client: path %q, want one to TIME_WAIT: %v", got, waits)
	}
	// The timers' function is learned from a socket that an iterator shows.
	if without := is("time_wait", probe.None) || is("sockets", probe.None) && !has("time_wait"); without == waits {
		t.Errorf("TIME_WAIT is traced: %v", waits)
	}
	for i, r := range slices.Concat(client, server) {
		if r.Pid != nil && *r.Pid != cli.pid && *r.Pid != srv.pid {
			t.Errorf("a bystander is named: %s", r.summary())
		}
		if r.OldState != "CLOSE" && r.OldState != "LISTEN" && r.DwellMs == nil && r.NewState != "CLOSE" {
			t.Errorf("number %d has no dwell: %s", i, r.summary())
		}
	}

	// Who connects and who closes is known by the task alone.
	wantOwner(t, client, "SYN_SENT", cli, "connect", !is("tasks", probe.None) && !is("pid_namespace", probe.None))
	wantOwner(t, server, "LAST_ACK", srv, "accept|close", !is("tasks", probe.None) && !is("pid_namespace", probe.None))
	wantOwner(t, server, "CLOSE_WAIT", srv, "accept", has("accept") && !is("tasks", probe.None) && !is("pid_namespace", probe.None))
	wantOwner(t, server, "SYN_RECV", srv, "listener", has("descriptors") && !is("pid_namespace", probe.None))

	// What the agent has asked for its cookie has one on every kernel.
	if got := orNull(client[0].Cookie); got != c.id() {
		t.Errorf("client: cookie %s, want %s", got, c.id())
	}
	for _, r := range server {
		if got := orNull(r.Cookie); got != d.id() && (has("cookies") && r.OldState != "LISTEN" || got != "null") {
			t.Errorf("server: cookie %s, want %s: %s", got, d.id(), r.summary())
		}
	}

	var found *record
	for i := range run.records {
		if r := &run.records[i]; r.Type == "socket" && r.State == "ESTABLISHED" && portOf(old.local) == orNull(r.Lport) {
			found = r
		}
	}
	scans := has("descriptors") || has("sockets")
	switch {
	case scans != (found != nil):
		t.Errorf("the socket from before the start is told of: %v, want %v", found != nil, scans)
	case found != nil && has("descriptors"):
		want := []holder{{Pid: srv.pid, Comm: srv.name, FD: old.fd}}
		if is("pid_namespace", probe.None) {
			want = nil
		}
		if !slices.Equal(found.Holders, want) {
			t.Errorf("holders %v, want %v", found.Holders, want)
		}
	}
}

// The agents ask for the cookie of all that they listen on. So does a tracer that may give
// cookies, of all sockets: hence nothing runs beside this.
func TestAListenerWithoutACookieHasChildrenAllTheSame(t *testing.T) {
	live(t)
	var l *leaker
	var server *sock
	_, runs := playComplete(t, func(s *scene) {
		s.add(startTracer(t, "--netns", fmt.Sprint(s.ns.inode), "--probe", "cookies=none"))
		peer := s.agent("peer")
		l = s.startLeaker(peer, "c queue")
		c := peer.dial(l.at)
		server = &sock{local: c.remote, remote: c.local}
		s.await(func(rs []record) bool { return len(storyOf(rs, server)) >= 2 })
	})
	story := storyOf(runs[0].records, server)
	if got := path(story); !strings.HasPrefix(got, "L SR E") {
		t.Errorf("path %q, want one that begins with L SR E", got)
	}
	wantOwner(t, story, "SYN_RECV", &agent{pid: l.pid, name: l.comm}, "listener", true)
}

// refusal is what the kernel says of a way, in a PID namespace of its own or not; "" if it
// takes it.
func refusal(t *testing.T, nested bool, facility, way string) string {
	t.Helper()
	argv := []string{tcptraceBin, "--probe", facility + "=" + way, "--duration", "1ms", "--events", "stats"}
	if nested {
		argv = append([]string{"unshare", "--pid", "--fork", "--mount-proc"}, argv...)
	}
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err == nil {
		return ""
	}
	if want := "--probe " + facility + "=" + way + ": the kernel refuses it"; !strings.Contains(string(out), want) {
		t.Errorf("%v: %s; want %q in it", err, out, want)
	}
	return string(out)
}

// storyOf is the transitions of a connection, told by its ports: where there are no
// cookies, nothing else does.
func storyOf(records []record, s *sock) []record {
	var out []record
	for _, r := range records {
		lport := r.Lport != nil && *r.Lport == s.local.Port() || r.NewState == "SYN_SENT"
		if r.isTransition() && lport && (r.Rport != nil && *r.Rport == s.remote.Port()) {
			out = append(out, r)
		}
	}
	return out
}

// wantOwner checks who is named when a state is entered, or that nobody is.
func wantOwner(t *testing.T, story []record, state string, a *agent, sources string, known bool) {
	t.Helper()
	for _, r := range story {
		if r.NewState != state {
			continue
		}
		is := owner{a, sources}.is(&r)
		if is != known && (known || r.Pid != nil) {
			t.Errorf("owner %s entering %s, want %v: %v", r.owner(), state, owner{a, sources}, known)
		}
	}
}
