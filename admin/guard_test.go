package admin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/relevo-proxy/relevo/admin/admintest"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/config"
)

// guarded is a door on TCP, with what its callers need.
type guarded struct {
	guard    *Guard
	listener net.Listener
	tls      bool
	pool     *x509.CertPool
	secrets  map[string]string // of tokens, by name
	tokens   string            // the file
}

// openGuarded runs a door with tokens, and with a certificate and one authority for clients if it speaks TLS. What gets through
// the guard is answered with who it is.
func openGuarded(t *testing.T, server, clients *admintest.Authority) *guarded {
	t.Helper()
	d := &guarded{secrets: map[string]string{}, tokens: filepath.Join(t.TempDir(), "tokens")}
	var lines strings.Builder
	lines.WriteString("# who may come\n\n")
	for _, w := range []struct {
		name  string
		role  Role
		paths []string
	}{
		{"reader", RoleRead, nil},
		{"writer", RoleWrite, nil},
		{"bounded", RoleWrite, []string{"/v1/config/clusters/order", "/v1/a%2Fb"}},
	} {
		secret, line, err := NewToken(w.name, w.role, w.paths)
		if err != nil {
			t.Fatal(err)
		}
		d.secrets[w.name] = secret
		lines.WriteString(line + "\n")
	}
	if err := os.WriteFile(d.tokens, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &config.AdminTCP{Address: "127.0.0.1:0", TokensFile: d.tokens}
	if server != nil {
		d.tls, d.pool = true, server.Pool()
		c.TLS = &config.TLS{ClientCAFile: clients.File}
		c.TLS.CertFile, c.TLS.KeyFile = server.Server(t, "relevo.example", "*.wild.example")
	}
	var err error
	if d.guard, err = NewGuard(c, stats.NewRegistry(), zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel))); err != nil {
		t.Fatal(err)
	}
	d.listener = listen(t, "127.0.0.1:0")
	handler := harden(limitRate(newBuckets(requestRate, requestBurst), d.guard.protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, authorOf(r))
	}))))
	s := newServer(d.listener, handler, zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)), defaultLimits)
	s.TLS(d.guard.TLS())
	runUntilEnd(t, s)
	return d
}

// asks makes a request. headers are "Name: value", Host among them; certificate may be nil.
func (d *guarded) asks(t *testing.T, certificate *tls.Certificate, method, path string, headers ...string) (answer, error) {
	t.Helper()
	conf := &tls.Config{RootCAs: d.pool, ServerName: "localhost"}
	if certificate != nil { // whether the door's authority has issued it or not
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return certificate, nil }
	}
	c := client(t, d.listener)
	c.Transport.(*http.Transport).TLSClientConfig = conf
	scheme := "http://"
	if d.tls {
		scheme = "https://"
	}
	r, err := http.NewRequestWithContext(t.Context(), method, scheme+d.listener.Addr().String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			r.Host = value
		}
		r.Header.Add(name, value)
	}
	resp, err := c.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(body)}, err
}

func (d *guarded) bearer(name string) string { return "Authorization: Bearer " + d.secrets[name] }

func keyPair(t *testing.T, files []string) *tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(files[0], files[1])
	if err != nil {
		t.Fatal(err)
	}
	return &pair
}

