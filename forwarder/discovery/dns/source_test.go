package dns

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"github.com/relevo-proxy/relevo/forwarder/discovery"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// timeline runs a source on a fake clock for a while, with these looks, of which the last one goes on, and returns the seconds at
// which it looked.
func timeline(t *testing.T, random float64, length time.Duration, looks ...found) (at []float64, updates []discovery.Update) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Options{Name: "orders.internal:12200", MinTTL: 5 * time.Second, MaxTTL: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		s.random = func() float64 { return random }
		began := time.Now()
		s.lookup = func(_ *Source, ctx look) (found, error) {
			at = append(at, time.Since(began).Seconds())
			f := looks[min(len(at), len(looks))-1]
			if f.set == nil {
				return found{}, errNoName
			}
			return f, nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), length)
		defer cancel()
		s.Run(ctx, func(u discovery.Update) { updates = append(updates, u) })
	})
	return at, updates
}

func TestLooksByTTL(t *testing.T) {
	some := []discovery.Endpoint{{Network: "tcp", Address: "127.0.0.1:1", Weight: 1}}
	for _, tc := range []struct {
		name   string
		ttl    time.Duration
		random float64
		want   []float64
	}{
		{"the TTL", 20 * time.Second, 0, []float64{0, 20, 40, 60}},
		{"with jitter", 20 * time.Second, 1, []float64{0, 15, 30, 45, 60}},
		{"not below the lower bound", 0, 0, []float64{0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60}},
		{"not below it with jitter", 6 * time.Second, 1, []float64{0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60}},
		{"not above the upper one", 24 * time.Hour, 0, []float64{0, 60}},
	} {
		at, updates := timeline(t, tc.random, 61*time.Second, found{some, tc.ttl})
		if !slices.Equal(at, tc.want) || len(updates) != len(at) {
			t.Errorf("%s: it looks at %v and tells %d times, want %v and as often", tc.name, at, len(updates), tc.want)
		}
	}
}

func TestBacksOff(t *testing.T) {
	some := []discovery.Endpoint{{Network: "tcp", Address: "127.0.0.1:1", Weight: 1}}
	at, updates := timeline(t, 0, 4*time.Minute, found{some, 30 * time.Second}, found{})
	if want := []float64{0, 30, 31, 33, 37, 45, 61, 93, 153, 213}; !slices.Equal(at, want) {
		t.Errorf("while it fails it looks at %v, want %v", at, want)
	}
	for i, u := range updates {
		if (u.Err == nil) != (i == 0) {
			t.Errorf("update %d is %v", i, u)
		}
	}
	at, _ = timeline(t, 0, 70*time.Second, found{}, found{}, found{some, 30 * time.Second}, found{}, found{some, 30 * time.Second})
	if want := []float64{0, 1, 3, 33, 34, 64}; !slices.Equal(at, want) {
		t.Errorf("behind one that worked it looks at %v, want the back-off to begin anew: %v", at, want)
	}
}

// What is broken off because the source ends is no failure.
func TestEndTellsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := New(Options{Name: "_rpc._tcp.orders.internal", MinTTL: time.Second, MaxTTL: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		s.lookup = func(_ *Source, ctx look) (found, error) {
			<-ctx.Done()
			return found{}, ctx.Err()
		}
		told := []error{}
		tell := func(u discovery.Update) { told = append(told, u.Err) }
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		s.Run(ctx, tell)
		if len(told) != 0 {
			t.Errorf("it tells %v at its end, want nothing", told)
		}
		ctx, cancel = context.WithTimeout(t.Context(), lookTimeout+time.Second/2)
		defer cancel()
		s.Run(ctx, tell)
		if len(told) != 1 || !errors.Is(told[0], context.DeadlineExceeded) {
			t.Errorf("of a look that takes too long it tells %v, want that", told)
		}
	})
}

func TestNames(t *testing.T) {
	for name, want := range map[string]bool{
		"a.b:1": true, "_a._tcp.b": true, "a.b": false, "a.b:0": false, "a.b:65536": false, "a.b:http": false,
	} {
		if _, err := New(Options{Name: name}); (err == nil) != want {
			t.Errorf("%s: %v, want that it is taken: %v", name, err, want)
		}
	}
}

// Who knows the set of somebody else before it does not take a half of it for the whole.
func TestKnownFamilyMustAnswer(t *testing.T) {
	s := startServer(t, zone{"a. A": {"10.0.0.1"}})
	s.fail.Store(&map[string]int{"a. AAAA": dns.RcodeServerFailure})
	for _, known := range []string{"10.0.0.1:1", "[fd00::1]:1"} {
		source, err := New(Options{
			Name: "a:1", Servers: []netip.AddrPort{s.at}, MinTTL: time.Second, MaxTTL: time.Second,
			Known: []discovery.Endpoint{{Network: "tcp", Address: known, Weight: 1}},
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		source.Run(ctx, func(u discovery.Update) {
			if want := known == "[fd00::1]:1"; (u.Err != nil) != want {
				t.Errorf("known is %s: it tells %v, want an error: %v", known, u, want)
			}
			cancel()
		})
	}
}
