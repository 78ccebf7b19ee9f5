package report

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// at is the time of a record, so many milliseconds after noon.
func at(ms int) string {
	return time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC).Add(time.Duration(ms) * time.Millisecond).Format("2006-01-02T15:04:05.000000000Z")
}

// noon is that, as the page has it.
const noon = 1795262400000.0

// step is a transition of a server's socket; dwell is JSON.
func transition(ms int, cookie, from, to, dwell string) string {
	return owned(ms, cookie, 300, "web", "accept", from, to, dwell)
}

func owned(ms int, cookie string, pid int, comm, source, from, to, dwell string) string {
	return fmt.Sprintf(`{"type":"transition","time":%q,"cookie":%q,"netns":1,"family":"ipv4","laddr":"10.0.0.1","lport":80,"raddr":"10.0.0.2","rport":4000,`+
		`"pid":%d,"comm":%q,"owner_source":%q,"oldstate":%q,"newstate":%q,"dwell_ms":%s,"source":"tracepoint"}`, at(ms), cookie, pid, comm, source, from, to, dwell)
}

func ended(ms int, cookie, end, spent string) string {
	return fmt.Sprintf(`{"type":"connection","time":%q,"cookie":%q,"netns":1,"family":"ipv4","laddr":"10.0.0.1","lport":80,"raddr":"10.0.0.2","rport":4000,`+
		`"pid":300,"comm":"web","owner_source":"accept","role":"server","start":%q,"duration_ms":%d,"states_ms":{%s},"closer":"remote","end":%q,"close_call":"close",`+
		`"sent_bytes":1,"received_bytes":2,"time_wait_end":null}`, at(ms), cookie, at(0), ms, spent, end)
}

func books(ms, sockets, nth int) string {
	return fmt.Sprintf(`{"type":"stats","time":%q,"seen":9,"delivered":9,"filtered":0,"lost":{"ring_full":0,"nested":0,"table_full":0,"decode":0},`+
		`"records_lost":0,"records":{"socket":%d,"stats":%d},"unprinted":0,"sockets_tracked":0,"hidden_processes":0,"probes":{"transitions":"tp_btf","cookies":null}}`, at(ms), sockets, nth)
}

// shown is the data of the page that each of the inputs makes.
func shown(t *testing.T, inputs ...string) *data {
	t.Helper()
	r := New()
	for i, in := range inputs {
		if err := r.Input(fmt.Sprintf("input%d", i)).Read(strings.NewReader(in)); err != nil {
			t.Fatal(err)
		}
	}
	return onPage(t, r)
}

func lines(all ...string) string { return strings.Join(all, "\n") + "\n" }

func onPage(t testing.TB, r *Report) *data {
	t.Helper()
	var page bytes.Buffer
	if err := r.Write(&page, "build", time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	_, after, ok := strings.Cut(page.String(), `<script type="application/json" id="data">`)
	text, _, closed := strings.Cut(after, "</script>")
	if !ok || !closed {
		t.Fatal("the page has no data")
	}
	d := &data{}
	if err := json.Unmarshal([]byte(text), d); err != nil {
		t.Fatalf("the data of the page: %v", err)
	}
	return d
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: got (+) and want (-) differ:\n%s", what, diff)
	}
}

func TestTheLeakCurveIsWhatEnteredLessWhatLeft(t *testing.T) {
	d := shown(t, lines(
		transition(0, "a", "ESTABLISHED", "CLOSE_WAIT", "5"),
		transition(1000, "b", "ESTABLISHED", "CLOSE_WAIT", "5"),
		transition(2000, "c", "ESTABLISHED", "CLOSE_WAIT", "5"),
		transition(3000, "b", "CLOSE_WAIT", "LAST_ACK", "2000"),
		transition(3001, "b", "LAST_ACK", "LAST_ACK", "null"),
		transition(4000, "a", "CLOSE_WAIT", "CLOSE", "4000"),
		transition(10_000, "z", "SYN_RECV", "ESTABLISHED", "1"),
	))
	p := d.Processes[0]
	equal(t, "now, most", []int{*p.Now, *p.Peak}, []int{1, 3})
	equal(t, "entered, left", []uint64{p.Entered, p.Left}, []uint64{3, 2})
	for _, p := range []processData{p, d.Everyone[0]} {
		equal(t, "half and 99% within, slowest", []float64{*p.P50, *p.P99, *p.Max}, []float64{2097.152, 4000, 4000}) // 2^21 µs
	}
	// 256 slots of 10 ms become slots of 20 ms, in which the level of before still counts as the most.
	want := [][]float64{{noon, 1, 1}, {noon + 1000, 2, 2}, {noon + 2000, 3, 3}, {noon + 3000, 2, 3}, {noon + 3020, 2, 2}, {noon + 4000, 1, 2}, {noon + 4020, 1, 1}}
	equal(t, "curve", p.Curve, want)
	equal(t, "everyone's", d.Everyone[0].Curve, want)
}

