package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/relevo-proxy/relevo/server/config"
)

// The bounds of a page.
const (
	defaultPage = 100
	maxPage     = 1000
)

// maxEndpointPatch is the size in bytes of the largest change of an endpoint.
const maxEndpointPatch = 4096

// roadRoutes returns what a Control shows of the road, and does to it.
func roadRoutes(c Control) []route {
	d := newConfigDoor(c)
	get := func(path, about string, h http.HandlerFunc) route { return route{http.MethodGet, path, about, h} }
	const cluster, endpoint = "/v1/clusters/{name}", "/v1/clusters/{name}/endpoints/{address}"
	return []route{
		get("/v1/listeners", "all that is known of the listeners", d.listeners),
		get("/v1/listeners/{name}", "one of them", d.listeners),
		get("/v1/routes", "the route tables, their rules in order and what these have counted", d.routes),
		get("/v1/routes/{name}", "one of them", d.routes),
		get("/v1/clusters", "all that is known of the clusters and their endpoints", d.clusters),
		get(cluster, "one of them", d.clusters),
		get(cluster+"/endpoints", "its endpoints", d.endpoints),
		get(endpoint, "one of them", d.endpoints),
		{http.MethodPatch, endpoint, "its weight, or whether it drains, in the configuration", http.HandlerFunc(d.patchEndpoint)},
		get("/v1/connections", "connections; ?side= listener= cluster= endpoint= client= limit= after=", d.connections),
		get("/v1/connections/{id}", "one of them", d.connection),
		{http.MethodDelete, "/v1/connections/{id}", "close it: a server connection behind its last reply, or ?now=true", http.HandlerFunc(d.closeConnection)},
		get("/v1/streams", "the oldest requests in flight; ?listener= cluster= endpoint= service= limit=", d.streams),
	}
}

// segment is a segment of the request's path, as it was meant.
func segment(r *http.Request, name string) string {
	s := chi.URLParam(r, name)
	if r.URL.RawPath == "" {
		return s // the router has seen the path decoded
	}
	if decoded, err := url.PathUnescape(s); err == nil {
		return decoded
	}
	return s
}

// serveNamed answers with the whole list, in an object under its name; or, where the path names one, with that.
func serveNamed[T any](w http.ResponseWriter, r *http.Request, list string, all []T, param string, nameOf func(*T) string) {
	name := segment(r, param)
	if name == "" {
		serveJSON(func() any { return map[string]any{list: orEmpty(all)} }).ServeHTTP(w, r)
		return
	}
	i := slices.IndexFunc(all, func(v T) bool { return nameOf(&v) == name })
	if i < 0 {
		writeProblem(w, http.StatusNotFound, fmt.Sprintf("there is no such name among the %s: %.100q", list, name))
		return
	}
	serveJSON(func() any { return all[i] }).ServeHTTP(w, r)
}

func (d *configDoor) listeners(w http.ResponseWriter, r *http.Request) {
	serveNamed(w, r, "listeners", d.control.Listeners(), "name", func(l *Listener) string { return l.Name })
}

func (d *configDoor) clusters(w http.ResponseWriter, r *http.Request) {
	all := d.control.Clusters()
	for i := range all {
		all[i].Endpoints = orEmpty(all[i].Endpoints)
	}
	serveNamed(w, r, "clusters", all, "name", func(c *Cluster) string { return c.Name })
}

func (d *configDoor) endpoints(w http.ResponseWriter, r *http.Request) {
	all, name := d.control.Clusters(), segment(r, "name")
	i := slices.IndexFunc(all, func(c Cluster) bool { return c.Name == name })
	if i < 0 {
		writeProblem(w, http.StatusNotFound, fmt.Sprintf("there is no cluster %.100q", name))
		return
	}
	serveNamed(w, r, "endpoints", all[i].Endpoints, "address", func(e *Endpoint) string { return e.Address })
}

// routeTable is a route table as it is configured, with what its rules have counted.
type routeTable struct {
	Name      string      `json:"name"`
	Listeners []string    `json:"listeners"` // that use it
	Rules     []tableRule `json:"rules"`
}

// tableRule is a rule of a route table. It has Clusters, or Reply.
type tableRule struct {
	Name     string              `json:"name"`
	Match    config.Match        `json:"match"` // as in the configuration; empty: it takes everything
	Clusters []RuleCluster       `json:"clusters,omitempty"`
	Reply    config.Status       `json:"reply,omitempty"`
	Timeout  float64             `json:"timeout"`            // seconds
	Priority config.Priority     `json:"priority,omitempty"` // absent: normal
	Limits   *RuleLimits         `json:"limits,omitempty"`   // absent: there is none
	Retry    *config.Retry       `json:"retry,omitempty"`
	Headers  *config.HeaderEdits `json:"headers,omitempty"`
	Filters  []config.Filter     `json:"filters"`
	RuleCounts
}

