package livetest

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A browser is Chromium with one page open, spoken to by its DevTools protocol through a pipe.
type browser struct {
	t       *testing.T
	to      *os.File
	replies chan answered
	last    int
	session string
	events  []answered
}

type answered struct {
	ID     int             `json:"id"`
	Method string          `json:"method"`
	Params json.RawMessage `json:"params"`
	Result json.RawMessage `json:"result"`
	Error  *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// openBrowser opens url, and waits until it is loaded.
func openBrowser(t *testing.T, url string) *browser {
	t.Helper()
	theirs, to := newPipe(t)
	from, theirOut := newPipe(t)
	dir := t.TempDir()
	var stderr bytes.Buffer
	// Its sandbox does not run as root.
	cmd := exec.Command("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
		"--no-first-run", "--window-size=1280,1000", "--user-data-dir="+dir)
	cmd.ExtraFiles = []*os.File{theirs, theirOut} // 3 and 4
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v: scripts/install-deps chromium installs it", err)
	}
	theirs.Close()
	theirOut.Close()
	b := &browser{t: t, to: to, replies: make(chan answered, 1024)}
	t.Cleanup(func() {
		b.call("Browser.close", nil, nil)
		_ = cmd.Wait() // its status says nothing that the test has not seen
	})
	go b.read(bufio.NewReader(from))
	var target struct {
		TargetID  string `json:"targetId"`
		SessionID string `json:"sessionId"`
	}
	b.call("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	b.call("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &target)
	b.session = target.SessionID
	for _, domain := range []string{"Runtime", "Log", "Network", "Page"} {
		b.call(domain+".enable", nil, nil)
	}
	b.call("Page.navigate", map[string]any{"url": url}, nil)
	b.until("Page.loadEventFired")
	return b
}

func (b *browser) read(from *bufio.Reader) {
	defer close(b.replies)
	for {
		line, err := from.ReadBytes(0)
		if err != nil {
			return
		}
		var r answered
		if json.Unmarshal(bytes.TrimSuffix(line, []byte{0}), &r) == nil {
			b.replies <- r
		}
	}
}

// next is what the browser says next.
func (b *browser) next(waitingFor string) answered {
	b.t.Helper()
	select {
	case r, ok := <-b.replies:
		if !ok {
			b.t.Fatalf("the browser ends while waiting for %s", waitingFor)
		}
		if r.Method != "" {
			b.events = append(b.events, r)
		}
		return r
	case <-time.After(60 * time.Second):
		b.t.Fatalf("the browser does not answer %s", waitingFor)
	}
	return answered{}
}

func (b *browser) until(event string) {
	b.t.Helper()
	for b.next(event).Method != event {
	}
}

func (b *browser) call(method string, params map[string]any, result any) {
	b.t.Helper()
	b.last++
	msg := map[string]any{"id": b.last, "method": method}
	if params != nil {
		msg["params"] = params
	}
	if b.session != "" && !strings.HasPrefix(method, "Browser.") {
		msg["sessionId"] = b.session
	}
	line, err := json.Marshal(msg)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.to.Write(append(line, 0)); err != nil {
		b.t.Fatal(err)
	}
	for {
		r := b.next(method)
		if r.ID != b.last {
			continue
		}
		if r.Error != nil {
			b.t.Fatalf("%s: %s", method, r.Error.Message)
		}
		if result != nil {
			if err := json.Unmarshal(r.Result, result); err != nil {
				b.t.Fatal(err)
			}
		}
		return
	}
}

// eval is the value of an expression on the page.
func eval[T any](b *browser, expression string) T {
	b.t.Helper()
	var r struct {
		Result struct {
			Value T `json:"value"`
		} `json:"result"`
		Exception json.RawMessage `json:"exceptionDetails"`
	}
	b.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &r)
	if r.Exception != nil {
		b.t.Fatalf("%s: %s", expression, r.Exception)
	}
	return r.Result.Value
}

// press is a key, as a person presses it.
func (b *browser) press(key, text string) {
	b.t.Helper()
	for _, kind := range []string{"keyDown", "keyUp"} {
		p := map[string]any{"type": kind, "key": key, "code": key}
		if kind == "keyDown" && text != "" {
			p["text"] = text
		}
		if key == "Enter" {
			p["windowsVirtualKeyCode"] = 13
		}
		b.call("Input.dispatchKeyEvent", p, nil)
	}
}

// checkQuiet fails if the page has said anything, or asked for anything but itself.
func (b *browser) checkQuiet(url string) {
	b.t.Helper()
	for _, e := range b.events {
		switch e.Method {
		case "Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening":
			b.t.Errorf("got %s: %s; want a quiet page", e.Method, e.Params)
		case "Network.requestWillBeSent":
			var p struct {
				Request struct {
					URL string `json:"url"`
				} `json:"request"`
			}
			if err := json.Unmarshal(e.Params, &p); err != nil || p.Request.URL != url {
				b.t.Errorf("got a request for %q (%v), want none but for the page", p.Request.URL, err)
			}
		}
	}
}

// hostile is a command name that would run as a script, if it were taken for markup.
const hostile = `</script><img src=x onerror="hostile=1">`

