package report

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // for the page
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

//go:embed page.html
var template []byte

// The page's own script and style, and where the data goes.
const (
	markData   = "{{data}}"
	markScript = "{{script-hash}}"
	markStyle  = "{{style-hash}}"
)

// data is what the page shows. Its script makes everything of it.
type data struct {
	Build     string            `json:"build"`
	Made      float64           `json:"made"` // as all times, ms of Unix time
	From      float64           `json:"from"`
	To        float64           `json:"to"`
	Inputs    []inputData       `json:"inputs"`
	Warnings  []string          `json:"warnings"`
	Lacks     map[string]string `json:"lacks"` // section -> why there is nothing, or less
	Findings  []*finding        `json:"findings"`
	Opened    uint64            `json:"findings_opened"`
	Processes []processData     `json:"processes"`
	Everyone  []processData     `json:"everyone"` // of each input
	Dwell     []dwellData       `json:"dwell"`
	Places    []placeData       `json:"places"`
	Every     []placeData       `json:"every"`
	Sideless  uint64            `json:"sideless"`
	Conns     []*connection     `json:"connections"`
	ConnsSeen uint64            `json:"connections_seen"`
	Longest   int               `json:"longest"` // so many of these are shown with all that is known
	Books     []stats           `json:"books"`
}

type inputData struct {
	Name      string            `json:"name"`
	Recording bool              `json:"recording"`
	Counts    map[string]uint64 `json:"records"`
	Unknown   uint64            `json:"unknown"`
	Bad       uint64            `json:"bad"`
	From      *float64          `json:"from"`
	To        *float64          `json:"to"`
	Found     map[string]uint64 `json:"found"` // sockets from before the start, by state
}

type processData struct {
	Input   int         `json:"input"`
	Pid     uint32      `json:"pid,omitempty"`
	Comm    string      `json:"comm"`
	Where   string      `json:"where,omitempty"`
	Now     *int        `json:"now"` // null: there is no way to know
	Peak    *int        `json:"peak"`
	Entered uint64      `json:"entered"`
	Left    uint64      `json:"left"`
	P50     *float64    `json:"p50_ms"`
	P99     *float64    `json:"p99_ms"`
	Max     *float64    `json:"max_ms"`
	Conns   uint64      `json:"connections"`
	Failed  uint64      `json:"failed"`
	Curve   [][]float64 `json:"curve,omitempty"` // time, number then, most until the next
}

type placeData struct {
	Input   int         `json:"input"`
	Netns   uint32      `json:"netns"`
	Server  bool        `json:"server"`
	Laddr   string      `json:"laddr"`
	Raddr   string      `json:"raddr"`
	Port    uint16      `json:"port"`
	Now     *int        `json:"now"`
	Peak    *int        `json:"peak"`
	Entered uint64      `json:"entered"`
	By      []maker     `json:"by"`
	Others  uint64      `json:"others"`
	Ports   *ports      `json:"ports"` // null: not in the input
	Curve   [][]float64 `json:"curve,omitempty"`
}

type dwellData struct {
	State  string   `json:"state"`
	Counts []uint64 `json:"counts"`
	Max    float64  `json:"max_ms"`
	P50    *float64 `json:"p50_ms"`
	P99    *float64 `json:"p99_ms"`
}

