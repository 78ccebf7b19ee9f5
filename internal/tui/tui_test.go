package tui

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// world is a tracker that was told of a few connections.
type world struct {
	t     *testing.T
	tr    *aggregate.Tracker
	now   uint64
	n     uint64
	feed  *Feed
	m     *model
	frame Frame
}

// discard takes records and keeps none.
type discard struct{}

func (discard) Transition(*aggregate.Transition) bool { return true }
func (discard) Connection(*aggregate.Connection) bool { return true }
func (discard) Socket(*aggregate.Socket) bool         { return true }
func (discard) Finding(*aggregate.Finding) bool       { return true }
func (discard) Summary(*aggregate.Summary)            {}

func newWorld(t *testing.T) *world {
	th := events.DefaultThresholds
	th.CloseWaitAfter = 10 * time.Second
	w := &world{t: t, tr: aggregate.NewTracker(discard{}, &aggregate.Filter{}, 1<<16, th), now: 1e9, feed: NewFeed()}
	w.tr.SeesMinisockets(false)
	w.tr.Tick(w.now)
	w.tr.Scanned(events.Scan{Complete: true, Every: true})
	w.frame = Frame{Wall: 1_700_000_000_000_000_000, PerSecond: 1234}
	w.publish()
	w.m = newModel(w.feed)
	return w
}

func addr(s string) events.Addr { return events.Addr(netip.MustParseAddr(s).As16()) }

// ends is a connection of a client here, or a server's.
func (w *world) event(n uint64, kind events.Kind, old, next events.State, flags events.Flags, pid uint32, comm string) events.Event {
	w.now += 1e6
	ev := events.Event{
		Ktime: w.now, Kind: kind, Skaddr: 0x1000 + n<<8, Cookie: 0x1000 + n, Netns: 1, Old: old, New: next, Flags: flags, Fd: -1,
		Laddr: addr("10.0.0.1"), Lport: 8080, Raddr: addr("192.0.2.1"), Rport: uint16(20000 + n),
		Proc: events.Proc{Pid: pid, Comm: events.MakeComm(comm)},
	}
	if flags&events.Owned == 0 && kind == events.Transition {
		ev.Proc = events.Proc{}
	}
	return ev
}

// leaves has a server's connection of process pid in CLOSE_WAIT.
func (w *world) leaves(pid uint32, comm string) {
	w.n++
	for _, ev := range []events.Event{
		w.event(w.n, events.Transition, events.Listen, events.SynRecv, 0, 0, ""),
		w.event(w.n, events.Transition, events.SynRecv, events.Established, 0, 0, ""),
		w.event(w.n, events.Accept, 0, 0, 0, pid, comm),
		w.event(w.n, events.Transition, events.Established, events.CloseWait, events.HasSocket|events.Done, 0, ""),
	} {
		w.tr.Observe(&ev)
	}
}

// waits has n connections of process 2 to a port of an address in TIME_WAIT.
func (w *world) waits(n int, to string) {
	for range n {
		w.n++
		for _, ev := range []events.Event{
			w.event(w.n, events.Transition, events.Close, events.SynSent, events.Owned|events.HasSocket, 2, "cli"),
			w.event(w.n, events.Transition, events.SynSent, events.Established, events.HasSocket, 0, ""),
			w.event(w.n, events.Transition, events.Established, events.FinWait1, events.Owned, 2, "cli"),
			w.event(w.n, events.Transition, events.FinWait1, events.FinWait2, events.Dead, 0, ""),
			w.event(w.n, events.Minisocket, 0, events.TimeWait, 0, 0, ""),
			w.event(w.n, events.Transition, events.FinWait2, events.Close, events.Dead|events.Done, 0, ""),
			w.event(w.n, events.Destroy, events.Close, events.Close, 0, 0, ""),
		} {
			ev.Raddr, ev.Rport, ev.Lport = addr(to), 443, uint16(33000+w.n)
			if ev.Kind == events.Minisocket {
				ev.Skaddr += 1 << 40
				ev.Left = time.Minute
			}
			w.tr.Observe(&ev)
		}
	}
}

// scans finds all that were left so far, held by their process.
func (w *world) scans(pids ...uint32) {
	for n, pid := range pids {
		ev := w.event(uint64(n+1), events.Socket, events.CloseWait, events.CloseWait, events.HasSocket, pid, "")
		ev.Proc.Comm, ev.Fd, ev.Unsent = w.comm(pid), int32(4+n), w.now
		w.tr.Observe(&ev)
	}
	w.tr.Tick(w.now)
	w.tr.Scanned(events.Scan{Complete: true, Every: true})
	w.tr.Tick(w.now)
}