// TestWhoMayDoWhat asks doors, with and without TLS, for what they grant and for all that they refuse.
func TestWhoMayDoWhat(t *testing.T) {
	server, clients, strangers := admintest.NewAuthority(t, "server-ca"), admintest.NewAuthority(t, "client-ca"), admintest.NewAuthority(t, "other-ca")
	soon := time.Now().Add(time.Hour)
	good := keyPair(t, files(clients.Client(t, "ops", soon)))
	expired := keyPair(t, files(clients.Client(t, "late", time.Now().Add(-time.Minute))))
	foreign := keyPair(t, files(strangers.Client(t, "ops", soon)))
	notClient := keyPair(t, files(clients.Server(t)))

	plain, encrypted := openGuarded(t, nil, nil), openGuarded(t, server, clients)
	type ask struct {
		what, method, path string
		headers            []string
		certificate        *tls.Certificate // only where there is TLS
		code               int
		has                string
	}
	const inside = "/v1/config/clusters/order"
	for name, d := range map[string]*guarded{"tcp": plain, "tls": encrypted} {
		at := d.listener.Addr().String()
		read, write, bounded := d.bearer("reader"), d.bearer("writer"), d.bearer("bounded")
		asks := []ask{
			{"no credential", "GET", "/v1/status", nil, nil, 401, "a token"},
			{"no credential, where nothing is", "GET", "/nothing", nil, nil, 401, "a token"},
			{"no credential", "PUT", inside, nil, nil, 401, "a token"},
			{"no credential, the list", "GET", "/", nil, nil, 401, "a token"},
			{"no credential, alive", "GET", "/healthz", nil, nil, 200, "tcp"},
			{"no credential, ready", "HEAD", "/readyz", nil, nil, 200, ""},
			{"no credential, not quite ready", "GET", "/readyz/", nil, nil, 401, "a token"},
			{"no credential, ready in disguise", "GET", "/%72eadyz", nil, nil, 401, "a token"},
			{"no credential", "POST", "/healthz", nil, nil, 401, "a token"},
			{"a wrong token", "GET", "/v1/status", []string{"Authorization: Bearer relevo_x"}, nil, 401, "a token"},
			{"an empty token", "GET", "/v1/status", []string{"Authorization: Bearer "}, nil, 401, "a token"},
			{"half a token", "GET", "/v1/status", []string{read[:len(read)-1]}, nil, 401, "a token"},
			{"a token and a bit", "GET", "/v1/status", []string{read + "x"}, nil, 401, "a token"},
			{"a hash", "GET", "/v1/status", []string{"Authorization: Bearer " + hashOf(t, d.tokens)}, nil, 401, "a token"},
			{"another scheme", "GET", "/v1/status", []string{"Authorization: Basic " + d.secrets["reader"]}, nil, 401, "a token"},
			{"two tokens", "GET", "/v1/status", []string{read, "Authorization: Bearer x"}, nil, 401, "a token"},
			{"a token in the query", "GET", "/v1/status?access_token=" + d.secrets["reader"], nil, nil, 401, "a token"},
			{"a reader reads", "GET", "/v1/status", []string{read}, nil, 200, "tcp, token reader, from 127.0.0.1:"},
			{"a reader, in other letters", "GET", "/v1/status", []string{"Authorization: bearer " + d.secrets["reader"]}, nil, 200, "token reader"},
			{"a reader asks what there is", "OPTIONS", "/v1/status", []string{read}, nil, 200, "token reader"},
			{"a reader profiles", "GET", "/debug/pprof/heap", []string{read}, nil, 403, "may only read"},
			{"a reader profiles, in disguise", "GET", "/debug/%70prof/heap", []string{read}, nil, 403, "may only read"},
			{"a reader lists profiles", "HEAD", "/debug/pprof", []string{read}, nil, 403, ""},
			{"a writer profiles", "GET", "/debug/pprof/", []string{write}, nil, 200, "token writer"},
			{"a writer writes", "PUT", inside, []string{write}, nil, 200, "token writer"},
			{"within", "PATCH", inside, []string{bounded}, nil, 200, "token bounded"},
			{"below", "DELETE", inside + "/endpoints/127.0.0.1:1", []string{bounded}, nil, 200, "token bounded"},
			{"within, escaped", "PUT", "/v1/config/clusters/%6Frder", []string{bounded}, nil, 200, "token bounded"},
			{"a slash in a name", "PUT", "/v1/a%2fb/c", []string{bounded}, nil, 200, "token bounded"},
			{"another slash", "PUT", "/v1/a/b/c", []string{bounded}, nil, 403, "not for this path"},
			{"above", "PUT", "/v1/config/clusters", []string{bounded}, nil, 403, "not for this path"},
			{"all", "PUT", "/v1/config", []string{bounded}, nil, 403, "not for this path"},
			{"beside", "PUT", inside + "s", []string{bounded}, nil, 403, "not for this path"},
			{"beside, to read", "GET", "/v1/config/log", []string{bounded}, nil, 403, "not for this path"},
			{"a name with a slash beside", "PUT", "/v1/config/clusters/order%2Fx", []string{bounded}, nil, 403, "not for this path"},
			{"slashes that are not", "PUT", "/v1/config%2Fclusters%2Forder", []string{bounded}, nil, 403, "not for this path"},
			{"up again", "PUT", inside + "/../pay", []string{bounded}, nil, 403, "not for this path"},
			{"up again, escaped", "PUT", inside + "/%2e%2E/pay", []string{bounded}, nil, 403, "not for this path"},
			{"up by one", "PUT", "/v1/x/../config/clusters/order", []string{bounded}, nil, 403, "not for this path"},
			{"nowhere", "PUT", "/v1/config/./clusters/order", []string{bounded}, nil, 403, "not for this path"},
			{"two slashes", "PUT", "/v1/config//clusters/order", []string{bounded}, nil, 403, "not for this path"},
			{"two slashes below", "PUT", inside + "//x", []string{bounded}, nil, 403, "not for this path"},
			{"a slash at the end", "PUT", inside + "/", []string{bounded}, nil, 403, "not for this path"},
			{"other letters", "PUT", "/v1/config/clusters/Order", []string{bounded}, nil, 403, "not for this path"},
			{"another path in the query", "PUT", "/v1/config?path=" + inside, []string{bounded}, nil, 403, "not for this path"},
			{"a foreign host", "GET", "/v1/status", []string{read, "Host: evil.example"}, nil, 421, "Host"},
			{"a foreign host, alive", "GET", "/healthz", []string{"Host: evil.example"}, nil, 421, "Host"},
			{"a foreign origin", "GET", "/v1/status", []string{read, "Origin: https://evil.example"}, nil, 403, "other sites"},
			{"a foreign origin, alive", "GET", "/healthz", []string{"Origin: https://evil.example"}, nil, 403, "other sites"},
			{"no origin to speak of", "PUT", inside, []string{write, "Origin: null"}, nil, 403, "other sites"},
			{"another port", "GET", "/v1/status", []string{read, "Origin: https://127.0.0.1:1"}, nil, 403, "other sites"},
			{"two origins", "GET", "/v1/status", []string{read, "Origin: https://" + at, "Origin: https://evil.example"}, nil, 403, "other sites"},
			{"its own origin", "PUT", inside, []string{write, "Origin: https://" + at}, nil, 200, "token writer"},
			{"a link on another site", "GET", "/v1/status", []string{read, "Sec-Fetch-Site: cross-site"}, nil, 403, "other sites"},
			{"a link on a site near by", "GET", "/v1/status", []string{read, "Sec-Fetch-Site: same-site"}, nil, 403, "other sites"},
			{"typed into a browser", "GET", "/v1/status", []string{read, "Sec-Fetch-Site: none"}, nil, 200, "token reader"},
			{"a browser's question before", "OPTIONS", inside, []string{"Origin: https://evil.example", "Access-Control-Request-Method: PUT"}, nil, 403, "other sites"},
		}
		if d.tls {
			asks = append(asks,
				ask{"a certificate", "PUT", inside, nil, good, 200, "CN=ops (tcp, from 127.0.0.1:"},
				ask{"a certificate profiles", "GET", "/debug/pprof/", nil, good, 200, "CN=ops"},
				ask{"a certificate that has expired", "GET", "/v1/status", nil, expired, 401, "a token"},
				ask{"a certificate that has expired, alive", "GET", "/healthz", nil, expired, 200, ""},
				ask{"a stranger's certificate", "GET", "/v1/status", nil, foreign, 401, "a token"},
				ask{"a certificate that is for servers", "GET", "/v1/status", nil, notClient, 401, "a token"},
				ask{"a certificate, and a wrong token", "GET", "/v1/status", []string{"Authorization: Bearer x"}, good, 401, "a token"},
				ask{"a certificate, and a reader's token", "PUT", inside, []string{read}, good, 403, "may only read"},
				ask{"a name in the certificate", "GET", "/v1/status", []string{read, "Host: RELEVO.example:443"}, nil, 200, "token reader"},
				ask{"a name that it covers", "GET", "/v1/status", []string{read, "Host: a.wild.example"}, nil, 200, "token reader"},
				ask{"a name that it does not cover", "GET", "/v1/status", []string{read, "Host: a.b.wild.example"}, nil, 421, "Host"},
			)
		}
		for _, a := range asks {
			d.guard.refused = newBuckets(refusedRate, refusedBurst) // many are refused here
			got, err := d.asks(t, a.certificate, a.method, a.path, a.headers...)
			if err != nil {
				t.Errorf("%s: %s (%s %s): %v", name, a.what, a.method, a.path, err)
				continue
			}
			if got.code != a.code || !strings.Contains(got.body, a.has) {
				t.Errorf("%s: %s (%s %s) gives %d %s; want %d, with %q", name, a.what, a.method, a.path, got.code, got.body, a.code, a.has)
			}
			if auth := got.header.Get("WWW-Authenticate"); (auth == `Bearer realm="relevo"`) != (got.code == 401) {
				t.Errorf("%s: %s: WWW-Authenticate is %q with the status %d", name, a.what, auth, got.code)
			}
			for h := range got.header {
				if strings.HasPrefix(h, "Access-Control-") {
					t.Errorf("%s: %s: the answer has %s, want no such header ever", name, a.what, h)
				}
			}
			for who, secret := range d.secrets {
				if strings.Contains(got.body, secret) {
					t.Errorf("%s: %s: the answer has the secret of %s", name, a.what, who)
				}
			}
		}
	}

	old := &tls.Config{RootCAs: encrypted.pool, ServerName: "localhost", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}
	if c, err := tls.Dial("tcp", encrypted.listener.Addr().String(), old); err == nil {
		c.Close()
		t.Error("TLS 1.1 is spoken, want 1.2 at least")
	}
}

