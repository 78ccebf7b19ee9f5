package livetest

import (
	"bufio"
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A leaker is a process that runs one of the programs of leak/: others than Go's,
// whose runtime might do more than the test knows. An agent connects to it and
// closes. It belongs to the test's goroutine.
type leaker struct {
	s     *scene
	shape string
	process
	peer  *agent
	at    *sock // where it listens, as the peer needs it to connect
	stdin *os.File
	out   *os.File
	lines *bufio.Scanner
	heirs map[int]int // pidfds of the other processes that hold its connections
}

// A process is how a finding names one.
type process struct {
	pid       int
	comm, exe string
}

// processOf reads from /proc what is to be found in the record.
func processOf(t *testing.T, pid int) process {
	t.Helper()
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		t.Fatal(err)
	}
	return process{pid, strings.TrimSuffix(string(comm), "\n"), exe}
}

func (a *agent) process() process { return processOf(a.t, a.pid) }

// compiledLeaker is leak.c, compiled when the first test asks for it; TestMain
// removes it with the command under test. It is static, for containers without a
// libc.
var compiledLeaker = sync.OnceValues(func() (string, error) {
	return program(buildDir, "leak-c", "leak/leak.c", "gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-static")
})

// startLeaker runs "c SHAPE ARG..." or "py SHAPE" in the scene.
func (s *scene) startLeaker(peer *agent, command string) *leaker {
	s.t.Helper()
	words := strings.Fields(command)
	argv := append([]string{"python3", "leak/leak.py"}, words[1:]...)
	if words[0] == "c" {
		bin, err := compiledLeaker()
		if err != nil {
			s.t.Fatal(err)
		}
		argv = append([]string{bin}, words[1:]...)
	}
	in, stdin := newPipe(s.t)
	out, stdout := newPipe(s.t)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, stdout, os.Stderr
	s.ns.do(s.t, func() {
		if err := cmd.Start(); err != nil {
			s.t.Fatalf("start %q: %v", argv, err)
		}
	})
	in.Close()
	stdout.Close()
	go func() { _ = cmd.Wait() }()
	l := &leaker{s: s, shape: words[1], peer: peer, stdin: stdin, out: out, lines: bufio.NewScanner(out), heirs: map[int]int{}}
	s.t.Cleanup(l.kill)
	l.adopt(cmd.Process.Pid)
	if l.shape == "client" {
		l.next("connecting")
	} else {
		l.at = &sock{local: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(l.next("listening")[0]))}
	}
	if !givesCookies() {
		l.s.ns.sockets(s.t) // as ss does when it lists them
	}
	// By now it is certainly what it was started as, and not this program's fork.
	l.process = processOf(s.t, cmd.Process.Pid)
	return l
}

// adopt makes sure that a process is ended with the leaker, and no other one.
func (l *leaker) adopt(pid int) {
	l.s.t.Helper()
	if _, known := l.heirs[pid]; known {
		return
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		l.s.t.Fatalf("open leaker %d: %v", pid, err)
	}
	l.heirs[pid] = pidfd
}

// next is the numbers of its next line, which has to begin with word. A cookie is
// in hex.
func (l *leaker) next(word string) []uint64 {
	l.s.t.Helper()
	if err := l.out.SetReadDeadline(time.Now().Add(callTimeout)); err != nil {
		l.s.t.Fatal(err)
	}
	if !l.lines.Scan() {
		l.s.t.Fatalf("leaker %s: no line %q: %v", l.shape, word, l.lines.Err())
	}
	words := strings.Fields(l.lines.Text())
	if words[0] != word {
		l.s.t.Fatalf("leaker %s: line %q, want %q", l.shape, l.lines.Text(), word)
	}
	var numbers []uint64
	for i, w := range words[1:] {
		n, err := strconv.ParseUint(w, map[bool]int{true: 16, false: 10}[i == 2], 64)
		if err != nil {
			l.s.t.Fatalf("leaker %s: line %q: %v", l.shape, l.lines.Text(), err)
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// held takes the leaker's word for n descriptors of one connection.
func (l *leaker) held(n int) (out []holder) {
	l.s.t.Helper()
	for range n {
		words := l.next("held")
		pid := int(words[0])
		l.adopt(pid)
		out = append(out, holder{pid, processOf(l.s.t, pid).comm, int(words[1]), strconv.FormatUint(words[2], 16)})
	}
	slices.SortFunc(out, byHolder)
	return out
}

func byHolder(a, b holder) int {
	return cmp.Or(cmp.Compare(a.Cookie, b.Cookie), cmp.Compare(a.Pid, b.Pid), cmp.Compare(a.FD, b.FD))
}

// kill ends the leaker and its heirs at once, as the kernel ends what it kills.
// They are reaped by whoever started them.
func (l *leaker) kill() {
	for pid, pidfd := range l.heirs {
		if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
			l.s.t.Errorf("kill leaker %d: %v", pid, err)
		}
	}
	for pid, pidfd := range l.heirs {
		if err := poll(pidfd, unix.POLLIN, callTimeout); err != nil {
			l.s.t.Errorf("leaker %d does not end: %v", pid, err)
		}
		unix.Close(pidfd)
	}
	clear(l.heirs)
}

// An ssSocket is one line of ss: the oracle for what the leakers say, and for
// what tcptrace says of them.
type ssSocket struct {
	state       string
	unread      int // Recv-Q, which counts an unread FIN as one
	lport       string
	rport       string
	cookie      string
	inode       string
	descriptors []holder
}

var (
	ssUser  = regexp.MustCompile(`\("([^"]*)",pid=(\d+),fd=(\d+)\)`)
	ssNames = regexp.MustCompile(`^(\S+) +(\d+) +\d+ +\S+:(\d+) +\S+:(\d+|\*) .*\bsk:(\w+)`)
	ssInode = regexp.MustCompile(`\bino:(\d+)`)
)

// sockets lists the namespace's sockets.
func (n *netns) sockets(t *testing.T) (out []ssSocket) {
	t.Helper()
	for line := range strings.Lines(n.ss(t, "-tanpeOH")) {
		m := ssNames.FindStringSubmatch(line)
		if m == nil {
			continue // a connection that is being accepted has no cookie
		}
		s := ssSocket{state: m[1], lport: m[3], rport: m[4], cookie: m[5]}
		var err error
		if s.unread, err = strconv.Atoi(m[2]); err != nil {
			t.Fatalf("ss: %q: %v", line, err)
		}
		if ino := ssInode.FindStringSubmatch(line); ino != nil {
			s.inode = ino[1]
		}
		for _, user := range ssUser.FindAllStringSubmatch(line, -1) {
			pid, err1 := strconv.Atoi(user[2])
			fd, err2 := strconv.Atoi(user[3])
			if err1 != nil || err2 != nil {
				t.Fatalf("ss: %q: %v, %v", line, err1, err2)
			}
			s.descriptors = append(s.descriptors, holder{pid, user[1], fd, s.cookie})
		}
		slices.SortFunc(s.descriptors, byHolder)
		out = append(out, s)
	}
	return out
}

// socketOf is the first that matches.
func socketOf(sockets []ssSocket, matches func(ssSocket) bool) (ssSocket, bool) {
	if i := slices.IndexFunc(sockets, matches); i >= 0 {
		return sockets[i], true
	}
	return ssSocket{}, false
}

// linkOf is what /proc says a descriptor is.
func linkOf(h holder) string {
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", h.Pid, h.FD))
	if err != nil {
		return err.Error()
	}
	return link
}
