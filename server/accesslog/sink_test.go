package accesslog

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/systemd"
)

// numbered are records of the ids from one number up to another, it left out.
func numbered(from, to int) []stats.Record {
	var out []stats.Record
	for i := from; i < to; i++ {
		out = append(out, stats.Record{ID: uint32(i)})
	}
	return out
}

func idStream(t *testing.T, path string) *stream {
	t.Helper()
	s := &stream{encoder: encoderOf(t, Config{Format: FormatText, Template: "{id}"}), path: path, piece: filePiece}
	if err := s.open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.close() })
	return s
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestFileIsAppendedTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	for range 2 {
		s := idStream(t, path)
		if n, bytes, err := s.deliver(numbered(1, 4)); n != 3 || bytes != 6 || err != nil {
			t.Fatalf("wrote %d records of %d bytes, %v; want 3 of 6", n, bytes, err)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := content(t, path); got != "1\n2\n3\n1\n2\n3\n" {
		t.Errorf("the file is %q", got)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode&0o137 != 0 || mode&0o600 != 0o600 {
		t.Errorf("a new file has the permissions %v, want %o less the umask", mode, fileMode)
	}
}

func TestWhatCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	read, err := os.OpenFile(pipe, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	for path, want := range map[string]error{
		filepath.Join(dir, "missing", "access.log"): fs.ErrNotExist,
		dir:  syscall.EISDIR,
		pipe: nil, // only the text tells
	} {
		_, err := New(Config{Path: path, Format: FormatJSON, Sample: 1, Buffer: 1}, stats.NewRegistry(), nil)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("opening %s: got %v, want %v", path, err, want)
		} else if !strings.HasPrefix(err.Error(), "access log: ") || !strings.Contains(err.Error(), path) {
			t.Errorf("opening %s: the error does not name it: %v", path, err)
		}
	}
	// Nobody reads from it: an open that waits would wait for ever.
	_ = read.Close()
	if _, err := New(Config{Path: pipe, Format: FormatJSON, Sample: 1, Buffer: 1}, stats.NewRegistry(), nil); err == nil {
		t.Error("a pipe that nobody reads from is opened")
	}
}

// Pieces are whole lines, whatever their length.
func TestPiecesAreWholeLines(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	s := &stream{encoder: encoderOf(t, Config{Format: FormatText, Template: "{service}"}), file: w, piece: 10}
	var batch []stats.Record
	var want strings.Builder
	for i := range 30 {
		service := strings.Repeat(string(rune('a'+i%26)), i)
		batch = append(batch, stats.Record{Service: service})
		if service == "" {
			service = "-"
		}
		want.WriteString(service + "\n")
	}
	if n, bytes, err := s.deliver(batch); n != 30 || bytes != want.Len() || err != nil {
		t.Fatalf("wrote %d records of %d bytes, %v; want 30 of %d", n, bytes, err, want.Len())
	}
	buf := make([]byte, 2*want.Len())
	n, err := r.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(buf[:n]); got != want.String() {
		t.Errorf("got %q, want %q", got, want.String())
	}
}

// A line of which a part was written is ended before the next, in the same file and only there.
func TestLineBehindATornOneIsFresh(t *testing.T) {
	for _, rotated := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "access.log")
		s := idStream(t, path)
		tear(t, s)
		if rotated {
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
		}
		if ok, err := s.reopen(); !ok || err != nil {
			t.Fatalf("opening anew: %v, %v", ok, err)
		}
		if n, _, err := s.deliver(numbered(1, 3)); n != 2 || err != nil {
			t.Fatalf("wrote %d records, %v; want 2", n, err)
		}
		want := "\n1\n2\n"
		if rotated {
			want = "1\n2\n"
		}
		if got := content(t, path); got != want {
			t.Errorf("rotated is %v: the file is %q, want %q", rotated, got, want)
		}
		if n, bytes, err := s.deliver(numbered(3, 4)); n != 1 || bytes != 2 || err != nil {
			t.Errorf("the line after is %d records of %d bytes, %v; want 1 of 2", n, bytes, err)
		}
	}
}

// tear has a write end in the middle of a line: a pipe takes a part of it, then its reader goes away.
func tear(t *testing.T, s *stream) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	file, encoder := s.file, s.encoder
	s.file, s.encoder = w, encoderOf(t, Config{Format: FormatText, Template: "{service}"})
	go func() { // ends with the pipe
		_, _ = io.CopyN(io.Discard, r, 4096)
		_ = r.Close()
	}()
	batch := []stats.Record{{Service: "short"}, {Service: strings.Repeat("x", 1<<20)}, {Service: "lost"}}
	records, bytes, err := s.deliver(batch)
	if !errors.Is(err, syscall.EPIPE) || records != 1 || bytes <= 6 {
		t.Fatalf("writing to a pipe that breaks: %d records of %d bytes, %v; want 1 and a part", records, bytes, err)
	}
	s.file, s.encoder = file, encoder
}

