package report

import (
	"cmp"
	"encoding/json"
	"slices"
)

type findingKey struct {
	input, run int
	id         string
}

// finding is all that was said about one problem.
type finding struct {
	Input    int             `json:"input"`
	ID       string          `json:"id"`
	Kind     string          `json:"kind"`
	Status   string          `json:"status"`
	Severity string          `json:"severity"` // the worst
	Pid      uint32          `json:"pid,omitempty"`
	Comm     string          `json:"comm"`
	Exe      string          `json:"exe,omitempty"`
	Where    string          `json:"where,omitempty"`
	Peak     uint64          `json:"peak"` // count
	Oldest   *float64        `json:"oldest_ms"`
	Message  string          `json:"message"` // the last before it was over
	Advice   string          `json:"advice"`
	Evidence json.RawMessage `json:"evidence,omitempty"`
	Holders  []holder        `json:"holders,omitempty"`
	Steps    []step          `json:"steps"`
	Skipped  int             `json:"skipped,omitempty"` // steps before the last

	key    findingKey
	number int
}

// step is one record of a finding.
type step struct {
	Time   float64  `json:"time"`
	Status string   `json:"status"`
	Count  uint64   `json:"count"`
	Oldest *float64 `json:"oldest_ms"`
}

const maxSteps = 48

// findings is a choice of all: the worst.
type findings struct {
	all    map[findingKey]*finding
	opened uint64 // records with the status open
	number int
}

func (in *Input) finding(r *record) {
	fs := &in.report.findings
	if r.Status == "open" {
		fs.opened++
	}
	in.learnPorts(r)
	k := findingKey{in.number, in.run, r.ID}
	f := fs.all[k]
	if f == nil {
		f = &finding{Input: in.number, ID: r.ID, Kind: r.Kind, key: k, number: fs.number}
		fs.number++
		if len(fs.all) >= maxFindings {
			for _, gone := range fs.sorted()[maxFindings/2:] {
				delete(fs.all, gone.key)
			}
		}
		fs.all[k] = f
	}
	f.take(r)
	for _, h := range r.Holders {
		// Who holds a socket is told anew each time.
		if s := in.open[h.Cookie]; s != nil && h.Cookie != "" {
			s.Holders = nil
		}
	}
	for _, h := range r.Holders {
		if s := in.open[h.Cookie]; s != nil && h.Cookie != "" {
			s.Holders = append(s.Holders, h)
			if s.OwnerSource == "listener" { // it has been accepted since
				s.OwnerSource = "fd"
				s.Pid, s.Comm, s.Where = h.Pid, h.Comm, ""
				in.charge(s, in.processOf(h.Pid, h.Comm), r.at)
			}
		}
	}
}

func (f *finding) take(r *record) {
	f.Status = r.Status
	if severity(r.Severity) > severity(f.Severity) {
		f.Severity = r.Severity
	}
	f.Peak = max(f.Peak, r.Count)
	oldest := r.Oldest
	if r.Status == "resolved" {
		var peak struct {
			Count  uint64   `json:"peak_count"`
			Oldest *float64 `json:"peak_oldest_ms"`
		}
		if json.Unmarshal(r.Evidence, &peak) == nil {
			f.Peak, oldest = max(f.Peak, peak.Count), peak.Oldest
		}
	}
	if oldest != nil && (f.Oldest == nil || *oldest > *f.Oldest) {
		f.Oldest = oldest
	}
	if r.Status != "resolved" || f.Message == "" {
		f.Pid, f.Comm, f.Exe, f.Where = r.Pid, r.Comm, r.Exe, r.where()
		f.Message, f.Advice, f.Evidence, f.Holders = r.Message, r.Advice, slices.Clone(r.Evidence), r.Holders
	}
	if len(f.Steps) == maxSteps { // the first is when it began
		f.Steps = slices.Delete(f.Steps, maxSteps-1, maxSteps)
		f.Skipped++
	}
	f.Steps = append(f.Steps, step{ms(r.at), r.Status, r.Count, r.Oldest})
}

func severity(s string) int { return slices.Index([]string{"info", "warning", "critical"}, s) }

// sorted returns the worst first: what is not over, what fails soon, what is many.
func (fs *findings) sorted() []*finding {
	all := make([]*finding, 0, len(fs.all))
	for _, f := range fs.all {
		all = append(all, f)
	}
	over := func(f *finding) int {
		if f.Status == "resolved" {
			return 1
		}
		return 0
	}
	slices.SortFunc(all, func(x, y *finding) int {
		return cmp.Or(
			cmp.Compare(over(x), over(y)), cmp.Compare(severity(y.Severity), severity(x.Severity)),
			cmp.Compare(y.Peak, x.Peak), cmp.Compare(x.number, y.number),
		)
	})
	return all
}
