package tui

import (
	"context"
	"errors"
	"io"
	"strings"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
)

// What is typed to filter is cut at so many bytes.
const maxFind = 64

// So often at the most the screen is drawn in a second. It has news twice; the rest is for keys.
const fps = 15

// Run shows what feed brings until somebody quits or ctx is over, which is no error. The terminal
// is then as it was.
func Run(ctx context.Context, feed *Feed, out io.Writer) error {
	p := tea.NewProgram(newModel(feed), tea.WithContext(ctx), tea.WithOutput(out),
		tea.WithoutSignalHandler(), tea.WithFPS(fps))
	_, err := p.Run()
	if errors.Is(err, tea.ErrProgramKilled) && ctx.Err() != nil && !errors.Is(err, tea.ErrProgramPanic) {
		return nil
	}
	return err
}

type page uint8

const (
	overview    page = iota
	connections      // of a process or a destination
	connection
	finding
)

// The lists of the overview.
const (
	processes = iota
	destinations
	findings

	numSections
)

// list is where a list stands: at a row, known by what it is about, so that it stays at that when
// the order changes.
type list struct {
	at, top int
	key     any
}

// model is the whole state of the screen. It belongs to bubbletea's loop.
type model struct {
	feed      *Feed
	frame     *Frame
	w, h      int
	pages     []page // the last is shown
	focus     int
	sections  [numSections]list
	conns     list
	scroll    int    // of a page that is text
	of        string // whose connections
	ofProcess bool
	conn      *aggregate.ConnView
	about     *aggregate.Finding

	query  aggregate.Query
	typing bool
	paused bool
	help   bool
	note   string // what the last key has done
}

func newModel(feed *Feed) *model {
	return &model{feed: feed, frame: feed.frame.Load(), w: 80, h: 24, pages: []page{overview}, query: *feed.Query()}
}

type newsMsg struct{}

// wait is a command that ends when there is another frame.
func (m *model) wait() tea.Msg {
	<-m.feed.news
	return newsMsg{}
}

// Init implements tea.Model.
func (m *model) Init() tea.Cmd { return m.wait }

// Update implements tea.Model.
func (m *model) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case newsMsg:
		if !m.paused {
			m.show(m.feed.frame.Load())
		}
		return m, m.wait
	case tea.WindowSizeMsg:
		m.w, m.h = msg.Width, msg.Height
	case frozenMsg:
		m.note = msg.note
	case tea.PasteMsg:
		if m.typing {
			m.find(m.found() + msg.Content)
		}
	case tea.KeyPressMsg:
		return m, m.key(msg)
	}
	return m, nil
}

func (m *model) page() page { return m.pages[len(m.pages)-1] }

// show takes a frame over, and stays at the rows at which it was.
func (m *model) show(f *Frame) {
	m.frame = f
	if m.page() == connection && f.View.Query.Conn == m.query.Conn && f.View.Conn != nil {
		m.conn = f.View.Conn // of one that is over, the last is kept
	}
	for i := range m.sections {
		m.sections[i].follow(m.keys(i))
	}
	m.conns.follow(m.connKeys())
	if m.about != nil && f.View.Finding != nil && f.View.Finding.ID == m.about.ID {
		m.about = f.View.Finding // of one that is over, the last is kept
	}
}

// keys are what the rows of a section are about.
func (m *model) keys(section int) []any {
	var keys []any
	switch v := m.frame.View; section {
	case processes:
		for i := range v.Processes {
			keys = append(keys, v.Processes[i].Scope)
		}
	case destinations:
		for i := range v.Destinations {
			keys = append(keys, v.Destinations[i].Scope)
		}
	case findings:
		for _, f := range m.findings() {
			keys = append(keys, f.ID)
		}
	}
	return keys
}

func (m *model) connKeys() []any {
	var keys []any
	for _, c := range m.connRows() {
		keys = append(keys, c.ID)
	}
	return keys
}

// connRows are the connections to list; none until the frame has those that were asked for.
func (m *model) connRows() []aggregate.ConnRow {
	if v := m.frame.View; v.Query.Scope == m.query.Scope {
		return v.Connections
	}
	return nil
}

// findings are those that are open, and those about what is past that the filter lets through.
func (m *model) findings() []*aggregate.Finding {
	var out []*aggregate.Finding
	for i := range m.frame.View.Findings {
		out = append(out, &m.frame.View.Findings[i])
	}
	for i := range m.frame.Past {
		f := &m.frame.Past[i]
		if strings.Contains(strings.ToLower(f.Kind.String()+" "+f.Message), m.frame.View.Query.Find) {
			out = append(out, f)
		}
	}
	return out
}

// follow finds the row again that the list is at.
func (l *list) follow(keys []any) {
	l.at = min(l.at, max(len(keys)-1, 0))
	if l.key != nil {
		for i, k := range keys {
			if k == l.key {
				l.at = i
				return
			}
		}
	}
}

// move goes to another row.
func (l *list) move(by int, keys []any) {
	if len(keys) == 0 {
		return
	}
	l.at = min(max(l.at+by, 0), len(keys)-1)
	l.key = keys[l.at]
}

// window is the rows that fit, those around the selected one.
func (l *list) window(fit, n int) (from, to int) {
	if l.at < l.top {
		l.top = l.at
	}
	if l.at >= l.top+fit {
		l.top = l.at - fit + 1
	}
	l.top = max(min(l.top, n-fit), 0)
	return l.top, min(l.top+fit, n)
}

