package server_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/admin/contract"
	"github.com/relevo-proxy/relevo/cmd/relevo/call"
	"github.com/relevo-proxy/relevo/cmd/relevo/echo"
	"github.com/relevo-proxy/relevo/server"
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
	"getUpgrade done":    "TestUpgradeByTheContract in cmd/relevo",
	"startUpgrade asked": "TestUpgradeByTheContract in cmd/relevo",
}

// exampleDoor is a process that examples are asked of.
type exampleDoor struct {
	client *http.Client
	// here has the addresses and folders of this test instead of those of the document, there the other way round.
	here, there func(string) string
}

// quietDoor is the process that most examples are of: nobody has asked for anything but one service that has no route.
func quietDoor(t *testing.T) (exampleDoor, *liveDoor) {
	folder := t.TempDir()
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
	return exampleDoor{d.client, here, there}, d
}

// busyDoor is a process that has begun in the same way, and has one request in flight until the test ends.
func busyDoor(t *testing.T) exampleDoor {
	folder, endpoint := t.TempDir(), startEcho(t, echo.Options{Delay: time.Hour})
	d := openDoor(t, folder, strings.NewReplacer("127.0.0.1:12220", "127.0.0.1:0", "127.0.0.1:12200", endpoint,
		"/run/relevo/admin.sock", filepath.Join(folder, "a.sock"), "/var/lib/relevo", folder, "3s", "1h").Replace(firstConfiguration(t)))
	address := d.server.Addresses()["client"].String()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { // ends with ctx
		defer close(ended)
		_, _ = call.Do(ctx, call.Options{Addr: address, Service: "com.example.Order:1.0", Timeout: time.Hour})
	}()
	t.Cleanup(func() { cancel(); <-ended })
	soon(t, "a request in flight", func() bool {
		s, c := read[admin.Streams](t, d, "/v1/streams"), read[connections](t, d, "/v1/connections?side=server").Connections
		return s.Total == 1 && s.Streams[0].Phase == "in-flight" && len(c) == 1 && c[0].BytesWritten > 0 && c[0].Queued == 0
	})
	there := strings.NewReplacer(address, "127.0.0.1:12220", endpoint, "127.0.0.1:12200").Replace
	return exampleDoor{d.client, strings.NewReplacer("127.0.0.1:12200", endpoint).Replace, there}
}

// networkDoor is a process with a door over TCP that takes the token of the examples.
func networkDoor(t *testing.T) exampleDoor {
	const secret = "relevo_A8sU9SzVAt-h2HBFNM91bxEdJlHqTJHChEd4_3NnmDQ"
	tokens := filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(tokens, fmt.Appendf(nil, "dashboard read %x\n", sha256.Sum256([]byte(secret))), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := run(t, parse(t, strings.Replace(oneHop, `tcp: {`, fmt.Sprintf(`tcp: {tokens_file: %q, `, tokens), 1), "127.0.0.1:1"))
	return doorAt(t, s)
}

// doorAt is the door of a server over TCP.
func doorAt(t *testing.T, s *server.Server) exampleDoor {
	same := func(s string) string { return s }
	return exampleDoor{clientAt(t, s.AdminTCPAddress()), same, same}
}

// Every example of the document is made, from top to bottom, and answered as it says.
func TestExamplesOfTheContract(t *testing.T) {
	quiet, d := quietDoor(t)
	open, _ := run(t, parse(t, oneHop, "127.0.0.1:1"))
	doors := map[string]exampleDoor{"": quiet, "busy": busyDoor(t), "network": networkDoor(t), "open": doorAt(t, open)}
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
		door, known := doors[e.Request.At]
		if !known {
			t.Errorf("the example %s is of the process %q, which there is not", name, e.Request.At)
			continue
		}
		release := func() {}
		if code == http.StatusServiceUnavailable {
			release = d.server.HoldForTest(t.Context()) // as an upgrade does
		}
		got := door.answer(t, d, e.Request, e.Value)
		for tries := 0; code == http.StatusTooManyRequests && got.code == http.StatusUnauthorized && tries < 1000; tries++ {
			got = door.answer(t, d, e.Request, e.Value)
		}
		release()
		kind, _, _ := strings.Cut(got.header.Get("Content-Type"), ";")
		if got.code != code {
			t.Errorf("the example %s, %s %s, gives %d, want %d\n%s", name, e.Of.Method, e.Request.Path, got.code, code, got.body)
		} else if err := e.Compare(kind, []byte(door.there(got.body))); err != nil {
			t.Errorf("the example %s, %s %s, is answered otherwise: %v", name, e.Of.Method, e.Request.Path, err)
		}
	}
	for name, by := range askedElsewhere {
		if !made[name] {
			t.Errorf("%s tries the example %s, which there is not", by, name)
		}
	}
}

// answer makes a request of an example. Of a stream it reads as many lines as the example has. of is the door whose ETags stand
// for those in the document.
func (d *exampleDoor) answer(t *testing.T, of *liveDoor, example *contract.Request, want any) reply {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	path := d.here(example.Path)
	r, err := http.NewRequestWithContext(ctx, example.Method, "http://localhost"+path, strings.NewReader(d.here(example.Body)))
	if err != nil {
		t.Fatal(err)
	}
	for header, value := range example.Header {
		r.Header.Set(header, value)
	}
	if host := r.Header.Get("Host"); host != "" {
		r.Host = host
	}
	if etag.MatchString(r.Header.Get("If-Match")) {
		at, _, _ := strings.Cut(path, "?")
		if strings.HasPrefix(at, "/v1/revisions/") {
			at = "/v1/config"
		}
		r.Header.Set("If-Match", of.ask(t, "GET", at, "").header.Get("ETag"))
	}
	resp, err := d.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines, _ := want.(string)
	if resp.Header.Get("Content-Type") != "text/event-stream" {
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return reply{resp.StatusCode, resp.Header, string(text)}
	}
	var text strings.Builder
	for body := bufio.NewScanner(resp.Body); lines != "" && strings.Count(text.String(), "\n") < strings.Count(lines, "\n"); {
		if !body.Scan() {
			t.Fatalf("the stream ends behind %q: %v", text.String(), body.Err())
		}
		text.WriteString(body.Text() + "\n")
	}
	return reply{resp.StatusCode, resp.Header, text.String()}
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
