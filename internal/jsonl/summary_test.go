package jsonl

import (
	"encoding/json"
	"testing"

	"github.com/tcptrace/tcptrace/pkg/aggregate"
	"github.com/tcptrace/tcptrace/pkg/events"
)

// Of a network namespace that was never entered only those states are known that no
// socket without a process can be in.
func TestASummaryOfANamespaceThatWasNotEnteredIsMostlyUnknown(t *testing.T) {
	for _, whole := range []bool{false, true} {
		s := aggregate.Summary{Whole: whole, Requests: whole, Minis: true}
		s.States[events.CloseWait] = 3
		var got struct {
			States map[string]*int `json:"states"`
		}
		if err := json.Unmarshal(new(Encoder).Summary(nil, &s), &got); err != nil {
			t.Fatal(err)
		}
		for state, n := range got.States {
			sure := whole || state == "LISTEN" || state == "SYN_SENT"
			if (n != nil) != sure {
				t.Errorf("entered %v: %s known: %v, want %v", whole, state, n != nil, sure)
			}
		}
		if n := got.States["CLOSE_WAIT"]; whole && (n == nil || *n != 3) {
			t.Errorf("CLOSE_WAIT %v, want 3", n)
		}
	}
}