// RuleCluster is a cluster of a rule.
type RuleCluster struct {
	Cluster string `json:"cluster"`
	Weight  int    `json:"weight"`
	RuleCounts
}

func (d *configDoor) routes(w http.ResponseWriter, r *http.Request) {
	_, _, tree := d.control.Current()
	counts, limits := d.control.RuleCounts(), d.control.RuleLimits()
	var all []routeTable
	for i := range tree.Routes {
		t := &tree.Routes[i]
		out := routeTable{Name: t.Name, Listeners: []string{}, Rules: make([]tableRule, 0, len(t.Rules))}
		for j := range tree.Listeners {
			if tree.Listeners[j].Routes == t.Name {
				out.Listeners = append(out.Listeners, tree.Listeners[j].Name)
			}
		}
		for j := range t.Rules {
			name := t.Name + "/" + t.Rules[j].Name
			rule := ruleOf(&t.Rules[j], counts[name])
			if use, ok := limits[name]; ok {
				rule.Limits = &RuleLimits{use}
			}
			out.Rules = append(out.Rules, rule)
		}
		all = append(all, out)
	}
	serveNamed(w, r, "routes", all, "name", func(t *routeTable) string { return t.Name })
}

func ruleOf(c *config.Rule, counts map[string]RuleCounts) tableRule {
	out := tableRule{Name: c.Name, Match: c.Match, Timeout: c.Timeout.D().Seconds(), Filters: orEmpty(c.Filters)}
	if c.Priority != config.NormalPriority {
		out.Priority = c.Priority
	}
	for _, n := range counts {
		out.Requests += n.Requests
		out.Retries += n.Retries
		out.LocalReplies += n.LocalReplies
	}
	if c.Reply != nil {
		out.Reply = c.Reply.Status
		return out
	}
	out.Retry = &c.Retry
	if len(c.Headers.Set)+len(c.Headers.Add)+len(c.Headers.Remove) > 0 {
		out.Headers = &c.Headers
	}
	if c.Cluster != "" {
		out.Clusters = []RuleCluster{{c.Cluster, 1, counts[c.Cluster]}}
	}
	for _, s := range c.Clusters {
		out.Clusters = append(out.Clusters, RuleCluster{s.Cluster, s.Weight, counts[s.Cluster]})
	}
	return out
}

// patchEndpoint changes what of an endpoint operators change in a hurry: a change of the configuration like any other, but for
// that nobody has to have seen it first.
func (d *configDoor) patchEndpoint(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxEndpointPatch)
	body, ok := readBody(w, r, []string{"application/merge-patch+json", "application/json"})
	if !ok {
		return
	}
	if faults := otherFields(body, "weight", "drain"); len(faults) > 0 {
		writeFaults(w, "the body says no change of an endpoint", faults)
		return
	}
	_, _, tree := d.control.Current()
	for i := range tree.Clusters {
		if k := &tree.Clusters[i]; k.Name == segment(r, "name") && k.Discovery != nil {
			kind, of := k.Discovery.Source()
			writeProblem(w, http.StatusConflict, fmt.Sprintf("the endpoints of cluster %s are not in the configuration: "+
				"discovery finds them, by %s %s, and what is to change of them changes there", k.Name, kind, of))
			return
		}
	}
	path := "clusters/" + url.PathEscape(segment(r, "name")) + "/endpoints/" + url.PathEscape(segment(r, "address"))
	match, _ := matchOf(r, path)
	d.changeAt(w, r, path, match, func(d *config.Document, path string) (*config.Document, error) { return d.Patch(path, body) })
}

// otherFields says what is wrong with a body that is no object of JSON, or has other fields than these.
func otherFields(body []byte, names ...string) (faults []fault) {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(body, &fields); err != nil || fields == nil {
		return []fault{{"", "it must be an object of JSON with " + strings.Join(names, " or ")}}
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if !slices.Contains(names, name) {
			pointer := "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
			faults = append(faults, fault{pointer, "cannot be changed here: there is " + strings.Join(names, " and ")})
		}
	}
	return faults
}

// parameters reads those of a request, of which there are these. It answers 400 to others: who mistypes dry_run must not have the change
// made.
func parameters(w http.ResponseWriter, r *http.Request, names ...string) (q url.Values, ok bool) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		writeProblem(w, http.StatusBadRequest, "the parameters: "+err.Error())
		return nil, false
	}
	for name := range q {
		if !slices.Contains(names, name) {
			there := "none"
			if len(names) > 0 {
				there = strings.Join(names, ", ")
			}
			writeProblem(w, http.StatusBadRequest, fmt.Sprintf("there is no parameter %.40q here, there is: %s", name, there))
			return nil, false
		}
	}
	return q, true
}

