package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/discovery"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/config"
)

// follows is a finder that follows the clusters a and b by these files, behind another one that has handed over.
func follows(t *testing.T, came []byte, a, b string) *finder {
	t.Helper()
	c, err := config.Parse(fmt.Appendf(nil, `
listeners: [{name: in, address: "127.0.0.1:0", protocol: bolt}]
routes: [{name: rpc, rules: [{clusters: [{cluster: a, weight: 1}, {cluster: b, weight: 1}]}]}]
clusters: [{name: a, protocol: bolt, discovery: {file: %q}}, {name: b, protocol: bolt, discovery: {file: %q}}]
`, a, b))
	if err != nil {
		t.Fatal(err)
	}
	f := newFinder(zap.NewNop(), stats.NewRegistry())
	t.Cleanup(f.close)
	f.inherit(came)
	p, err := f.prepare(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.commit()
	for name, w := range p.next {
		if w.known != (came != nil && name == "a") {
			t.Errorf("that the set of %s is known is %v", name, w.known)
		}
	}
	p.wait(t.Context(), 100*time.Millisecond)
	return f
}

func TestSetsGoOver(t *testing.T) {
	folder := t.TempDir()
	a, b, none := folder+"/a", folder+"/b", folder+"/none"
	for path, text := range map[string]string{a: "- address: h:2\n- {address: 'h:1', drain: true}\n", b: "- {address: 'unix:/b', weight: 5}\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := follows(t, nil, a, b)
	old.mu.Lock()
	failing := time.Now().Add(-time.Minute)
	old.followed["a"].state.Err, old.followed["a"].state.FailingSince = errors.New("gone"), failing
	old.mu.Unlock()
	gives := old.give()
	if err := os.Remove(a); err != nil {
		t.Fatal(err)
	}
	heir := follows(t, gives, a, none)
	sets := heir.setsNow()
	if want := []discovery.Endpoint{{Network: "tcp", Address: "h:1", Weight: 100, Drain: true}, {Network: "tcp", Address: "h:2", Weight: 100}}; !slices.Equal(sets["a"], want) {
		t.Errorf("the heir has %v of a, want %v", sets["a"], want)
	}
	if want := []discovery.Endpoint{{Network: "unix", Address: "/b", Weight: 5}}; !slices.Equal(sets["b"], want) {
		t.Errorf("the heir has %v of b, whose source is another one, want %v all the same", sets["b"], want)
	}
	if _, s := heir.state("a"); !s.FailingSince.Equal(failing) || s.Updated.IsZero() {
		t.Errorf("the state of a is %+v, want that it goes on to fail", s)
	}
	if _, s := heir.state("b"); !s.Updated.IsZero() || s.FailingSince.Before(failing.Add(time.Second)) {
		t.Errorf("the state of b is %+v, want nothing that the other source was", s)
	}
	for _, bad := range []string{
		"{", `[{"cluster": "a", "source": "file x", "endpoints": [{"network": "tcp", "address": "h:1", "weight": 0}]}]`,
		`[{"cluster": "a", "endpoints": [{"network": "ip", "address": "h:1", "weight": 1}]}]`, `[{"cluster": "a", "endpoints": []}]`,
	} {
		f := newFinder(zap.NewNop(), stats.NewRegistry())
		f.inherit([]byte(bad))
		if len(f.came) != 0 {
			t.Errorf("of %s there is %v", bad, f.came)
		}
	}
}

// What is planned and comes to nothing leaves nothing: no goroutine, no metric.
func TestDiscardedPlan(t *testing.T) {
	f := newFinder(zap.NewNop(), stats.NewRegistry())
	c := config.Trial()
	c.Clusters[0].Endpoints, c.Clusters[0].Discovery = nil, &config.Discovery{File: t.TempDir() + "/x"}
	p, err := f.prepare(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // it waits for nothing
	p.wait(ctx, firstSets)
	p.discard()
	for _, w := range p.begun {
		select {
		case <-w.done:
		default:
			t.Error("a source goes on")
		}
	}
	for _, m := range f.reg.Export() {
		if strings.HasPrefix(m.Name, "relevo_discovery_") {
			t.Errorf("there is still %s", m.Name)
		}
	}
	c.Clusters[0].Discovery = &config.Discovery{DNS: "no port"}
	if _, err := f.prepare(c, nil); err == nil || len(f.followed) != 0 {
		t.Errorf("a source that cannot be made gives %v", err)
	}
}

func TestDifference(t *testing.T) {
	set := func(addresses string) (out []discovery.Endpoint) {
		for a := range strings.FieldsSeq(addresses) {
			out = append(out, discovery.Endpoint{Network: "tcp", Address: a, Weight: 1})
		}
		return out
	}
	for _, tc := range []struct {
		before, now    string
		added, removed int
	}{{"", "", 0, 0}, {"", "a b", 2, 0}, {"a b", "", 0, 2}, {"a c", "a b c", 1, 0}, {"a b c", "b d", 1, 2}, {"b", "a c", 2, 1}} {
		if added, removed := difference(set(tc.before), set(tc.now)); added != tc.added || removed != tc.removed {
			t.Errorf("from %q to %q: %d added, %d removed; want %d, %d", tc.before, tc.now, added, removed, tc.added, tc.removed)
		}
	}
}
