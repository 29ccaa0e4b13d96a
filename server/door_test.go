package server_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/admin/admintest"
	"github.com/relevo-proxy/relevo/server"
	"github.com/relevo-proxy/relevo/server/revision"
)

// netText is a configuration with both doors, whose files are in the folder %[1]s.
const netText = liveText + `metrics: {address: "127.0.0.1:0"}
`

// netDoor is a server with both doors, and what gets in at the one over the network.
type netDoor struct {
	server         *server.Server
	folder         string
	authority      *admintest.Authority
	reader, writer string // secrets
	tokens, key    string // files
	logs           *observer.ObservedLogs
}

func newNetDoor(t *testing.T) *netDoor {
	t.Helper()
	d := &netDoor{folder: t.TempDir(), authority: admintest.NewAuthority(t, "ca")}
	d.tokens = filepath.Join(d.folder, "tokens")
	var lines strings.Builder
	for name, secret := range map[string]*string{"reader": &d.reader, "writer": &d.writer} {
		role := map[string]admin.Role{"reader": admin.RoleRead, "writer": admin.RoleWrite}[name]
		made, line, err := admin.NewToken(name, role, nil)
		if err != nil {
			t.Fatal(err)
		}
		*secret = made
		lines.WriteString(line + "\n")
	}
	if err := os.WriteFile(d.tokens, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	var certFile string
	certFile, d.key = d.authority.Server(t)
	text := strings.Replace(fmt.Sprintf(netText, d.folder), `a.sock"}`, fmt.Sprintf(
		`a.sock", tcp: {address: "127.0.0.1:0", tokens_file: %q, tls: {cert_file: %q, key_file: %q, client_ca_file: %q}}}`,
		d.tokens, certFile, d.key, d.authority.File), 1)
	file := filepath.Join(d.folder, "relevo.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	origin, err := server.OpenOrigin(file, []byte(text), false)
	if err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zapcore.DebugLevel)
	d.logs = logs
	d.server, _ = runOptions(t, server.Options{Config: origin.Config(), Origin: origin, Log: zap.New(core)})
	d.server.HoldForTest(t.Context())() // the turn is there when the file has become a revision
	return d
}

// ask asks the door over the network; a header is "Name: value". certificate may be nil.
func (d *netDoor) ask(t *testing.T, certificate *tls.Certificate, method, path, body string, headers ...string) reply {
	t.Helper()
	conf := &tls.Config{RootCAs: d.authority.Pool(), ServerName: "localhost"}
	if certificate != nil {
		conf.Certificates = []tls.Certificate{*certificate}
	}
	return d.asked(t, &http.Transport{DisableKeepAlives: true, TLSClientConfig: conf}, "https://"+d.server.AdminTCPAddress().String(), method, path, body, headers...)
}

// askUnix asks the door at the unix socket.
func (d *netDoor) askUnix(t *testing.T, method, path, body string, headers ...string) reply {
	t.Helper()
	return d.asked(t, &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", d.server.AdminAddress().String())
	}}, "http://localhost", method, path, body, headers...)
}

func (d *netDoor) asked(t *testing.T, transport *http.Transport, base, method, path, body string, headers ...string) reply {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Add(name, value)
	}
	resp, err := (&http.Client{Transport: contractOf(t).Transport(transport, func(err error) { t.Error(err) })}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) { // an answer that goes on and on
		t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(text)}
}

func bearer(secret string) string { return "Authorization: Bearer " + secret }

var parameter = regexp.MustCompile(`\{[a-z]+\}`)

// paths are those that the door's list has for GET, each with something in the places of its parameters.
func (d *netDoor) paths(t *testing.T) (out []string) {
	t.Helper()
	for line := range strings.Lines(d.ask(t, nil, "GET", "/", "", bearer(d.reader)).body) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "GET" {
			continue
		}
		path := strings.Replace(f[1], "/*", "/clusters/echo", 1)
		if parameter.MatchString(path) {
			out = append(out, parameter.ReplaceAllString(path, "echo"), parameter.ReplaceAllString(path, "127.0.0.1:1"))
		}
		out = append(out, parameter.ReplaceAllString(path, "1"))
	}
	if len(out) < 10 {
		t.Fatalf("the door lists %d paths for GET, want more: %v", len(out), out)
	}
	return append(out, "/")
}

