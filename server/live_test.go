package server_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/config"
	"github.com/relevo-proxy/relevo/server/revision"
)

// liveText is a configuration whose door is a unix socket in the folder %[1]s.
const liveText = `
listeners: [{name: in, address: "127.0.0.1:0", protocol: bolt}]
routes: [{name: rpc, rules: [{name: all, cluster: echo}]}]
clusters: [{name: echo, protocol: bolt, endpoints: [{address: "127.0.0.1:1", weight: 10}]}]
admin: {address: "unix:%[1]s/a.sock"}
state_dir: %[1]s
`

// liveDoor is a server whose configuration can be changed, and a client of its door.
type liveDoor struct {
	folder, file string
	server       *server.Server
	stop         func() error
	client       *http.Client
	level        zap.AtomicLevel
}

// openDoor runs a server from a file in this folder, as a fresh process does.
func openDoor(t *testing.T, folder, text string) *liveDoor {
	t.Helper()
	return openDoorWith(t, folder, text, zaptest.NewLogger(t))
}

func openDoorWith(t *testing.T, folder, text string, log *zap.Logger) *liveDoor {
	t.Helper()
	d := &liveDoor{folder: folder, file: filepath.Join(folder, "relevo.yaml"), level: zap.NewAtomicLevel()}
	if err := os.WriteFile(d.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	origin, err := server.OpenOrigin(d.file, []byte(text), false)
	if err != nil {
		t.Fatal(err)
	}
	d.server, d.stop = runOptions(t, server.Options{Config: origin.Config(), Origin: origin, Log: log, Level: &d.level})
	d.client = clientAt(t, d.server.AdminAddress())
	d.server.HoldForTest(t.Context())() // the turn is there when the file has become a revision
	return d
}

func newDoor(t *testing.T) *liveDoor {
	t.Helper()
	folder := t.TempDir()
	return openDoor(t, folder, fmt.Sprintf(liveText, folder))
}

// reply is an answer of the door.
type reply struct {
	code   int
	header http.Header
	body   string
}

// ask asks the door; headers are "Name: value".
func (d *liveDoor) ask(t *testing.T, method, path, body string, headers ...string) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	return send(t, d.client, r)
}

func send(t *testing.T, c *http.Client, r *http.Request) reply {
	t.Helper()
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(text)}
}

// match is the header for a change of what is at the path now.
func (d *liveDoor) match(t *testing.T, path string) string {
	t.Helper()
	return "If-Match: " + d.ask(t, "GET", path, "").header.Get("ETag")
}

// weight is what the road has for the first endpoint.
func (d *liveDoor) weight() int { return d.server.Status().Clusters[0].Endpoints[0].Weight }

const (
	clusterAPI  = "/v1/config/clusters/echo"
	endpointAPI = clusterAPI + "/endpoints/127.0.0.1:1"
)

