package forwarder_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/forwarder/route"
	"github.com/relevo-proxy/relevo/forwarder/stats"
)

var update = flag.Bool("update", false, "rewrite the transcripts under testdata")

// subject is the id of the exchange whose transcript is taken, and the content of its request. All other exchanges have
// other ids.
const (
	subject        = 7
	subjectContent = "subject"
)

// scenario is one exchange's life. Its play ends when the exchange has begun, or has been brought to where nothing is
// left to do for it.
type scenario struct {
	name string
	play func(*scene)
	only string // the name of the one mode in which it can happen; "" for both
}

// modeName is the mode's name in transcripts.
func modeName() string {
	if mode == forwarder.ForwardWorker {
		return "worker"
	}
	return "auto"
}

// transcripts plays the scenarios and compares what becomes of each with its section of a file under testdata.
func transcripts(t *testing.T, file string, scenarios []scenario) {
	path := filepath.Join("testdata", "transcripts", file+".txt")
	want := readSections(t, path)
	got := maps.Clone(want)
	var order []string
	for _, sc := range scenarios {
		for _, m := range []string{"auto", "worker"} {
			if sc.only == "" || sc.only == m {
				order = append(order, section(sc.name, m))
			}
		}
		key := section(sc.name, modeName())
		if !slices.Contains(order, key) {
			continue
		}
		t.Run(sc.name, func(t *testing.T) {
			s := &scene{t: t, tracer: &tracer{changed: make(chan struct{}, 1)}}
			sc.play(s)
			got[key] = s.finish()
			if *update {
				return
			}
			if diff := cmp.Diff(want[key], got[key]); diff != "" {
				t.Errorf("the exchange does not go as %s says (-want +got; -update rewrites it):\n%s", path, diff)
			}
		})
	}
	if *update {
		writeSections(t, path, order, got)
		return
	}
	for key := range want {
		if !slices.Contains(order, key) {
			t.Errorf("got the section %q in %s, want none without its scenario", key, path)
		}
	}
}

func section(name, mode string) string { return name + ", " + mode }

// sectionMark begins the line with a section's name.
const sectionMark = "== "

func readSections(t *testing.T, path string) map[string]string {
	t.Helper()
	out := make(map[string]string)
	text, err := os.ReadFile(path)
	if err != nil {
		if *update {
			return out
		}
		t.Fatal(err)
	}
	for part := range strings.SplitSeq("\n"+string(text), "\n"+sectionMark) {
		if name, body, ok := strings.Cut(part, "\n"); ok && name != "" {
			out[name] = strings.Trim(body, "\n") + "\n"
		}
	}
	return out
}