// files are those of a certificate and its key.
func files(certFile, keyFile string) []string { return []string{certFile, keyFile} }

// hashOf is the first one in a file of tokens.
func hashOf(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(strings.SplitN(string(text), "\n\n", 2)[1])[2]
}

// TestRefusalsAreSlowed has one address guess: after a while it is told to wait, and who has a token is not.
func TestRefusalsAreSlowed(t *testing.T) {
	d := openGuarded(t, nil, nil)
	codes := map[int]int{}
	for range 3 * refusedBurst {
		got, err := d.asks(t, nil, "GET", "/v1/status", "Authorization: Bearer guess")
		if err != nil {
			t.Fatal(err)
		}
		codes[got.code]++
		if got.code == 429 && got.header.Get("Retry-After") == "" {
			t.Error("a 429 has no Retry-After")
		}
	}
	if codes[401] < refusedBurst || codes[429] == 0 || codes[401]+codes[429] != 3*refusedBurst {
		t.Errorf("%d guesses give these answers: %v; want %d of 401, then 429", 3*refusedBurst, codes, refusedBurst)
	}
	if n := d.guard.refusals[refusedCredential].Value(); n != 3*refusedBurst {
		t.Errorf("%d refusals are counted, want %d", n, 3*refusedBurst)
	}
	if got, err := d.asks(t, nil, "GET", "/v1/status", d.bearer("reader")); err != nil || got.code != 200 {
		t.Errorf("a right token beside them gives %d, %v; want 200", got.code, err)
	}
}