func TestDoorRefuses(t *testing.T) {
	d := newDoor(t)
	for _, tc := range []struct {
		name, method, path, body string
		headers                  []string
		code                     int
		has                      string // in the answer
	}{
		{"no condition", "PUT", endpointAPI + "/weight", "5", nil, 428, "If-Match"},
		{"stale", "PUT", endpointAPI + "/weight", "5", []string{`If-Match: "0"`}, 412, `"current":10`},
		{"weak", "PUT", endpointAPI + "/weight", "5", []string{"If-Match: W/" + strings.TrimPrefix(d.match(t, endpointAPI+"/weight"), "If-Match: ")}, 412, `"current":10`},
		{"there already", "PUT", endpointAPI + "/weight", "5", []string{"If-None-Match: *"}, 412, `"current":10`},
		{"not there", "PUT", clusterAPI + "/max_age", "5h", []string{"If-Match: *"}, 412, "there is nothing"},
		{"invalid", "PUT", endpointAPI + "/weight", "5000", []string{"If-Match: *"}, 422, `"pointer":"/clusters/0/endpoints/0/weight"`},
		{"all that is invalid", "PATCH", clusterAPI, `{"balancer":"x","max_age":"y"}`, []string{"If-Match: *"}, 422, `"pointer":"/clusters/0/max_age"`},
		{"no YAML", "PUT", endpointAPI, "{", []string{"If-Match: *"}, 422, `"errors"`},
		{"another address", "PUT", endpointAPI, "address: 127.0.0.1:2", []string{"If-Match: *"}, 422, "must be that of the path"},
		{"only the file's", "PUT", "/v1/config/state_dir", "/tmp", []string{"If-Match: *"}, 422, `"pointer":"/state_dir"`},
		{"no such part", "GET", "/v1/config/clusters/x", "", nil, 404, "clusters/x"},
		{"no such field", "GET", "/v1/config/colour", "", nil, 404, "colour"},
		{"no such part to delete", "DELETE", "/v1/config/clusters/x", "", []string{"If-Match: *"}, 412, "there is nothing"},
		{"a slash too many", "GET", "/v1/config/", "", nil, 404, "nothing"},
		{"malformed", "GET", "/v1/config/clusters//echo", "", nil, 400, "clusters"},
		{"a change by GET", "POST", clusterAPI, "{}", []string{"If-Match: *"}, 405, "PATCH"},
		{"all deleted", "DELETE", "/v1/config", "", []string{"If-Match: *"}, 405, "GET"},
		{"another type", "PUT", endpointAPI + "/weight", "5", []string{"If-Match: *", "Content-Type: text/html"}, 415, "application/yaml"},
		{"a long comment", "PUT", endpointAPI + "/weight", "5", []string{"If-Match: *", "X-Comment: " + strings.Repeat("x", 1025)}, 400, "1024"},
		{"a comment that is no text", "PUT", endpointAPI + "/weight", "5", []string{"If-Match: *", "X-Comment: \xff"}, 400, "UTF-8"},
		{"too large", "PUT", "/v1/config", strings.Repeat(" ", 16<<20+1), []string{"If-Match: *", "Expect: 100-continue"}, 413, "16777216"},
		{"no such revision", "GET", "/v1/revisions/77", "", nil, 404, "no such revision"},
		{"no number", "GET", "/v1/revisions/x", "", nil, 400, "number"},
		{"restore nothing", "POST", "/v1/revisions/77/restore", "", []string{"If-Match: *"}, 404, "no such revision"},
		{"restore blindly", "POST", "/v1/revisions/1/restore", "", nil, 428, "If-Match"},
		{"a dry run that is mistyped", "PUT", endpointAPI + "/weight?dry-run=true", "5", []string{"If-Match: *"}, 400, "there is: dry_run"},
		{"a dry run that is malformed", "DELETE", endpointAPI + "?dry_run=true;", "", []string{"If-Match: *"}, 400, "semicolon"},
		{"restore for a dry run that is mistyped", "POST", "/v1/revisions/1/restore?dryrun=true", "", []string{"If-Match: *"}, 400, "dryrun"},
		{"drain likewise", "PATCH", "/v1/clusters/echo/endpoints/127.0.0.1:1?dry-run", `{"drain": true}`, nil, 400, "dry-run"},
		{"close likewise", "DELETE", "/v1/connections/1?nwo=true", "", nil, 400, "there is: now"},
		{"upgrade likewise", "POST", "/v1/upgrade?binary=/bin/true", "", nil, 400, "binary"},
		{"no upgrade of a server alone", "POST", "/v1/upgrade", "", nil, 409, "not upgraded"},
	} {
		got := d.ask(t, tc.method, tc.path, tc.body, tc.headers...)
		if kind := got.header.Get("Content-Type"); got.code != tc.code || kind != "application/problem+json" || !strings.Contains(got.body, tc.has) {
			t.Errorf("%s: %s %s gives %d, %s\n%.300s\nwant %d, application/problem+json, with %q", tc.name, tc.method, tc.path, got.code, kind, got.body, tc.code, tc.has)
		}
	}
	if got := d.ask(t, "GET", "/v1/revisions", ""); strings.Count(got.body, `"number"`) != 1 {
		t.Errorf("after nothing but refusals the revisions are\n%s\nwant one", got.body)
	}
}

