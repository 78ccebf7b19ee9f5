package report

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestACurveMaySpanAllTimesThereAre(t *testing.T) {
	var c curve
	end := time.Date(2199, 12, 31, 0, 0, 0, 0, time.UTC).UnixNano()
	c.set(0, 1)
	c.set(end, 2)
	points := c.points(end)
	equal(t, "first", points[0], []float64{0, 1, 1})
	last := points[len(points)-1]
	equal(t, "last", last[1:], []float64{2, 2})
	if at := int64(last[0]) * 1e6; at > end || end-at > end/curveSlots*2 {
		t.Errorf("the last is at %d, want it in the last slot before %d", at, end)
	}
}

func TestTimeWaitFromBeforeTheStartIsNoDebt(t *testing.T) {
	there := func(ms int, cookie string) string {
		return fmt.Sprintf(`{"type":"socket","time":%q,"cookie":%q,"netns":1,"laddr":"10.0.0.1","lport":80,"raddr":"10.0.0.2","rport":4000,"pid":null,"comm":null,"owner_source":null,"state":"TIME_WAIT","age_ms":1000,"holders":[]}`, at(ms), cookie)
	}
	unowned := func(ms int, cookie string) string {
		return strings.Replace(owned(ms, cookie, 0, "", "x", "TIME_WAIT", "CLOSE", "null"), `"x"`, `null`, 1)
	}
	d := shown(t, lines(
		there(0, "a"), there(0, "b"),
		owned(1, "c", 5, "api", "connect", "FIN_WAIT2", "TIME_WAIT", "1"),
		unowned(2, "a"), unowned(3, "b"),
	))
	equal(t, "now, most", []int{*d.Every[0].Now, *d.Every[0].Peak}, []int{1, 3})
}

func TestTimeWaitOfOneRunIsNotTheNexts(t *testing.T) {
	d := shown(t, lines(
		fmt.Sprintf(`{"type":"socket","time":%q,"cookie":"l","netns":1,"laddr":"10.0.0.1","lport":80,"raddr":null,"rport":null,"pid":3,"comm":"w","state":"LISTEN","age_ms":null,"holders":[]}`, at(0)),
		owned(1, "a", 5, "api", "connect", "FIN_WAIT2", "TIME_WAIT", "1"),
		books(2, 1, 1),
		fmt.Sprintf(`{"type":"socket","time":%q,"cookie":"l","netns":1,"laddr":"10.0.0.1","lport":80,"raddr":null,"rport":null,"pid":3,"comm":"w","state":"LISTEN","age_ms":null,"holders":[]}`, at(60_000)),
		owned(60_001, "b", 5, "api", "connect", "FIN_WAIT2", "TIME_WAIT", "1"),
		owned(60_002, "b", 5, "api", "connect", "TIME_WAIT", "CLOSE", "1"),
		books(60_003, 1, 1),
	))
	equal(t, "all: now, most", []int{*d.Every[0].Now, *d.Every[0].Peak}, []int{0, 1})
	equal(t, "place: now, most", []int{*d.Places[0].Now, *d.Places[0].Peak}, []int{0, 1})
}

func TestSocketsThatAreNotFollowedLeaveToo(t *testing.T) {
	const many = maxSockets + 1000
	var all []string
	for i := range many {
		all = append(all, transition(i/100, fmt.Sprint(i), "ESTABLISHED", "CLOSE_WAIT", "1"))
	}
	for i := range many {
		all = append(all, transition(1000+i/100, fmt.Sprint(i), "CLOSE_WAIT", "LAST_ACK", "1"))
	}
	d := shown(t, lines(all...))
	equal(t, "now, most", []int{*d.Everyone[0].Now, *d.Everyone[0].Peak}, []int{0, many})
}

func TestWhatManyProcessesHaveEndsWithTheirRun(t *testing.T) {
	var all []string
	for run := range 3 {
		for i := range 600 {
			pid := 1 + run*600 + i
			all = append(all, fmt.Sprintf(`{"type":"socket","time":%q,"cookie":"%x","netns":1,"laddr":"10.0.0.1","lport":80,"raddr":"10.0.0.2","rport":4000,"pid":%d,"comm":"web","owner_source":"fd","state":"CLOSE_WAIT","age_ms":1000,"holders":[]}`, at(run*60_000), pid, pid))
		}
		all = append(all, books(run*60_000+1, 600, 1))
	}
	d := shown(t, lines(all...))
	equal(t, "most", *d.Everyone[0].Peak, 600)
}

func TestALeakDoesNotGiveWayToAnEarlierConnection(t *testing.T) {
	none := func(s string) string { return strings.Replace(s, `"cookie":"x"`, `"cookie":null`, 1) }
	d := shown(t, lines(
		none(ended(1, "x", "fin", `"ESTABLISHED":1`)),
		none(transition(2, "x", "ESTABLISHED", "CLOSE_WAIT", "1")), // the ports are used again
	))
	equal(t, "rows", len(d.Conns), 2)
}

func TestALastRunWithoutBooksIsSaid(t *testing.T) {
	there := func(ms int) string {
		return fmt.Sprintf(`{"type":"socket","time":%q,"cookie":"l","netns":1,"laddr":"10.0.0.1","lport":80,"raddr":null,"rport":null,"pid":3,"comm":"w","state":"LISTEN","age_ms":null,"holders":[]}`, at(ms))
	}
	d := shown(t, lines(there(0), books(1, 1, 1), there(60_000)))
	equal(t, "warnings", len(d.Warnings), 1)
}

// A slice of few keeps the many alive that were with them in a line.
func TestOfManyHoldersFewAreKept(t *testing.T) {
	line := fmt.Sprintf(`{"type":"finding","time":%q,"id":"x","kind":"k","status":"open","holders":[%s{}]}`, at(0), strings.Repeat("{},", 300_000))
	r := New()
	if err := r.Input("x").Read(strings.NewReader(line)); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.findings.all {
		if len(f.Holders) != maxHolders || cap(f.Holders) > 2*maxHolders {
			t.Errorf("got %d holders, and room for %d; want %d", len(f.Holders), cap(f.Holders), maxHolders)
		}
	}
}