// TestReadOnlyDoor asks nobody who he is, and lets nobody change anything.
func TestReadOnlyDoor(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	serve(t, l, Admin(testRegistry(), &fakeState{}, nil, testBuild, openGuard(t, "127.0.0.1:0")), defaultLimits)
	for _, tc := range []struct {
		method, path string
		code         int
	}{
		{"GET", "/v1/status", 200},
		{"GET", "/healthz", 200},
		{"PUT", "/v1/config", 403},
		{"POST", "/v1/upgrade", 403},
		{"DELETE", "/healthz", 403},
		{"GET", "/debug/pprof/heap", 403},
	} {
		got := ask(t, client(t, l), tc.method, base+tc.path)
		if got.code != tc.code || got.code == 403 && !strings.Contains(got.body, "admin.tcp.tokens_file") {
			t.Errorf("%s %s gives %d %s, want %d, and what to configure", tc.method, tc.path, got.code, got.body, tc.code)
		}
	}
}

// TestFilesAreReadAnew changes what the doors go by while connections are open.
func TestFilesAreReadAnew(t *testing.T) {
	server, clients, others := admintest.NewAuthority(t, "server-ca"), admintest.NewAuthority(t, "client-ca"), admintest.NewAuthority(t, "other-ca")
	d := openGuarded(t, server, clients)
	ops := keyPair(t, files(clients.Client(t, "ops", time.Now().Add(time.Hour))))
	c := client(t, d.listener)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: d.pool, ServerName: "localhost", Certificates: []tls.Certificate{*ops}}
	c.Transport.(*http.Transport).DisableKeepAlives = false
	look := func() { // as a second later
		for _, looked := range []*time.Time{&d.guard.keys.looked, &d.guard.tokens.looked} {
			*looked = time.Time{}
		}
	}
	opened := 0
	dialer := c.Transport.(*http.Transport).DialContext
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		opened++
		return dialer(ctx, network, address)
	}
	const url = "https://localhost/v1/status"
	if got := ask(t, c, "PUT", url); got.code != 200 {
		t.Fatalf("a certificate gives %d %s, want 200", got.code, got.body)
	}
	authorities, err := os.ReadFile(clients.File)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(others.File)
	if err != nil {
		t.Fatal(err)
	}
	replace(t, clients.File, other)
	look()
	if got := ask(t, c, "PUT", url); got.code != 401 || opened != 1 {
		t.Errorf("on an open connection, when its authority is gone, a certificate gives %d; %d connections were opened; want 401, and 1", got.code, opened)
	}
	replace(t, clients.File, authorities)
	look()
	if got := ask(t, c, "PUT", url); got.code != 200 {
		t.Errorf("when it is there again it gives %d, want 200", got.code)
	}

	renewed := admintest.NewAuthority(t, "renewed-ca")
	certFile, keyFile := renewed.Server(t)
	for from, to := range map[string]string{certFile: d.guard.keys.files[0], keyFile: d.guard.keys.files[1]} {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		replace(t, to, text)
	}
	look()
	conn, err := tls.Dial("tcp", d.listener.Addr().String(), &tls.Config{RootCAs: renewed.Pool(), ServerName: "localhost"})
	if err != nil {
		t.Fatalf("a new connection does not get the certificate that was put in place of the old one: %v", err)
	}
	conn.Close()
	if got := ask(t, c, "PUT", url); got.code != 200 || opened != 1 {
		t.Errorf("the connection that was open gives %d, and %d were opened; want 200, and 1", got.code, opened)
	}

	secret, line, err := NewToken("late", RoleRead, nil)
	if err != nil {
		t.Fatal(err)
	}
	d.secrets["late"], d.pool = secret, renewed.Pool()
	codes := func() string {
		look()
		var out []int
		for _, name := range []string{"reader", "late"} {
			got, err := d.asks(t, nil, "GET", "/v1/status", d.bearer(name))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, got.code)
		}
		return fmt.Sprint(out)
	}
	if got := codes(); got != "[200 401]" {
		t.Errorf("before the file changes the tokens give %s, want [200 401]", got)
	}
	replace(t, d.tokens, []byte(line))
	if got := codes(); got != "[401 200]" {
		t.Errorf("when the file has changed the tokens give %s, want [401 200]", got)
	}
	replace(t, d.tokens, []byte("half a li"))
	if got := codes(); got != "[401 200]" {
		t.Errorf("when the file is broken the tokens give %s, want what held before: [401 200]", got)
	}
	if n := d.guard.stale(); n != 1 {
		t.Errorf("%v sets of files are stale, want 1", n)
	}
	replace(t, d.tokens, nil)
	if got := codes(); got != "[401 401]" {
		t.Errorf("when the file is empty the tokens give %s, want [401 401]", got)
	}
	if n := d.guard.stale(); n != 0 {
		t.Errorf("%v sets of files are stale, want none", n)
	}
}

