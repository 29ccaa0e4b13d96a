package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/relevo-proxy/relevo/admin"
)

// A slow start goes on where it was, in another process. The other endpoint has all of its weight before and behind.
func TestSlowStartThroughUpgrade(t *testing.T) {
	text, _, door, servers := twoEchoes(t, 0)
	p := newChain(t, os.Args[0], patientUpgrades, strings.Replace(text, "protocol: bolt, endpoints", "protocol: bolt, slow_start: 1h, endpoints", 1))
	c := newAdminClient(adminDoor{address: door})
	shares := func() [2]float64 {
		t.Helper()
		var cluster admin.Cluster
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if _, err := c.get(ctx, "/v1/clusters/a", &cluster); err != nil {
			t.Fatal(err)
		}
		return [2]float64{cluster.Endpoints[0].Share, cluster.Endpoints[1].Share}
	}
	for _, verb := range []string{"drain", "undrain"} {
		if status, _, errOut := relevo(t, "", "endpoints", verb, "a", servers[0], "--address", door); status != exitDone {
			t.Fatalf("%s: exit status %d, %s", verb, status, errOut)
		}
	}
	before := shares()
	for end := time.Now().Add(patience); before[0] == 0 && time.Now().Before(end); {
		before = shares()
	}
	if before[0] < 0.1 || before[0] > 0.2 || before[1] != 0 {
		t.Fatalf("the shares are %v, want about a tenth, and all, which is not told", before)
	}
	p.upgrade(t)
	if behind := shares(); behind[0] < before[0] || behind[0] > 0.2 || behind[1] != 0 {
		t.Errorf("behind the upgrade the shares are %v, before it were %v, want them to grow on", behind, before)
	}
	p.stop(t)
}
