package main

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/report"
)

// What comes from stdin is not interrupted, and is as patient as a file.
func TestARecordingFromStdinShedsNothing(t *testing.T) {
	const connections = 60_000
	file := recordOf(t, connections)
	r := report.New()
	check(t, readRecording(context.WithoutCancel(t.Context()), bytes.NewReader(file), r.Input("-")))
	var page bytes.Buffer
	check(t, r.Write(&page, "build", time.Unix(0, 0)))
	for text, want := range map[string]bool{`"connections_seen":60000,`: true, "records not printed": false} {
		if got := bytes.Contains(page.Bytes(), []byte(text)); got != want {
			t.Errorf("%s is on the page: %v, want %v", text, got, want)
		}
	}
}
