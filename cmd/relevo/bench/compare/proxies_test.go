package main

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v2"

	"github.com/relevo-proxy/relevo/server/config"
)

func parsed(t *testing.T, content string) *config.Config {
	t.Helper()
	c, err := config.Parse(fmt.Appendf(nil, content, "127.0.0.1:1", "127.0.0.1:2"))
	if err != nil {
		t.Fatalf("%v: in\n%s", err, content)
	}
	return c
}

func TestModesDifferInForwardingOnly(t *testing.T) {
	inline, worker := parsed(t, relevoConfig), parsed(t, workerConfig)
	if got := worker.Listeners[0].Forwarding; got != config.ForwardWorker {
		t.Errorf("the workers' listener forwards %q, want %q", got, config.ForwardWorker)
	}
	if got := inline.Listeners[0].Forwarding; got == config.ForwardWorker {
		t.Errorf("the inline listener forwards %q, and so the two modes are one", got)
	}
	for _, l := range inline.Listeners {
		if len(l.Filters) > 0 {
			t.Errorf("listener %s has filters, which may call for a worker", l.Name)
		}
	}
	worker.Listeners[0].Forwarding = inline.Listeners[0].Forwarding
	if diff := cmp.Diff(inline, worker); diff != "" {
		t.Errorf("the configurations of the two modes differ in more than forwarding (-inline +worker):\n%s", diff)
	}
}

// A baseline may be the first release: what came later it refuses as unknown.
func TestBaselineIsToldOnlyWhatEveryReleaseKnows(t *testing.T) {
	known := []string{
		"address", "cluster", "clusters", "endpoints", "level", "listeners", "log", "match", "name", "protocol", "routes", "rules", "service",
	}
	var tree any
	if err := yaml.Unmarshal(fmt.Appendf(nil, relevoConfig, "127.0.0.1:1", "127.0.0.1:2"), &tree); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	var walk func(any)
	walk = func(node any) {
		switch node := node.(type) {
		case map[any]any:
			for key, below := range node {
				keys[fmt.Sprint(key)] = true
				walk(below)
			}
		case []any:
			for _, below := range node {
				walk(below)
			}
		}
	}
	walk(tree)
	if got := slices.Sorted(maps.Keys(keys)); !slices.Equal(got, known) {
		t.Errorf("the baseline's configuration has the fields %q, want no others than the first release's: %q", got, known)
	}
}
