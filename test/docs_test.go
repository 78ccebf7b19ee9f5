package livetest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTheCommandsOfTheDocumentsDoAsTheySay runs each command of the README and of docs/ in a
// network namespace where all is wrong that they are about (docs/scene.py), and compares what it
// prints with docs/promises. A command that has none there has to end with status 0 and print
// something.
func TestTheCommandsOfTheDocumentsDoAsTheySay(t *testing.T) {
	live(t)
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	promises := readPromises(t)
	s := startTroubles(t)
	for _, file := range append(files, "../README.md") {
		for _, c := range docCommands(t, file) {
			p := promises.of(c.text)
			if p.elsewhere != "" {
				continue
			}
			t.Run(c.where, func(t *testing.T) {
				t.Parallel()
				s.run(t, c.text, p)
			})
		}
	}
	for command, p := range promises {
		if !p.met {
			t.Errorf("docs/promises: no document has %q", command)
		}
	}
}

// A docCommand is a command as a document has it.
type docCommand struct{ where, text string }

// docCommands are the commands of a document: what stands in indented blocks and in those of sh,
// and in those of console after the prompt.
func docCommands(t *testing.T, file string) []docCommand {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var c commandReader
	block, mayBegin := "", true // the block of ``` that this is in; here an indented one may begin, or goes on
	for n, line := range strings.Split(string(text), "\n") {
		c.where = fmt.Sprintf("%s:%d", filepath.Base(file), n+1)
		kind, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && block != "":
			block, mayBegin = "", true
		case isFence && kind == "":
			t.Errorf("%s: a block that does not say what it is: sh, console, text, json, go …", c.where)
			block = "text"
		case isFence:
			block = kind
		case block == "sh":
			c.read(line)
		case block == "console":
			if prompted, ok := strings.CutPrefix(line, "# "); ok || c.begun != "" {
				c.read(prompted)
			}
		case block == "":
			indented, ok := strings.CutPrefix(line, "    ")
			if ok && mayBegin {
				c.read(indented)
			} else {
				mayBegin = line == ""
			}
		}
	}
	return c.commands
}

// A commandReader puts lines together to commands.
type commandReader struct {
	commands []docCommand
	begun    string
	where    string // the next line is
}

var remark = regexp.MustCompile(`(^|\s+)# .*$`)