// query is parameters where limit is one, too. It answers 400 to one that is none.
func query(w http.ResponseWriter, r *http.Request, names ...string) (q url.Values, limit int, ok bool) {
	q, ok = parameters(w, r, append([]string{"limit"}, names...)...)
	if !ok {
		return nil, 0, false
	}
	limit = defaultPage
	if text := q.Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maxPage {
			writeProblem(w, http.StatusBadRequest, fmt.Sprintf("limit is not a number from 1 to %d: %.40q", maxPage, text))
			return nil, 0, false
		}
	}
	return q, limit, true
}

// connectionsAnswer is a page of connections.
type connectionsAnswer struct {
	Connections []Connection `json:"connections"`
	// Next is what after is to be for the next page, absent where there is none.
	Next uint64 `json:"next,omitempty"`
}

func (d *configDoor) connections(w http.ResponseWriter, r *http.Request) {
	values, limit, ok := query(w, r, "side", "listener", "cluster", "endpoint", "client", "after")
	if !ok {
		return
	}
	q := ConnectionQuery{
		Side: values.Get("side"), Listener: values.Get("listener"), Cluster: values.Get("cluster"), Endpoint: values.Get("endpoint"), Limit: limit,
	}
	if q.Side != "" && q.Side != "client" && q.Side != "server" {
		writeProblem(w, http.StatusBadRequest, fmt.Sprintf("side is client or server, not %.40q", q.Side))
		return
	}
	if q.After, ok = number(w, "after", values.Get("after")); !ok {
		return
	}
	if text := values.Get("client"); text != "" {
		var err error
		if q.Client, q.ClientPort, err = clientOf(text); err != nil {
			writeProblem(w, http.StatusBadRequest, err.Error())
			return
		}
	}
	list, more := d.control.Connections(q)
	a := connectionsAnswer{Connections: orEmpty(list)}
	if more {
		a.Next = list[len(list)-1].ID
	}
	serveJSON(func() any { return a }).ServeHTTP(w, r)
}

// clientOf reads ADDRESS, ADDRESS:PORT or a network in CIDR form.
func clientOf(text string) (netip.Prefix, uint16, error) {
	if p, err := netip.ParsePrefix(text); err == nil {
		return p, 0, nil
	}
	port := uint16(0)
	ip, err := netip.ParseAddr(text)
	if err != nil {
		var at netip.AddrPort
		if at, err = netip.ParseAddrPort(text); err != nil {
			return netip.Prefix{}, 0, fmt.Errorf("client is ADDRESS, ADDRESS:PORT or NETWORK/BITS, not %.100q", text)
		}
		ip, port = at.Addr(), at.Port()
	}
	ip = ip.Unmap().WithZone("")
	return netip.PrefixFrom(ip, ip.BitLen()), port, nil
}

func (d *configDoor) connection(w http.ResponseWriter, r *http.Request) {
	id, ok := number(w, "a connection", segment(r, "id"))
	if !ok {
		return
	}
	c, err := d.control.Connection(id)
	if err != nil {
		writeRoadError(w, err)
		return
	}
	serveJSON(func() any { return c }).ServeHTTP(w, r)
}

func (d *configDoor) closeConnection(w http.ResponseWriter, r *http.Request) {
	id, ok := number(w, "a connection", segment(r, "id"))
	if !ok {
		return
	}
	if _, ok := parameters(w, r, "now"); !ok {
		return
	}
	now := asks(r, "now")
	c, err := d.control.CloseConnection(r.Context(), id, now, authorOf(r))
	switch {
	case err != nil:
		writeRoadError(w, err)
	case now || c.Side == "client":
		w.WriteHeader(http.StatusNoContent)
	default: // it is closed when its last reply is there
		w.WriteHeader(http.StatusAccepted)
	}
}

func writeRoadError(w http.ResponseWriter, err error) {
	if errors.Is(err, ErrNoConnection) {
		writeProblem(w, http.StatusNotFound, err.Error())
		return
	}
	writeError(w, err)
}

func (d *configDoor) streams(w http.ResponseWriter, r *http.Request) {
	values, limit, ok := query(w, r, "listener", "cluster", "endpoint", "service")
	if !ok {
		return
	}
	s := d.control.Streams(StreamQuery{
		Listener: values.Get("listener"), Cluster: values.Get("cluster"), Endpoint: values.Get("endpoint"), Service: values.Get("service"), Limit: limit,
	})
	s.Streams = orEmpty(s.Streams)
	serveJSON(func() any { return s }).ServeHTTP(w, r)
}