func TestASocketFromBeforeTheStartCounts(t *testing.T) {
	there := fmt.Sprintf(`{"type":"socket","time":%q,"cookie":"a","netns":1,"laddr":"10.0.0.1","lport":80,"raddr":"10.0.0.2","rport":4000,"pid":300,"comm":"web",`+
		`"owner_source":"fd","state":"CLOSE_WAIT","age_ms":60000.000,"age_bound":"at_least","holders":[{"pid":300,"comm":"web","fd":7}],"verdict":"eof_read"}`, at(0))
	d := shown(t, lines(there, transition(5000, "a", "CLOSE_WAIT", "LAST_ACK", "null"), transition(5001, "a", "LAST_ACK", "CLOSE", "1"), ended(5001, "a", "fin", `"CLOSE_WAIT":null,"LAST_ACK":1`)))
	p := d.Processes[0]
	equal(t, "now, most", []int{*p.Now, *p.Peak}, []int{0, 1})
	equal(t, "entered, left", []uint64{p.Entered, p.Left}, []uint64{0, 1})
	equal(t, "rows", len(d.Conns), 1)
	c := d.Conns[0]
	equal(t, "in CLOSE_WAIT", *c.Waited, 65000.0)
	equal(t, "at least", c.Least, true)
	equal(t, "holders", c.Holders, []holder{{Pid: 300, Comm: "web", Fd: 7}})
	equal(t, "found", d.Inputs[0].Found, map[string]uint64{"CLOSE_WAIT": 1})
}

func TestASocketThatStaysIsInTheTableWithItsHolders(t *testing.T) {
	finding := fmt.Sprintf(`{"type":"finding","time":%q,"id":"x","kind":"close_wait_leak","status":"open","severity":"warning","pid":300,"comm":"web","exe":null,"count":1,"oldest_ms":1000,`+
		`"holders":[{"pid":300,"comm":"web","fd":7,"cookie":"a"},{"pid":301,"comm":"web","fd":7,"cookie":"a"}],"evidence":{},"message":"m","advice":"a"}`, at(1000))
	d := shown(t, lines(transition(0, "a", "ESTABLISHED", "CLOSE_WAIT", "5"), finding, transition(9000, "z", "SYN_RECV", "ESTABLISHED", "1")))
	c := d.Conns[0]
	equal(t, "in CLOSE_WAIT", *c.Waited, 9000.0)
	equal(t, "at least, state", []any{c.Least, c.State}, []any{true, "CLOSE_WAIT"})
	equal(t, "holders", c.Holders, []holder{{300, "web", 7, "a"}, {301, "web", 7, "a"}})
}

func TestASummaryCorrectsTheCurve(t *testing.T) {
	summary := func(ms int, processes string) string {
		return fmt.Sprintf(`{"type":"summary","time":%q,"interval_ms":1000,"netns":1,"states":{"LISTEN":1,"SYN_RECV":null},"opened":0,"closed":0,"processes":[%s]}`, at(ms), processes)
	}
	d := shown(t, lines(
		transition(0, "a", "ESTABLISHED", "CLOSE_WAIT", "5"), // its end is lost
		owned(1000, "b", 100, "master", "listener", "ESTABLISHED", "CLOSE_WAIT", "5"),
		summary(2000, `{"pid":400,"comm":"worker","close_wait":1}`), // accepted it meanwhile
		owned(3000, "b", 400, "worker", "accept", "CLOSE_WAIT", "LAST_ACK", "2000"),
	))
	got := map[string][]int{}
	for _, p := range d.Processes {
		got[p.Comm] = []int{*p.Now, *p.Peak}
	}
	equal(t, "now, most", got, map[string][]int{"web": {0, 1}, "master": {0, 1}, "worker": {0, 1}})
}

