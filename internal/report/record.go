package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// record is a record of any type, docs/schema.md. What is null or absent is zero, and a
// pointer where zero is something else.
type record struct {
	Type string `json:"type"`
	Time string `json:"time"`

	// of a socket
	Cookie        string `json:"cookie"`
	Netns         uint32 `json:"netns"`
	Laddr         string `json:"laddr"`
	Lport         uint16 `json:"lport"`
	Raddr         string `json:"raddr"`
	Rport         uint16 `json:"rport"`
	Pid           uint32 `json:"pid"`
	Comm          string `json:"comm"`
	OwnerSource   string `json:"owner_source"`
	Container     string `json:"container"`
	Pod           string `json:"pod"`
	Namespace     string `json:"namespace"`
	ContainerName string `json:"container_name"`
	Gap           bool   `json:"gap"`
	Unprinted     uint64 `json:"unprinted"`

	// transition
	Oldstate string   `json:"oldstate"`
	Newstate string   `json:"newstate"`
	Dwell    *float64 `json:"dwell_ms"`

	// connection
	Role        string              `json:"role"`
	Start       string              `json:"start"`
	Duration    *float64            `json:"duration_ms"`
	Spent       map[string]*float64 `json:"states_ms"`
	Closer      string              `json:"closer"`
	End         string              `json:"end"`
	CloseCall   string              `json:"close_call"`
	Sent        *uint64             `json:"sent_bytes"`
	Received    *uint64             `json:"received_bytes"`
	TimeWaitEnd string              `json:"time_wait_end"`

	// socket
	State   string   `json:"state"`
	Age     *float64 `json:"age_ms"`
	Holders []holder `json:"holders"` // of a finding too
	Verdict string   `json:"verdict"`

	// finding
	ID       string          `json:"id"`
	Kind     string          `json:"kind"`
	Status   string          `json:"status"`
	Severity string          `json:"severity"`
	Exe      string          `json:"exe"`
	Count    uint64          `json:"count"`
	Oldest   *float64        `json:"oldest_ms"`
	Evidence json.RawMessage `json:"evidence"`
	Message  string          `json:"message"`
	Advice   string          `json:"advice"`

	// summary
	Processes []struct {
		Pid       uint32 `json:"pid"`
		Comm      string `json:"comm"`
		CloseWait int    `json:"close_wait"`
	} `json:"processes"`

	// stats; it has unprinted too
	Seen        uint64             `json:"seen"`
	Delivered   uint64             `json:"delivered"`
	Filtered    uint64             `json:"filtered"`
	Lost        map[string]uint64  `json:"lost"`
	RecordsLost uint64             `json:"records_lost"`
	Records     map[string]uint64  `json:"records"`
	Evicted     uint64             `json:"sockets_evicted"`
	Hidden      uint64             `json:"hidden_processes"`
	Probes      map[string]*string `json:"probes"`

	at int64 // Time
}

type holder struct {
	Pid    uint32 `json:"pid"`
	Comm   string `json:"comm"`
	Fd     int32  `json:"fd"`
	Cookie string `json:"cookie,omitempty"`
}

// A summary has so many processes at most: one that is not in a list of fewer has nothing.
const summaryProcesses = 20

// decode understands a line. Types and fields that it does not know are those of a
// tcptrace to come.
func (r *record) decode(line []byte) error {
	*r = record{}
	if err := json.Unmarshal(line, r); err != nil {
		if wrong := (*json.UnmarshalTypeError)(nil); errors.As(err, &wrong) && wrong.Field != "" {
			return fmt.Errorf("%s is a JSON %s", wrong.Field, wrong.Value)
		}
		return fmt.Errorf("no JSON object: %w", err)
	}
	if r.Type == "" {
		return errors.New("it has no type")
	}
	var err error
	r.at, err = stamp(clip(r.Time, maxName))
	return err
}

// key tells sockets of one input apart.
func (r *record) key() string {
	if r.Cookie != "" {
		return r.Cookie
	}
	return fmt.Sprint(r.Netns, r.Laddr, r.Lport, r.Raddr, r.Rport)
}

// trim cuts the strings that are kept.
func (r *record) trim() {
	for _, s := range []*string{
		&r.Cookie, &r.Laddr, &r.Raddr, &r.Comm, &r.OwnerSource, &r.Oldstate, &r.Newstate, &r.Role, &r.Closer, &r.End,
		&r.CloseCall, &r.TimeWaitEnd, &r.State, &r.Verdict, &r.Kind, &r.Status, &r.Severity, &r.Type,
	} {
		*s = clip(*s, maxName)
	}
	for _, s := range []*string{&r.Container, &r.Pod, &r.Namespace, &r.ContainerName, &r.ID, &r.Exe, &r.Message, &r.Advice} {
		*s = clip(*s, maxText)
	}
	if len(r.Holders) > maxHolders {
		r.Holders = slices.Clone(r.Holders[:maxHolders]) // the others would stay in memory
	}
	for i := range r.Holders {
		h := &r.Holders[i]
		h.Comm, h.Cookie = clip(h.Comm, maxName), clip(h.Cookie, maxName)
	}
	if len(r.Evidence) > maxEvidence || bytes.Equal(r.Evidence, []byte("null")) {
		r.Evidence = nil
	}
}

const (
	maxHolders  = 16
	maxEvidence = 16 << 10
)

// place in Kubernetes, or the container's id.
func (r *record) where() string {
	switch {
	case r.Pod != "":
		return r.Namespace + "/" + r.Pod + " " + r.ContainerName
	default:
		return clip(r.Container, 12)
	}
}
