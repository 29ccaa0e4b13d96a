package filter

import (
	"testing"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// exchange is what the filter sees of a request with these headers.
func exchange(t *testing.T, headers ...bolt.Pair) *filter.Exchange {
	t.Helper()
	r := bolt.Request{Version: bolt.V1, ID: 1, Headers: headers}
	frame, err := r.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	x := &filter.Exchange{Message: &wire.Message{}, Codec: bolt.Codec{}}
	if _, err := x.Codec.Decode(x.Message, frame, wire.Limits{}); err != nil {
		t.Fatal(err)
	}
	return x
}

func TestTenants(t *testing.T) {
	f, err := NewTenants("shop", "bank")
	if err != nil {
		t.Fatal(err)
	}
	refused := filter.Stop(wire.ServerException, "no-tenant")
	for _, c := range []struct {
		name    string
		headers []bolt.Pair
		want    filter.Verdict
	}{
		{"known", []bolt.Pair{{Key: "service", Value: "s"}, {Key: "app", Value: "shop"}}, filter.Continue},
		{"also known", []bolt.Pair{{Key: "app", Value: "bank"}}, filter.Continue},
		{"unknown", []bolt.Pair{{Key: "app", Value: "shops"}}, refused},
		{"empty", []bolt.Pair{{Key: "app", Value: ""}}, refused},
		{"absent", []bolt.Pair{{Key: "service", Value: "shop"}}, refused},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := exchange(t, c.headers...)
			chain := filter.NewChain([]filter.Filter{f}, nil)
			if got := chain.BeforeRoute(t.Context(), x); got != c.want {
				t.Errorf("got the verdict %+v, want %+v", got, c.want)
			}
			if got := testing.AllocsPerRun(100, func() { chain.BeforeRoute(t.Context(), x) }); got != 0 {
				t.Errorf("got %v allocations a request, want 0", got)
			}
			if chain.Blocks() {
				t.Error("the filter may block, want it to run on the read loop")
			}
		})
	}
}

// An empty name among the known would let pass whoever sends an empty header, and whoever sends none.
func TestNewTenantsErrors(t *testing.T) {
	for _, known := range [][]string{nil, {""}, {"shop", ""}} {
		if f, err := NewTenants(known...); f != nil || err == nil {
			t.Errorf("%q: got the filter %v and the error %v, want an error", known, f, err)
		}
	}
}
