package main

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/tcptrace/tcptrace/internal/recording"
	"github.com/tcptrace/tcptrace/internal/report"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// What comes from stdin is not interrupted, and is as patient as a file.
func TestARecordingFromStdinShedsNothing(t *testing.T) {
	const connections = 60_000
	file := record(t, func(w *recording.Writer) error {
		for n := range uint64(connections) {
			for _, raw := range client(n + 1).activeClose() {
				if err := w.Event(raw); err != nil {
					return err
				}
			}
		}
		return w.Books(events.Books{Seen: 5 * connections})
	})
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