func TestTimesAreCountedByTheirMagnitude(t *testing.T) {
	d := shown(t, lines(
		transition(1, "a", "SYN_RECV", "ESTABLISHED", "0.001"), transition(2, "b", "SYN_RECV", "ESTABLISHED", "0.000"),
		transition(3, "c", "SYN_RECV", "ESTABLISHED", "500.220"), transition(4, "d", "SYN_RECV", "ESTABLISHED", "null"),
		transition(5, "d", "NO_SUCH", "ESTABLISHED", "1"),
		ended(6, "d", "fin", `"SYN_RECV":7`), // the transitions have told
	))
	equal(t, "states", len(d.Dwell), 1)
	want := make([]uint64, 44)
	want[0], want[18] = 2, 1 // 2^18 µs are 262 ms
	equal(t, "counts", d.Dwell[0].Counts, want)
	equal(t, "half, 99%, longest", []float64{*d.Dwell[0].P50, *d.Dwell[0].P99, d.Dwell[0].Max}, []float64{0.002, 500.22, 500.22})
}

func TestWithoutTransitionsConnectionsTellTheTimes(t *testing.T) {
	d := shown(t, lines(ended(100, "a", "reset_received", `"ESTABLISHED":3,"CLOSE_WAIT":50`)))
	equal(t, "states", []string{d.Dwell[0].State, d.Dwell[1].State}, []string{"ESTABLISHED", "CLOSE_WAIT"})
	p := d.Processes[0]
	equal(t, "entered, connections, failed", []uint64{p.Entered, p.Conns, p.Failed}, []uint64{1, 1, 1})
	if p.Peak != nil {
		t.Errorf("most at once: got %d, want null: nothing tells", *p.Peak)
	}
	if d.Lacks["processes"] == "" || d.Lacks["dwell"] == "" || d.Lacks["findings"] == "" {
		t.Errorf("got %v, want the page to say what the input lacks", d.Lacks)
	}
}

func TestTimeWaitIsCountedWhereItTakesPorts(t *testing.T) {
	ports := fmt.Sprintf(`{"type":"finding","time":%q,"id":"p","kind":"time_wait_ports","status":"open","severity":"warning","pid":5,"comm":"api","count":2,"oldest_ms":null,"holders":[],`+
		`"evidence":{"netns":1,"side":"client","ports":2500,"ip_local_port_range":[40000,42499]},"message":"m","advice":"a"}`, at(9))
	d := shown(t, lines(
		owned(0, "a", 5, "api", "connect", "FIN_WAIT2", "TIME_WAIT", "1"), owned(1, "b", 5, "api", "connect", "FIN_WAIT2", "TIME_WAIT", "1"),
		owned(2, "a", 5, "api", "connect", "TIME_WAIT", "CLOSE", "2"),
		owned(3, "c", 6, "web", "accept", "FIN_WAIT2", "TIME_WAIT", "1"),
		owned(4, "d", 7, "who", "close", "FIN_WAIT2", "TIME_WAIT", "1"),
		ports,
	))
	equal(t, "places", len(d.Places), 2)
	client, server := d.Places[0], d.Places[1]
	equal(t, "client's end, port", []any{client.Server, client.Raddr, client.Port}, []any{false, "10.0.0.2", uint16(4000)})
	equal(t, "client's now, most", []int{*client.Now, *client.Peak}, []int{1, 2})
	equal(t, "closed by", client.By, []maker{{5, "api", 2}})
	equal(t, "ports", *client.Ports, portRange(2500, 40000, 42499))
	equal(t, "server's end, port", []any{server.Server, server.Port}, []any{true, uint16(80)})
	equal(t, "of no known side", d.Sideless, uint64(1))
	equal(t, "all, most", *d.Every[0].Peak, 3)
}

func portRange(total, low, high int) ports { return ports{total, [2]int{low, high}} }

