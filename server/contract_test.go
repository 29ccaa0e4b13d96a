package server_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/admin/contract"
	"github.com/relevo-proxy/relevo/cmd/relevo/call"
	"github.com/relevo-proxy/relevo/server/config"
)

var parsedContract = sync.OnceValues(func() (*contract.Document, error) { return contract.Parse(admin.OpenAPI(), config.JSONSchema()) })

// contractOf is the OpenAPI document, to check answers by.
func contractOf(t *testing.T) *contract.Document {
	t.Helper()
	d, err := parsedContract()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// askedElsewhere are the examples that want more than a server in this process.
var askedElsewhere = map[string]string{
	"startUpgrade asked": "TestUpgradeByTheContract in cmd/relevo",
}

// Every example of the document is made, from top to bottom, and answered as it says.
func TestExamplesOfTheContract(t *testing.T) {
	folder := t.TempDir()
	// The document's addresses and folders, and those of this test: nobody else has them.
	socket := filepath.Join(folder, "c.sock")
	here := strings.NewReplacer("127.0.0.1:12220", "unix:"+socket, "127.0.0.1:12200", "127.0.0.1:1", "127.0.0.1:12201", "127.0.0.1:2",
		"/run/relevo/admin.sock", filepath.Join(folder, "a.sock"), "/var/lib/relevo", folder).Replace
	there := strings.NewReplacer("unix:"+socket, "127.0.0.1:12220", socket, "127.0.0.1:12220", "127.0.0.1:1", "127.0.0.1:12200",
		"127.0.0.1:2", "127.0.0.1:12201", filepath.Join(folder, "a.sock"), "/run/relevo/admin.sock", folder, "/var/lib/relevo").Replace
	d := openDoor(t, folder, here(firstConfiguration(t)))
	if _, err := call.Do(t.Context(), call.Options{
		Addr: "unix:" + socket, Service: "com.example.Odrer:1.0", Timeout: 5 * time.Second,
	}); err != nil { // which has no route
		t.Fatal(err)
	}
	tcp, _ := run(t, parse(t, oneHop, "127.0.0.1:1"))
	made := map[string]bool{}
	for code, e := range contractOf(t).Examples() {
		name := e.Of.ID + " " + e.Name
		made[name] = true
		switch {
		case askedElsewhere[name] != "":
			continue
		case e.Request == nil:
			t.Errorf("the example %s has no x-request", name)
			continue
		case e.Of.Method != e.Request.Method:
			t.Errorf("the example %s asks by %s, and is one of %s", name, e.Request.Method, e.Of.Method)
		}
		client, release := d.client, func() {}
		switch code {
		case http.StatusForbidden, http.StatusMisdirectedRequest:
			client = clientAt(t, tcp.AdminAddress())
		case http.StatusServiceUnavailable:
			release = d.server.HoldForTest(t.Context()) // as an upgrade does
		}
		path := here(e.Request.Path)
		r, err := http.NewRequestWithContext(t.Context(), e.Request.Method, "http://localhost"+path, strings.NewReader(here(e.Request.Body)))
		if err != nil {
			t.Fatal(err)
		}
		for header, value := range e.Request.Header {
			r.Header.Set(header, value)
		}
		if host := r.Header.Get("Host"); host != "" {
			r.Host = host
		}
		if etag.MatchString(r.Header.Get("If-Match")) {
			of, _, _ := strings.Cut(path, "?")
			if strings.HasPrefix(of, "/v1/revisions/") {
				of = "/v1/config"
			}
			r.Header.Set("If-Match", d.ask(t, "GET", of, "").header.Get("ETag"))
		}
		got := send(t, client, r)
		release()
		kind, _, _ := strings.Cut(got.header.Get("Content-Type"), ";")
		if got.code != code {
			t.Errorf("the example %s, %s %s, gives %d, want %d\n%s", name, r.Method, e.Request.Path, got.code, code, got.body)
		} else if err := e.Compare(kind, []byte(there(got.body))); err != nil {
			t.Errorf("the example %s, %s %s, is answered otherwise: %v", name, r.Method, e.Request.Path, err)
		}
	}
	for name, by := range askedElsewhere {
		if !made[name] {
			t.Errorf("%s tries the example %s, which there is not", by, name)
		}
	}
}

var etag = regexp.MustCompile(`^"[0-9a-f]{32}"$`)

// firstConfiguration is the first example of getConfig.
func firstConfiguration(t *testing.T) string {
	t.Helper()
	for _, e := range contractOf(t).Examples() {
		if e.Of.ID == "getConfig" {
			text, err := json.Marshal(e.Value)
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
	}
	t.Fatal("the document has no example of getConfig")
	return ""
}

// clientAt asks whoever is at the address, whatever the URL says, and checks the answers.
func clientAt(t *testing.T, at net.Addr) *http.Client {
	return &http.Client{Transport: contractOf(t).Transport(&http.Transport{
		DisableKeepAlives:     true,
		ExpectContinueTimeout: 10 * time.Second,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, at.Network(), at.String())
		},
	}, func(err error) { t.Error(err) })}
}
