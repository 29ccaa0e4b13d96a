//go:build linux

package main

import (
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/relevo-proxy/relevo/server/config"
)

// Writers that each count in a value of their own and in one that all share, by reading, adding one and writing if it is the
// same still, while the process is upgraded: each success is there once, under its writer's name, and nothing else.
func TestWritersAndUpgrades(t *testing.T) {
	const writers, each = 16, 4
	const cluster = configAPI + "/clusters/order"
	address, line := adminOf(t)
	var endpoints []string
	for w := range writers {
		endpoints = append(endpoints, fmt.Sprintf("{address: %q, weight: 1}", own(w)))
	}
	text := strings.Replace(goodConfig, `{address: "127.0.0.1:12200"}`, strings.Join(endpoints, ", "), 1)
	text = strings.Replace(text, "endpoints:", "max_pending: 1, endpoints:", 1)
	p := newChain(t, os.Args[0], patientUpgrades, text+line+"state_dir: "+t.TempDir())
	d := newDesk(address)

	var succeeded, refused atomic.Int64
	some := make(chan struct{}, writers*each) // never closed; an element a success
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() { // ends with its last success, or with what is wrong
			for i := 1; i <= each; {
				before, err := d.try(t, http.MethodGet, cluster, "")
				if err != nil || before.code != http.StatusOK {
					t.Errorf("writer %d: GET gives %d, %v", w, before.code, err)
					return
				}
				c, err := config.ParseDocument([]byte(`{"clusters": [` + string(before.body) + `]}`))
				if err == nil {
					c, err = counted(c, "clusters/order/max_pending")
				}
				if err == nil {
					c, err = counted(c, "clusters/order/endpoints/"+own(w)+"/weight")
				}
				if err != nil {
					t.Errorf("writer %d: %v", w, err)
					return
				}
				a, err := d.try(t, http.MethodPut, cluster, part(c, "clusters/order"), "If-Match: "+before.header.Get("ETag"),
					"X-Comment: "+fmt.Sprintf("writer %d: %d", w, i))
				switch {
				case err != nil:
					t.Errorf("writer %d: PUT: %v", w, err)
					return
				case a.code == http.StatusOK:
					succeeded.Add(1)
					some <- struct{}{}
					i++
				case a.code == http.StatusPreconditionFailed, a.code == http.StatusServiceUnavailable:
					refused.Add(1)
				default:
					t.Errorf("writer %d: PUT gives %d\n%s", w, a.code, a.body)
					return
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { // ends with the writers
		wg.Wait()
		close(done)
	}()
	upgrades := 0
	for seen, over := 0, false; !over; seen++ {
		select {
		case <-some:
			if seen%(writers*each/2) == writers*each/4 {
				p.upgrade(t)
				upgrades++
			}
		case <-done:
			over = true
		}
	}
	if upgrades == 0 && !t.Failed() {
		t.Error("there was no upgrade while they wrote")
	}
	document, newest := d.document(t)
	if n := int(succeeded.Load()); n != writers*each || part(document, "clusters/order/max_pending") != strconv.Itoa(1+n) {
		t.Errorf("%d writes of %d succeeded, and the value that all share is %s; want one more", n, writers*each, part(document, "clusters/order/max_pending"))
	}
	count := map[string]int{}
	history := d.history(t)
	if len(history) != 1+writers*each || newest != uint64(len(history)) {
		t.Errorf("there are %d revisions, and %d is in force; want one a success and the file's", len(history), newest)
	}
	for i, r := range history {
		if r.Number != uint64(i+1) {
			t.Fatalf("revision %d stands where %d should", r.Number, i+1)
		}
		if i == 0 {
			continue
		}
		var w, n int
		if _, err := fmt.Sscanf(r.Why, "writer %d: %d", &w, &n); err != nil || !byUs(r.Author) {
			t.Errorf("revision %d is by %v, %q; want a writer of this process", r.Number, r.Author, r.Why)
			continue
		}
		count[own(w)]++
		whole := d.revision(t, r.Number).Document
		for at, want := range map[string]int{"max_pending": i + 1, "endpoints/" + own(w) + "/weight": n + 1} {
			if got := part(whole, "clusters/order/"+at); got != strconv.Itoa(want) || n != count[own(w)] {
				t.Errorf("revision %d, %q, has %s for %s, want %d", r.Number, r.Why, got, at, want)
			}
		}
	}
	t.Logf("%d writes, %d more that were refused, %d upgrades", succeeded.Load(), refused.Load(), upgrades)
	p.stop(t)
}

// own is the address of the endpoint that a writer counts in.
func own(writer int) string { return fmt.Sprintf("127.0.0.1:%d", 1000+writer) }

// counted is the document with one more at the path.
func counted(d *config.Document, path string) (*config.Document, error) {
	n, err := strconv.Atoi(part(d, path))
	if err != nil {
		return nil, fmt.Errorf("%s is no number: %w", path, err)
	}
	return d.Put(path, []byte(strconv.Itoa(n+1)))
}