func (w *world) comm(pid uint32) events.Comm {
	for _, r := range w.tr.View(&aggregate.Query{}).Processes {
		if r.Pid == pid {
			return r.Comm
		}
	}
	return events.Comm{}
}

func (w *world) pass(d time.Duration) {
	w.now += uint64(d)
	w.tr.Tick(w.now)
}

func (w *world) publish() {
	f := w.frame
	f.View = w.tr.View(w.feed.Query())
	w.feed.Publish(&f)
}

// looks has the screen take over what there is.
func (w *world) looks() {
	w.publish()
	w.m.Update(newsMsg{})
}

// press has a user press keys; between them, the tracker answers.
func (w *world) press(keys ...string) (last tea.Cmd) {
	for _, k := range keys {
		msg := tea.KeyPressMsg{Text: k}
		if r := []rune(k); len(r) == 1 {
			msg.Code = r[0]
		} else {
			msg = tea.KeyPressMsg{Code: map[string]rune{
				"enter": tea.KeyEnter, "esc": tea.KeyEscape, "tab": tea.KeyTab, "up": tea.KeyUp, "down": tea.KeyDown,
				"space": tea.KeySpace, "end": tea.KeyEnd, "backspace": tea.KeyBackspace, "ctrl+c": 'c',
			}[k]}
			if k == "ctrl+c" {
				msg.Mod = tea.ModCtrl
			}
		}
		_, last = w.m.Update(msg)
		w.looks()
	}
	return last
}

// screen is what a terminal of this size shows, without colours.
func (w *world) screen(width, height int) []string {
	w.t.Helper()
	w.m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	v := w.m.View()
	if !v.AltScreen {
		w.t.Error("the screen that was there would be overwritten")
	}
	lines := strings.Split(ansi.Strip(v.Content), "\n")
	if len(lines) > height {
		w.t.Errorf("%d lines on a screen of %d", len(lines), height)
	}
	for _, line := range lines {
		if n := ansi.StringWidth(line); n > width {
			w.t.Errorf("%d wide on a screen of %d: %q", n, width, line)
		}
	}
	return lines
}

// line is the first that has all of this in it.
func line(t *testing.T, lines []string, parts ...string) string {
	t.Helper()
	for _, l := range lines {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(l, p) }) {
			return l
		}
	}
	t.Errorf("no line with %q in:\n%s", parts, strings.Join(lines, "\n"))
	return ""
}

// under is what stands in a line under a head, as cells of a terminal.
func under(head, l, title string) string {
	at := strings.Index(head, title)
	if at < 0 {
		return "no column " + title
	}
	right := ansi.StringWidth(head[:at+len(title)])
	if strings.HasPrefix(head[at+len(title):], "▾") {
		right++
	}
	cut := ansi.Truncate(l, right, "")
	return cut[strings.LastIndex(cut, " ")+1:]
}

// leak has process 7 keep three connections for 15 s, and 9 one that is young.
func (w *world) leak(comm string) {
	for range 3 {
		w.leaves(7, comm)
	}
	w.pass(15 * time.Second)
	w.scans(7, 7, 7)
	w.leaves(9, "young")
	w.pass(time.Second)
	w.looks()
}

