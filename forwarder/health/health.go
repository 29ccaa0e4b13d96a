// Package health asks endpoints whether they work: by a connection, or by a few bytes that are sent on it and the answer to
// them. It knows no protocol: what is asked, and what is an answer, is its caller's to say; and what follows from a result is.
//
//	schedule.go   who is due when. Pure
//	checker.go    the one goroutine, and what goes in and comes out
//	check.go      one check: connect, ask, hear, close
//	resolve.go    the addresses behind host names
//	system_*.go   sockets that do not block, and who waits for them
//
// There is one goroutine, that of whoever calls Run, however many endpoints there are: sockets do not block, one epoll instance
// waits for all of them, and one heap has all times. Only names are resolved elsewhere, because that may block: on up to eight
// goroutines, which live while there is a name to resolve, and Run waits for them.
//
// Each check is a connection of its own, which ends with it: it shows that the endpoint takes connections still, disturbs none of
// those that requests are on, and depends on none of them.
package health

import (
	"time"

	"github.com/relevo-proxy/relevo/forwarder/cluster"
)

// Target is one endpoint and how it is checked. The caller does not change it.
type Target struct {
	Endpoint *cluster.Endpoint // what tells targets apart, and spreads their times
	Network  string            // tcp or unix
	Address  string            // host:port, or a path
	Ask      *Ask              // nil: that it can be connected is enough
	Interval time.Duration     // from the beginning of one check to that of the next, give or take a tenth
	Timeout  time.Duration     // of a whole check
	Last     int64             // when it was checked last, by another process; 0: not known
	Told     func(Result)      // is told each result, by the goroutine that checks: it must not wait
}

// Ask is a question and its answer. Targets that are asked the same share it.
type Ask struct {
	Question []byte
	// Answered says whether got, all that has come so far, holds the answer. An error means that it never will.
	Answered func(got []byte) (bool, error)
}

// Result is what one check has found.
type Result struct {
	At     int64  // when it ended, on the caller's clock
	Reason string // Passed, or why not: one of the constants below
	Detail string // what the operating system or Answered had to say; may be empty
}

// Passed is the Reason of a check that the endpoint has passed.
const Passed = "ok"

// Why a check was not passed: metric labels and log fields.
const (
	ReasonCannotConnect  = "check-connect-failure" // it cannot be connected: refused, unreachable, a socket that is not there
	ReasonConnectTimeout = "check-connect-timeout" // nothing came of the connection in time
	ReasonNoAnswer       = "check-no-answer"       // it was connected, and there was no whole answer in time
	ReasonClosed         = "check-closed"          // it closed the connection before its answer
	ReasonBadAnswer      = "check-bad-answer"      // what it answers is no answer
	ReasonUnresolved     = "check-unresolved"      // no address is known for its name

	// ReasonPostponed is no verdict: this process could not make the check, as when descriptors run out. It is due again soon.
	ReasonPostponed = "check-postponed"
)

// Verdict says whether the check was passed; ok is false where it could not be made.
func (r *Result) Verdict() (passed, ok bool) { return r.Reason == Passed, r.Reason != ReasonPostponed }

// Stats are how much a Checker has to do.
type Stats struct {
	UnderWay int           // checks
	Waiting  int           // endpoints that are due and wait for their turn
	Late     time.Duration // for how long the first of those has waited
}
