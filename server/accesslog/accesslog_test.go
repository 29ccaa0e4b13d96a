package accesslog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counts are the metrics of an access log by name and reason.
func counts(reg *stats.Registry) map[string]float64 {
	out := map[string]float64{}
	for _, s := range reg.Snapshot() {
		words := []string{strings.TrimPrefix(s.Name, "relevo_access_log_")}
		for _, l := range s.Labels {
			words = append(words, l.Value)
		}
		out[strings.Join(words, " ")] = s.Value
	}
	return out
}

// idLog is a log of ids in a file.
func idLog(t *testing.T, c Config) (l *Log, reg *stats.Registry, logged *observer.ObservedLogs) {
	t.Helper()
	c.Format, c.Template = FormatText, "{id}"
	if c.Sample == 0 {
		c.Sample = 1
	}
	core, logged := observer.New(zapcore.DebugLevel)
	reg = stats.NewRegistry()
	l, err := New(c, reg, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	return l, reg, logged
}

// start runs a log until stop, which returns what Run returned.
func start(l *Log) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	return func() error {
		cancel()
		return <-done
	}
}

func TestCheck(t *testing.T) {
	good := Config{Path: "/var/log/relevo/access.log", Format: FormatJSON, Sample: 1, Buffer: 8192}
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"good", func(*Config) {}, ""},
		{"text", func(c *Config) { c.Format = FormatText }, ""},
		{"path", func(c *Config) { c.Path = "access.log" }, `path "access.log" is not`},
		{"format", func(c *Config) { c.Format = "xml" }, `format "xml" is neither`},
		{"field", func(c *Config) { c.Fields = []string{"time", "servic"} }, `there is no field "servic"; there are time, listener`},
		{"field twice", func(c *Config) { c.Fields = []string{"time", "time"} }, "time is there twice"},
		{"template", func(c *Config) { c.Format, c.Template = FormatText, "{" }, "position 1"},
		{"sample 0", func(c *Config) { c.Sample = 0 }, "sample 0 is not above 0"},
		{"sample 2", func(c *Config) { c.Sample = 2 }, "sample 2"},
		{"buffer 0", func(c *Config) { c.Buffer = 0 }, "buffer 0"},
		{"buffer", func(c *Config) { c.Buffer = maxBuffer + 1 }, "buffer 1000001"},
		{"two", func(c *Config) { c.Path, c.Buffer = "", 0 }, "file\nbuffer 0"},
	} {
		config := good
		c.change(&config)
		err := config.Check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestRecordsAreWrittenAndCounted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l, reg, _ := idLog(t, Config{Path: path, Buffer: 1000})
	stop := start(l)
	var want strings.Builder
	for i := range 300 {
		l.Log(stats.Record{ID: uint32(i)})
		fmt.Fprintln(&want, i)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), content(t, path)); diff != "" {
		t.Errorf("the file differs (-want +got):\n%s", diff)
	}
	counted := map[string]float64{
		"records_total": 300, "bytes_total": float64(want.Len()), "dropped_total buffer-full": 0, "dropped_total write-failed": 0,
	}
	if diff := cmp.Diff(counted, counts(reg)); diff != "" {
		t.Errorf("the metrics differ (-want +got):\n%s", diff)
	}
}

// What is more than waits is dropped and counted, and told of once it can be.
func TestFullBufferDrops(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l, reg, logged := idLog(t, Config{Path: path, Buffer: 100})
	for i := range 150 {
		l.Log(stats.Record{ID: uint32(i)})
	}
	if err := start(l)(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(content(t, path), "\n"); n != 100 {
		t.Errorf("%d lines, want 100", n)
	}
	if got := counts(reg); got["records_total"] != 100 || got["dropped_total buffer-full"] != 50 {
		t.Errorf("the metrics are %v, want 100 records, and 50 dropped", got)
	}
	told := logged.FilterField(zap.String("reason", "buffer-full"))
	if told.Len() != 1 || told.All()[0].ContextMap()["records"] != uint64(50) {
		t.Errorf("the log says %v, want once that 50 records are lost", told.All())
	}
}

// Rotation as logrotate does it: each record is in the old file or in the new one, once.
func TestRotationLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	const goroutines, each, rotations = 2, 5000, 5
	l, reg, logged := idLog(t, Config{Path: path, Buffer: goroutines * each})
	stop := start(l)
	var wg sync.WaitGroup
	half := make(chan struct{}, goroutines)
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				l.Log(stats.Record{ID: uint32(g*each + i)})
				if i == each/2 {
					half <- struct{}{}
				}
			}
		})
	}
	<-half
	for i := range rotations {
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
			t.Fatal(err)
		}
		l.Reopen()
		for _, err := os.Stat(path); err != nil; _, err = os.Stat(path) {
			if t.Context().Err() != nil {
				t.Fatal("the file never comes back")
			}
		}
	}
	wg.Wait()
	l.Log(stats.Record{ID: goroutines * each}) // the newest file has one at least
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != rotations+1 {
		t.Fatalf("there are %v, %v; want %d files", files, err, rotations+1)
	}
	for _, file := range files {
		for line := range strings.Lines(content(t, file)) {
			seen[line]++
		}
	}
	for i := range goroutines*each + 1 {
		if n := seen[fmt.Sprintf("%d\n", i)]; n != 1 {
			t.Fatalf("record %d is there %d times, want once", i, n)
		}
	}
	if len(seen) != goroutines*each+1 || counts(reg)["records_total"] != goroutines*each+1 {
		t.Errorf("%d different lines, %v; want %d", len(seen), counts(reg), goroutines*each+1)
	}
	if content(t, path) == "" {
		t.Error("the newest file is empty")
	}
	if n := logged.FilterMessage("access log: opened anew").Len(); n != rotations {
		t.Errorf("the log says %d times that it was opened anew, want %d", n, rotations)
	}
}

func TestReopenIsToldOfWhereItDoesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, _, logged := idLog(t, Config{Path: PathStderr, Buffer: 10})
		stop := start(l)
		l.Reopen()
		synctest.Wait()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if logged.FilterMessageSnippet("it is no file").Len() != 1 {
			t.Errorf("the log says %v", logged.All())
		}
	})
	if _, err := os.Stderr.Stat(); err != nil {
		t.Errorf("the log has closed standard error: %v", err)
	}

	synctest.Test(t, func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "log")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		l, _, logged := idLog(t, Config{Path: filepath.Join(dir, "access.log"), Buffer: 10})
		stop := start(l)
		if err := os.Rename(dir, dir+".old"); err != nil {
			t.Fatal(err)
		}
		l.Reopen()
		synctest.Wait()
		l.Log(stats.Record{ID: 5})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if logged.FilterMessageSnippet("the old file is kept").Len() != 1 {
			t.Errorf("the log says %v", logged.All())
		}
		if got := content(t, filepath.Join(dir+".old", "access.log")); got != "5\n" {
			t.Errorf("the old file is %q", got)
		}
	})
}

func TestFullDiskIsCountedAndToldOfSeldom(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("there is no /dev/full")
	}
	synctest.Test(t, func(t *testing.T) {
		l, reg, logged := idLog(t, Config{Path: "/dev/full", Buffer: 1000})
		stop := start(l)
		for range 12 { // 24 s
			l.Log(stats.Record{ID: 1})
			l.Log(stats.Record{ID: 2})
			time.Sleep(2 * time.Second)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if got := counts(reg); got["dropped_total write-failed"] != 24 || got["records_total"] != 0 || got["bytes_total"] != 0 {
			t.Errorf("the metrics are %v, want 24 records that could not be written", got)
		}
		if n := logged.FilterField(zap.String("reason", "write-failed")).Len(); n != 3 {
			t.Errorf("%d warnings in 24 s, want 3", n)
		}
	})
}

// fakeSink is a sink that notes when it was given how many records, or keeps them waiting.
type fakeSink struct {
	delivered []string // "TIME COUNT"
	began     time.Time
	hold      chan struct{} // deliver waits for its end, if there is one
	slow      time.Duration
	closed    int
	err       error // of close
}

func (f *fakeSink) deliver(batch []stats.Record) (int, int, error) {
	if f.hold != nil {
		<-f.hold
	}
	time.Sleep(f.slow)
	f.delivered = append(f.delivered, fmt.Sprintf("%v %d", time.Since(f.began), len(batch)))
	return len(batch), 0, nil
}

func (f *fakeSink) reopen() (bool, error) { return false, nil }
func (f *fakeSink) close() error          { f.closed++; return f.err }

func fakeLog(t *testing.T, f *fakeSink, buffer int) (*Log, *stats.Registry) {
	l, reg, _ := idLog(t, Config{Path: PathStderr, Buffer: buffer})
	f.began = time.Now()
	l.sink = f
	return l, reg
}

// The first record is written at once; those that come in the time after it together, or when half of the buffer waits.
func TestWriterLingers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSink{}
		l, _ := fakeLog(t, f, 100)
		stop := start(l)
		put := func(n int) {
			for range n {
				l.Log(stats.Record{})
			}
			synctest.Wait()
		}
		synctest.Wait()
		put(1)
		put(10)
		time.Sleep(time.Millisecond)
		put(20)
		time.Sleep(time.Second)
		put(1)
		put(49)
		put(1)
		put(3)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		want := []string{"0s 1", "2ms 30", "1.001s 1", "1.001s 50", "1.001s 3"}
		if diff := cmp.Diff(want, f.delivered); diff != "" {
			t.Errorf("what was written when differs (-want +got):\n%s", diff)
		}
		if f.closed != 1 {
			t.Errorf("the sink was closed %d times, want once", f.closed)
		}
	})
}

func TestEndIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // a write that never returns
		f := &fakeSink{hold: make(chan struct{})}
		l, reg := fakeLog(t, f, 100)
		stop := start(l)
		synctest.Wait()
		for range 200 {
			l.Log(stats.Record{})
			synctest.Wait()
		}
		if got := counts(reg); got["dropped_total buffer-full"] != 99 {
			t.Errorf("the metrics are %v, want all dropped but one in the write and 100 that wait", got)
		}
		began := time.Now()
		err := stop()
		if took := time.Since(began); took > 5*time.Second/2 {
			t.Errorf("ending took %v, want at most 2.5 s", took)
		}
		if err == nil || !strings.Contains(err.Error(), "100 records and more") {
			t.Errorf("ending while the log takes nothing: got %v", err)
		}
		close(f.hold) // so that the goroutine that was left behind ends
	})
	synctest.Test(t, func(t *testing.T) { // one that is slow
		f := &fakeSink{slow: 900 * time.Millisecond}
		l, _ := fakeLog(t, f, 1000)
		for range 5 * chunkRecords {
			l.Log(stats.Record{})
		}
		began := time.Now()
		err := start(l)()
		if took := time.Since(began); took > 5*time.Second/2 {
			t.Errorf("ending took %v", took)
		}
		if err == nil {
			t.Error("ending while the log is slow: no error, want one that says how much is lost")
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if f.closed != 1 || len(f.delivered) > 4 {
			t.Errorf("the sink was closed %d times, and got %v", f.closed, f.delivered)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		f := &fakeSink{err: errors.New("quota")}
		l, _ := fakeLog(t, f, 10)
		if err := start(l)(); !errors.Is(err, f.err) {
			t.Errorf("a sink that cannot be closed: got %v", err)
		}
	})
}

func TestOnlyFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l, reg, _ := idLog(t, Config{Path: path, Buffer: 10, Failed: true})
	if !l.Sample() {
		t.Error("a request is not sampled, and it is seen at its end only whether it fails")
	}
	l.Log(stats.Record{ID: 1, Kind: "request", Status: "SUCCESS"})
	l.Log(stats.Record{ID: 2, Kind: "request", Status: "ERROR"})
	l.Log(stats.Record{ID: 3, Kind: "oneway"})
	l.Log(stats.Record{ID: 4, Kind: "oneway", Reason: "oneway-refused"})
	l.Log(stats.Record{ID: 5, Kind: "request", Status: "NO_PROCESSOR", Reason: "no-route"})
	if err := start(l)(); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "2\n4\n5\n" {
		t.Errorf("the file is %q, want those that failed", got)
	}
	if got := counts(reg); got["records_total"] != 3 || got["dropped_total buffer-full"] != 0 {
		t.Errorf("the metrics are %v; what did not fail is not counted", got)
	}
}

func TestSampleIsAShare(t *testing.T) {
	const n = 200_000
	for share, want := range map[float64][2]int{
		1: {n, n}, 0.5: {98_000, 102_000}, 0.01: {1700, 2300}, 0.0001: {1, 60}, 1e-30: {0, 0},
	} {
		l, _, _ := idLog(t, Config{Path: PathStderr, Buffer: 1, Sample: share})
		got := 0
		for range n {
			if l.Sample() {
				got++
			}
		}
		if got < want[0] || got > want[1] {
			t.Errorf("a share of %v is %d of %d, want from %d to %d", share, got, n, want[0], want[1])
		}
	}
}

func TestLogAllocatesNothing(t *testing.T) {
	l, _, _ := idLog(t, Config{Path: PathStderr, Buffer: 100})
	r := answered()
	for range 100 {
		l.Log(r)
	}
	n := testing.AllocsPerRun(1000, func() {
		l.buffer.give(l.buffer.take())
		for range 40 {
			if l.Sample() {
				l.Log(r)
			}
		}
	})
	if n > 0 {
		t.Errorf("40 records allocate %v times, want 0", n)
	}
}

func TestClientsTextsAreCut(t *testing.T) {
	l, _, _ := idLog(t, Config{Path: PathStderr, Buffer: 10})
	l.Log(stats.Record{Service: strings.Repeat("x", 65000)})
	if n := len(l.buffer.take().records[0].Service); n != stats.MaxText {
		t.Errorf("a service that waits has %d bytes, want %d", n, stats.MaxText)
	}
}

func BenchmarkLog(b *testing.B) {
	l, err := New(Config{Path: "/dev/null", Format: FormatJSON, Sample: 1, Buffer: 8192}, stats.NewRegistry(), zap.NewNop())
	if err != nil {
		b.Fatal(err)
	}
	stop := start(l)
	r := answered()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if l.Sample() {
				l.Log(r)
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(l.full.Value())/float64(b.N), "dropped/op")
	if err := stop(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkEncode(b *testing.B) {
	r := answered()
	for _, format := range []string{FormatJSON, FormatText} {
		b.Run(format, func(b *testing.B) {
			e := newEncoder(&Config{Format: format})
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				buf = e.appendLine(buf[:0], &r)
			}
		})
	}
}