func TestAScreenOf80By24HasEverything(t *testing.T) {
	w := newWorld(t)
	w.tr.Network(&events.Network{Netns: 1, PortLow: 32768, PortHigh: 60999})
	w.leak("web")
	w.waits(2, "2001:db8:1111:2222:3333:4444:5555:6666")
	w.waits(30, "192.0.2.99")
	w.frame.Note = "tracing"
	w.looks()
	lines := w.screen(80, 24)
	if len(lines) != 24 {
		t.Errorf("%d lines, want 24", len(lines))
	}
	line(t, lines, "1,234 transitions/s", "36 sockets", "0 lost")
	line(t, lines, "CLOSE_WAIT          4 ")
	line(t, lines, "TIME_WAIT          32 ████")
	head := line(t, lines, "PID", "COMM", "VERDICT")
	web := line(t, lines, ">7 ", "web")
	for title, want := range map[string]string{
		"CLOSE_WAIT": "3", "DEAD": "-", "OLDEST": "16s", "SOCKETS": "3",
	} {
		if got := under(head, web, title); got != want {
			t.Errorf("%s of web: got %q, want %q", title, got, want)
		}
	}
	line(t, lines, "7 ", "web", "eof_read")
	if young := line(t, lines, " 9 ", "young"); strings.Contains(young, "eof") || under(head, young, "CLOSE_WAIT") != "1" {
		t.Errorf("got %q, want one in CLOSE_WAIT and no verdict", young)
	}
	to := line(t, lines, "TIME_WAIT TO")
	dest := line(t, lines, "192.0.2.99:443")
	for title, want := range map[string]string{"TIME_WAIT▾": "30", "LIVE": "0", "PORTS LEFT": "28,202", "OF": "28,232"} {
		if got := under(to, dest, title); got != want {
			t.Errorf("%s of the destination: got %q, want %q", title, got, want)
		}
	}
	if long := line(t, lines, "[2001:db8:1111:2222"); under(to, long, "TIME_WAIT▾") != "2" {
		t.Errorf("a long address breaks the columns:\n%s\n%s", to, long)
	}
	line(t, lines, "FINDINGS (1)")
	line(t, lines, "WARN web[7] keeps 3 connections in CLOSE_WAIT")
	line(t, lines, "Close the descriptor when read() returns 0")
	line(t, lines[22:23], "tracing")
	line(t, lines[23:], "Enter open", "q quit")
}

// Whatever a process is called, nothing but printable characters reaches the terminal, and the
// columns stand where they stood.
func TestNoNameBreaksTheScreen(t *testing.T) {
	for _, comm := range []string{
		"你好世界", "\x1b[2J\x1b[1;1H", "a\nb\tc\rd", "\xff\xfe\x80", "👍🏽👨", "é́́", "ส้ม", "\u202eabc", "ｆｕｌｌ", `\x1b`, "", "한글ᄒ", "🇩🇪x", "️x️", "ﷺ",
	} {
		w := newWorld(t)
		w.leak(comm)
		for _, width := range []int{80, 60, 133} {
			w.looks()
			w.screen(width, 24)
			content := w.m.View().Content
			bare := regexp.MustCompile(`\x1b\[[0-9;]*m`).ReplaceAllString(content, "")
			for _, r := range bare {
				if r != '\n' && !unicode.IsPrint(r) {
					t.Errorf("%q: %q reaches the terminal", comm, r)
				}
			}
			lines := strings.Split(bare, "\n")
			head, row := line(t, lines, "PID", "COMM"), line(t, lines, ">7 ")
			if got := under(head, row, "OLDEST"); got != "16s" {
				t.Errorf("%q, %d wide: got %q under OLDEST, want 16s:\n%s\n%s", comm, width, got, head, row)
			}
			for _, l := range lines {
				if ansi.StringWidth(l) != ansi.StringWidthWc(l) {
					t.Errorf("%q: terminals do not agree how wide this is: %q", comm, l)
				}
			}
		}
		w.press("enter")
		w.screen(80, 24)
		w.press("enter")
		line(t, w.screen(80, 24), "owner", "[7]")
	}
}

func TestEveryPageFitsEverySize(t *testing.T) {
	w := newWorld(t)
	w.leak("web")
	w.waits(300, "192.0.2.99")
	w.frame.Note = strings.Repeat("a long line of the log ", 20)
	for _, keys := range [][]string{{}, {"tab"}, {"tab"}, {"enter"}, {"esc", "1", "enter"}, {"enter"}, {"?"}, {"x", "esc", "esc", "/"}} {
		w.press(keys...)
		for width := 1; width < 200; width += 7 {
			for height := 1; height < 60; height += 3 {
				w.screen(width, height)
			}
		}
		if t.Failed() {
			t.Fatalf("after %q", keys)
		}
	}
}

func TestASelectedRowStaysSelectedWhenTheOrderChanges(t *testing.T) {
	w := newWorld(t)
	w.leak("web")
	w.press("down")
	line(t, w.screen(80, 24), ">9 ", "young")
	for range 5 {
		w.leaves(9, "young") // and is first by now
	}
	w.pass(time.Second)
	w.looks()
	lines := w.screen(80, 24)
	line(t, lines, ">9 ", "young")
	if web, young := slices.Index(lines, line(t, lines, " 7 ", "web")), slices.Index(lines, line(t, lines, ">9 ")); young > web {
		t.Error("six in CLOSE_WAIT stand below three")
	}
}

