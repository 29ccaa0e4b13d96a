//go:build linux

package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/admin/admintest"
)

// netDoor is what a configuration with a door over the network needs, and who may come there.
type netDoor struct {
	authority      *admintest.Authority
	tokens         string // the file
	reader, writer string // files with a secret each
	line           string // of a configuration
	socket         string // its unix socket
}

// madeToken makes a token as people do, adds it to a file, and returns its secret.
func madeToken(t *testing.T, tokens string, args ...string) string {
	t.Helper()
	status, out, errOut := relevo(t, "", append([]string{"token"}, args...)...)
	lines := strings.Split(strings.TrimSpace(errOut), "\n")
	if status != exitDone || strings.Count(out, "\n") != 1 || len(lines) != 2 {
		t.Fatalf("token %v: exit status %d\n%s\n%s\nwant a line for the file, and the secret behind a line of explanation", args, status, out, errOut)
	}
	f, err := os.OpenFile(tokens, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, out); err != nil {
		t.Fatal(err)
	}
	return lines[1]
}

func newNetDoor(t *testing.T) *netDoor {
	t.Helper()
	folder := t.TempDir()
	d := &netDoor{authority: admintest.NewAuthority(t, "ca"), tokens: filepath.Join(folder, "tokens"), socket: "unix:" + filepath.Join(folder, "a.sock")}
	for name, file := range map[string]*string{"reader": &d.reader, "writer": &d.writer} {
		role := map[string]string{"reader": "read", "writer": "write"}[name]
		*file = filepath.Join(folder, name)
		if err := os.WriteFile(*file, []byte(madeToken(t, d.tokens, name, "--role", role)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certFile, keyFile := d.authority.Server(t)
	d.line = fmt.Sprintf("admin: {address: %q, tcp: {address: \"127.0.0.1:0\", tokens_file: %q, tls: {cert_file: %q, key_file: %q, client_ca_file: %q}}}\n",
		d.socket, d.tokens, certFile, keyFile, d.authority.File)
	return d
}

// doorLine is what the log says of where the door over the network is.
const doorLine = `"msg":"listening","door":"admin-tcp","address":"([^"]*)"`

func TestVerbsOverTheNetwork(t *testing.T) {
	d := newNetDoor(t)
	file := fileWith(t, goodConfig+d.line)
	if status, out, errOut := relevo(t, "", "check", "-c", file); status != exitDone {
		t.Fatalf("check: exit status %d\n%s%s", status, out, errOut)
	}
	p := spawn(t, "run", "-c", file)
	at := "https://" + p.err.find(t, doorLine)
	p.err.find(t, `"msg":"serving"`)
	clientCert, clientKey := d.authority.Client(t, "ops", time.Now().Add(time.Hour))
	stranger := admintest.NewAuthority(t, "stranger")
	ca, set := []string{"--ca-file", d.authority.File}, []string{"config", "set", "clusters/order/max_pending", "77"}
	for _, tc := range []struct {
		what   string
		args   []string
		flags  []string
		status int
		has    string
	}{
		{"a reader reads", []string{"status"}, append(ca, "--token-file", d.reader), exitDone, "LISTENER"},
		{"a writer writes", set, append(ca, "--token-file", d.writer), exitDone, "revision 2 is in force"},
		{"a certificate writes", []string{"config", "set", "clusters/order/max_pending", "78"}, append(ca, "--cert-file", clientCert, "--key-file", clientKey), exitDone, "revision 3 is in force"},
		{"the history", []string{"config", "history"}, append(ca, "--token-file", d.reader), exitDone, "CN=ops (tcp, from 127.0.0.1:"},
		{"the history", []string{"config", "history"}, append(ca, "--token-file", d.reader), exitDone, "tcp, token writer, from 127.0.0.1:"},
		{"nobody", []string{"status"}, ca, exitPermission, "a token"},
		{"a reader writes", set, append(ca, "--token-file", d.reader), exitPermission, "the token reader may only read"},
		{"an unknown authority", []string{"status"}, []string{"--token-file", d.reader}, exitFailed, "unknown authority"},
		{"another authority", []string{"status"}, []string{"--ca-file", stranger.File, "--token-file", d.reader}, exitFailed, "unknown authority"},
		{"half a certificate", []string{"status"}, append(ca, "--cert-file", clientCert), exitUsage, "go together"},
		{"no token in the file", []string{"status"}, append(ca, "--token-file", d.authority.File), exitUsage, "does not hold a token"},
		{"no file", []string{"status"}, append(ca, "--token-file", d.reader+"x"), exitFailed, "no such file"},
	} {
		status, out, errOut := relevo(t, "", append(append(tc.args, "--address", at), tc.flags...)...)
		if status != tc.status || !strings.Contains(out+errOut, tc.has) {
			t.Errorf("%s: exit status %d\n%s%s\nwant %d, and %q", tc.what, status, out, errOut, tc.status, tc.has)
		}
	}
	for address, tc := range map[string]struct {
		status int
		has    string
	}{
		"http://192.0.2.1:12280":                  {exitUsage, "not sent to http://192.0.2.1:12280 unencrypted"},
		"https://127.0.0.1:1":                     {exitNothing, "nothing answers"},
		"https://127.0.0.1:1/v1":                  {exitUsage, "no address of a door"},
		"ftp://127.0.0.1:1":                       {exitUsage, "no address of a door"},
		strings.Replace(at, "https:", "http:", 1): {exitUsage, "400"},
	} {
		if status, out, errOut := relevo(t, "", "status", "--token-file", d.reader, "--address", address); status != tc.status || !strings.Contains(errOut, tc.has) {
			t.Errorf("status at %s: exit status %d\n%s%s\nwant %d, and %q", address, status, out, errOut, tc.status, tc.has)
		}
	}
	secret, err := os.ReadFile(d.reader)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(tokenVariable, strings.TrimSpace(string(secret)))
	t.Setenv(adminVariable, at)
	if status, out, errOut := relevo(t, "", append([]string{"failures"}, ca...)...); status != exitDone {
		t.Errorf("with the address and the token from the environment: exit status %d\n%s%s", status, out, errOut)
	}
	// A token that is added while the process runs lets in within a second or two.
	t.Setenv(tokenVariable, madeToken(t, d.tokens, "late", "--path", "/v1/status"))
	for deadline := time.Now().Add(patience); ; {
		status, _, errOut := relevo(t, "", append([]string{"status"}, ca...)...)
		if status == exitDone {
			break
		}
		if status != exitPermission || time.Now().After(deadline) {
			t.Fatalf("a token that was added: exit status %d, %s; want to be let in soon", status, errOut)
		}
	}
	if status, _, errOut := relevo(t, "", append([]string{"config", "get"}, ca...)...); status != exitPermission || !strings.Contains(errOut, "not for this path") {
		t.Errorf("a token for another path: exit status %d, %s; want %d", status, errOut, exitPermission)
	}
}

func TestCheckReadsTheFilesOfDoors(t *testing.T) {
	d := newNetDoor(t)
	file := fileWith(t, goodConfig+d.line)
	if err := os.WriteFile(d.tokens, []byte("# who\nci all\nci read 00\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(d.tokens, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(d.authority.File); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"check", "run"} {
		p := spawn(t, verb, "-c", file)
		if status := p.status(t); status != exitConfig {
			t.Errorf("%s: exit status %d, want %d", verb, status, exitConfig)
		}
		wants(t, verb, p.err.String(), "admin.tcp.tokens_file: "+d.tokens+" has the mode 0666", "line 2: want NAME ROLE", "line 3: the hash", "admin.tcp.tls.client_ca_file: ")
	}
}

func TestTokenVerbSaysWhatIsWrong(t *testing.T) {
	for _, args := range [][]string{{}, {"a", "b"}, {"a b"}, {"a", "--role", "admin"}, {"a", "--path", "v1"}, {"a", "--path", "/v1/"}} {
		if status, out, errOut := relevo(t, "", append([]string{"token"}, args...)...); status != exitUsage || out != "" || strings.Count(errOut, "\n") != 1 {
			t.Errorf("token %q: exit status %d, %q, %q; want %d, and one line that says why", args, status, out, errOut, exitUsage)
		}
	}
}

// Upgrades under requests at both doors: each is answered, reads always with 200, writes with 503 at the worst; whether a
// connection is a new one or one that was open.
func TestUpgradesUnderRequestsOverTLS(t *testing.T) {
	const upgrades = 5
	d := newNetDoor(t)
	p := newChain(t, os.Args[0], patientUpgrades, strings.Replace(goodConfig, "name: order,", "name: order, max_pending: 1,", 1)+d.line+"state_dir: none")
	at := "https://" + p.err.find(t, doorLine)
	bearer := func(file string) string {
		secret, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return "Bearer " + strings.TrimSpace(string(secret))
	}
	reader, writer := bearer(d.reader), bearer(d.writer)
	var wg sync.WaitGroup
	var asked, changed, refused atomic.Int64
	stop := make(chan struct{})
	client := func(keep bool, run func(c *http.Client) error) {
		transport := &http.Transport{DisableKeepAlives: !keep, TLSClientConfig: &tls.Config{RootCAs: d.authority.Pool(), ServerName: "localhost"}}
		wg.Go(func() { // ends with stop, or its first failure
			defer transport.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := run(&http.Client{Transport: transport, Timeout: 2 * patience}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	do := func(c *http.Client, method, path, token, body string) (int, error) {
		r, err := http.NewRequestWithContext(t.Context(), method, at+path, bytes.NewReader([]byte(body)))
		if err != nil {
			return 0, err
		}
		r.Header.Set("Authorization", token)
		r.Header.Set("If-Match", "*")
		resp, err := c.Do(r)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") == "" {
			err = fmt.Errorf("%s %s: a 503 without Retry-After", method, path)
		}
		text, readErr := io.ReadAll(resp.Body)
		if readErr != nil {
			err = readErr
		}
		if err != nil {
			err = fmt.Errorf("%s %s: %w\n%s", method, path, err, text)
		}
		return resp.StatusCode, err
	}
	for _, keep := range []bool{true, false} {
		client(keep, func(c *http.Client) error {
			code, err := do(c, http.MethodGet, "/v1/config", reader, "")
			asked.Add(1)
			if err == nil && code != http.StatusOK {
				err = fmt.Errorf("GET gives %d, want 200", code)
			}
			return err
		})
	}
	client(false, func(c *http.Client) error { // a change must not be sent twice, so nobody sends it where the other end may just close
		code, err := do(c, http.MethodPut, "/v1/config/clusters/order/max_pending", writer, fmt.Sprint(100+changed.Load()))
		switch {
		case err != nil:
		case code == http.StatusOK:
			changed.Add(1)
		case code == http.StatusServiceUnavailable:
			refused.Add(1)
		default:
			err = fmt.Errorf("PUT gives %d, want 200 or 503", code)
		}
		return err
	})
	for range upgrades {
		before, wrote := asked.Load(), changed.Load()
		p.upgrade(t)
		for (asked.Load() < before+20 || changed.Load() == wrote) && !t.Failed() {
			time.Sleep(time.Millisecond) // the sockets are real
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("%d upgrades, %d reads, %d changes, %d refused because of an upgrade", upgrades, asked.Load(), changed.Load(), refused.Load())
	wants(t, "the value behind all upgrades", said(t, d.socket, "get", "clusters/order/max_pending"), fmt.Sprint(99+changed.Load()))
	p.stop(t)
}