// reported makes a page of these records.
func reported(t *testing.T, records string) (url string) {
	t.Helper()
	dir := t.TempDir()
	from, to := filepath.Join(dir, "run.jsonl"), filepath.Join(dir, "run.html")
	if err := os.WriteFile(from, []byte(records), 0o600); err != nil {
		t.Fatal(err)
	}
	page, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	cmd := exec.Command(tcptraceBin, "report", from)
	cmd.Stdout = page
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("tcptrace report: %v\n%s", err, &stderr)
	}
	return "file://" + to
}

// story is 300 connections, one a second: the peer closes each, and web so many milliseconds later as it has
// had connections; every hundredth ends by a reset. The last ten it does not close.
func story(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	encode := json.NewEncoder(&out)
	noon := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	say := func(typ string, second float64, fields map[string]any) {
		fields["type"], fields["time"] = typ, noon.Add(time.Duration(second*1e9)).Format(time.RFC3339Nano)
		if err := encode.Encode(fields); err != nil {
			t.Fatal(err)
		}
	}
	for i := 1; i <= 300; i++ {
		comm := "web"
		if i == 7 {
			comm = hostile
		}
		socket := func(more map[string]any) map[string]any {
			for k, v := range map[string]any{
				"cookie": fmt.Sprintf("%x", i), "netns": 1, "family": "ipv4", "laddr": "10.0.0.1", "lport": 80,
				"raddr": "10.0.0.2", "rport": 40_000 + i, "pid": 300, "comm": comm, "owner_source": "accept",
			} {
				more[k] = v
			}
			return more
		}
		s := float64(i)
		say("transition", s, socket(map[string]any{"oldstate": "SYN_RECV", "newstate": "ESTABLISHED", "dwell_ms": 0.004}))
		say("transition", s+.001, socket(map[string]any{"oldstate": "ESTABLISHED", "newstate": "CLOSE_WAIT", "dwell_ms": 1}))
		if i > 290 {
			continue
		}
		end := "fin"
		if i%100 == 0 {
			end = "reset_received"
		}
		say("transition", s+.001+s/1000, socket(map[string]any{"oldstate": "CLOSE_WAIT", "newstate": "LAST_ACK", "dwell_ms": i}))
		say("transition", s+.002+s/1000, socket(map[string]any{"oldstate": "LAST_ACK", "newstate": "CLOSE", "dwell_ms": 1}))
		say("connection", s+.002+s/1000, socket(map[string]any{
			"role": "server", "start": noon.Add(time.Duration(s * 1e9)).Format(time.RFC3339Nano), "duration_ms": i + 2,
			"states_ms": map[string]any{"SYN_RECV": 0.004, "ESTABLISHED": 1, "CLOSE_WAIT": i, "LAST_ACK": 1}, "closer": "remote", "end": end, "close_call": "close",
			"sent_bytes": 10, "received_bytes": 20,
		}))
	}
	say("finding", 301, map[string]any{
		"id": "x", "kind": "close_wait_leak", "status": "open", "severity": "warning", "pid": 300, "comm": hostile, "exe": hostile, "count": 10, "oldest_ms": 10_000,
		"holders":  []any{map[string]any{"pid": 300, "comm": hostile, "fd": 7, "cookie": "123"}},
		"evidence": map[string]any{"verdict": "eof_read", hostile: hostile}, "message": hostile + " leaks", "advice": "close() it",
	})
	say("stats", 302, map[string]any{"seen": 9, "delivered": 9, "filtered": 0, "lost": map[string]any{"ring_full": 0}, "records": map[string]any{"stats": 1}, "unprinted": 0})
	return out.String()
}