// A door that is to have more addresses at its port gets them at the next start: the port is this process's own.
func TestDoorWidens(t *testing.T) {
	folder := t.TempDir()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(free.Addr().String())
	free.Close()
	d := openDoor(t, folder, fmt.Sprintf(liveText, folder)+"metrics: {address: '127.0.0.1:"+port+"'}\n")
	for _, address := range []string{":" + port, "127.0.0.1:" + port} {
		if got := d.ask(t, "PUT", "/v1/config/metrics/address", fmt.Sprintf("%q", address), "If-Match: *"); got.code != 200 {
			t.Errorf("%s in place of 127.0.0.1:%s gives %d: %s", address, port, got.code, got.body)
		}
	}
}

func TestDoorChanges(t *testing.T) {
	d := newDoor(t)
	before := d.ask(t, "GET", "/v1/config", "")
	dry := d.ask(t, "PATCH", clusterAPI+"?dry_run=true", `{"endpoints": [{"address": "127.0.0.1:2"}]}`, d.match(t, clusterAPI), "Content-Type: application/merge-patch+json")
	for _, has := range []string{
		`"dry_run": true`, `"path": "clusters/echo/endpoints/127.0.0.1:1"`, `"op": "removed"`, `"endpoints_draining": 1`, `"server_connections_dialled": 1`,
	} {
		if dry.code != 200 || !strings.Contains(dry.body, has) {
			t.Errorf("a dry run gives %d and\n%s\nwant 200 and %s", dry.code, dry.body, has)
		}
	}
	twice := d.ask(t, "PUT", endpointAPI+"/weight?dry_run=false&dry_run=true", "5", "If-Match: *")
	if twice.code != 200 || !strings.Contains(twice.body, `"dry_run": true`) {
		t.Errorf("both a dry run and none gives %d and\n%s\nwant 200 and a dry run", twice.code, twice.body)
	}
	if after := d.ask(t, "GET", "/v1/config", ""); after.body != before.body || after.header.Get("ETag") != before.header.Get("ETag") || d.weight() != 10 {
		t.Errorf("a dry run has changed the configuration, to\n%s", after.body)
	}

	step := func(what string, got reply, code int, weight int) {
		t.Helper()
		if got.code != code || d.weight() != weight {
			t.Fatalf("%s gives %d, and the road has the weight %d; want %d and %d\n%s", what, got.code, d.weight(), code, weight, got.body)
		}
	}
	put := d.ask(t, "PUT", endpointAPI+"/weight", "20", d.match(t, endpointAPI+"/weight"), "X-Comment: first")
	step("PUT", put, 200, 20)
	if now := d.ask(t, "GET", endpointAPI+"/weight", ""); now.header.Get("ETag") != put.header.Get("ETag") || now.body != "20\n" {
		t.Errorf("the ETag behind PUT is %s, and that of GET %s, with %q", put.header.Get("ETag"), now.header.Get("ETag"), now.body)
	}
	step("PUT of YAML", d.ask(t, "PUT", endpointAPI, "weight: 30\n", d.match(t, endpointAPI), "Content-Type: application/yaml"), 200, 30)
	step("PATCH", d.ask(t, "PATCH", endpointAPI, `{"weight": 40}`, d.match(t, endpointAPI), "Content-Type: application/merge-patch+json"), 200, 40)
	step("PUT of what is not there", d.ask(t, "PUT", clusterAPI+"/endpoints/unix:%2Ftmp%2Fx", "{}", "If-None-Match: *"), 200, 40)
	step("DELETE", d.ask(t, "DELETE", clusterAPI+"/endpoints/unix:%2Ftmp%2Fx", "", "If-Match: *"), 200, 40)
	step("the same again", d.ask(t, "PUT", endpointAPI+"/weight", "40", "If-Match: *"), 200, 40)
	later := d.ask(t, "PATCH", "/v1/config", `{"workers": {"max": 3}}`, d.match(t, "/v1/config"))
	step("PATCH of what takes an upgrade", later, 200, 40)
	if !strings.Contains(later.body, `"/workers"`) {
		t.Errorf("a change of workers gives\n%s\nwant needs_upgrade to have /workers", later.body)
	}
	if got := d.ask(t, "GET", endpointAPI, "", "Accept: application/yaml"); got.body != "address: 127.0.0.1:1\nweight: 40\n" || got.header.Get("Content-Type") != "application/yaml" {
		t.Errorf("GET of YAML gives %s\n%s", got.header.Get("Content-Type"), got.body)
	}
	if got := d.ask(t, "GET", clusterAPI+"/balancer?effective=true", ""); got.body != "\"least-request\"\n" {
		t.Errorf("the balancer is %q, want the default", got.body)
	}

	var list struct{ Revisions []revision.Info }
	if err := json.Unmarshal([]byte(d.ask(t, "GET", "/v1/revisions", "").body), &list); err != nil || len(list.Revisions) != 7 {
		t.Fatalf("there are %d revisions, %v; want 7: the file and six changes", len(list.Revisions), err)
	}
	first := list.Revisions[5]
	if a := first.Author; first.Why != "first" || a.Door != revision.DoorUnix || a.PID != os.Getpid() || a.UID == nil || *a.UID != os.Getuid() || first.FileSHA256 == "" {
		t.Errorf("revision 2 is %+v, want the comment first, and this process's uid and pid", first)
	}
	if got := d.ask(t, "GET", "/v1/revisions/1/diff/2", ""); !strings.Contains(got.body, endpointAPI[len("/v1/config/"):]+"/weight") {
		t.Errorf("revisions 1 and 2 differ so:\n%s\nwant the weight", got.body)
	}
	step("restore", d.ask(t, "POST", "/v1/revisions/1/restore", "", d.match(t, "/v1/config")), 200, 10)
	if now := d.ask(t, "GET", "/v1/config", ""); now.body != before.body || now.header.Get("X-Revision") != "8" {
		t.Errorf("restored is revision %s:\n%s\nwant 8, as it was:\n%s", now.header.Get("X-Revision"), now.body, before.body)
	}
}