func TestEnterGoesFromAProcessToOneConnectionAndEscBack(t *testing.T) {
	w := newWorld(t)
	w.leak("web")
	w.press("enter")
	lines := w.screen(80, 24)
	line(t, lines, "Connections of web[7]: 3")
	line(t, lines, ">CLOSE_WAIT", "16s", "10.0.0.1:8080", "192.0.2.1:20001", "eof_read")
	w.press("down", "enter")
	lines = w.screen(80, 24)
	line(t, lines, "10.0.0.1:8080 <- 192.0.2.1:20002")
	line(t, lines, "owner", "web[7], known by accept")
	line(t, lines, "  SYN_RECV", "1.000 ms")
	line(t, lines, "> CLOSE_WAIT", "16.", "█████")
	line(t, lines, "reading", "end-of-file is read")
	line(t, lines, "web[7] fd 5")
	w.press("esc")
	line(t, w.screen(80, 24), ">CLOSE_WAIT", "192.0.2.1:20002")
	w.press("esc")
	line(t, w.screen(80, 24), "FINDINGS (1)")
}

func TestAConnectionThatIsOverIsShownAsItWas(t *testing.T) {
	w := newWorld(t)
	w.leak("web")
	w.press("enter", "enter")
	for _, ev := range []events.Event{
		w.event(1, events.Transition, events.CloseWait, events.LastAck, events.Owned|events.HasSocket, 7, "web"),
		w.event(1, events.Transition, events.LastAck, events.Close, events.Dead|events.Done, 0, ""),
		w.event(1, events.Destroy, events.Close, events.Close, 0, 0, ""),
	} {
		w.tr.Observe(&ev)
	}
	w.looks()
	lines := w.screen(80, 24)
	line(t, lines, "It is over")
	line(t, lines, "10.0.0.1:8080 <- 192.0.2.1:20001")
}

func TestAFindingIsShownWholeAndSaysWhenItIsOver(t *testing.T) {
	w := newWorld(t)
	w.leak("web")
	w.press("3", "enter")
	lines := w.screen(80, 24)
	whole := strings.Join(strings.Fields(strings.Join(lines, " ")), " ")
	for _, want := range []string{
		"web[7] keeps 3 connections in CLOSE_WAIT, the oldest for 16s: the peer has closed, and the process has read end-of-file and not called close()",
		"Close the descriptor when read() returns 0, on every path, those for errors too.",
		"web[7] fd 4 cookie 1001", "web[7] fd 6 cookie 1003",
	} {
		if !strings.Contains(whole, want) {
			t.Errorf("got\n%s\nwant %q in it", strings.Join(lines, "\n"), want)
		}
	}
	for n := uint64(1); n <= 3; n++ {
		ev := w.event(n, events.Transition, events.CloseWait, events.LastAck, events.Owned|events.HasSocket, 7, "web")
		w.tr.Observe(&ev)
	}
	w.pass(time.Second)
	w.looks()
	lines = w.screen(80, 24)
	line(t, lines, "it is over")
	line(t, lines, "web[7] fd 4")
}

// What the list does not have, for a filter's sake, is open all the same.
func TestAFindingThatTheFilterKeepsOutIsNotOver(t *testing.T) {
	w := newWorld(t)
	w.leak("web")
	w.press("/", "k", "e", "e", "p", "s", " ", "3", "enter", "3", "enter")
	line(t, w.screen(80, 24), "web[7] keeps 3")
	w.leaves(7, "web")
	w.pass(15 * time.Second)
	w.scans(7, 7, 7, 9, 7)
	w.looks()
	lines := w.screen(80, 24)
	line(t, lines, "web[7] keeps 4")
	if strings.Contains(strings.Join(lines, "\n"), "it is over") {
		t.Errorf("four are kept, and it says that it is over:\n%s", strings.Join(lines, "\n"))
	}
}