// Write makes the page: build is the version that did, made when.
func (r *Report) Write(w io.Writer, build string, made time.Time) error {
	// Marshal escapes <, > and &, so that nothing in it can end the element that it stands in.
	b, err := json.Marshal(r.data(build, made))
	if err != nil {
		return err
	}
	page := template
	for _, part := range []struct{ mark, element string }{{markScript, "script"}, {markStyle, "style"}} {
		_, body, _ := strings.Cut(string(template), "<"+part.element+">")
		body, _, _ = strings.Cut(body, "</"+part.element+">")
		sum := sha256.Sum256([]byte(body))
		page = bytes.Replace(page, []byte(part.mark), []byte(base64.StdEncoding.EncodeToString(sum[:])), 1)
	}
	before, after, _ := bytes.Cut(page, []byte(markData))
	for _, part := range [][]byte{before, b, after} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

func (r *Report) data(build string, made time.Time) *data {
	d := &data{
		Build: build, Made: ms(made.UnixNano()), From: ms(r.from), To: ms(r.to), Lacks: r.lacks(),
		Inputs: []inputData{}, Warnings: r.warnings(), Findings: r.findings.sorted(), Opened: r.findings.opened,
		Processes: []processData{}, Places: []placeData{}, Everyone: []processData{}, Every: []placeData{}, Dwell: []dwellData{},
		Sideless: r.sideless, Conns: r.conns.chosen(), ConnsSeen: r.conns.seen, Longest: longest, Books: []stats{},
	}
	for _, in := range r.inputs {
		i := inputData{Name: in.name, Recording: in.recording, Counts: in.counts, Unknown: in.unknown, Bad: in.bad, Found: in.found}
		if from, to := ms(in.from), ms(in.to); len(in.counts) > 0 {
			i.From, i.To = &from, &to
		}
		d.Inputs = append(d.Inputs, i)
		d.Books = append(d.Books, in.runs...)
		d.Everyone = append(d.Everyone, r.processData(&in.everyone, in.moves(), in.number < shownCurves))
		// Where TIME_WAIT is not traced, those from before the start never leave it.
		d.Every = append(d.Every, r.placeData(&in.every, in.counts["transition"] > 0 && (in.seesTimeWait || in.every.level.peak == 0), in.number < shownCurves))
	}
	r.processes.sort()
	for i, k := range r.processes.keys[:min(len(r.processes.keys), shownRows)] {
		if p := r.processes.rows[k]; p.weight() > 0 {
			d.Processes = append(d.Processes, r.processData(p, r.inputs[k.input].moves(), i < shownCurves))
		}
	}
	r.places.sort()
	for i, k := range r.places.keys[:min(len(r.places.keys), shownRows)] {
		d.Places = append(d.Places, r.placeData(r.places.rows[k], r.inputs[k.input].counts["transition"] > 0, i < shownCurves))
	}
	for _, s := range states {
		sum := &histogram{}
		for _, in := range r.inputs {
			if in.counts["transition"] > 0 {
				sum.merge(in.dwell[s])
			} else {
				sum.merge(in.spent[s])
			}
		}
		if p50, ok := sum.quantile(0.5); ok {
			p99, _ := sum.quantile(0.99)
			d.Dwell = append(d.Dwell, dwellData{s, sum.Counts[:], sum.Max, &p50, &p99})
		}
	}
	return d
}

// moves reports whether the input shows how the number of sockets changes.
func (in *Input) moves() bool {
	return in.counts["transition"]+in.counts["socket"]+in.counts["summary"] > 0
}

func (r *Report) processData(p *process, moves, curve bool) processData {
	d := processData{
		Input: p.input, Pid: p.pid, Comm: p.comm, Where: p.where, Entered: p.entered, Left: p.left, Conns: p.conns, Failed: p.failed,
	}
	if moves {
		d.Now, d.Peak = &p.level.now, &p.level.peak
	}
	if p.entered+p.left == 0 {
		d.Entered, d.Left = p.waited, p.waited // all that is known is those that have ended
	}
	if p50, ok := p.waits.quantile(0.5); ok {
		p99, _ := p.waits.quantile(0.99)
		d.P50, d.P99, d.Max = &p50, &p99, &p.waits.Max
	}
	if curve {
		d.Curve = p.level.curve.points(r.to)
	}
	return d
}

func (r *Report) placeData(p *place, moves, curve bool) placeData {
	d := placeData{
		Input: p.input, Netns: p.netns, Server: p.server, Laddr: p.laddr, Raddr: p.raddr, Port: p.port,
		Entered: p.entered, By: slices.Clone(p.by), Others: p.others,
	}
	slices.SortStableFunc(d.By, func(x, y maker) int { return int(y.Count) - int(x.Count) })
	if moves {
		d.Now, d.Peak = &p.level.now, &p.level.peak
	} else {
		d.Entered = p.ended
	}
	if n, ok := r.ports[network{p.input, p.netns}]; ok {
		d.Ports = &n
	}
	if curve {
		d.Curve = p.level.curve.points(r.to)
	}
	return d
}

// points are the slots in which something happens.
func (c *curve) points(to int64) [][]float64 {
	var out [][]float64
	add := func(at int64, last, most int32) {
		if n := len(out); n == 0 || out[n-1][1] != float64(last) || out[n-1][2] != float64(most) {
			out = append(out, []float64{ms(at), float64(last), float64(most)})
		}
	}
	for i := range c.n {
		add(c.start+int64(i)*c.step, c.last[i], c.most[i])
	}
	if after := c.start + int64(c.n)*c.step; c.n > 0 && after < to {
		add(after, c.last[c.n-1], c.last[c.n-1])
	}
	return out
}

// warnings say what makes the numbers wrong.
func (r *Report) warnings() []string {
	w := []string{}
	say := func(format string, args ...any) { w = append(w, fmt.Sprintf(format, args...)) }
	if r.stopped {
		say("Interrupted: not all input was read.")
	}
	for _, in := range r.inputs {
		var lost, records, unprinted, evicted uint64
		for i := range in.runs {
			s := &in.runs[i]
			lost += s.lost()
			records += s.RecordsLost
			unprinted += s.Unprinted
			evicted += s.Evicted
		}
		switch {
		case len(in.runs) == 0:
			say("%s: no stats record, so it is not known what was lost. --events left them out, or tcptrace did not come to its end.", in.name)
		case lost+records+unprinted+evicted > 0:
			var what []string
			for _, n := range []struct {
				n    uint64
				what string
			}{
				{lost, "transitions lost in the kernel"}, {records, "other events lost in the kernel"},
				{unprinted, "records not printed, as stdout was too slow"}, {evicted, "sockets forgotten beyond --max-sockets"},
			} {
				if n.n > 0 {
					what = append(what, fmt.Sprintf("%s: %d", n.what, n.n))
				}
			}
			say("%s: not all that happened is in here (%s). Counts are too low by these, and a socket whose end is missing counts on until a summary tells otherwise.",
				in.name, strings.Join(what, ", "))
		}
		if n := len(in.runs) + in.more; n > 0 && n <= in.run {
			say("%s: no stats record of the last run, so it is not known what that has lost.", in.name)
		}
		if in.gaps > 0 {
			say("%s: records after a gap, since transitions of their sockets were missed: %d.", in.name, in.gaps)
		}
		if in.bad > 0 {
			say("%s: lines that are no records, left out: %d; the first: %v.", in.name, in.bad, in.firstBad)
		}
		if in.cut {
			say("%s: ends in the middle of a record; all before it is here.", in.name)
		}
		if in.unfollowed > 0 {
			say("%s: sockets that are counted but not followed one by one, as there are too many at once: %d.", in.name, in.unfollowed)
		}
		if in.more > 0 {
			say("%s: runs whose books are not shown: %d.", in.name, in.more)
		}
	}
	if n := r.processes.gone; n > 0 {
		say("More than %d processes: those with the fewest sockets are counted in the sums only.", maxProcesses)
	}
	if n := r.places.gone; n > 0 {
		say("More than %d destinations: those with the fewest sockets in TIME_WAIT are counted in the sum only.", maxDestinations)
	}
	return w
}

// lacks says of each section what records it would take.
func (r *Report) lacks() map[string]string {
	has := func(typ string) bool {
		return slices.ContainsFunc(r.inputs, func(in *Input) bool { return in.counts[typ] > 0 })
	}
	all := !slices.ContainsFunc(r.inputs, func(in *Input) bool { return !in.recording })
	out := map[string]string{}
	if !has("finding") {
		out["findings"] = "No finding in the input: there was none, or --events left them out."
		if all {
			out["findings"] = "No finding."
		}
	}
	if !has("transition") && !has("socket") && !has("summary") {
		out["processes"] = "No curves: the input has no transition, socket or summary records."
	}
	if !has("transition") {
		out["time_wait"] = "No curves: the input has no transition records."
		out["dwell"] = "From connection records: the input has no transition records."
		if !has("connection") {
			out["time_wait"] = "Nothing is known: the input has neither transition nor connection records."
			out["dwell"] = out["time_wait"]
		}
	}
	if !has("connection") && !all {
		out["connections"] = "The input has no connection records: only sockets that are in CLOSE_WAIT, were there, or were there before the start, are known one by one."
	}
	return out
}
