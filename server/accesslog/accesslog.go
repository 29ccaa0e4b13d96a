// Package accesslog writes records of exchanges to a file, to standard error or to the journal.
//
// It is the writing side: what a record says, and which exchanges become one, is the road's business. The road never
// waits for it: [Log.Log] puts a record into a bounded buffer or counts it as dropped, and the goroutine of [Log.Run],
// which its starter waits for, writes in batches what is there. The package reads no signals; who does calls [Log.Reopen].
package accesslog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// The paths that are no file.
const (
	PathStderr  = "stderr"
	PathJournal = "journal"
)

// The formats.
const (
	FormatJSON = "json"
	FormatText = "text"
)

// maxBuffer is the most that Config.Buffer can be.
const maxBuffer = 1_000_000

// Config says what is written, and where.
type Config struct {
	Path     string   // PathStderr, PathJournal, or the absolute path of a file
	Format   string   // FormatJSON or FormatText
	Fields   []string // of a JSON record, in this order; none means all, see Fields
	Template string   // of a text record; "" means DefaultTemplate
	Sample   float64  // share of the exchanges that are recorded: above 0, up to 1
	Failed   bool     // record only those that failed, see stats.Record.Failed
	Buffer   int      // records that wait to be written, 1 to 1,000,000
}

// Check says what is wrong with the configuration, all of it.
func (c *Config) Check() error {
	var errs []error
	if c.Path != PathStderr && c.Path != PathJournal && !filepath.IsAbs(c.Path) {
		errs = append(errs, fmt.Errorf("path %q is not stderr, journal or the absolute path of a file", c.Path))
	}
	switch c.Format {
	case FormatJSON:
		errs = append(errs, checkFields(c.Fields))
	case FormatText:
		if c.Template != "" {
			errs = append(errs, CheckTemplate(c.Template))
		}
	default:
		errs = append(errs, fmt.Errorf("format %q is neither json nor text", c.Format))
	}
	if !(c.Sample > 0 && c.Sample <= 1) {
		errs = append(errs, fmt.Errorf("sample %v is not above 0 and up to 1", c.Sample))
	}
	if c.Buffer < 1 || c.Buffer > maxBuffer {
		errs = append(errs, fmt.Errorf("buffer %d is not from 1 to %d", c.Buffer, maxBuffer))
	}
	return errors.Join(errs...)
}

func checkFields(names []string) error {
	for i, name := range names {
		if _, ok := fieldNamed(name); !ok {
			return fmt.Errorf("there is no field %q; there are %s", name, strings.Join(Fields(), ", "))
		}
		if slices.Contains(names[:i], name) {
			return fmt.Errorf("the field %s is there twice", name)
		}
	}
	return nil
}

// Log is an access log. It implements forwarder.AccessLog.
type Log struct {
	// Static after New.
	path   string
	log    *zap.Logger
	share  uint64 // of all 64-bit numbers, those below it are sampled; 0 means all
	failed bool
	buffer *buffer
	opened time.Time
	rotate chan struct{} // holds one; never closed

	records, bytes, full, broken *stats.Counter

	// Owned by Run.
	sink     sink
	throttle *stats.Throttle[string]
	told     uint64 // of full, what has been warned of
}

// Why records are dropped: values of a metric's label.
const (
	dropFull   = "buffer-full"  // more waited than the buffer has places
	dropBroken = "write-failed" // the sink refused them
)

// warnInterval is how often a lasting trouble is told of.
const warnInterval = 10 * time.Second

// New opens the log; what it opened is closed at the end of Run, or by Close. The error is that of Check, or the
// operating system's, wrapped with the path.
func New(c Config, reg *stats.Registry, log *zap.Logger) (*Log, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	s, err := open(&c)
	if err != nil {
		return nil, err
	}
	l := &Log{
		path: c.Path, log: log, failed: c.Failed, buffer: newBuffer(c.Buffer),
		opened: time.Now(), rotate: make(chan struct{}, 1), sink: s,
		throttle: stats.NewThrottle[string](warnInterval, 2),
		records:  reg.Counter("relevo_access_log_records_total", "Records written to the access log."),
		bytes:    reg.Counter("relevo_access_log_bytes_total", "Bytes written to the access log."),
		full:     droppedCounter(reg, dropFull),
		broken:   droppedCounter(reg, dropBroken),
	}
	if c.Sample < 1 {
		l.share = max(1, uint64(c.Sample*(1<<64)))
	}
	return l, nil
}

func droppedCounter(reg *stats.Registry, reason string) *stats.Counter {
	return reg.Counter("relevo_access_log_dropped_total", "Records that the access log lost.", stats.Label{Name: "reason", Value: reason})
}

// Sample says whether the exchange that begins now is to be recorded. It takes no lock. With Config.Failed too it takes
// the share of all exchanges: which of them fail is seen at their end.
func (l *Log) Sample() bool { return l.share == 0 || rand.Uint64() < l.share }

// Log takes the record of an exchange that has ended. It never waits: what finds the buffer full is dropped and counted.
// It may be called by any number of goroutines.
func (l *Log) Log(r stats.Record) {
	if l.failed && !r.Failed() {
		return
	}
	r.Clip()
	if !l.buffer.put(&r) {
		l.full.Add(1)
	}
}

// Reopen lets the file be opened anew, for whoever has renamed it: what comes from now on is written to the new one. It
// does not wait for that. If it cannot be opened, which is logged, the old one is kept.
func (l *Log) Reopen() {
	select {
	case l.rotate <- struct{}{}:
	default: // asked already, and not done yet
	}
}

// Close closes a log that is never run.
func (l *Log) Close() error { return l.sink.close() }