func (m *model) key(msg tea.KeyPressMsg) tea.Cmd {
	key := msg.String()
	if key == "ctrl+c" {
		return tea.Quit
	}
	m.note = ""
	if m.typing {
		m.typed(key, msg.Text)
		return nil
	}
	if m.help {
		m.help = false // any key
		if key != "q" {
			return nil
		}
	}
	switch key {
	case "q":
		return tea.Quit
	case "?", "h":
		m.help = true
	case "space", "p":
		m.paused = !m.paused
		if !m.paused {
			m.show(m.feed.frame.Load())
		}
	case "f":
		return m.freeze()
	case "esc", "backspace", "left":
		m.back()
	case "tab", "shift+tab", "right":
		if m.page() == overview {
			m.focus = (m.focus + map[bool]int{true: numSections - 1, false: 1}[key == "shift+tab"]) % numSections
		}
	case "1", "2", "3":
		if m.page() == overview {
			m.focus = int(key[0] - '1')
		}
	case "up", "k":
		m.move(-1)
	case "down", "j":
		m.move(1)
	case "pgup":
		m.move(-max(m.h/2, 1))
	case "pgdown":
		m.move(max(m.h/2, 1))
	case "home", "g":
		m.move(-aggregate.MaxRows)
	case "end", "G":
		m.move(aggregate.MaxRows)
	case "enter", "s", "/":
		m.ask(key)
	}
	return nil
}

// ask does what takes another frame.
func (m *model) ask(key string) {
	switch {
	case m.paused && (key != "enter" || m.page() == connections || m.focus != findings):
		m.note = "paused: this takes a new view; Space goes on"
	case key == "enter":
		m.open()
	case key == "s":
		m.sort()
	case m.page() <= connections:
		m.typing = true
	}
}

// typed takes a key while a filter is typed.
func (m *model) typed(key, text string) {
	find := m.found()
	switch key {
	case "enter":
		m.typing = false
	case "esc":
		m.typing = false
		m.find("")
	case "backspace":
		_, n := utf8.DecodeLastRuneInString(find)
		m.find(find[:len(find)-n])
	case "ctrl+u":
		m.find("")
	default:
		m.find(find + text)
	}
}

// found is what the page's lists are filtered by.
func (m *model) found() string {
	if m.page() == connections {
		return m.query.FindIn
	}
	return m.query.Find
}

func (m *model) find(s string) {
	s = strings.ToLower(s)
	for len(s) > maxFind {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	if m.page() == connections {
		m.query.FindIn = s
	} else {
		m.query.Find = s
	}
	m.feed.ask(m.query)
}

var (
	processOrders     = []aggregate.Order{aggregate.ByCloseWait, aggregate.ByOldest, aggregate.ByGrowth, aggregate.BySockets}
	destinationOrders = []aggregate.Order{aggregate.ByTimeWait, aggregate.ByPortsLeft, aggregate.ByLive}
	connectionOrders  = []aggregate.Order{aggregate.ByAge, aggregate.ByState, aggregate.ByPeer}
)

// sort goes on to the next order of the list.
func (m *model) sort() {
	o, all := &m.query.Processes, processOrders
	switch {
	case m.page() == connections:
		o, all = &m.query.Connections, connectionOrders
	case m.page() != overview || m.focus == findings:
		m.note = "findings are in order of severity"
		return
	case m.focus == destinations:
		o, all = &m.query.Destinations, destinationOrders
	}
	for i, have := range all {
		if have == *o {
			*o = all[(i+1)%len(all)]
			break
		}
	}
	m.note = "sorted by " + o.String()
	m.feed.ask(m.query)
}

func (m *model) move(by int) {
	switch m.page() {
	case overview:
		m.sections[m.focus].move(by, m.keys(m.focus))
	case connections:
		m.conns.move(by, m.connKeys())
	default:
		m.scroll = max(m.scroll+by, 0) // its end is cut where it is drawn
	}
}

// open shows what the selected row is about.
func (m *model) open() {
	v := m.frame.View
	at := m.sections[m.focus].at
	switch {
	case m.page() == connections:
		if rows := m.connRows(); m.conns.at < len(rows) {
			m.query.Conn, m.conn = rows[m.conns.at].ID, nil
			m.enter(connection)
		}
	case m.page() != overview:
	case m.focus == processes && at < len(v.Processes):
		r := &v.Processes[at]
		m.list(r.Scope, process(r.Pid, &r.Comm))
		if r.Pid == 0 {
			m.of = "processes that are not known"
		}
	case m.focus == destinations && at < len(v.Destinations):
		m.list(v.Destinations[at].Scope, destination(&v.Destinations[at]))
	case m.focus == findings && at < len(m.findings()):
		m.about = m.findings()[at]
		m.query.Finding = m.about.ID
		m.enter(finding)
	}
}

func (m *model) list(s aggregate.Scope, of string) {
	m.query.Scope, m.query.FindIn, m.of, m.ofProcess, m.conns = s, "", of, m.focus == processes, list{}
	m.enter(connections)
}

func (m *model) enter(p page) {
	m.pages, m.scroll = append(m.pages, p), 0
	m.feed.ask(m.query)
}

// back leaves a page; of a list that is filtered, it first shows all.
func (m *model) back() {
	switch {
	case m.page() <= connections && m.found() != "":
		m.find("")
	case m.page() != overview:
		switch m.page() {
		case connections:
			m.query.Scope, m.query.FindIn = aggregate.Scope{}, ""
		case connection:
			m.query.Conn, m.conn = aggregate.ConnID{}, nil
		case finding:
			m.query.Finding, m.about = "", nil
		}
		m.pages, m.scroll = m.pages[:len(m.pages)-1], 0
		m.feed.ask(m.query)
	}
}