// TestLongAnswersEndWithTheCredential: who is asked anew while an answer lasts is not let in for ever.
func TestLongAnswersEndWithTheCredential(t *testing.T) {
	d := openGuarded(t, nil, nil)
	var made *http.Request
	h := d.guard.protect(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { made = r }))
	r := httptest.NewRequest(http.MethodGet, "/v1/events", nil)
	r.Host = "localhost"
	r.Header.Set("Authorization", "Bearer "+d.secrets["reader"])
	h.ServeHTTP(httptest.NewRecorder(), r)
	if made == nil || !mayStill(made) {
		t.Fatal("a token that holds does not let in, or not for long")
	}
	replace(t, d.tokens, []byte("# nobody\n"))
	d.guard.tokens.looked = time.Time{} // as a second later
	if mayStill(made) {
		t.Error("a token that is taken away goes on to hold for an answer that has begun")
	}
}

// replace puts another file into the place of one.
func replace(t *testing.T, path string, text []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// TestBrokenFiles has the faults that a start, and a check, finds.
func TestBrokenFiles(t *testing.T) {
	a, b := admintest.NewAuthority(t, "a"), admintest.NewAuthority(t, "b")
	certFile, keyFile := a.Server(t)
	_, otherKey := b.Server(t)
	folder := t.TempDir()
	tokens := filepath.Join(folder, "tokens")
	if err := os.WriteFile(tokens, []byte("ci read x\n\nci\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(folder, "none")
	for _, tc := range []struct {
		what string
		conf config.AdminTCP
		want []string // pointer: part of the message
	}{
		{"another's key", config.AdminTCP{TLS: &config.TLS{CertFile: certFile, KeyFile: otherKey}}, []string{"/admin/tcp/tls: private key does not match"}},
		{"no file", config.AdminTCP{TLS: &config.TLS{CertFile: none, KeyFile: none, ClientCAFile: none}, TokensFile: none}, []string{
			"/admin/tcp/tls/cert_file: no such file", "/admin/tcp/tls/key_file: no such file", "/admin/tcp/tls/client_ca_file: no such file", "/admin/tcp/tokens_file: no such file",
		}},
		{"a folder", config.AdminTCP{TokensFile: folder}, []string{"/admin/tcp/tokens_file: is not a file"}},
		{"no authority", config.AdminTCP{TLS: &config.TLS{CertFile: certFile, KeyFile: keyFile, ClientCAFile: keyFile}}, []string{"/admin/tcp/tls/client_ca_file: no certificate in PEM"}},
		{"lines", config.AdminTCP{TokensFile: tokens}, []string{"/admin/tcp/tokens_file: line 1: the hash", "/admin/tcp/tokens_file: line 3: want NAME"}},
	} {
		err := CheckFiles(&tc.conf)
		e, ok := err.(*config.Errors) //nolint:errorlint // it is documented to be one
		if !ok || len(e.Faults) != len(tc.want) {
			t.Errorf("%s: the error is %v, want %d faults", tc.what, err, len(tc.want))
			continue
		}
		for i, f := range e.Faults {
			pointer, has, _ := strings.Cut(tc.want[i], ": ")
			if f.Pointer != pointer || !strings.Contains(f.Message, has) {
				t.Errorf("%s: fault %d is at %s: %s; want %s: %s", tc.what, i, f.Pointer, f.Message, pointer, has)
			}
		}
		if _, err := NewGuard(&tc.conf, stats.NewRegistry(), zap.NewNop()); err == nil {
			t.Errorf("%s: a guard is made of it, want an error", tc.what)
		}
	}
}

// TestLongAnswers: a handler may give itself more time, through all that stands between it and the connection.
func TestLongAnswers(t *testing.T) {
	server := admintest.NewAuthority(t, "server-ca")
	certFile, keyFile := server.Server(t)
	g, err := NewGuard(&config.AdminTCP{Address: "127.0.0.1:0", TLS: &config.TLS{CertFile: certFile, KeyFile: keyFile}}, stats.NewRegistry(), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	lim := defaultLimits
	lim.read, lim.write = time.Second, time.Second // the TLS handshake has as much
	l := listen(t, "127.0.0.1:0")
	s := newServer(l, harden(limitRate(newBuckets(requestRate, requestBurst), g.protect(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		if r.URL.Path == "/long" {
			if err := c.SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Errorf("a handler cannot have more time: %v", err)
			}
		}
		<-time.NewTimer(lim.write + 100*time.Millisecond).C // it outlasts the bound
		if err := r.Context().Err(); err != nil && r.URL.Path == "/long" {
			t.Errorf("a client that waits for a long answer is taken for gone: %v", err)
		}
		for range 3 {
			_, _ = io.WriteString(w, "event\n")
			if err := c.Flush(); err != nil && r.URL.Path == "/long" {
				t.Errorf("a handler cannot flush: %v", err)
			}
		}
	})))), zap.NewNop(), lim)
	s.TLS(g.TLS())
	runUntilEnd(t, s)
	c := client(t, l)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: server.Pool()}
	if got := ask(t, c, "GET", "https://localhost/long"); got.body != strings.Repeat("event\n", 3) {
		t.Errorf("a long answer is %q, want three events", got.body)
	}
	if resp, err := c.Get("https://localhost/short"); err == nil {
		resp.Body.Close()
		t.Error("an answer without more time arrives, want it cut")
	}
}