func TestAFindingKeepsItsWorst(t *testing.T) {
	says := func(ms int, status string, count int, oldest, evidence, message string) string {
		return fmt.Sprintf(`{"type":"finding","time":%q,"id":"x","kind":"close_wait_leak","status":%q,"severity":"warning","pid":300,"comm":"web","exe":"/bin/web","count":%d,"oldest_ms":%s,`+
			`"holders":[],"evidence":%s,"message":%q,"advice":"a"}`, at(ms), status, count, oldest, evidence, message)
	}
	d := shown(t, lines(
		says(0, "open", 1, "5000", `{"verdict":"eof_read"}`, "one"), says(1000, "update", 8, "9000", `{"verdict":"eof_unread"}`, "eight"),
		says(2000, "resolved", 0, "null", `{"peak_count":11,"peak_oldest_ms":9500}`, "over"),
	))
	equal(t, "findings", len(d.Findings), 1)
	f := d.Findings[0]
	equal(t, "status, message", []string{f.Status, f.Message, string(f.Evidence)}, []string{"resolved", "eight", `{"verdict":"eof_unread"}`})
	equal(t, "most, oldest", []any{f.Peak, *f.Oldest}, []any{uint64(11), 9500.0})
	equal(t, "steps", len(f.Steps), 3)
	equal(t, "opened", d.Opened, uint64(1))
}

func TestInputsAreKeptApart(t *testing.T) {
	one := lines(transition(0, "a", "ESTABLISHED", "CLOSE_WAIT", "5"))
	other := lines(transition(0, "a", "CLOSE_WAIT", "LAST_ACK", "5"), transition(-50, "b", "ESTABLISHED", "CLOSE_WAIT", "5"))
	d := shown(t, one, other)
	got := [][]int{}
	for _, p := range d.Everyone {
		got = append(got, []int{*p.Now, *p.Peak, int(p.Entered), int(p.Left)})
	}
	equal(t, "now, most, entered, left", got, [][]int{{1, 1, 1, 0}, {1, 1, 1, 1}})
}

func TestRunsInOneFileEachHaveTheirBooks(t *testing.T) {
	there := func(ms int, cookie string) string {
		return fmt.Sprintf(`{"type":"socket","time":%q,"cookie":%q,"netns":1,"laddr":"10.0.0.1","lport":80,"raddr":"10.0.0.2","rport":4000,"pid":300,"comm":"web","owner_source":"fd","state":"CLOSE_WAIT","age_ms":1000,"holders":[]}`, at(ms), cookie)
	}
	d := shown(t, lines( // two snapshots: of two sockets, one was closed in between
		there(0, "a"), there(0, "b"), books(1, 2, 1),
		there(60_000, "a"), books(60_001, 1, 1),
	))
	equal(t, "runs", len(d.Books), 2)
	equal(t, "now, most", []int{*d.Everyone[0].Now, *d.Everyone[0].Peak}, []int{1, 2})
	got := map[string][]any{}
	for _, c := range d.Conns {
		got[c.Cookie] = []any{c.State, *c.Waited}
	}
	equal(t, "state, time in CLOSE_WAIT", got, map[string][]any{"a": {"CLOSE_WAIT", 61_001.0}, "b": {"", 1000.0}})
	// Books that go ahead of the sockets of their own run.
	d = shown(t, lines(there(0, "a"), books(1, 2, 1), there(0, "b"), books(2, 2, 2)))
	equal(t, "runs", len(d.Books), 1)
}

