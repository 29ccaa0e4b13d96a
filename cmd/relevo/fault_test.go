//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/relevo-proxy/relevo/cmd/relevo/bench"
)

// What goes wrong around a proxy, with real processes: whatever it is, each request ends once, for a reason that
// docs/limits.md names, and nothing stays behind. These are the laws of every test here; rig.settled holds them.

// bothModes runs a test with the read loops carrying the exchanges, and with workers.
func bothModes(t *testing.T, test func(t *testing.T, forwarding string)) {
	t.Helper()
	for _, forwarding := range []string{"inline", "worker"} {
		t.Run(forwarding, func(t *testing.T) {
			t.Parallel() // they mostly wait
			test(t, forwarding)
		})
	}
}

func TestEndpointIsKilledAndStartedAgain(t *testing.T) {
	bothModes(t, func(t *testing.T, forwarding string) {
		r := newRig(t, setup{forwarding: forwarding, endpoints: echoes(3, "--delay", "10ms")})
		victim, kills := r.endpoints[0], uint64(0)
		m := r.rounds(t, 8, 3, func() {
			l := r.load(t, bench.Options{})
			r.answering(t, victim)
			victim.kill(t)
			kills++
			r.passedOver(t, victim)
			victim.start(t)
			r.answering(t, victim)
			l.end(t)
		})
		only(t, "local replies", m.local(), []string{"upstream-closed"})
		only(t, "dropped of clients", m.clientDrops(), nil)
		only(t, "dropped of servers", m.serverDrops(), nil)
		closes := m.closes(victim)
		only(t, "connections to the endpoint that was killed", closes, nil, "peer-closed", "reset")
		// A dying process's sockets are closed one by one, so one more may be connected before its listener's turn.
		ends := total(closes)
		if ends < kills || ends > 2*kills {
			t.Errorf("%d connections to the endpoint ended, want one or two for each of %d times that it was killed", ends, kills)
		}
		if n := m.local()["upstream-closed"]; n > ends*clients*window {
			t.Errorf("%d requests were answered ERROR_COMM, want at most the %d in flight each of %d times that a connection ended", n, clients*window, ends)
		}
		for _, e := range r.endpoints[1:] {
			only(t, "connections to the others", m.closes(e), nil)
		}
		r.stop(t)
	})
}

func TestEndpointIsStoppedAndContinued(t *testing.T) {
	bothModes(t, func(t *testing.T, forwarding string) {
		r := newRig(t, setup{forwarding: forwarding, timeout: "1s", endpoints: echoes(3, "--delay", "5ms")})
		victim := r.endpoints[0]
		m := r.rounds(t, 3, 1, func() {
			l := r.load(t, bench.Options{})
			r.answering(t, victim)
			before := r.read(t).local()["timeout"]
			victim.process.signal(t, syscall.SIGSTOP)
			r.until(t, func(m reading) error {
				if n := m.local()["timeout"]; n < before+5 {
					return fmt.Errorf("the endpoint does not run, and %d requests have timed out", n-before)
				}
				return nil
			})
			victim.process.signal(t, syscall.SIGCONT)
			r.answering(t, victim)
			l.end(t)
			// It answers what it had been sent, when nobody waits for it any more.
			r.until(t, func(m reading) error {
				if late, n := m.serverDrops()["reply-without-stream"], m.local()["timeout"]; late != n {
					return fmt.Errorf("%d replies were late and dropped, want all %d to the requests that had timed out", late, n)
				}
				return nil
			})
		})
		only(t, "local replies", m.local(), []string{"timeout"})
		only(t, "dropped of clients", m.clientDrops(), nil)
		only(t, "dropped of servers", m.serverDrops(), []string{"reply-without-stream"})
		for _, e := range r.endpoints {
			only(t, "connections", m.closes(e), nil)
		}
		r.stop(t)
	})
}