// A problem that is refused is a problem in the sense of RFC 9457.
func TestRefusalsAreProblems(t *testing.T) {
	d := openGuarded(t, nil, nil)
	for _, headers := range [][]string{nil, {"Host: evil.example"}, {"Origin: null"}, {d.bearer("reader")}} {
		got, err := d.asks(t, nil, "DELETE", "/v1/x", headers...)
		if err != nil {
			t.Fatal(err)
		}
		var p problem
		if err := json.Unmarshal([]byte(got.body), &p); err != nil || p.Status != got.code || p.Detail == "" || got.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%v gives %d, %s: %v", headers, got.code, got.body, err)
		}
	}
}

// TestManyCertificatesAreRefused: what a client shows is kept as long as its connection, before anybody knows who he is.
func TestManyCertificatesAreRefused(t *testing.T) {
	server, clients := admintest.NewAuthority(t, "server-ca"), admintest.NewAuthority(t, "client-ca")
	d := openGuarded(t, server, clients)
	ops := keyPair(t, files(clients.Client(t, "ops", time.Now().Add(time.Hour))))
	most := maxShown / len(ops.Certificate[0])
	for n, want := range map[int]bool{most: true, most + 1: false, 7 * most: false} {
		chain := *ops
		chain.Certificate = slices.Repeat(ops.Certificate, n)
		got, err := d.asks(t, &chain, "GET", "/v1/status")
		if answered := err == nil && got.code == 200; answered != want {
			t.Errorf("with %d certificates: answered %v, with %d and %v; want %v", n, answered, got.code, err, want)
		}
	}
}
