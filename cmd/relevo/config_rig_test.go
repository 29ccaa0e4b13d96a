//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

// desk is where tests ask for changes, over a chain's unix socket.
type desk struct{ *adminClient }

func newDesk(address string) desk { return desk{newAdminClient(adminDoor{address: address})} }

// ask asks once. Headers are "Name: value".
func (d desk) ask(t testing.TB, method, path, body string, headers ...string) adminAnswer {
	t.Helper()
	a, err := d.try(t, method, path, body, headers...)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// try is ask where there may be nobody who answers.
func (d desk) try(t testing.TB, method, path, body string, headers ...string) (adminAnswer, error) {
	t.Helper()
	q := question{method: method, path: path, header: map[string]string{}, body: []byte(body)}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		q.header[name] = value
	}
	return d.once(t.Context(), q)
}

// must is ask for what is to succeed.
func (d desk) must(t testing.TB, method, path, body string, headers ...string) adminAnswer {
	t.Helper()
	a := d.ask(t, method, path, body, headers...)
	if a.code != http.StatusOK {
		t.Fatalf("%s %s %.200s gives %d\n%s\nwant 200", method, path, body, a.code, a.body)
	}
	return a
}

// settled waits until changes are taken: when the file has become a revision, if it is to.
func (d desk) settled(t testing.TB) {
	t.Helper()
	d.must(t, http.MethodPatch, configAPI+"?dry_run=true", "{}", "If-Match: *")
}

// document is the whole configuration in force, and the number of its revision.
func (d desk) document(t testing.TB) (*config.Document, uint64) {
	t.Helper()
	a := d.must(t, http.MethodGet, configAPI, "")
	document, err := config.ParseDocument(a.body)
	if err != nil {
		t.Fatalf("the configuration in force cannot be read: %v\n%s", err, a.body)
	}
	n, err := strconv.ParseUint(a.header.Get("X-Revision"), 10, 64)
	if err != nil {
		t.Fatalf("X-Revision: %v", err)
	}
	return document, n
}

// part is what the document has at the path, as JSON, empty for nothing.
func part(d *config.Document, path string) string {
	p, err := d.Get(path)
	if err != nil {
		return ""
	}
	return string(p.JSON())
}

// history is all revisions, the oldest first.
func (d desk) history(t testing.TB) (all []revision.Info) {
	t.Helper()
	for next := uint64(0); ; {
		var page struct {
			Revisions []revision.Info
			Next      uint64
		}
		a := d.must(t, http.MethodGet, fmt.Sprintf("%s?before=%d", revisionsAPI, next), "")
		if err := json.Unmarshal(a.body, &page); err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Revisions {
			all = append([]revision.Info{r}, all...)
		}
		if next = page.Next; next == 0 {
			return all
		}
	}
}

// revision is one of them, whole.
func (d desk) revision(t testing.TB, n uint64) (r revision.Revision) {
	t.Helper()
	a := d.must(t, http.MethodGet, fmt.Sprintf("%s/%d", revisionsAPI, n), "")
	if err := json.Unmarshal(a.body, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// byUs says whether this process made a revision, over a unix socket.
func byUs(a revision.Author) bool {
	return a.Door == revision.DoorUnix && a.PID == os.Getpid() && a.UID != nil && *a.UID == os.Getuid()
}