func TestStoppedEndpointIsPassedOverForItsHeartbeats(t *testing.T) {
	bothModes(t, func(t *testing.T, forwarding string) {
		r := newRig(t, setup{
			forwarding: forwarding, cluster: "heartbeat_interval: 250ms, heartbeat_misses: 4, ",
			endpoints: echoes(3, "--delay", "5ms"),
		})
		victim, stops := r.endpoints[0], uint64(0)
		m := r.rounds(t, 3, 1, func() {
			l := r.load(t, bench.Options{})
			r.answering(t, victim)
			victim.process.signal(t, syscall.SIGSTOP)
			stops++
			r.passedOver(t, victim)
			l.end(t)
			r.succeeds(t, 500) // the kernel still connects who asks for the endpoint
			victim.process.signal(t, syscall.SIGCONT)
			l = r.load(t, bench.Options{})
			r.answering(t, victim)
			l.end(t)
		})
		only(t, "local replies", m.local(), []string{"upstream-broken"})
		only(t, "dropped of clients", m.clientDrops(), nil)
		only(t, "dropped of servers", m.serverDrops(), nil)
		closes := m.closes(victim)
		only(t, "connections to the endpoint that was stopped", closes, []string{"heartbeat-timeout"}, "probe-timeout")
		probes := m.by("relevo_endpoint_probes_total", "result", "endpoint="+victim.address)
		only(t, "probes", probes, []string{"proved"}, "no-answer")
		if closes["heartbeat-timeout"] != stops || probes["proved"] != stops || closes["probe-timeout"] != probes["no-answer"] {
			t.Errorf("the endpoint was stopped %d times: its connections ended %v, the probes %v; want as many heartbeat-timeout "+
				"and proved, and a probe-timeout for each probe without an answer", stops, closes, probes)
		}
		for _, e := range r.endpoints[1:] {
			only(t, "connections to the others", m.closes(e), nil)
		}
		r.stop(t)
	})
}

func TestSlowEndpoint(t *testing.T) {
	bothModes(t, func(t *testing.T, forwarding string) {
		r := newRig(t, setup{
			forwarding: forwarding, timeout: "1s", cluster: "balancer: round-robin, ",
			endpoints: append(echoes(2), echoes(1, "--delay", "3s")...),
		})
		slow := r.endpoints[2]
		m := r.rounds(t, 1, 1, func() {
			r.load(t, bench.Options{Count: 240}).wait(t)
		})
		sent := m.sum("relevo_endpoint_requests_total", "endpoint="+slow.address)
		local := m.local()
		only(t, "local replies", local, []string{"timeout"})
		if local["timeout"] != sent || sent != 80 || m.replies(slow) != 0 {
			t.Errorf("of 240 requests %d went to the slow endpoint, and %d timed out; want a third of them, and all of those", sent, local["timeout"])
		}
		m = r.until(t, func(m reading) error {
			if late := m.serverDrops()["reply-without-stream"]; late != sent {
				return fmt.Errorf("%d late replies were dropped, want %d", late, sent)
			}
			return r.books(m)
		})
		only(t, "dropped of clients", m.clientDrops(), nil)
		only(t, "dropped of servers", m.serverDrops(), []string{"reply-without-stream"})
		for _, e := range r.endpoints {
			only(t, "connections", m.closes(e), nil)
		}
		r.stop(t)
	})
}

