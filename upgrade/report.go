package upgrade

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// ReportFile is the name of the report in runtime_dir.
const ReportFile = "upgrade.json"

// Outcome is how an upgrade ended.
type Outcome string

// The outcomes. They are labels of a metric, too.
const (
	Running    Outcome = "running"     // it has not ended
	Done       Outcome = "done"        // the new process owns the state, and nothing was lost
	Refused    Outcome = "refused"     // it was not begun
	RolledBack Outcome = "rolled-back" // it was undone, and nothing was lost
	Failed     Outcome = "failed"      // the new process died with the state in its hands
	Orphaned   Outcome = "orphaned"    // the old process died in the middle: the new one has its listeners and nothing else
)

// Final reports whether nothing more comes.
func (o Outcome) Final() bool { return o != Running && o != "" }

// Report is what there is to tell of one upgrade. The process that owns the state tells it.
type Report struct {
	ID          uint64             `json:"id"` // counted from 1 along the chain of generations
	Outcome     Outcome            `json:"outcome"`
	Step        string             `json:"step,omitempty"` // where it is, or where it went wrong
	Reason      string             `json:"reason,omitempty"`
	Generation  uint64             `json:"generation"` // of the process that owns the state, counted from 1
	From        int                `json:"from"`       // pids
	To          int                `json:"to,omitempty"`
	ReleaseFrom string             `json:"release_from"`
	ReleaseTo   string             `json:"release_to,omitempty"`
	Started     time.Time          `json:"started"`
	Steps       map[string]float64 `json:"steps"` // seconds
	Pause       float64            `json:"pause"` // seconds from the beginning of the barrier to the last gate that opens again
	Pauses      []Bucket           `json:"pauses,omitempty"`
	Carried     Carried            `json:"carried"`
	Left        []string           `json:"left,omitempty"`   // what was not carried, and why
	Oldest      []string           `json:"oldest,omitempty"` // streams, when the barrier did not come to rest
}

// Bucket is one of a histogram: so many connections paused for at most so many seconds, and for more than the one before.
type Bucket struct {
	LE    float64 `json:"le"`
	Count uint64  `json:"count"`
}

// Carried is how much of everything went over.
type Carried struct {
	Downstreams uint64 `json:"downstreams"`
	Upstreams   uint64 `json:"upstreams"`
	Streams     uint64 `json:"streams"`
	Requests    uint64 `json:"requests"`
	Replies     uint64 `json:"replies"`
	Uploads     uint64 `json:"uploads"`
	Bytes       uint64 `json:"bytes"`
}

func carried(c handoff.Counts) Carried {
	return Carried{
		Downstreams: c.Downstreams, Upstreams: c.Upstreams, Streams: c.Streams, Requests: c.Requests,
		Replies: c.Replies, Uploads: c.Uploads, Bytes: c.Bytes,
	}
}

func (r Report) clone() Report {
	if r.Steps = maps.Clone(r.Steps); r.Steps == nil {
		r.Steps = make(map[string]float64) // never null
	}
	r.Pauses, r.Left, r.Oldest = slices.Clone(r.Pauses), slices.Clone(r.Left), slices.Clone(r.Oldest)
	return r
}

// legacy is what the old process has put into the report, and what the new one needs for the rest.
type legacy struct {
	Report  Report   `json:"report"`
	Barrier int64    `json:"barrier"`        // CLOCK_MONOTONIC
	Past    []Report `json:"past,omitempty"` // of the upgrades before, the newest first
}

// encode writes it within maxReport: what is too much of the past is forgotten.
func (l *legacy) encode() ([]byte, error) {
	for {
		data, err := json.Marshal(l)
		if err != nil || len(data) <= maxReport || len(l.Past) == 0 {
			return data, err
		}
		l.Past = l.Past[:len(l.Past)/2]
	}
}

// What a report may grow to.
const (
	maxReports = 16
	maxReport  = 1 << 20
	maxReason  = 4 << 10
	maxLines   = 100
	maxLine    = 512
)

// bound cuts what others have put into the report.
func (r *Report) bound() {
	r.Reason = cut(r.Reason, maxReason)
	r.Left, r.Oldest = cutLines(r.Left), cutLines(r.Oldest)
	r.Pauses = r.Pauses[:min(len(r.Pauses), maxLines)]
}

func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	return s[:limit] + " ..."
}

func cutLines(lines []string) []string {
	more := len(lines) - maxLines
	lines = append([]string(nil), lines[:min(len(lines), maxLines)]...)
	for i := range lines {
		lines[i] = cut(lines[i], maxLine)
	}
	if more > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", more))
	}
	return lines
}

// ReadReport reads the last report of whoever runs with this runtime_dir. It is the zero report if there is none.
func ReadReport(dir string) (Report, error) {
	var r Report
	data, err := readSmall(filepath.Join(dir, ReportFile), maxReport)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("reading the report: %w", err)
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return Report{}, fmt.Errorf("reading the report %s: %w", filepath.Join(dir, ReportFile), err)
	}
	return r, nil
}

func writeReport(dir string, r Report) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	if err := replaceFile(filepath.Join(dir, ReportFile), append(data, '\n')); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}

func readSmall(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is longer than %d bytes", name, limit)
	}
	return data, err
}

// roomForReports is enough for reports of the usual size and for the pid file, while they are replaced.
const roomForReports = 16 << 10

// Writable says why nothing can be written to runtime_dir, as on a full disk. nil: it can, and there is room.
func Writable(dir string) error {
	name := filepath.Join(dir, fmt.Sprintf(".room.%d", os.Getpid()))
	err := replaceFile(name, make([]byte, roomForReports))
	if err == nil {
		err = os.Remove(name)
	}
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err // whose name says nothing
	}
	if err != nil {
		return fmt.Errorf("runtime_dir, %s, cannot be written: %w", dir, err)
	}
	return nil
}

// replaceFile writes a file so that readers see the old content or the new one.
func replaceFile(name string, data []byte) (err error) {
	dir, base := filepath.Split(name)
	f, err := os.CreateTemp(dir, "."+base+".") // two generations may write at once
	if err != nil {
		return err
	}
	temp := f.Name()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(temp, name)
	}
	if err != nil {
		_ = os.Remove(temp) // the first error is the one to tell
	}
	return err
}