func writeSections(t *testing.T, path string, order []string, sections map[string]string) {
	t.Helper()
	var out strings.Builder
	for _, key := range order {
		if body, ok := sections[key]; ok {
			fmt.Fprintf(&out, "%s%s\n%s\n", sectionMark, key, body)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.TrimSuffix(out.String(), "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
}

// scene is what a scenario plays with.
type scene struct {
	*tracer
	t       *testing.T
	p       *proxy
	c, side *peer // the subject's client, and one at the listener for all others
	before  map[string]float64
	got     []string // what its client got, once heard
	heard   bool
	gone    bool    // the subject's client is
	clogs   float64 // requests that clog has put on the connection
	anyEnd  bool    // whether its server's connection ends by a reset or an end of file is not told apart
	untold  bool    // the exchange's end is no step: a one-way request that went out in pieces
}

// road is the spec of the tests with a second listener, whose exchanges the read loops carry in both modes: "side", with a
// route table of its own and no retry. It leads where the first one does, or, for the silent service, to a server that
// never answers.
func (s *scene) road(endpoints ...string) *forwarder.Spec {
	sp := spec(endpoints...)
	sp.Routes[0].Rules[0].Timeout = patience
	l, c, r := sp.Listeners[0], sp.Clusters[0], sp.Routes[0].Rules[0]
	l.Name, l.Routes, l.Forwarding = "side", "side", forwarder.ForwardAuto
	c.Name = "silent"
	c.Endpoints = []forwarder.EndpointSpec{{Network: "tcp", Address: serveEach(s.t, silentEach).address, Weight: 1}}
	r.Attempts = 1
	silent := r
	silent.Name, silent.Match = "silent", route.Match{Service: route.Exactly(silentService)}
	silent.Clusters = []forwarder.Share{{Cluster: "silent", Weight: 1}}
	sp.Listeners, sp.Clusters = append(sp.Listeners, l), append(sp.Clusters, c)
	sp.Routes = append(sp.Routes, forwarder.RouteSpec{Name: "side", Rules: []forwarder.RuleSpec{r, silent}})
	return sp
}

const silentService = "com.example.Silent:1.0"

// start runs a traced road until the test ends.
func (s *scene) start(sp *forwarder.Spec) {
	s.t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	s.p = &proxy{t: s.t, reg: stats.NewRegistry(), logs: logs}
	f, err := forwarder.New(sp, 512<<20, s.p.reg, zap.New(core))
	if err != nil {
		s.t.Fatal(err)
	}
	s.p.Forwarder, s.p.address = f, f.Addresses()["in"].String()
	f.Trace(s.step)
	f.Start()
	s.t.Cleanup(s.p.end)
	s.c, s.side = dial(s.t, s.p.address), dial(s.t, f.Addresses()["side"].String())
}

// ask sends the subject's request, or the frames that are given.
func (s *scene) ask(frames ...[]byte) {
	s.t.Helper()
	if len(frames) == 0 {
		frames = append(frames, frameOf(s.t, subject, subjectContent))
	}
	if s.before == nil {
		s.before = s.counters()
	}
	s.c.send(frames...)
}

// counters are those that say why something ended otherwise than by a reply, without those of the side listener.
func (s *scene) counters() map[string]float64 {
	out := make(map[string]float64)
	for _, m := range s.p.reg.Snapshot() {
		name := strings.TrimSuffix(strings.TrimPrefix(m.Name, "relevo_"), "_total")
		counts := name == "route_retries"
		side := false
		for _, l := range m.Labels {
			side = side || l.Value == "side" || strings.HasPrefix(l.Value, "side/")
			if l.Name == "reason" {
				name, counts = name+" "+l.Value, true
			}
		}
		if counts && !side {
			if s.anyEnd {
				name = bothEnds.Replace(name)
			}
			out[name] += m.Value
		}
	}
	return out
}

// bothEnds makes one counter of the two reasons of a connection that the server ended.
var bothEnds = strings.NewReplacer("endpoint_closes reset", "endpoint_closes reset or peer-closed", "endpoint_closes peer-closed", "endpoint_closes reset or peer-closed")

// until waits until the goroutine that ends a connection has counted it.
func (s *scene) until(counter, reason string, labels ...string) {
	s.t.Helper()
	s.p.wantSome(counter, append(labels, "reason="+reason)...)
}

// finish waits for the end of the exchange and returns its transcript.
func (s *scene) finish() string {
	s.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for !s.untold && !s.ended() {
		select {
		case <-s.changed:
		case <-deadline.C:
			s.mu.Lock()
			defer s.mu.Unlock()
			s.t.Fatalf("waited %v for the end of the exchange, it went: %v", patience, s.lines)
		}
	}
	var out strings.Builder
	after := s.counters() // before the client goes
	told := s.answers()
	s.mu.Lock()
	for _, l := range s.lines {
		out.WriteString(l.text + "\n")
	}
	s.mu.Unlock()
	fmt.Fprintf(&out, "the client got: %s\n", told)
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if n := after[name] - s.before[name]; n != 0 {
			fmt.Fprintf(&out, "counted: %s %+v\n", name, n)
		}
	}
	return out.String()
}

// answers is what the client has got. A heartbeat behind the request tells that there was nothing before its ack, and
// what comes behind that is taken down, too.
func (s *scene) answers() string {
	s.t.Helper()
	if s.gone {
		return "nothing, it is gone"
	}
	s.hear()
	if len(s.got) == 0 {
		return "nothing"
	}
	return strings.Join(s.got, ", ")
}

// hear takes down what the client gets, up to the end of its connection. It may be called twice.
func (s *scene) hear() {
	s.t.Helper()
	if s.heard {
		return
	}
	s.heard = true
	const beat = 1000
	_ = s.c.SetDeadline(time.Now().Add(patience))
	_, _ = s.c.Write(heartbeat(s.t, 0, beat)) // to a connection that is closed it is lost, which reading tells
	acked := false
	for {
		m, err := s.c.next()
		switch {
		case err != nil && isTimeout(err):
			s.t.Fatalf("waited %v for the ack of a heartbeat, or the end of the connection, behind %q", patience, s.got)
		case err != nil && !acked:
			s.got = append(s.got, "end of the connection")
			fallthrough
		case err != nil:
			s.c.hangUp()
			return
		case m.ID == subject:
			s.got = append(s.got, m.Status.String())
		case m.ID == beat:
			acked = true
			_ = s.c.CloseWrite()
		}
	}
}