func TestDoorServesTheRest(t *testing.T) {
	d := newDoor(t)
	list := d.ask(t, "GET", "/", "").body
	for path, has := range map[string]string{
		"/v1/schema": `"$schema"`, "/v1/failures": `"failures": []`, "/v1/upgrade": `"possible": false`, "/v1/revisions/1": `"document"`, "/v1/status": `"echo"`,
	} {
		if got := d.ask(t, "GET", path, ""); got.code != 200 || !strings.Contains(got.body, has) {
			t.Errorf("%s gives %d\n%.200s\nwant 200 and %s", path, got.code, got.body, has)
		}
	}
	for _, line := range []string{"PATCH /v1/config/*", "POST /v1/revisions/{n}/restore", "POST /v1/upgrade"} {
		if !strings.Contains(list, line) {
			t.Errorf("the list is\n%s\nwant it to have %q", list, line)
		}
	}
}

func TestOverTCPNothingIsWritten(t *testing.T) {
	s, _ := run(t, parse(t, oneHop, "127.0.0.1:1"))
	base := "http://" + s.AdminTCPAddress().String()
	for method, path := range map[string]string{"PUT": "/v1/config", "PATCH": "/v1/config/log", "DELETE": "/v1/config/metrics", "POST": "/v1/upgrade"} {
		r, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("If-Match", "*")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusForbidden || !strings.Contains(string(text), "admin.tcp.tokens_file") {
			t.Errorf("%s %s over TCP gives %d %s; want 403, and what it takes", method, path, resp.StatusCode, text)
		}
	}
	if code, body := get(t, s.AdminTCPAddress(), "/v1/config/clusters/echo/name"); code != 200 || body != "\"echo\"\n" {
		t.Errorf("reading over TCP gives %d %s", code, body)
	}
}

