//go:build linux

package main

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/relevo-proxy/relevo/admin"
	"github.com/relevo-proxy/relevo/admin/contract"
	"github.com/relevo-proxy/relevo/server/config"
)

// An upgrade that is asked for over REST, with answers as the OpenAPI document has them.
func TestUpgradeByTheContract(t *testing.T) {
	document, err := contract.Parse(admin.OpenAPI(), config.JSONSchema())
	if err != nil {
		t.Fatal(err)
	}
	address, line := adminOf(t)
	p := newChain(t, os.Args[0], patientUpgrades, goodConfig+line)
	client := &http.Client{Transport: document.Transport(&http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(address, "unix:"))
		},
	}, func(err error) { t.Error(err) })}
	ask := func(method string, code int, into any) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), method, "http://localhost/v1/upgrade", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != code {
			t.Fatalf("%s gives %d, %v, want %d\n%s", method, resp.StatusCode, err, code, text)
		}
		if err := json.Unmarshal(text, into); err != nil {
			t.Fatal(err)
		}
	}
	var asked struct{ After uint64 }
	ask(http.MethodPost, http.StatusAccepted, &asked)
	r := p.report(t)
	p.succeeded(t, r)
	var now upgraded
	ask(http.MethodGet, http.StatusOK, &now)
	if r.ID <= asked.After || now.ID != r.ID || now.Outcome != "done" {
		t.Errorf("behind upgrade %d, asked for after %d, GET says %d is %q; want it done", r.ID, asked.After, now.ID, now.Outcome)
	}
	p.stop(t)
}
