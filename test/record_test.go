package livetest

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// A record is one line of the stream. A pointer is nil where the record says
// null, or where its type has no such field; fields holds what the line has.
type record struct {
	Type string    `json:"type"`
	Time time.Time `json:"time"`

	Cookie      *string `json:"cookie"`
	Netns       uint64  `json:"netns"`
	Family      string  `json:"family"`
	Laddr       *string `json:"laddr"`
	Lport       *uint16 `json:"lport"`
	Raddr       *string `json:"raddr"`
	Rport       *uint16 `json:"rport"`
	Pid         *int    `json:"pid"`
	Comm        *string `json:"comm"`
	OwnerSource *string `json:"owner_source"`
	Container   *string `json:"container"` // nil outside of containers
	Gap         bool    `json:"gap"`

	// With --cri, of what is in a pod.
	Pod           *string `json:"pod"`
	Namespace     *string `json:"namespace"`
	ContainerName *string `json:"container_name"`

	// transition
	OldState string   `json:"oldstate"`
	NewState string   `json:"newstate"`
	DwellMs  *float64 `json:"dwell_ms"`
	Source   string   `json:"source"`

	// connection
	Role          *string             `json:"role"`
	Start         *time.Time          `json:"start"`
	DurationMs    *float64            `json:"duration_ms"`
	StatesMs      map[string]*float64 `json:"states_ms"`
	Closer        *string             `json:"closer"`
	End           *string             `json:"end"`
	CloseCall     *string             `json:"close_call"`
	SentBytes     *uint64             `json:"sent_bytes"`
	ReceivedBytes *uint64             `json:"received_bytes"`
	TimeWaitEnd   *string             `json:"time_wait_end"`

	// socket
	State       string   `json:"state"`
	AgeMs       *float64 `json:"age_ms"`
	ExpiresMs   *float64 `json:"expires_ms"` // only of minisockets
	AgeBound    *string  `json:"age_bound"`
	Holders     []holder `json:"holders"`
	EOFRead     *bool    `json:"eof_read"`
	UnreadBytes *uint64  `json:"unread_bytes"`
	Verdict     *string  `json:"verdict"`

	// finding, which has holders too
	ID       string         `json:"id"`
	Kind     string         `json:"kind"`
	Status   string         `json:"status"`
	Severity string         `json:"severity"`
	Exe      *string        `json:"exe"`
	Count    int            `json:"count"`
	OldestMs *float64       `json:"oldest_ms"`
	Evidence map[string]any `json:"evidence"`
	Message  string         `json:"message"`
	Advice   string         `json:"advice"`

	// summary
	States map[string]*int `json:"states"`

	// stats
	Seen      uint64            `json:"seen"`
	Delivered uint64            `json:"delivered"`
	Filtered  uint64            `json:"filtered"`
	Lost      map[string]uint64 `json:"lost"`
	OtherLost uint64            `json:"records_lost"`
	Records   map[string]uint64 `json:"records"`
	Hidden    uint64            `json:"hidden_processes"`
	Tracked   int               `json:"sockets_tracked"`
	Unprinted uint64            `json:"unprinted"`
	Probes    map[string]string `json:"probes"`

	fields map[string]any
}

type holder struct {
	Pid    int    `json:"pid"`
	Comm   string `json:"comm"`
	FD     int    `json:"fd"`
	Cookie string `json:"cookie"` // only in a finding, which is about many sockets
}

const socketFields = "type time cookie netns family laddr lport raddr rport pid comm owner_source "

// contractFields are the fields that a record of each type has at least. A
// script may rely on null: a field is never just absent.
var contractFields = map[string][]string{
	"transition": strings.Fields(socketFields + "oldstate newstate dwell_ms source"),
	"connection": strings.Fields(socketFields + "role start duration_ms states_ms closer end close_call " +
		"sent_bytes received_bytes time_wait_end"),
	"socket":  strings.Fields(socketFields + "state age_ms age_bound holders"),
	"finding": strings.Fields("type time id kind status severity pid comm exe count oldest_ms holders evidence message advice"),
	"stats": strings.Fields("type time seen delivered filtered lost records unprinted sockets_tracked probes " +
		"hidden_processes"),
}

// parseRecord decodes a line and checks what holds for every record.
func parseRecord(line []byte) (record, error) {
	var r record
	if err := json.Unmarshal(line, &r); err != nil {
		return r, err
	}
	if err := json.Unmarshal(line, &r.fields); err != nil {
		return r, err
	}
	for _, name := range contractFields[r.Type] {
		if _, ok := r.fields[name]; !ok {
			return r, fmt.Errorf("%s record without %q", r.Type, name)
		}
	}
	if r.Time.Location() != time.UTC {
		return r, fmt.Errorf("time %q is not UTC", r.fields["time"])
	}
	if (r.Pid == nil) != (r.Comm == nil) {
		return r, fmt.Errorf("pid and comm are not null together")
	}
	if r.Type != "finding" && (r.Pid == nil) != (r.OwnerSource == nil) {
		return r, fmt.Errorf("pid and owner_source are not null together")
	}
	return r, nil
}

func (r *record) isTransition() bool { return r.Type == "transition" }

// of says whether the record is about the socket with this cookie.
func (r *record) of(id string) bool { return r.Cookie != nil && *r.Cookie == id }

// owner is pid/comm/source in one string, for messages.
func (r *record) owner() string {
	if r.Pid == nil {
		return "null"
	}
	return fmt.Sprintf("%d/%q/%s", *r.Pid, *r.Comm, orNull(r.OwnerSource)) // a finding has no source
}

// orNull shows a value that may be unknown.
func orNull[T any](v *T) string {
	if v == nil {
		return "null"
	}
	return fmt.Sprint(*v)
}

func transitionsOf(records []record, id string) []record {
	var out []record
	for _, r := range records {
		if r.isTransition() && r.of(id) {
			out = append(out, r)
		}
	}
	return out
}

func connectionsOf(records []record, id string) []record {
	var out []record
	for _, r := range records {
		if r.Type == "connection" && r.of(id) {
			out = append(out, r)
		}
	}
	return out
}

// lastStats is the books as they were closed, nil if they were not.
func lastStats(records []record) *record {
	if n := len(records); n > 0 && records[n-1].Type == "stats" {
		return &records[n-1]
	}
	return nil
}

// path is the states that a socket went through, in their short form.
func path(transitions []record) string {
	if len(transitions) == 0 {
		return ""
	}
	states := []string{short(transitions[0].OldState)}
	for _, r := range transitions {
		states = append(states, short(r.NewState))
	}
	return strings.Join(states, " ")
}

var shortNames = map[string]string{
	"ESTABLISHED": "E", "SYN_SENT": "SS", "SYN_RECV": "SR", "FIN_WAIT1": "F1", "FIN_WAIT2": "F2", "TIME_WAIT": "TW",
	"CLOSE": "C", "CLOSE_WAIT": "CW", "LAST_ACK": "LA", "LISTEN": "L", "CLOSING": "CG",
}

func short(state string) string {
	if s, ok := shortNames[state]; ok {
		return s
	}
	return "?" + state
}
