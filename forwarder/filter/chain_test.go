package filter_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/relevo-proxy/relevo/forwarder/filter"
	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// script is what the filters of a test note, and where they stop.
type script struct {
	asked []string
	stop  string // the filter and the phase that stops
	ctx   any    // a value that the blocking ones find in their context
}

type key struct{}

func (s *script) note(name, phase string) filter.Verdict {
	s.asked = append(s.asked, name+"."+phase)
	if s.asked[len(s.asked)-1] == s.stop {
		return filter.Stop(wire.Busy, "stopped-by-"+name)
	}
	return filter.Continue
}

func (s *script) noteIn(ctx context.Context, name, phase string) filter.Verdict {
	if s.ctx = ctx.Value(key{}); s.ctx == nil {
		return filter.Stop(wire.Error, "no-context")
	}
	return s.note(name, phase)
}

// base is the filter with no phase, the others have what their names say.
type base struct {
	name string
	*script
}

func (f base) Name() string { return f.name }

type all struct{ base }

func (f all) BeforeRoute(*filter.Exchange) filter.Verdict { return f.note(f.name, "before") }
func (f all) AfterRoute(*filter.Exchange) filter.Verdict  { return f.note(f.name, "after") }
func (f all) OnReply(*filter.Exchange) filter.Verdict     { return f.note(f.name, "reply") }

type allBlocking struct{ base }

func (f allBlocking) BeforeRoute(ctx context.Context, _ *filter.Exchange) filter.Verdict {
	return f.noteIn(ctx, f.name, "before")
}

func (f allBlocking) AfterRoute(ctx context.Context, _ *filter.Exchange) filter.Verdict {
	return f.noteIn(ctx, f.name, "after")
}

func (f allBlocking) OnReply(ctx context.Context, _ *filter.Exchange) filter.Verdict {
	return f.noteIn(ctx, f.name, "reply")
}

type onlyBefore struct{ base }

func (f onlyBefore) BeforeRoute(*filter.Exchange) filter.Verdict { return f.note(f.name, "before") }

type onlyReply struct{ base }

func (f onlyReply) OnReply(*filter.Exchange) filter.Verdict { return f.note(f.name, "reply") }

// mixed blocks in one phase and not in another.
type mixed struct{ base }

func (f mixed) BeforeRoute(*filter.Exchange) filter.Verdict { return f.note(f.name, "before") }
func (f mixed) OnReply(ctx context.Context, _ *filter.Exchange) filter.Verdict {
	return f.noteIn(ctx, f.name, "reply")
}

// misspelt has a method with the name of a phase, and another signature.
type misspelt struct{ base }

func (misspelt) BeforeRoute(filter.Exchange) filter.Verdict { return filter.Continue }

func TestChainOrder(t *testing.T) {
	for _, stop := range []string{"", "a.before", "b.before", "a.after", "b.after", "c.after", "d.after", "d.reply", "c.reply", "a.reply"} {
		t.Run("stop="+stop, func(t *testing.T) {
			s := &script{stop: stop}
			listener := []filter.Filter{all{base{"a", s}}, allBlocking{base{"b", s}}}
			rule := []filter.Filter{allBlocking{base{"c", s}}, all{base{"d", s}}}
			chain := filter.NewChain(listener, rule)
			ctx := context.WithValue(t.Context(), key{}, "deadline")
			x := &filter.Exchange{}
			// Those of the rule are not asked before it is known.
			for _, phase := range []struct {
				name string
				run  func(context.Context, *filter.Exchange) filter.Verdict
				want []string
			}{
				{"before", chain.BeforeRoute, []string{"a", "b"}},
				{"after", chain.AfterRoute, []string{"a", "b", "c", "d"}},
				{"reply", chain.OnReply, []string{"d", "c", "b", "a"}},
			} {
				s.asked = nil
				v := phase.run(ctx, x)
				var want []string
				wantVerdict := filter.Continue
				for _, name := range phase.want {
					want = append(want, name+"."+phase.name)
					if want[len(want)-1] == stop {
						wantVerdict = filter.Verdict{Reason: "stopped-by-" + name, Status: wire.Busy}
						break
					}
				}
				if !slices.Equal(s.asked, want) {
					t.Errorf("%s: got %v asked, want %v", phase.name, s.asked, want)
				}
				if v != wantVerdict || v.Stopped() != (wantVerdict.Reason != "") {
					t.Errorf("%s: got the verdict %+v, want %+v", phase.name, v, wantVerdict)
				}
			}
			if s.ctx != "deadline" {
				t.Errorf("got the context value %v in a blocking filter, want that of the caller", s.ctx)
			}
		})
	}
}