func TestFileIsKeptIfItCannotBeOpenedAnew(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s := idStream(t, filepath.Join(dir, "access.log"))
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.reopen(); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("opening anew in a folder that is gone: got %v", err)
	}
	if _, _, err := s.deliver(numbered(1, 2)); err != nil {
		t.Fatal(err)
	}
	if got := content(t, filepath.Join(dir+".old", "access.log")); got != "1\n" {
		t.Errorf("the old file is %q, want the record", got)
	}
}

func TestJournalEntries(t *testing.T) {
	type entry struct {
		Message string
		Vars    map[string]string
	}
	var got []entry
	var broken error
	send := func(message string, p systemd.Priority, vars map[string]string) error {
		if broken != nil && len(got) == 2 {
			return broken
		}
		if p != systemd.Info {
			t.Errorf("the priority is %v, want info", p)
		}
		got = append(got, entry{message, maps.Clone(vars)})
		return nil
	}
	s := newJournalSink(encoderOf(t, Config{Format: FormatText, Template: "{service} {status}"}), systemd.NewJournal(send))
	first, second := answered(), refused()
	records, bytes, err := s.deliver([]stats.Record{first, second})
	if records != 2 || err != nil {
		t.Fatalf("sent %d entries, %v; want 2", records, err)
	}
	want := []entry{
		{"com.example.Order:1.0 SUCCESS", map[string]string{
			"SYSLOG_IDENTIFIER": "relevo", "RELEVO_TIME": "2026-03-04T04:06:07.008009Z", "RELEVO_LISTENER": "client",
			"RELEVO_CLIENT": "127.0.0.1:40000", "RELEVO_PROTOCOL": "bolt", "RELEVO_KIND": "request",
			"RELEVO_SERVICE": "com.example.Order:1.0", "RELEVO_METHOD": "create", "RELEVO_TRACE": "0a0fe8cc17", "RELEVO_RPC": "0.1",
			"RELEVO_ID": "7", "RELEVO_UPSTREAM_ID": "4000000000", "RELEVO_ROUTE": "rpc/orders", "RELEVO_CLUSTER": "order",
			"RELEVO_ENDPOINT": "127.0.0.1:12200", "RELEVO_ATTEMPTS": "2", "RELEVO_STATUS": "SUCCESS", "RELEVO_REQUEST_BYTES": "512",
			"RELEVO_REPLY_BYTES": "1024", "RELEVO_WAIT": "0.00025", "RELEVO_SERVER": "1.5", "RELEVO_TOTAL": "1.500250001",
		}},
		{`"a \"b\"\n{c}" NO_PROCESSOR`, map[string]string{
			"SYSLOG_IDENTIFIER": "relevo", "RELEVO_TIME": "1970-01-01T00:00:00.000000Z", "RELEVO_LISTENER": "client",
			"RELEVO_CLIENT": "unix socket", "RELEVO_PROTOCOL": "bolt", "RELEVO_KIND": "request", "RELEVO_SERVICE": "a \"b\"\n{c}",
			"RELEVO_ID": "0", "RELEVO_ATTEMPTS": "0", "RELEVO_STATUS": "NO_PROCESSOR", "RELEVO_REASON": "no-route",
			"RELEVO_REQUEST_BYTES": "60", "RELEVO_WAIT": "0", "RELEVO_TOTAL": "0",
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the entries differ (-want +got):\n%s", diff)
	}
	if length := len(want[0].Message) + len(want[1].Message); bytes != length {
		t.Errorf("counted %d bytes, want those of the lines, %d", bytes, length)
	}

	got, broken = nil, syscall.ECONNREFUSED
	if records, _, err := s.deliver([]stats.Record{first, second, first, second}); records != 2 || !errors.Is(err, broken) {
		t.Errorf("a journal that goes away after 2 entries: %d records, %v; want 2 and the error", records, err)
	}

	got, broken = nil, nil
	chosen := newJournalSink(encoderOf(t, Config{Format: FormatJSON, Fields: []string{"id", "reason"}}), systemd.NewJournal(send))
	if _, _, err := chosen.deliver([]stats.Record{first}); err != nil {
		t.Fatal(err)
	}
	want = []entry{{`{"id":7}`, map[string]string{"SYSLOG_IDENTIFIER": "relevo", "RELEVO_ID": "7"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the entry of chosen fields differs (-want +got):\n%s", diff)
	}
}

func TestNoJournal(t *testing.T) {
	l, err := New(Config{Path: PathJournal, Format: FormatJSON, Sample: 1, Buffer: 1}, stats.NewRegistry(), nil)
	if _, ok := systemd.OpenJournal(); ok {
		if err != nil {
			t.Fatalf("opening the journal: %v", err)
		}
		_ = l.Close()
		t.Skip("there is a journal here")
	}
	if err == nil || !strings.Contains(err.Error(), "no journal") {
		t.Errorf("opening a journal that is not there: got %v", err)
	}
}
