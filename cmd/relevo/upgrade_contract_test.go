//go:build linux

package main

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
	var asked struct{ ID uint64 }
	ask(http.MethodPost, http.StatusAccepted, &asked)
	r := p.report(t)
	p.succeeded(t, r)
	var now map[string]any
	ask(http.MethodGet, http.StatusOK, &now)
	if r.ID != asked.ID || reportOf(now)["id"] != float64(r.ID) || reportOf(now)["outcome"] != "done" {
		t.Errorf("behind upgrade %d, asked for as %d, GET says %v; want it done", r.ID, asked.ID, now)
	}
	for _, e := range document.Examples() {
		if e.Of.ID != "getUpgrade" || e.Name != "done" {
			continue
		}
		want := e.Value.(map[string]any)
		if diff := cmp.Diff(fieldsOf(want), fieldsOf(now)); diff != "" {
			t.Errorf("the answer has other fields than the example (- example, + answer):\n%s", diff)
		}
		if diff := cmp.Diff(fieldsOf(reportOf(want)), fieldsOf(reportOf(now))); diff != "" {
			t.Errorf("the report has other fields than the example's (- example, + report):\n%s", diff)
		}
	}
	p.stop(t)
}

// reportOf is the newest report in the answer of GET /v1/upgrade.
func reportOf(answer map[string]any) map[string]any {
	list, _ := answer["reports"].([]any)
	if len(list) == 0 {
		return nil
	}
	report, _ := list[0].(map[string]any)
	return report
}

func fieldsOf(v map[string]any) []string { return slices.Sorted(maps.Keys(v)) }