// TestNoGETChangesAnything asks for all that there is, in ways in which some servers take a GET for something else.
func TestNoGETChangesAnything(t *testing.T) {
	d := newNetDoor(t)
	type state struct {
		Config, ETag, Revision, Revisions, Upgrade, Log string
		Files                                           []string
	}
	now := func() (s state) {
		c := d.askUnix(t, "GET", "/v1/config", "")
		s = state{Config: c.body, ETag: c.header.Get("ETag"), Revision: c.header.Get("X-Revision")}
		s.Revisions, s.Upgrade = d.askUnix(t, "GET", "/v1/revisions", "").body, d.askUnix(t, "GET", "/v1/upgrade", "").body
		for _, e := range d.logs.FilterMessage("configuration changed").All() {
			s.Log += e.Message
		}
		err := filepath.WalkDir(d.folder, func(path string, _ os.DirEntry, err error) error {
			s.Files = append(s.Files, path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := now()
	for _, path := range d.paths(t) {
		for _, method := range []string{"GET", "HEAD", "OPTIONS"} {
			for _, query := range []string{"", "?_method=DELETE&method=PUT&dry_run=false"} {
				headers := []string{bearer(d.writer), "If-Match: *", "X-HTTP-Method-Override: DELETE", "X-Method-Override: PUT", "Content-Type: application/json"}
				if got := d.ask(t, nil, method, path+query, `{"weight": 1}`, headers...); got.code >= 500 && path != "/readyz" {
					t.Errorf("%s %s gives %d %s", method, path+query, got.code, got.body)
				}
			}
		}
	}
	if diff := cmp.Diff(before, now()); diff != "" {
		t.Errorf("asking has changed something (-before +after):\n%s", diff)
	}
}

// TestSecretsAreNowhere looks for tokens, their hashes and the private key in all that is served and logged, also when a secret
// stands where it does not belong.
func TestSecretsAreNowhere(t *testing.T) {
	d := newNetDoor(t)
	lines, err := os.ReadFile(d.tokens)
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(d.key)
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string]string{"the reader's token": d.reader, "the writer's token": d.writer, "the key": strings.Split(string(key), "\n")[1]}
	for line := range strings.Lines(string(lines)) {
		f := strings.Fields(line)
		secrets["the hash of "+f[0]] = f[2]
	}
	look := func(where, text string) {
		t.Helper()
		for what, secret := range secrets {
			if strings.Contains(text, secret) {
				t.Errorf("%s is in %s", what, where)
			}
		}
	}
	show := func(where string, r reply) {
		t.Helper()
		head, err := json.Marshal(r.header)
		if err != nil {
			t.Fatal(err)
		}
		look(where, string(head)+r.body)
	}

	// With what succeeds and what does not.
	show("a change", d.ask(t, nil, "PUT", endpointAPI+"/weight", "20", bearer(d.writer), "If-Match: *"))
	show("a refused change", d.ask(t, nil, "PUT", endpointAPI+"/weight", "30", bearer(d.reader), "If-Match: *"))
	show("a wrong scheme", d.ask(t, nil, "GET", "/v1/status", "", "Authorization: Basic "+d.writer))
	show("a wrong token", d.ask(t, nil, "GET", "/v1/status", "", bearer(d.writer+d.reader)))
	show("a broken body", d.ask(t, nil, "PUT", "/v1/config", "{", bearer(d.writer), "If-Match: *"))
	// The secret itself in the place of its hash, and the key in that of a certificate, in a change and in a file that is used.
	spoilt := filepath.Join(d.folder, "spoilt")
	if err := os.WriteFile(spoilt, []byte("ci write "+d.writer+"\n"+d.reader+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := d.ask(t, nil, "PUT", "/v1/config/admin/tcp/tokens_file", fmt.Sprintf("%q", spoilt), bearer(d.writer), "If-Match: *"); got.code != 422 || !strings.Contains(got.body, `"pointer":"/admin/tcp/tokens_file"`) {
		t.Errorf("a change to a file of tokens that is broken gives %d %s, want 422", got.code, got.body)
	} else {
		show("a refused change", got)
	}
	show("a refused change", d.ask(t, nil, "PUT", "/v1/config/admin/tcp/tls/cert_file", fmt.Sprintf("%q", d.key), bearer(d.writer), "If-Match: *"))
	if err := os.Rename(spoilt, d.tokens); err != nil {
		t.Fatal(err)
	}
	for d.logs.FilterMessage("credentials cannot be used: what was there before holds").Len() == 0 { // within a second or two
		d.ask(t, nil, "GET", "/v1/status", "", bearer(d.reader))
		if t.Context().Err() != nil {
			t.Fatal("nobody notices that the tokens have changed")
		}
	}
	for _, path := range d.paths(t) {
		show("GET "+path+" over TCP", d.ask(t, nil, "GET", path, "", bearer(d.writer)))
		show("GET "+path+" at the unix socket", d.askUnix(t, "GET", path, ""))
	}
	_, metrics := get(t, d.server.MetricsAddress(), "/metrics")
	look("the metrics", metrics)
	if !strings.Contains(metrics, "\nrelevo_admin_stale_files 1\n") {
		t.Error("the metrics do not say that a file cannot be used")
	}
	encoder := zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())
	for _, e := range d.logs.All() {
		line, err := encoder.EncodeEntry(e.Entry, e.Context)
		if err != nil {
			t.Fatal(err)
		}
		look("the log", line.String())
	}
	if d.logs.Len() < 5 {
		t.Errorf("the log has %d lines, want more to look at", d.logs.Len())
	}
}

// TestAuditOverTCP has who made a change in its revision, and in the log.
func TestAuditOverTCP(t *testing.T) {
	d := newNetDoor(t)
	certFile, keyFile := d.authority.Client(t, "ops\x1b[2J", time.Now().Add(time.Hour))
	certificate, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		what        string
		certificate *tls.Certificate
		headers     []string
		want        revision.Author
		said        string
	}{
		{"a token", nil, []string{bearer(d.writer)}, revision.Author{Door: revision.DoorTCP, Token: "writer"}, "tcp, token writer, from 127.0.0.1:"},
		{"a certificate", &certificate, nil, revision.Author{Door: revision.DoorTCP, Who: "CN=ops?[2J"}, "CN=ops?[2J (tcp, from 127.0.0.1:"},
	} {
		weight := fmt.Sprint(20 + len(tc.said))
		if got := d.ask(t, tc.certificate, "PUT", endpointAPI+"/weight", weight, append(tc.headers, "If-Match: *", "X-Comment: "+tc.what)...); got.code != 200 {
			t.Fatalf("%s: a change gives %d %s", tc.what, got.code, got.body)
		}
		newest, _, err := d.server.Revisions().List(0, 1)
		if err != nil || len(newest) != 1 {
			t.Fatal(newest, err)
		}
		got := newest[0].Author
		if host, _, err := net.SplitHostPort(got.Address); err != nil || host != "127.0.0.1" {
			t.Errorf("%s: the revision's author comes from %q, want the client's address", tc.what, got.Address)
		}
		got.Address = ""
		if diff := cmp.Diff(tc.want, got); diff != "" || newest[0].Why != tc.what {
			t.Errorf("%s: the revision's author differs (-want +got):\n%s", tc.what, diff)
		}
		if said := newest[0].Author.String(); !strings.HasPrefix(said, tc.said) {
			t.Errorf("%s: the author is written %q, want %q", tc.what, said, tc.said)
		}
		if d.logs.FilterMessage("configuration changed").FilterField(zap.Stringer("by", newest[0].Author)).Len() != 1 {
			t.Errorf("%s: the log does not say once who made the change", tc.what)
		}
	}
}
