package revision

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/server/config"
)

var update = flag.Bool("update", false, "rewrite the transcripts under testdata")

// The newest revision wins unless the file has changed since; step by step, as a process that starts again and again.
func TestDecide(t *testing.T) {
	stores(t, Options{}, func(t *testing.T, s *Store) {
		var transcript strings.Builder
		file := func(text string) File {
			f, err := NewFile([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
		start := func(step, text string, ignore bool) {
			t.Helper()
			d, err := Decide(file(text), s, ignore)
			if err != nil {
				t.Fatalf("%s: %v", step, err)
			}
			if d.Config == nil || d.Newest != newest(t, s).Number {
				t.Errorf("%s: the decision has the configuration %v and expects revision %d", step, d.Config, d.Newest)
			}
			fmt.Fprintf(&transcript, "# %s\n%s\n", step, d.Message)
			if d.FromFile {
				r := add(t, s, d.Newest, d.Next(epoch))
				same(t, newest(t, s), r)
				fmt.Fprintf(&transcript, "revision %d by %v\n%v\n", r.Number, r.Author, d.Undid)
			}
			w, _ := d.Document.Get("clusters/order/endpoints/127.0.0.1:12200/weight")
			fmt.Fprintf(&transcript, "weight %s\n\n", w.JSON())
		}
		edit := func(n int, text string) {
			r := weight(t, n)
			r.FileSHA256 = file(text).SHA256
			add(t, s, newest(t, s).Number, r)
		}
		changed := strings.Replace(valid, "weight: 5", "weight: 6", 1) + "log: {level: warn}\n"
		start("there is no revision", valid, false)
		start("nothing has changed", valid, false)
		edit(7, valid)
		start("an edit, and the file is as it was", valid, false)
		start("an edit, and the file is asked for", valid, true)
		edit(8, valid)
		start("an edit, and the file has changed since", changed, false)
		start("nothing has changed since", changed, false)
		start("the file has changed by a comment", changed+"# one\n", false)
		start("the file has changed back", valid, false)
		start("and was edited behind a file's revision", valid+"stop_timeout: 5s\nmax_timeout: 1m\nmax_buffered: 1GiB\nworkers: {max: 7}\nupgrade: {ready_timeout: 1m}\nlog: {level: warn}\n", false)

		const path = "testdata/decide.txt"
		if *update {
			if err := os.WriteFile(path, []byte(transcript.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), transcript.String()); diff != "" {
			t.Errorf("the decisions are not those of %s (-want +got):\n%s", path, diff)
		}
	})
}

func TestDecideRefuses(t *testing.T) {
	stores(t, Options{}, func(t *testing.T, s *Store) {
		f, err := NewFile([]byte(valid))
		if err != nil {
			t.Fatal(err)
		}
		r := weight(t, 1)
		r.Document, r.FileSHA256 = document(t, valid+"colour: red\n"), f.SHA256
		add(t, s, 0, r)
		_, err = Decide(f, s, false)
		faults, ok := errors.AsType[*config.Errors](err)
		if !ok || !strings.HasSuffix(err.Error(), "ignore the revisions:\nrevision 1: colour: there is no such field") || len(faults.Faults) != 1 {
			t.Errorf("a revision that is not valid gives %v", err)
		}
		d, err := Decide(f, s, true)
		if err != nil || !d.FromFile || d.Undid.String() != `- colour: "red"` {
			t.Errorf("starting from the file instead gives %+v, %v", d, err)
		}
		if f, err = NewFile([]byte(valid + "color: red\n")); err != nil {
			t.Fatal(err)
		}
		if _, err = Decide(f, s, false); err == nil || err.Error() != "color: there is no such field" {
			t.Errorf("a file that is not valid gives %v", err)
		}
	})
	if _, err := NewFile([]byte("{")); err == nil {
		t.Error("a file that cannot be read is read")
	}
}