// TestChainKnowsItsPhases: the road passes over phases in which no filter is asked, and uses a worker only for chains that
// may block.
func TestChainKnowsItsPhases(t *testing.T) {
	b := base{"f", &script{}}
	for _, c := range []struct {
		name           string
		listener, rule []filter.Filter
		want           string
	}{
		{"none", nil, nil, ""},
		{"no phase", []filter.Filter{b}, []filter.Filter{b}, ""},
		{"wrong signature", []filter.Filter{misspelt{b}}, nil, ""},
		{"all at the listener", []filter.Filter{all{b}}, nil, "before after reply"},
		{"all at the rule", nil, []filter.Filter{all{b}}, "after reply"},
		{"blocking at the listener", []filter.Filter{allBlocking{b}}, nil, "before after reply blocks"},
		{"blocking at the rule", nil, []filter.Filter{allBlocking{b}}, "after reply blocks"},
		{"one phase each", []filter.Filter{onlyBefore{b}}, []filter.Filter{onlyReply{b}}, "before reply"},
		{"too late for its phase", nil, []filter.Filter{onlyBefore{b}}, ""},
		{"blocking in one phase", []filter.Filter{mixed{b}}, nil, "before reply blocks"},
		{"blocking beside inline", []filter.Filter{all{b}}, []filter.Filter{mixed{b}}, "before after reply blocks"},
	} {
		t.Run(c.name, func(t *testing.T) {
			chain := filter.NewChain(c.listener, c.rule)
			var got []string
			for _, has := range []struct {
				name string
				yes  bool
			}{
				{"before", chain.HasBeforeRoute()},
				{"after", chain.HasAfterRoute()},
				{"reply", chain.HasOnReply()},
				{"blocks", chain.Blocks()},
			} {
				if has.yes {
					got = append(got, has.name)
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("got %q, want %q", strings.Join(got, " "), c.want)
			}
		})
	}
}

// TestNewChainKeepsTheCallersLists: several chains are made from those of one listener.
func TestNewChainKeepsTheCallersLists(t *testing.T) {
	s := &script{}
	listener := append(make([]filter.Filter, 0, 4), all{base{"a", s}})
	one := filter.NewChain(listener, []filter.Filter{all{base{"b", s}}})
	two := filter.NewChain(listener, []filter.Filter{all{base{"c", s}}})
	for chain, want := range map[*filter.Chain]string{one: "[a.after b.after b.reply a.reply]", two: "[a.after c.after c.reply a.reply]"} {
		s.asked = nil
		chain.AfterRoute(t.Context(), &filter.Exchange{})
		chain.OnReply(t.Context(), &filter.Exchange{})
		if got := fmt.Sprint(s.asked); got != want {
			t.Errorf("got %s asked, want %s", got, want)
		}
	}
}

func TestActs(t *testing.T) {
	b := base{"f", nil}
	for _, c := range []struct {
		f            filter.Filter
		atListener   bool
		atRule       bool
		whatItIsLike string
	}{
		{b, false, false, "no phase"},
		{misspelt{b}, false, false, "a phase with another signature"},
		{onlyBefore{b}, true, false, "only before the route"},
		{onlyReply{b}, true, true, "only on the reply"},
		{mixed{b}, true, true, "before the route, and blocking on the reply"},
		{all{b}, true, true, "all"},
		{allBlocking{b}, true, true, "all, blocking"},
	} {
		if got := filter.Acts(c.f, filter.AtListener); got != c.atListener {
			t.Errorf("%s, at a listener: got %v, want %v", c.whatItIsLike, got, c.atListener)
		}
		if got := filter.Acts(c.f, filter.AtRule); got != c.atRule {
			t.Errorf("%s, at a rule: got %v, want %v", c.whatItIsLike, got, c.atRule)
		}
	}
}

// TestStopNeedsAReason: without one the request would pass.
func TestStopNeedsAReason(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("got a verdict without a reason, want a panic")
		}
	}()
	filter.Stop(wire.Error, "")
}