// read takes a line. A command goes on in the next one after a backslash, and as long as a quote is open.
func (c *commandReader) read(line string) {
	if c.begun == "" {
		line = remark.ReplaceAllString(line, "")
	}
	c.begun += line
	before, backslash := strings.CutSuffix(c.begun, `\`)
	switch {
	case backslash:
		c.begun = before
		return
	case quoteIsOpen(c.begun):
		c.begun += "\n"
		return
	case strings.TrimSpace(c.begun) != "":
		c.commands = append(c.commands, docCommand{c.where, strings.TrimSpace(c.begun)})
	}
	c.begun = ""
}

func quoteIsOpen(command string) bool {
	var quote rune
	for _, r := range command {
		switch {
		case quote == 0 && (r == '\'' || r == '"'):
			quote = r
		case r == quote:
			quote = 0
		}
	}
	return quote != 0
}

// For so long tcptrace watches, unless a promise takes longer.
const watched = 4 * time.Second

// A promise is what a command does.
type promise struct {
	prints    *regexp.Regexp // matches in what it prints
	status    int            // with which it ends
	takes     time.Duration  // for so long tcptrace watches
	alone     bool           // it changes something, or needs something that others have here
	elsewhere string         // why it is not run
	met       bool           // a document has it
}

type promises map[string]*promise

// readPromises reads docs/promises: commands, where a * at the end stands for any end, and after a
// tab what they do.
func readPromises(t *testing.T) promises {
	t.Helper()
	text, err := os.ReadFile("docs/promises")
	if err != nil {
		t.Fatal(err)
	}
	all, last := promises{}, (*promise)(nil)
	for n, line := range strings.Split(string(text), "\n") {
		said, ok := strings.CutPrefix(line, "\t")
		if !ok {
			if line != "" && !strings.HasPrefix(line, "#") {
				last = &promise{takes: watched}
				all[line] = last
			}
			continue
		}
		word, rest, _ := strings.Cut(said, " ")
		var err error
		switch word {
		case "prints":
			last.prints, err = regexp.Compile("(?m)" + rest)
		case "status":
			last.status, err = strconv.Atoi(rest)
		case "takes":
			last.takes, err = time.ParseDuration(rest)
		case "alone":
			last.alone = true
		case "elsewhere":
			last.elsewhere = rest
		default:
			err = errors.New("prints, status, takes, alone or elsewhere")
		}
		if err != nil {
			t.Fatalf("docs/promises:%d: %q: %v", n+1, line, err)
		}
	}
	return all
}

// of returns the promise of a command: its own, that of the longest beginning, or what all promise.
func (ps promises) of(command string) *promise {
	p, length := ps[command], 0
	for key, any := range ps {
		begin, ok := strings.CutSuffix(key, "*")
		if ps[command] == nil && ok && strings.HasPrefix(command, begin) && len(begin) > length {
			p, length = any, len(begin)
		}
	}
	if p == nil {
		return &promise{takes: watched}
	}
	p.met = true
	return p
}

// troubles is a namespace where things go wrong.
type troubles struct {
	ns   *netns
	pids map[string]string // of its processes, by name
	id   string            // of the container that web is in
	bin  string            // a directory with a tcptrace that does not wait for Ctrl-C
	kept map[string][]byte // files that commands look at
}

// wrapper is the tcptrace that the commands find: it ends by itself, and what takes a minute on a host that is
// looked after takes a second.
const wrapper = `#!/bin/sh
case " $* " in
" snapshot "*) exec %[1]s "$@" --close-wait-after 1s --fin-wait2-after 1s ;;
" -"* | "  ") exec %[1]s "$@" --duration "$TAKES" --close-wait-after 1s --fin-wait2-after 1s ;;
esac
exec %[1]s "$@"
`

// enter runs a command of a document, in a mount namespace of its own: the tools that tcptrace is compared with
// need tracefs.
const enter = `mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing || exit 99
exec bash -o pipefail -c "$0"`

func startTroubles(t *testing.T) *troubles {
	t.Helper()
	s := &troubles{ns: newNetns(t), pids: map[string]string{}, bin: t.TempDir(), kept: map[string][]byte{}}
	s.ns.sysctl(t, "ipv4/ip_local_port_range", "32768 33167")
	s.ns.sysctl(t, "ipv4/tcp_tw_reuse", "0")
	if err := os.WriteFile(filepath.Join(s.bin, "tcptrace"), fmt.Appendf(nil, wrapper, tcptraceBin), 0o755); err != nil {
		t.Fatal(err)
	}

	id, dir := newContainer(t)
	s.id = id
	cmd := exec.Command("python3", "docs/scene.py")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr = os.Stderr
	hold, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.ns.do(t, func() { err = cmd.Start() })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hold.Close() // it ends with all that it has started
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "ready" {
		name, pid, _ := strings.Cut(lines.Text(), " ")
		s.pids[name] = pid
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()

	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(s.pids["web"]), 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(3 * time.Second) // until there is something to find
	work := t.TempDir()
	run := s.command(t, s.ns, work, 3*time.Second, "tcptrace --record run.rec > run.jsonl && gzip --keep run.jsonl")
	if err := run.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", run, err, run.Stderr)
	}
	for _, name := range []string{"run.rec", "run.jsonl", "run.jsonl.gz"} {
		if s.kept[name], err = os.ReadFile(filepath.Join(work, name)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// command is a command of a document, about this namespace instead of the one of the document.
func (s *troubles) command(t *testing.T, ns *netns, dir string, takes time.Duration, text string) *exec.Cmd {
	t.Helper()
	for placeholder, value := range map[string]string{"4711": s.pids["web"], "3f1c9a": s.id[:12]} {
		text = strings.ReplaceAll(text, placeholder, value)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "nsenter", "--net=/run/netns/"+ns.name, "unshare", "--mount", "sh", "-c", enter, text)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+s.bin+":"+os.Getenv("PATH"), "TAKES="+takes.String())
	cmd.Stdout, cmd.Stderr = &bytes.Buffer{}, &bytes.Buffer{}
	return cmd
}

// written is the file that a command writes to instead of stdout.
var written = regexp.MustCompile(` > "?([^\s'"]+)"?$`)

// The status with which a shell says that there is no such command.
const notFound = 127

func (s *troubles) run(t *testing.T, text string, p *promise) {
	dir, ns := t.TempDir(), s.ns
	for name, content := range s.kept {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if p.alone {
		ns = newNetns(t)
	}
	cmd := s.command(t, ns, dir, p.takes, text)
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", text, err)
	}
	out, file := fmt.Sprint(cmd.Stdout), written.FindStringSubmatch(text)
	if file != nil && p.prints != nil {
		content, err := os.ReadFile(filepath.Join(dir, file[1]))
		if err != nil {
			t.Fatal(err)
		}
		out = string(content)
	}
	switch got := cmd.ProcessState.ExitCode(); {
	case got == notFound && p.status != notFound:
		t.Errorf("%s\nis no command here: %s\nIf it is none, let its block say what it is (```promql); if it cannot be run, docs/promises has to say why", text, cmd.Stderr)
	case got != p.status:
		t.Errorf("%s\nexit status %d, want %d; stderr:\n%s", text, got, p.status, cmd.Stderr)
	case p.prints != nil && !p.prints.MatchString(out):
		t.Errorf("%s\nprints\n%.4000s\nwant a match of %s", text, out, p.prints)
	case p.prints == nil && out == "" && file == nil:
		t.Errorf("%s\nprints nothing; stderr:\n%s", text, cmd.Stderr)
	}
}