// Each writer adds endpoints one by one to the list that it has read, as an operator's script does.
func TestWritersLoseNoUpdate(t *testing.T) {
	const writers, each = 16, 3
	d := newDoor(t)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				for {
					list := d.ask(t, "GET", clusterAPI+"/endpoints", "")
					added := strings.TrimSuffix(strings.TrimSpace(list.body), "]") + fmt.Sprintf(`, {"address": "127.0.0.1:%d"}]`, 1000+w*each+i)
					got := d.ask(t, "PUT", clusterAPI+"/endpoints", added, "If-Match: "+list.header.Get("ETag"))
					if got.code == http.StatusOK {
						break
					}
					if got.code != http.StatusPreconditionFailed {
						t.Errorf("writer %d: PUT gives %d %s, want 200 or 412", w, got.code, got.body)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if n := len(d.server.Status().Clusters[0].Endpoints); n != 1+writers*each {
		t.Errorf("the road has %d endpoints, want %d: an update was lost", n, 1+writers*each)
	}
	if info, _, _ := d.server.Current(); info.Number != 1+writers*each {
		t.Errorf("revision %d is in force, want %d", info.Number, 1+writers*each)
	}
}

func TestNothingIsHalfChanged(t *testing.T) {
	change := func(d *liveDoor) reply { return d.ask(t, "PUT", endpointAPI+"/weight", "99", "If-Match: *") }
	unchanged := func(d *liveDoor, what string, got reply, code int) {
		t.Helper()
		info, document, _ := d.server.Current()
		part, err := document.Get("clusters/echo/endpoints/127.0.0.1:1/weight")
		if got.code != code || d.weight() != 10 || info.Number != 1 || err != nil || string(part.JSON()) != "10" {
			t.Errorf("%s: PUT gives %d %s, the road has %d, revision %d has %s, %v; want %d, and all as it was", what, got.code, got.body, d.weight(), info.Number, part.JSON(), err, code)
		}
	}

	d := newDoor(t)
	release := d.server.HoldForTest(t.Context())
	got := change(d)
	unchanged(d, "while an upgrade is under way", got, 503)
	if got.header.Get("Retry-After") == "" {
		t.Errorf("503 has no Retry-After")
	}
	release()
	if got := change(d); got.code != 200 || d.weight() != 99 {
		t.Errorf("behind an upgrade that was undone PUT gives %d %s", got.code, got.body)
	}

	d = newDoor(t)
	if err := os.RemoveAll(filepath.Join(d.folder, "revisions")); err != nil {
		t.Fatal(err)
	}
	unchanged(d, "revisions that cannot be written", change(d), 500)

	d = newDoor(t)
	other, err := revision.Open(revision.Options{State: d.folder, File: d.file})
	if err != nil {
		t.Fatal(err)
	}
	_, document, _ := d.server.Current()
	if _, err := other.Append(t.Context(), 1, revision.Revision{Document: document}); err != nil {
		t.Fatal(err)
	}
	unchanged(d, "another process's revision", change(d), 409)

	d = newDoor(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	body := fmt.Sprintf(`{"name": "more", "address": %q, "protocol": "bolt"}`, taken.Addr())
	unchanged(d, "an address that is taken", d.ask(t, "PUT", "/v1/config/listeners/more", body, "If-None-Match: *"), 422)
}

// A start that passes over the newest revision, because its file is torn, says so.
func TestTornRevisionIsTold(t *testing.T) {
	d := newDoor(t)
	if got := d.ask(t, "PUT", endpointAPI+"/weight", "20", "If-Match: *"); got.code != 200 {
		t.Fatalf("PUT gives %d %s", got.code, got.body)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(d.folder, "revisions", "*", "000002.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the second revision is in %v, %v; want one file", files, err)
	}
	if err := os.Truncate(files[0], 100); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.WarnLevel)
	d = openDoorWith(t, d.folder, fmt.Sprintf(liveText, d.folder), zap.New(core))
	told := logs.FilterMessageSnippet("passed over").FilterField(zap.String("file", files[0])).Len()
	if d.weight() != 10 || told != 1 {
		t.Errorf("behind a revision that is torn the weight is %d, and the log says it %d times; want 10, and once", d.weight(), told)
	}
}

// A file that cannot be read for a while is taken for what it was at the last change, and not for what it was at the start.
func TestFileThatCannotBeReadForAWhile(t *testing.T) {
	d := newDoor(t)
	text := strings.Replace(fmt.Sprintf(liveText, d.folder), "weight: 10", "weight: 11", 1)
	edit := func() {
		t.Helper()
		if err := os.WriteFile(d.file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	change := func(weight string) {
		t.Helper()
		if got := d.ask(t, "PUT", endpointAPI+"/weight", weight, "If-Match: *"); got.code != 200 {
			t.Fatalf("PUT gives %d %s", got.code, got.body)
		}
	}
	edit()
	change("20") // which wins over the file
	if err := os.Remove(d.file); err != nil {
		t.Fatal(err)
	}
	change("30")
	edit()
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	origin, err := server.OpenOrigin(d.file, []byte(text), false)
	if err != nil {
		t.Fatal(err)
	}
	if w := origin.Config().Clusters[0].Endpoints[0].Weight; w != 30 {
		t.Errorf("a restart has the weight %d, want 30: %s", w, origin.Message())
	}
}

// What a start would not take is refused now: it would be met when the process has ended.
func TestChangesThatNoStartWouldTake(t *testing.T) {
	d := newDoor(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	there := filepath.Join(d.folder, "there")
	if err := os.Mkdir(there, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		patch string
		code  int
		has   string
	}{
		{`{"max_buffered": "1MiB"}`, 422, "max_frame"},
		{`{"max_buffered": "64MiB"}`, 200, "/max_buffered"},
		{`{"listeners": [{"name": "in", "address": "127.0.0.1:0", "protocol": "bolt", "max_frame": "256MiB"}]}`, 422, "max_frame"},
		{fmt.Sprintf(`{"access_log": {"path": %q}}`, there+"/not/access.log"), 422, there + "/not: no such file"},
		{fmt.Sprintf(`{"access_log": {"path": %q}}`, there+"/access.log"), 200, "/access_log"},
		{`{"admin": {"group": "no-such-group"}}`, 422, "no-such-group"},
		{fmt.Sprintf(`{"metrics": {"address": %q}}`, taken.Addr()), 422, "address already in use"},
		{fmt.Sprintf(`{"admin": {"address": %q}}`, "unix:"+d.folder+"/not/b.sock"), 422, "no such file"},
		{fmt.Sprintf(`{"admin": {"address": %q}, "metrics": {"address": "127.0.0.1:0"}}`, "unix:"+d.folder+"/b.sock"), 200, "/metrics"},
	} {
		if got := d.ask(t, "PATCH", "/v1/config", c.patch, "If-Match: *"); got.code != c.code || !strings.Contains(got.body, c.has) {
			t.Errorf("%s gives %d and\n%s\nwant %d, with %s", c.patch, got.code, got.body, c.code, c.has)
		}
	}
	if _, err := os.Stat(d.folder + "/b.sock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a door that is opened by the next process is there already: %v", err)
	}
	if err := os.Remove(there); err != nil {
		t.Fatal(err)
	}
	if got := d.ask(t, "PUT", endpointAPI+"/weight", "20", "If-Match: *"); got.code != 200 {
		t.Errorf("when the folder has gone, the change of something else gives %d and\n%s\nwant 200", got.code, got.body)
	}
}

// The last change wins, whichever door it came through.
func TestRestartGoesOnWithTheLastChange(t *testing.T) {
	d := newDoor(t)
	if got := d.ask(t, "PUT", endpointAPI+"/weight", "20", "If-Match: *"); got.code != 200 {
		t.Fatalf("PUT gives %d %s", got.code, got.body)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(liveText, d.folder)
	d = openDoor(t, d.folder, text)
	if info, _, _ := d.server.Current(); d.weight() != 20 || info.Number != 2 {
		t.Errorf("a restart has the weight %d and revision %d, want 20 and 2", d.weight(), info.Number)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}

	edited := strings.Replace(text, "weight: 10", "weight: 11", 1)
	origin, err := server.OpenOrigin(d.file, []byte(edited), false)
	if err != nil {
		t.Fatal(err)
	}
	if m := origin.Message(); !strings.Contains(m, "has changed since revision 2") || !strings.Contains(m, "weight: 20 -> 11") {
		t.Errorf("the file that has changed wins so: %s; want that it undoes the weight of revision 2", m)
	}
	d = openDoor(t, d.folder, edited)
	if got := d.ask(t, "PUT", endpointAPI+"/weight", "12", "If-Match: *"); got.code != 200 || !strings.Contains(got.body, `"revision": 4`) {
		t.Errorf("behind the file, PUT gives %d %s; want revision 4", got.code, got.body)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	origin, err = server.OpenOrigin(d.file, []byte(edited), true)
	if err != nil {
		t.Fatal(err)
	}
	if w := origin.Config().Clusters[0].Endpoints[0].Weight; w != 11 {
		t.Errorf("where revisions are ignored the weight is %d, want the file's 11", w)
	}
}

// Without a folder, what the file alone can say is refused, because the next process has only the file when it needs it.
func TestInMemoryTheFileHasTheLastWord(t *testing.T) {
	folder := t.TempDir()
	d := openDoor(t, folder, strings.Replace(fmt.Sprintf(liveText, folder), "state_dir: "+folder, "state_dir: none", 1))
	got := d.ask(t, "PATCH", "/v1/config", `{"runtime_dir": "/tmp", "log": {"format": "text"}, "workers": {"max": 2}}`, "If-Match: *")
	var p struct{ Errors []struct{ Pointer string } }
	if err := json.Unmarshal([]byte(got.body), &p); err != nil {
		t.Fatal(err)
	}
	var pointers []string
	for _, e := range p.Errors {
		pointers = append(pointers, e.Pointer)
	}
	if diff := cmp.Diff([]string{"/runtime_dir", "/log/format"}, pointers); got.code != 422 || diff != "" {
		t.Errorf("PATCH gives %d and these faults (- want, + got):\n%s", got.code, diff)
	}
}

// The file of the socket has the rights that the configuration says, also where another process has opened it.
func TestSocketHasItsMode(t *testing.T) {
	for mode, want := range map[string]os.FileMode{"": 0o660, `, mode: "0600"`: 0o600} {
		folder := t.TempDir()
		d := openDoor(t, folder, strings.Replace(fmt.Sprintf(liveText, folder), `a.sock"`, `a.sock"`+mode, 1))
		rights := func() os.FileMode {
			info, err := os.Stat(filepath.Join(folder, "a.sock"))
			if err != nil {
				t.Fatal(err)
			}
			return info.Mode().Perm()
		}
		if got := rights(); got != want {
			t.Errorf("admin%s: the file is %v, want %v", mode, got, want)
		}
		if err := admin.Grant("unix:"+filepath.Join(folder, "a.sock"), admin.SocketFile{Mode: 0o640}); err != nil {
			t.Error(err)
		}
		if got := rights(); got != 0o640 {
			t.Errorf("granted 0640, the file is %v", got)
		}
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	}
}

func TestControlIsDirect(t *testing.T) {
	d := newDoor(t)
	boom := errors.New("no")
	_, err := d.server.Change(t.Context(), admin.Edit{
		Match: func(*config.Document) error { return nil },
		Edit:  func(*config.Document) (*config.Document, error) { return nil, boom },
	})
	if !errors.Is(err, boom) {
		t.Errorf("Change returns %v, want the edit's own error", err)
	}
}

// A file that cannot be kept as a revision is served, says that it is none, and is followed by the next one that can be.
func TestFileThatCannotBeKept(t *testing.T) {
	d := newDoor(t)
	if got := d.ask(t, "PUT", endpointAPI+"/weight", "20", "If-Match: *"); got.code != 200 {
		t.Fatalf("PUT gives %d %s", got.code, got.body)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(fmt.Sprintf(liveText, d.folder), "weight: 10", "weight: 30", 1)
	origin, err := server.OpenOrigin(d.file, []byte(text), false)
	if err != nil {
		t.Fatal(err)
	}
	revisions, elsewhere := filepath.Join(d.folder, "revisions"), filepath.Join(d.folder, "elsewhere")
	if err := os.Rename(revisions, elsewhere); err != nil {
		t.Fatal(err)
	}
	d.server, d.stop = runOptions(t, server.Options{Config: origin.Config(), Origin: origin, Log: zaptest.NewLogger(t)})
	d.server.HoldForTest(t.Context())()
	if got := d.ask(t, "GET", endpointAPI+"/weight", ""); got.body != "30\n" || got.header.Get("X-Revision") != "0" {
		t.Errorf("the file's weight is %q, of revision %s; want 30 and 0", got.body, got.header.Get("X-Revision"))
	}
	if err := os.Rename(elsewhere, revisions); err != nil {
		t.Fatal(err)
	}
	if got := d.ask(t, "PUT", endpointAPI+"/weight", "31", "If-Match: *"); got.code != 200 || !strings.Contains(got.body, `"revision": 3`) {
		t.Errorf("with the folder back PUT gives %d %s, want revision 3", got.code, got.body)
	}
}

// A revision that this version does not take, as one of a newer version, is refused and changes nothing.
func TestRestoreOfWhatIsNotValid(t *testing.T) {
	folder := t.TempDir()
	file, text := filepath.Join(folder, "relevo.yaml"), fmt.Sprintf(liveText, folder)
	store, err := revision.Open(revision.Options{State: folder, File: file})
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{text + "colour: red\n", text} {
		document, err := config.ParseDocument([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Append(t.Context(), uint64(i), revision.Revision{Info: revision.Info{FileSHA256: revision.Sum([]byte(text))}, Document: document}); err != nil {
			t.Fatal(err)
		}
	}
	d := openDoor(t, folder, text)
	got := d.ask(t, "POST", "/v1/revisions/1/restore", "", "If-Match: *")
	if got.code != 422 || !strings.Contains(got.body, `"pointer":"/colour"`) {
		t.Errorf("restoring revision 1 gives %d %s; want 422 and the field that there is not", got.code, got.body)
	}
	if info, _, _ := d.server.Current(); info.Number != 2 || d.weight() != 10 {
		t.Errorf("revision %d is in force, with the weight %d; want 2 and 10", info.Number, d.weight())
	}
}

// Behind the last number that a file of a revision can have nothing is written, and nothing changes.
func TestNumbersEnd(t *testing.T) {
	d := newDoor(t)
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(d.folder, "revisions", "*", "000001.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the revision's file is %v, %v", files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	_, document, _ := d.server.Current()
	store, err := revision.Open(revision.Options{State: d.folder, File: d.file})
	if err != nil {
		t.Fatal(err)
	}
	// A file of the last number but one that is torn still counts.
	if err := os.WriteFile(filepath.Join(filepath.Dir(files[0]), "999999999999998.json"), data[:10], 0o600); err != nil {
		t.Fatal(err)
	}
	last, err := store.Append(t.Context(), 1, revision.Revision{Info: revision.Info{Author: revision.Author{Door: revision.DoorFile}, FileSHA256: revision.Sum(fmt.Appendf(nil, liveText, d.folder))}, Document: document})
	if err != nil || last.Number != 999999999999999 {
		t.Fatalf("the last number is %d, %v", last.Number, err)
	}
	d = openDoor(t, d.folder, fmt.Sprintf(liveText, d.folder))
	if now := d.ask(t, "GET", "/v1/config", ""); now.header.Get("X-Revision") != "999999999999999" {
		t.Errorf("in force is revision %s, want the last", now.header.Get("X-Revision"))
	}
	got := d.ask(t, "PUT", endpointAPI+"/weight", "20", "If-Match: *")
	if got.code != 500 || !strings.Contains(got.body, "no number behind") || d.weight() != 10 {
		t.Errorf("one more change gives %d %s, and the weight %d; want 500 and 10", got.code, got.body, d.weight())
	}
	for path, code := range map[string]int{
		"/v1/revisions/9223372036854775807": 404, "/v1/revisions/9223372036854775808": 400, "/v1/revisions/0": 404, "/v1/revisions/-1": 400,
		"/v1/revisions?before=9223372036854775807&limit=9223372036854775807": 200, "/v1/revisions?limit=-1": 400,
	} {
		if got := d.ask(t, "GET", path, ""); got.code != code {
			t.Errorf("GET %s gives %d %s, want %d", path, got.code, got.body, code)
		}
	}
}