func TestTheReportWorksInABrowser(t *testing.T) {
	live(t)
	url := reported(t, story(t))
	b := openBrowser(t, url)

	for _, id := range []string{"findings", "processes", "dwell", "time_wait", "longest", "connections", "books"} {
		if got := eval[string](b, `(document.querySelector("#`+id+` h2") || {}).textContent || ""`); got == "" {
			t.Errorf("got no section %q", id)
		}
	}
	t.Run("names are text", func(t *testing.T) {
		if got := eval[int](b, `document.images.length + document.querySelectorAll("[onerror]").length + (window.hostile || 0)`); got != 0 {
			t.Error("a command name has become markup")
		}
		for _, id := range []string{"findings", "connections"} {
			if id == "connections" {
				b.search("onerror")
			}
			if text := eval[string](b, `document.getElementById("`+id+`").textContent`); !strings.Contains(text, hostile) {
				t.Errorf("%s: got no %q", id, hostile)
			}
		}
	})
	t.Run("search", func(t *testing.T) {
		for typed, want := range map[string]int{"": 100, "reset_received": 2, "10.0.0.2:40123": 1, "in close_wait": 10, "WEB 40299": 1, "close_wait web": 10, "no such": 0} {
			b.search(typed)
			if got := len(b.column(1)); got != want {
				t.Errorf("%q: got %d rows, want %d", typed, got, want)
			}
		}
		b.search("")
		eval[any](b, `document.querySelector("#connections button.more").click()`)
		if got := len(b.column(1)); got != 300 {
			t.Errorf("all: got %d rows, want 300", got)
		}
	})
	t.Run("sort", func(t *testing.T) {
		b.search("fin")
		const head = `[...document.querySelectorAll("#connections th button")].find(b => b.textContent === "lasted")`
		eval[any](b, head+`.focus()`)
		for _, c := range []struct{ order, first string }{{"descending", "292 ms"}, {"ascending", "3 ms"}} {
			b.press("Enter", "\r") // as from a keyboard
			if got := b.column(6); got[0] != c.first {
				t.Errorf("%s: got %q first, want %q", c.order, got[0], c.first)
			}
			if got := eval[string](b, head+`.parentNode.getAttribute("aria-sort")`); got != c.order {
				t.Errorf("aria-sort: got %q, want %q", got, c.order)
			}
		}
	})
	t.Run("curve", func(t *testing.T) {
		// The ten that stay are the top of a curve that a screen reader can tell.
		if got := eval[string](b, `document.querySelector("#processes svg").getAttribute("aria-label")`); !strings.HasSuffix(got, ", 10 at the end") {
			t.Errorf("got %q, want 10 at the end", got)
		}
	})
	t.Run("light and dark", func(t *testing.T) {
		var backgrounds []string
		for _, scheme := range []string{"light", "dark"} {
			b.media("", scheme)
			backgrounds = append(backgrounds, eval[string](b, `getComputedStyle(document.body).backgroundColor`))
			for _, element := range []string{"body", "#findings summary .badge.warning", "th", "nav a", "small"} {
				color := eval[string](b, `getComputedStyle(document.querySelector(`+fmt.Sprintf("%q", element)+`)).color`)
				// The limit of WCAG 2.1 for text.
				if got := contrast(t, color, backgrounds[len(backgrounds)-1]); got < 4.5 {
					t.Errorf("%s: the contrast of %s is %.1f, want 4.5", scheme, element, got)
				}
			}
		}
		if backgrounds[0] == backgrounds[1] {
			t.Errorf("got the background %s in both", backgrounds[0])
		}
	})
	t.Run("print", func(t *testing.T) {
		b.search("")
		b.media("print", "dark")
		if got := eval[string](b, `getComputedStyle(document.body).backgroundColor`); got != "rgb(255, 255, 255)" {
			t.Errorf("got the background %s on paper, want white", got)
		}
		// A4 across, at 96 dots an inch, less the margins.
		b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 1046, "height": 718, "deviceScaleFactor": 1, "mobile": false}, nil)
		if wide := eval[[]string](b, `[...document.querySelectorAll("table, figure, p, svg")].filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 80))`); len(wide) > 0 {
			t.Errorf("wider than the paper: %q", wide)
		}
		var pdf struct {
			Data string `json:"data"`
		}
		b.call("Page.printToPDF", map[string]any{"preferCSSPageSize": true, "printBackground": true}, &pdf)
		file, err := base64.StdEncoding.DecodeString(pdf.Data)
		if pages := bytes.Count(file, []byte("/Type /Page\n")); err != nil || !bytes.HasPrefix(file, []byte("%PDF-")) || pages < 2 || pages > 30 {
			t.Errorf("got %d pages in %d bytes (%v), want some", pages, len(file), err)
		}
	})
	b.checkQuiet(url)
}

// search types into the box of the table of connections.
func (b *browser) search(typed string) {
	b.t.Helper()
	eval[any](b, `{ const box = document.getElementById("search"); box.focus(); box.select(); }`)
	if typed == "" {
		b.press("Delete", "")
		eval[any](b, `{ const box = document.getElementById("search"); box.value = ""; box.dispatchEvent(new Event("input")); }`)
		return
	}
	b.call("Input.insertText", map[string]any{"text": typed}, nil)
}

// column is what the nth column of that table shows.
func (b *browser) column(n int) []string {
	b.t.Helper()
	return eval[[]string](b, fmt.Sprintf(`[...document.querySelectorAll("#connections tbody td:nth-child(%d)")].map(c => c.textContent)`, n))
}

func (b *browser) media(media, scheme string) {
	b.t.Helper()
	b.call("Emulation.setEmulatedMedia", map[string]any{"media": media, "features": []any{map[string]any{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// contrast is that of two colours as WCAG 2.1 defines it.
func contrast(t *testing.T, one, other string) float64 {
	t.Helper()
	luminance := func(color string) float64 {
		var c [3]float64
		if _, err := fmt.Sscanf(color, "rgb(%f, %f, %f)", &c[0], &c[1], &c[2]); err != nil {
			t.Fatalf("%q: %v", color, err)
		}
		for i, v := range c {
			if v /= 255; v <= 0.04045 {
				c[i] = v / 12.92
			} else {
				c[i] = math.Pow((v+0.055)/1.055, 2.4)
			}
		}
		return 0.2126*c[0] + 0.7152*c[1] + 0.0722*c[2]
	}
	l := []float64{luminance(one), luminance(other)}
	slices.Sort(l)
	return (l[1] + 0.05) / (l[0] + 0.05)
}