func TestFreezeAndHelpLeaveThePageWhereItIs(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, keys := range [][]string{{"3", "enter", "down", "down"}, {"down", "down", "down", "down", "up"}} {
		w := newWorld(t)
		w.leak("web")
		for pid := range uint32(20) {
			w.leaves(100+pid, "other")
		}
		w.screen(80, 12)
		w.press(keys...)
		before := w.screen(80, 12)
		w.m.Update(w.press("f")())
		w.m.note = ""
		if after := w.screen(80, 12); !slices.Equal(before, after) {
			t.Errorf("%q, f: it went from\n%s\nto\n%s", keys, strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
		w.press("?")
		line(t, w.screen(80, 12), "Up Down PgUp")
		w.press("x")
		if after := w.screen(80, 12); !slices.Equal(before, after) {
			t.Errorf("%q, ?: it went from\n%s\nto\n%s", keys, strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
	}
}

func TestNoDigitIsCut(t *testing.T) {
	cols := []column{{"DEAD", 5, true}, {"SOCKETS", 8, true}, {"OLDEST", 7, true}}
	got := row(" ", cols, []string{number(12_345), number(1_000_000), age(400*24*time.Hour+23*time.Hour, false)})
	if want := " 12345  1000000   400d+"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// Without TIME_WAIT, how many there are is not 0 but not known; nor which ports are free.
func TestWhatIsNotTracedIsNotZero(t *testing.T) {
	w := newWorld(t)
	v := *w.tr.View(&aggregate.Query{})
	v.Traced = false
	v.Processes = []aggregate.ProcessRow{{Pid: 7, Comm: events.MakeComm("web"), Oldest: aggregate.Unknown, Sockets: 3}}
	v.Destinations = []aggregate.DestinationRow{{Near: addr("192.0.2.1"), Far: addr("192.0.2.99"), Port: 443, Live: 9}}
	v.AllProcesses = 1234
	w.m.show(&Frame{View: &v})
	lines := w.screen(100, 24)
	if got := under(line(t, lines, "PID", "COMM (of 1,234)"), line(t, lines, ">7 ", "web"), " TIME_WAIT"); got != "-" {
		t.Errorf("TIME_WAIT of web: got %q, want -", got)
	}
	head, dest := line(t, lines, "TIME_WAIT TO"), line(t, lines, "192.0.2.99:443")
	for title, want := range map[string]string{"TIME_WAIT▾": "-", "LIVE": "9", "PORTS LEFT": "-", "OF": "-"} {
		if got := under(head, dest, title); got != want {
			t.Errorf("%s: got %q, want %q", title, got, want)
		}
	}
}

func TestTypingFilters(t *testing.T) {
	w := newWorld(t)
	w.leak("web")
	w.press("/", "Y", "o", "q") // a letter, while a filter is typed
	if got := w.feed.Query().Find; got != "yoq" {
		t.Errorf("asked for %q, want yoq", got)
	}
	line(t, w.screen(80, 24), "filter: yoq")
	w.press("backspace", "u", "enter")
	lines := w.screen(80, 24)
	line(t, lines, ">9 ", "young")
	if all := strings.Join(lines, "\n"); strings.Contains(all, "web") {
		t.Errorf("filtered for \"you\", and web is there:\n%s", all)
	}
	line(t, lines, "FINDINGS (0)")
	w.press("esc")
	line(t, w.screen(80, 24), "7 ", "web")
	w.press("/", "\x1b[2J", "esc") // as a paste might bring
	w.m.Update(tea.PasteMsg{Content: strings.Repeat("x", 1000)})
	w.press("/")
	w.m.Update(tea.PasteMsg{Content: strings.Repeat("ä", 1000)})
	if got := w.feed.Query().Find; got != strings.Repeat("ä", maxFind/2) {
		t.Errorf("pasted 2000 bytes: got %d of them, want %d", len(got), maxFind)
	}
}

func TestEachListIsSortedByItsOwnColumns(t *testing.T) {
	w := newWorld(t)
	w.leak("web")
	w.waits(1, "192.0.2.99")
	w.press("s")
	if got := w.feed.Query().Processes; got != aggregate.ByOldest {
		t.Errorf("processes are sorted by %s, want oldest", got)
	}
	line(t, w.screen(80, 24), "OLDEST▾")
	w.press("tab", "s")
	if got := w.feed.Query().Destinations; got != aggregate.ByPortsLeft {
		t.Errorf("destinations are sorted by %s, want left", got)
	}
	line(t, w.screen(80, 24), "PORTS LEFT▾")
	w.press("1", "enter", "s")
	if got := w.feed.Query().Connections; got != aggregate.ByState {
		t.Errorf("connections are sorted by %s, want state", got)
	}
	for range len(connectionOrders) - 1 {
		w.press("s")
	}
	if got := w.feed.Query().Connections; got != aggregate.ByAge {
		t.Errorf("after all orders they are sorted by %s, want age", got)
	}
}

func TestPauseHoldsTheScreenAndGoesOn(t *testing.T) {
	w := newWorld(t)
	w.leak("web")
	w.looks()
	w.press("space")
	before := w.screen(80, 24)
	line(t, before, "PAUSED")
	w.leaves(8, "late")
	w.looks()
	if after := w.screen(80, 24); !slices.Equal(before, after) {
		t.Errorf("paused, and it changes:\n%s", strings.Join(after, "\n"))
	}
	w.press("enter")
	line(t, w.screen(80, 24), "paused: this takes a new view; Space goes on")
	w.press("space")
	line(t, w.screen(80, 24), " 8 ", "late")
}

func TestKeysQuit(t *testing.T) {
	for _, keys := range [][]string{{"q"}, {"ctrl+c"}, {"/", "ctrl+c"}, {"enter", "enter", "q"}, {"?", "q"}, {"space", "q"}} {
		w := newWorld(t)
		w.leak("web")
		w.looks()
		cmd := w.press(keys...)
		if cmd == nil {
			t.Errorf("%q do not quit", keys)
			continue
		}
		if _, quits := cmd().(tea.QuitMsg); !quits {
			t.Errorf("%q do not quit", keys)
		}
	}
}

func TestAFrozenScreenIsANewFileWithAllRows(t *testing.T) {
	t.Chdir(t.TempDir())
	w := newWorld(t)
	w.leak("we\x1bb")
	for pid := range uint32(50) {
		w.leaves(100+pid, "other")
	}
	w.looks()
	w.screen(80, 24)
	var files []string
	for range 3 {
		w.m.Update(w.press("f")())
		note := line(t, w.screen(200, 24), "written to ")
		files = append(files, strings.TrimSpace(strings.TrimPrefix(note, "written to ")))
	}
	slices.Sort(files)
	if n := len(slices.Compact(slices.Clone(files))); n != 3 {
		t.Errorf("wrote to %q, want three files", files)
	}
	want, err := filepath.Glob("tcptrace-top-*.txt")
	if err != nil || len(want) != 3 {
		t.Fatalf("got files %q, %v; want 3", want, err)
	}
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		content := string(b)
		for pid := range 50 {
			if !strings.Contains(content, fmt.Sprintf(" %d ", 100+pid)) {
				t.Fatalf("no process %d in\n%s", 100+pid, content)
			}
		}
		if strings.ContainsAny(content, "\x1b\r") {
			t.Errorf("an escape in %q", content)
		}
		if !strings.HasPrefix(content, "tcptrace top, 2023-11-14T") || !strings.HasSuffix(content, "\n") {
			t.Errorf("got %q…, want it to begin with what it is, and when it was", content[:40])
		}
	}
}

func TestWhereNothingCanBeWrittenItSaysSo(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("TMPDIR", filepath.Join(dir, "missing"))
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t)
	w.m.Update(w.press("f")())
	line(t, w.screen(200, 24), "not written: ")
}

func TestAReplayThatIsOverSaysSo(t *testing.T) {
	w := newWorld(t)
	w.frame.Replay, w.frame.Played, w.frame.Lost = "a\x1b.rec", true, 12
	w.looks()
	line(t, w.screen(100, 24), `end of a\x1b.rec`, "12 lost")
}

// A connection of which nothing but its last state was seen may have begun at any time.
func TestATimeLineClaimsNoBeginningThatWasNotSeen(t *testing.T) {
	w := newWorld(t)
	ev := w.event(1, events.Transition, events.Established, events.CloseWait, events.HasSocket|events.Done, 0, "")
	w.tr.Observe(&ev)
	w.looks()
	w.press("enter", "enter")
	line(t, w.screen(80, 24), "Time line: its beginning was not seen")
}

func TestAnAgeIsCutAndSaysWhenItIsABound(t *testing.T) {
	for _, tt := range []struct {
		d     time.Duration
		exact bool
		want  string
	}{
		{aggregate.Unknown, true, "-"},
		{9999 * time.Millisecond, true, "9.9s"},
		{59*time.Second + 999*time.Millisecond, false, "59s+"},
		{time.Hour - 1, true, "59m59s"},
		{100*time.Hour - 1, false, "99h59m+"},
		{100 * time.Hour, true, "4d4h"},
	} {
		if got := age(tt.d, tt.exact); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.d, got, tt.want)
		}
	}
}

// What is drawn twice a second, and what a key costs.
func BenchmarkDraw(b *testing.B) {
	w := newWorld(&testing.T{})
	w.leak("web")
	w.waits(1000, "192.0.2.99")
	for pid := range uint32(500) {
		w.leaves(100+pid, "other")
	}
	w.looks()
	w.m.Update(tea.WindowSizeMsg{Width: 200, Height: 60})
	b.ReportAllocs()
	for b.Loop() {
		w.m.View()
	}
}
