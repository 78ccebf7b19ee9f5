package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// A screen may be up for days, and something may warn all the time.
func TestABacklogKeepsTheFirstAndTheLastLines(t *testing.T) {
	var to bytes.Buffer
	b := &backlog{to: &to, held: true}
	const flood = 10_000
	for i := range flood {
		fmt.Fprintf(b, "tcptrace: line %d\n", i)
	}
	if to.Len() > 0 {
		t.Errorf("%d bytes reach the terminal behind the screen's back", to.Len())
	}
	if got, want := b.last(), fmt.Sprintf("line %d", flood-1); got != want {
		t.Errorf("got %q as the last line, want %q", got, want)
	}
	b.release()
	var want []string
	for i := range firstLines {
		want = append(want, fmt.Sprintf("tcptrace: line %d", i))
	}
	want = append(want, fmt.Sprintf("tcptrace: %d lines of the log are left out here", flood-firstLines-lastLines))
	for i := range lastLines {
		want = append(want, fmt.Sprintf("tcptrace: line %d", flood-lastLines+i))
	}
	if got := strings.Split(strings.TrimSuffix(to.String(), "\n"), "\n"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	fmt.Fprintln(b, "at once")
	if !strings.HasSuffix(to.String(), "at once\n") {
		t.Error("a line after the screen is held")
	}
}

func TestARateIsOfTheLastTwoSeconds(t *testing.T) {
	b := &board{}
	const half, second = 500e6, 1e9
	ktime, delivered := uint64(1000*second), uint64(0)
	for range 20 { // a burst of 10 s, 1000 a second
		ktime, delivered = ktime+half, delivered+500
		b.rate(ktime, delivered)
	}
	if got := b.rate(ktime, delivered); got != 1000 {
		t.Errorf("in a burst: got %v a second, want 1000", got)
	}
	for range 5 {
		ktime += half
		b.rate(ktime, delivered)
	}
	if got := b.rate(ktime, delivered); got != 0 {
		t.Errorf("2.5 s after it: got %v a second, want 0", got)
	}
	if n := len(b.points); n > 10 {
		t.Errorf("keeps %d points", n)
	}
}

func TestTheRateOfARecordingIsThatOfAllOfIt(t *testing.T) {
	b := &board{replay: "run.rec"}
	b.rate(1e9, 0)
	b.rate(2e9, 1000)
	if got := b.rate(101e9, 1000); got != 10 {
		t.Errorf("1000 transitions in 100 s: got %v a second, want 10", got)
	}
}
