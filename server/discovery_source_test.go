package server

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/relevo-proxy/relevo/forwarder/discovery"
	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/server/config"
)

// sourceFunc is a Source.
type sourceFunc func(ctx context.Context, tell func(discovery.Update))

func (f sourceFunc) Run(ctx context.Context, tell func(discovery.Update)) { f(ctx, tell) }

// withSource has files found by another source.
func withSource(t *testing.T, of func(d *config.Discovery, known []discovery.Endpoint) discovery.Source) {
	t.Helper()
	was := sources["file"]
	sources["file"] = func(d *config.Discovery, known []discovery.Endpoint) (discovery.Source, error) {
		return of(d, known), nil
	}
	t.Cleanup(func() { sources["file"] = was })
}

// finds is a configuration whose clusters are found in these files.
func finds(files ...string) *config.Config {
	c := &config.Config{}
	for i, file := range files {
		c.Clusters = append(c.Clusters, config.Cluster{Name: fmt.Sprint("c", i), Discovery: &config.Discovery{File: file}})
	}
	return c
}

// Sources that do not end, since the kernel has them wait, hold up neither a change nor the end, and are not heard any more.
func TestStuckSourcesAreLeftBehind(t *testing.T) {
	stuck := make(chan struct{})
	withSource(t, func(*config.Discovery, []discovery.Endpoint) discovery.Source {
		return sourceFunc(func(_ context.Context, tell func(discovery.Update)) {
			<-stuck
			tell(discovery.Update{Endpoints: []discovery.Endpoint{{Network: "tcp", Address: "h:1", Weight: 1}}})
		})
	})
	synctest.Test(t, func(t *testing.T) {
		stuck = make(chan struct{})
		f := newFinder(zap.NewNop(), stats.NewRegistry())
		first, err := f.prepare(finds("/a", "/b", "/c"), nil)
		if err != nil {
			t.Fatal(err)
		}
		first.commit()
		for _, step := range []struct {
			name string
			do   func()
		}{
			{"a change without two of them", func() {
				next, err := f.prepare(finds("/a"), nil)
				if err != nil {
					t.Fatal(err)
				}
				next.commit()
			}},
			{"a change that is taken back", func() {
				next, err := f.prepare(finds("/d", "/e"), nil)
				if err != nil {
					t.Fatal(err)
				}
				next.discard()
			}},
			{"the end", f.close},
		} {
			began := time.Now()
			step.do()
			if took := time.Since(began); took > endMost {
				t.Errorf("%s takes %v, want at most %v", step.name, took, endMost)
			}
		}
		close(stuck)
		synctest.Wait()
		if got := f.setsNow(); len(got["c0"]) != 0 {
			t.Errorf("what a source tells behind its end is taken: %v", got)
		}
	})
}

// A source knows the set that the same one has told before it: in the process before this one, or with other settings.
func TestSourcesKnowWhatWasToldLast(t *testing.T) {
	set := []discovery.Endpoint{{Network: "tcp", Address: "h:1", Weight: 1}}
	var begun []bool // by source, whether it has known the set
	works := true
	withSource(t, func(_ *config.Discovery, known []discovery.Endpoint) discovery.Source {
		begun = append(begun, slices.Equal(known, set))
		return sourceFunc(func(ctx context.Context, tell func(discovery.Update)) {
			if works {
				tell(discovery.Update{Endpoints: slices.Clone(set)})
			}
			<-ctx.Done()
		})
	})
	synctest.Test(t, func(t *testing.T) {
		follow := func(f *finder, c *config.Config) {
			t.Helper()
			p, err := f.prepare(c, nil)
			if err != nil {
				t.Fatal(err)
			}
			p.commit()
			synctest.Wait()
		}
		old := newFinder(zap.NewNop(), stats.NewRegistry())
		defer old.close()
		follow(old, finds("/a"))
		other := finds("/a")
		other.Clusters[0].Discovery.MinTTL = 1
		follow(old, other) // knows it
		heir := newFinder(zap.NewNop(), stats.NewRegistry())
		defer heir.close()
		heir.inherit(old.give())
		works = false
		follow(heir, finds("/a")) // knows it
		follow(heir, finds("/b"))
		last := newFinder(zap.NewNop(), stats.NewRegistry())
		defer last.close()
		last.inherit(heir.give()) // the set is not b's
		follow(last, finds("/b"))
		if want := []bool{false, true, true, false, false}; !slices.Equal(begun, want) {
			t.Errorf("sources know the set: %v, want %v", begun, want)
		}
	})
}