func TestWhatIsNoRecordIsCounted(t *testing.T) {
	good := transition(0, "a", "SYN_RECV", "ESTABLISHED", "1")
	for name, c := range map[string]struct {
		input string
		bad   uint64
		first string
		cut   bool
	}{
		"all good":                {lines(good, "", good), 0, "", false},
		"no line end":             {good, 0, "", false},
		"cut":                     {lines(good) + good[:40], 0, "", true},
		"ends in zeros":           {lines(good) + "\x00\x00\x00", 0, "", true},
		"text":                    {lines(good, "hello", "more"), 2, "line 2: no JSON object", false},
		"an array":                {lines("[1]", good), 1, "line 1", false},
		"no type":                 {lines(good, `{"time":"2026-11-21T12:00:00Z"}`), 1, "line 2: it has no type", false},
		"no time":                 {lines(good, `{"type":"stats"}`), 1, "line 2: ", false},
		"a time long ago":         {lines(good, `{"type":"stats","time":"0001-01-01T00:00:00Z"}`), 1, "line 2: a time out of range", false},
		"a field of another kind": {lines(good, `{"type":"stats","time":"2026-11-21T12:00:00Z","seen":"x"}`), 1, "line 2: seen is a JSON string", false},
		"a line without an end":   {lines(good, strings.Repeat("x", 3*maxLine), good), 1, "line 2: it is longer than 1048576 bytes", false},
		"of a tcptrace to come":   {lines(good, `{"type":"packet","time":"2026-11-21T12:00:00Z","x":{}}`, strings.Replace(good, `"netns"`, `"new":[1],"netns"`, 1)), 0, "", false},
	} {
		r := New()
		in := r.Input("x")
		if err := in.Read(strings.NewReader(c.input)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		bad, first := in.Bad()
		equal(t, name+": bad, cut", []any{bad, in.IsCut()}, []any{c.bad, c.cut})
		if c.first != "" && (first == nil || !strings.Contains(first.Error(), c.first)) {
			t.Errorf("%s: got %v, want %q", name, first, c.first)
		}
		if d := onPage(t, r); (len(d.Warnings) > 1) != (c.bad > 0 || c.cut) { // one is about the books
			t.Errorf("%s: got the warnings %q", name, d.Warnings)
		}
	}
}

func TestAnInputWithoutRecordsIsAnError(t *testing.T) {
	for _, input := range []string{"", "\n\n", "hello\n", `{"type":"packet","time":"2026-11-21T12:00:00Z"}` + "\n"} {
		if err := New().Input("x").Read(strings.NewReader(input)); !errors.Is(err, ErrNothing) {
			t.Errorf("%q: got %v, want ErrNothing", input, err)
		}
	}
}

func TestACompressedFileThatBreaksOffIsReadSoFar(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	for i := range 10_000 {
		fmt.Fprintln(z, transition(i, fmt.Sprint(i), "SYN_RECV", "ESTABLISHED", "1"))
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := gzip.NewReader(io.LimitReader(&b, int64(b.Len()/2)))
	if err != nil {
		t.Fatal(err)
	}
	report := New()
	in := report.Input("x")
	if err := in.Read(r); err != nil {
		t.Fatal(err)
	}
	if n := in.counts["transition"]; !in.IsCut() || n < 1000 || n >= 10_000 {
		t.Errorf("cut: %v, transitions: %d; want it cut, about half of 10,000", in.IsCut(), n)
	}
}

func TestNoBytesOfARecordAreMarkup(t *testing.T) {
	comm := "</script><img src=x onerror=alert(1)><!--<script>"
	r := New()
	if err := r.Input(comm).Read(strings.NewReader(owned(0, "a", 1, comm, "accept", "ESTABLISHED", "CLOSE_WAIT", "1"))); err != nil {
		t.Fatal(err)
	}
	var page, empty bytes.Buffer
	for to, r := range map[*bytes.Buffer]*Report{&page: r, &empty: New()} {
		if err := r.Write(to, comm, time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []string{"<", ">"} {
		if got, want := strings.Count(page.String(), c), strings.Count(string(template), c); got != want {
			t.Errorf("%q: got %d of it on the page, want the %d that it has without records", c, got, want)
		}
	}
	equal(t, "the name", onPage(t, r).Processes[0].Comm, comm)
}

// What grows with the input is cut, and said.
func TestAPageHasABound(t *testing.T) {
	r := New()
	var b bytes.Buffer
	long := strings.Repeat("x", 5000)
	for i := range 20_000 {
		cookie := fmt.Sprintf("%x", i)
		fmt.Fprintln(&b, owned(i, cookie, i+1, fmt.Sprint(i)+long[:100], "connect", "ESTABLISHED", "CLOSE_WAIT", "1"))
		fmt.Fprintln(&b, strings.ReplaceAll(owned(i, "t"+cookie, i+1, "x", "connect", "FIN_WAIT2", "TIME_WAIT", "1"), "10.0.0.2", fmt.Sprint("10.0.0.2.", i)))
		if i%10 != 9 {
			continue
		}
		fmt.Fprintf(&b, `{"type":"finding","time":%q,"id":"%d","kind":"k","status":"open","severity":"info","count":%d,"holders":[],"evidence":{"x":%q},"message":%q,"advice":%q}`+"\n", at(i), i, i, long, long, long)
	}
	if err := r.Input("x").Read(&b); err != nil {
		t.Fatal(err)
	}
	var page bytes.Buffer
	if err := r.Write(&page, "build", time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	if got, want := page.Len(), 5<<20; got > want {
		t.Errorf("the page has %d bytes, want at most %d", got, want)
	}
	d := onPage(t, r)
	if n := len(d.Findings); n == 0 || n > maxFindings || d.Findings[0].Peak != 19_999 {
		t.Errorf("got %d findings, the first of %d; want up to %d, the worst first", n, d.Findings[0].Peak, maxFindings)
	}
	equal(t, "opened", d.Opened, uint64(2_000))
	if n := len(d.Conns); n > keptWorst+keptFailed+keptLatest || *d.Conns[0].Waited != 19_999 {
		t.Errorf("got %d connections, the first with %v ms; want the longest first", n, *d.Conns[0].Waited)
	}
	equal(t, "connections", d.ConnsSeen, uint64(20_000))
	equal(t, "everyone's most", *d.Everyone[0].Peak, 20_000)
	if len(r.processes.rows) > maxProcesses || len(r.places.rows) > maxDestinations {
		t.Errorf("got %d processes and %d destinations, want at most %d and %d", len(r.processes.rows), len(r.places.rows), maxProcesses, maxDestinations)
	}
}

func TestSocketsThatFindNoPlaceAreCounted(t *testing.T) {
	var all []string
	for i := range maxExisting + 500 {
		all = append(all, fmt.Sprintf(`{"type":"socket","time":%q,"cookie":"%x","netns":1,"laddr":"10.0.0.1","lport":80,"pid":1,"comm":"x","state":"ESTABLISHED","age_ms":null,"holders":[]}`, at(0), i))
	}
	all = append(all, ended(1, "0", "fin", `"ESTABLISHED":1`), ended(2, fmt.Sprintf("%x", maxExisting+1), "fin", `"ESTABLISHED":1`))
	d := shown(t, lines(all...))
	equal(t, "connections and sockets", d.ConnsSeen, uint64(maxExisting+500)) // two of them have ended
	equal(t, "found", d.Inputs[0].Found, map[string]uint64{"ESTABLISHED": maxExisting + 500})
}

func TestACurveKeepsItsPeaksAsTimeGrows(t *testing.T) {
	var c curve
	const year = int64(365 * 24 * time.Hour)
	c.set(0, 0)
	c.set(1e9, 77)
	c.set(2e9, 3)
	for i := range int64(1000) {
		c.set(i*year/1000, 3)
	}
	c.set(year, 9)
	c.set(1e9, 8) // comes late
	if c.n > curveSlots || len(c.last) != curveSlots {
		t.Errorf("got %d slots of %d, want at most %d", c.n, len(c.last), curveSlots)
	}
	points := c.points(year)
	equal(t, "first", points[0][1:], []float64{3, 77})
	equal(t, "last", points[len(points)-1][1:], []float64{8, 9})
}

func FuzzAnyInputMakesAPage(f *testing.F) {
	f.Add([]byte(lines(transition(0, "a", "ESTABLISHED", "CLOSE_WAIT", "5"), ended(1, "a", "fin", `"CLOSE_WAIT":1`), books(2, 0, 1))))
	f.Add([]byte(`{"type":"summary","time":"2026-11-21T12:00:00Z","processes":[{"pid":1,"close_wait":-1}]}`))
	f.Fuzz(func(t *testing.T, input []byte) {
		r := New()
		if err := r.Input("x").Read(bytes.NewReader(input)); err != nil && !errors.Is(err, ErrNothing) {
			t.Fatal(err)
		}
		onPage(t, r)
	})
}

func BenchmarkTransition(b *testing.B) {
	line := []byte(transition(0, "a", "SYN_RECV", "ESTABLISHED", "0.004"))
	in := New().Input("x")
	var r record
	for b.Loop() {
		if err := r.decode(line); err != nil {
			b.Fatal(err)
		}
		in.take(&r)
	}
}