func TestBadServerIsPassedOver(t *testing.T) {
	for _, c := range []struct {
		bad    string
		local  string   // what becomes of what it was sent
		must   []string // how its connections end
		may    []string
		probes []string
	}{
		{answersGarbage, "upstream-broken", []string{"bad-protocol"}, nil, []string{"closed"}},
		{answersHalf, "upstream-broken", []string{"read-timeout"}, []string{"probe-timeout"}, []string{"no-answer", "closed"}},
		{closesAtAccept, "upstream-closed", nil, []string{"peer-closed", "reset"}, []string{"closed"}},
		{closesAtRequests, "upstream-closed", nil, []string{"peer-closed", "reset"}, []string{"closed"}},
	} {
		t.Run(c.bad, func(t *testing.T) {
			bothModes(t, func(t *testing.T, forwarding string) {
				r := newRig(t, setup{
					forwarding: forwarding, cluster: "read_timeout: 300ms, ",
					endpoints: append(echoes(2, "--delay", "5ms"), &endpoint{bad: c.bad}),
				})
				bad := r.endpoints[2]
				l := r.load(t, bench.Options{})
				r.passedOver(t, bad)
				l.end(t)
				lost := r.settled(t).local()
				r.succeeds(t, 2000) // probes go on, and cost nobody anything
				m := r.settled(t)
				only(t, "local replies", lost, nil, c.local)
				if after := m.local(); total(after) != total(lost) {
					t.Errorf("while the endpoint is passed over the local replies grew from %v to %v", lost, after)
				}
				if n := m.replies(bad); n != 0 {
					t.Errorf("%d replies of the bad server were passed on", n)
				}
				only(t, "dropped of clients", m.clientDrops(), nil)
				only(t, "dropped of servers", m.serverDrops(), nil)
				only(t, "connections to the bad server", m.closes(bad), c.must, c.may...)
				only(t, "probes", m.by("relevo_endpoint_probes_total", "result", "endpoint="+bad.address), nil, c.probes...)
				if n := total(m.closes(bad)); n < 3 {
					t.Errorf("%d connections to the bad server ended, want at least the 3 that it takes to pass it over", n)
				}
				for _, e := range r.endpoints[:2] {
					only(t, "connections to the others", m.closes(e), nil)
				}
				r.stop(t)
			})
		})
	}
}

func TestServerThatAnswersTwice(t *testing.T) {
	bothModes(t, func(t *testing.T, forwarding string) {
		r := newRig(t, setup{forwarding: forwarding, endpoints: append(echoes(2), &endpoint{bad: answersTwice})})
		r.succeeds(t, 3000)
		m := r.until(t, func(m reading) error {
			if dropped, n := m.serverDrops()["reply-without-stream"], m.replies(r.endpoints[2]); n == 0 || dropped != 2*n {
				return fmt.Errorf("of a server that answers three times, once rightly, %d replies were passed on and %d dropped; want twice as many dropped",
					n, dropped)
			}
			return r.books(m)
		})
		only(t, "local replies", m.local(), nil)
		only(t, "dropped of servers", m.serverDrops(), []string{"reply-without-stream"})
		r.stop(t)
	})
}

