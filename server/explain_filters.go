package server

import (
	"fmt"
	"strings"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/server/config"
)

// FilterExplained is a filter that sees a request, or the connection that it comes on.
type FilterExplained struct {
	Name string `json:"name"`
	At   string `json:"at"`              // listener, or rule
	Does string `json:"does"`            // in words
	Skip string `json:"skips,omitempty"` // why it leaves this request alone, if it does
}

// Where filters stand.
const (
	atListener = "listener"
	atRule     = "rule"
)

// explainFilter says what a filter does to the request with these headers, and does it where it changes them.
func explainFilter(f *config.Filter, at string, headers map[string]string) FilterExplained {
	out := FilterExplained{At: at}
	switch {
	case f.Headers != nil:
		out.Name = "headers"
		request := edits(&f.Headers.Request)
		var does []string
		if words := editsInWords(request); words != nil {
			does = append(does, strings.Join(words, ", "))
		}
		if words := editsInWords(edits(&f.Headers.Reply)); words != nil {
			does = append(does, "on the reply "+strings.Join(words, ", "))
		}
		out.Does = strings.Join(does, "; ")
		apply(request, headers)
	case f.Fault != nil:
		out.Name = "fault"
		var does []string
		if d := f.Fault.Delay; d != nil {
			does = append(does, fmt.Sprintf("delay %v of the requests by %v", d.Percent, d.Time))
		}
		if a := f.Fault.Abort; a != nil {
			does = append(does, fmt.Sprintf("answer %v of the requests with %s", a.Percent, a.Status))
		}
		out.Does = strings.Join(does, ", ")
		ok, why := routeMatch(&f.Fault.Match).Explain(func(key string) (string, bool) {
			v, there := headers[key]
			return v, there
		})
		if !ok {
			out.Skip = why
		}
	case f.RateLimit != nil:
		l := f.RateLimit
		out.Name = "rate_limit"
		out.Does = fmt.Sprintf("let %v a second pass, %d at once, ", l.Rate, l.Burst)
		value, there := headers[l.Header]
		switch {
		case l.By == config.LimitByListener:
			out.Does += "of all at this listener"
		case l.By == config.LimitByRoute:
			out.Does += "of all with this rule"
		case there:
			out.Does += fmt.Sprintf("of all with header %s %q", l.Header, value)
		default:
			out.Does += fmt.Sprintf("of all without header %s", l.Header)
		}
	}
	return out
}

// apply makes the changes on headers.
func apply(edits []wire.Edit, headers map[string]string) {
	for _, e := range edits {
		key := string(e.Key)
		_, there := headers[key]
		switch {
		case e.Op == wire.RemoveHeader:
			delete(headers, key)
		case e.Op == wire.SetHeader || !there:
			headers[key] = string(e.Value)
		}
	}
}

// editsInWords says each change; nil if there is none.
func editsInWords(edits []wire.Edit) []string {
	var out []string
	for _, e := range edits {
		switch e.Op {
		case wire.SetHeader:
			out = append(out, fmt.Sprintf("set %s to %q", e.Key, e.Value))
		case wire.AddHeader:
			out = append(out, fmt.Sprintf("add %s %q if absent", e.Key, e.Value))
		case wire.RemoveHeader:
			out = append(out, fmt.Sprintf("remove %s", e.Key))
		}
	}
	return out
}

func connectionsExplained(list []config.ConnectionFilter) []FilterExplained {
	out := []FilterExplained{}
	for _, f := range list {
		if f.Source == nil {
			continue
		}
		var does []string
		if len(f.Source.Allow) > 0 {
			does = append(does, "allow "+joined(f.Source.Allow))
		}
		if len(f.Source.Deny) > 0 {
			does = append(does, "deny "+joined(f.Source.Deny))
		}
		out = append(out, FilterExplained{Name: "source", At: atListener, Does: strings.Join(does, "; ")})
	}
	return out
}

// joined is a list in words; what it has beyond what can be read at a glance is counted.
func joined(list []config.Prefix) string {
	const most = 8
	var words []string
	for _, p := range list[:min(len(list), most)] {
		words = append(words, string(p))
	}
	if more := len(list) - most; more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, ", ")
}
