//go:build linux

package main

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

// The variables that say how long the tests take and what their chance is, if not shortly and any. `make chaos` and `make
// overload` set the times; a test says the seed that it has drawn.
const (
	chaosTime    = "RELEVO_TEST_CHAOS_TIME"
	chaosSeed    = "RELEVO_TEST_CHAOS_SEED"
	overloadTime = "RELEVO_TEST_OVERLOAD_TIME"
)

// timeOf is the time that a variable gives, or the short one, and whether the variable is set.
func timeOf(t *testing.T, variable string, short time.Duration) (d time.Duration, long bool) {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return short, false
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		t.Fatalf("%s is %q, want a time such as 2m", variable, text)
	}
	return d, true
}

// seedOf is the seed that the variable gives, or another one each time.
func seedOf(t *testing.T) uint64 {
	t.Helper()
	text := os.Getenv(chaosSeed)
	if text == "" {
		return uint64(time.Now().UnixNano())
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s is %q, want a number", chaosSeed, text)
	}
	return seed
}

// The services of the rules below. What follows the name, after a colon, is for the servers.
const (
	againService = "again" // its requests are idempotent
	onceService  = "once"  // its are not
)

// policies are what tests vary in the configuration: fields as in the file, each with a comma behind it.
type policies struct {
	again   string // of the rule for the idempotent requests
	cluster string
}

// resilient is what somebody writes whose servers may fail at any time, and whose clients do not wait for long. The floor of
// the budget is above what some servers have in flight when they stop, or when the machine has no time for them, which is all
// tried again at the same moment.
func resilient() policies {
	return policies{
		again: fmt.Sprintf("idempotent: true, retry: {attempts: %d, on: [connect-failure, reset-before-send, reset, busy, timeout], "+
			"per_try_timeout: 2s, back_off: {base: 10ms, max: 100ms}}, ", attempts),
		cluster: "slow_start: 1s, health_check: {type: heartbeat, interval: 500ms, timeout: 500ms, unhealthy_threshold: 2, healthy_threshold: 2}, " +
			"outlier_detection: {consecutive_failures: 5, interval: 1s, ejection_time: 1s, max_ejection_time: 5s, max_ejection_percent: 50%}, " +
			"retry_budget: {percent: 20%, min: 50}, ",
	}
}

// attempts is how often a request may be tried: with three of ten servers bad, two requests in a thousand would meet
// none that is well, if nobody passed any over.
const attempts = 5

// configuration is a proxy's before the fleet.
func (f *fleet) configuration(listener string, p policies) string {
	return fmt.Sprintf(`
listeners: [{name: client, address: %q, protocol: bolt}]
routes:
- name: rpc
  rules:
  - {name: again, match: {service: {prefix: %q}}, cluster: fleet, %stimeout: 20s}
  - {name: once, cluster: fleet, timeout: 10s, retry: {attempts: %d, on: [connect-failure, reset-before-send]}}
clusters:
- {name: fleet, protocol: bolt, %sendpoints: [%s]}
stop_timeout: 1m
`, listener, againService, p.again, attempts, p.cluster, f.endpoints())
}