func TestClientIsKilled(t *testing.T) {
	bothModes(t, func(t *testing.T, forwarding string) {
		r := newRig(t, setup{forwarding: forwarding, endpoints: echoes(3, "--delay", "50ms")})
		kills := uint64(0)
		m := r.rounds(t, 3, 1, func() {
			others := r.load(t, bench.Options{}) // of which nobody is killed
			victim := launch(t, []string{asProgram + "=1"}, "bench", "bolt", "--addr", r.address, "--duration", "1h",
				"--connections", fmt.Sprint(clients), "--in-flight", fmt.Sprint(window))
			r.until(t, func(m reading) error {
				if n := m.sum("relevo_listener_in_flight"); n <= clients*window {
					return fmt.Errorf("%d requests are in flight, want some of the second client's", n)
				}
				return nil
			})
			// Else all of its replies may just have come.
			for _, e := range r.endpoints {
				e.process.signal(t, syscall.SIGSTOP)
			}
			r.until(t, func(m reading) error {
				if n := m.sum("relevo_listener_in_flight"); n != 2*clients*window {
					return fmt.Errorf("%d requests are in flight when no endpoint runs, want all %d of both clients", n, 2*clients*window)
				}
				return nil
			})
			victim.signal(t, syscall.SIGKILL)
			<-victim.gone
			kills++
			r.until(t, func(m reading) error {
				if n := m.sum("relevo_listener_connections"); n != clients {
					return fmt.Errorf("%d connections are open, want the %d of the client that was not killed", n, clients)
				}
				return nil
			})
			for _, e := range r.endpoints {
				e.process.signal(t, syscall.SIGCONT)
			}
			for _, e := range r.endpoints {
				r.answering(t, e)
			}
			if p := others.end(t); p.OK != p.Sent {
				t.Errorf("of %d requests of the client that was not killed %d succeeded, and there were %v", p.Sent, p.OK, p.Statuses)
			}
			// What the killed one was told went with it.
			m := r.until(t, func(m reading) error { return errors.Join(m.idle(), m.agree(r.page)) })
			r.told = told{
				sent: m.sum("relevo_listener_requests_total", "kind=request"), status: m.by("relevo_listener_replies_total", "status"),
			}
		})
		only(t, "local replies", m.local(), nil)
		only(t, "dropped of clients", m.clientDrops(), []string{"downstream-gone"})
		only(t, "dropped of servers", m.serverDrops(), nil)
		if gone := m.clientDrops()["downstream-gone"]; gone != kills*clients*window {
			t.Errorf("%d replies had no client any more, want all %d that were in flight at each of %d kills", gone, clients*window, kills)
		}
		if n := m.sum("relevo_listener_closes_total", "listener=client"); n != 2*kills*clients {
			t.Errorf("%d connections of clients ended, want %d", n, 2*kills*clients)
		}
		for _, e := range r.endpoints {
			only(t, "connections to endpoints", m.closes(e), nil)
		}
		r.stop(t)
	})
}

func TestAllEndpointsAreKilledAndStartedAgain(t *testing.T) {
	bothModes(t, func(t *testing.T, forwarding string) {
		r := newRig(t, setup{forwarding: forwarding, endpoints: echoes(3, "--delay", "10ms")})
		m := r.rounds(t, 3, 1, func() {
			l := r.load(t, bench.Options{InFlight: 2})
			for _, e := range r.endpoints {
				r.answering(t, e)
			}
			before := r.read(t).local()["no-endpoint"]
			for _, e := range r.endpoints {
				e.kill(t)
			}
			for _, e := range r.endpoints {
				r.passedOver(t, e)
			}
			r.until(t, func(m reading) error {
				if n := m.local()["no-endpoint"]; n < before+20 {
					return fmt.Errorf("all endpoints are dead, and %d requests were told so", n-before)
				}
				return nil
			})
			for _, e := range r.endpoints {
				e.start(t)
			}
			for _, e := range r.endpoints {
				r.answering(t, e)
			}
			l.end(t)
			r.succeeds(t, 300)
		})
		only(t, "local replies", m.local(), []string{"no-endpoint"}, "upstream-closed", "connect-failure", "reset-before-send")
		only(t, "dropped of clients", m.clientDrops(), nil)
		only(t, "dropped of servers", m.serverDrops(), nil)
		for _, e := range r.endpoints {
			only(t, "connections", m.closes(e), nil, "peer-closed", "reset")
		}
		r.stop(t)
	})
}

// A load's report says how each request ended, or these tests prove nothing.
func TestReportAddsUp(t *testing.T) {
	var p bench.Report
	text := `{"sent": 10, "ok": 6, "statuses": {"TIMEOUT": 3, "ERROR_COMM": 1}}`
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err)
	}
	var o told
	o.add(t, &p)
	m, err := parseReading(`# HELP a b
relevo_listener_requests_total{kind="request",listener="client"} 10
relevo_listener_replies_total{listener="client",status="SUCCESS"} 6
relevo_listener_replies_total{listener="client",status="TIMEOUT"} 3
relevo_listener_replies_total{listener="client",status="ERROR_COMM"} 1
`)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.heard(o); err != nil {
		t.Errorf("the proxy counts what clients were told, and yet: %v", err)
	}
	o.status["TIMEOUT"]--
	if m.heard(o) == nil {
		t.Error("a timeout that no client was told of goes unnoticed")
	}
}
