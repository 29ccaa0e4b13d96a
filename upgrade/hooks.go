package upgrade

import (
	"context"
	"os"
	"syscall"

	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// Say sends one message with its descriptors, in the order in which the message names them. It waits for the other side to
// read, within handover_timeout.
type Say func(m handoff.Message, files ...syscall.RawConn) error

// Giver is what the owner of the state can do with it. An upgrade calls, in this order and never two at once:
//
//	Hold                         before the new process is started, and before its configuration is checked
//	Listeners                    while the new process starts; requests go on
//	Settle                       when the new process is warm; requests go on
//	Pause, Send                  the barrier, and behind it the state
//	Gone, Counters               when the new process owns the state
//	Resume, Pauses               instead, when the upgrade is undone and Pause was called; the new process is dead by then
//	Release                      last, when this process goes on, whether Hold was called or not
//
// Hold, Listeners, Settle, Pause, Send, Gone and Counters are called on a goroutine of their own; Run goes on meanwhile and ends
// their ctx when the upgrade is undone. From then on whoever waits for the gates waits for them: they return at once. Resume,
// Pauses and Release are called on Run's goroutine, when none of the others runs.
type Giver struct {
	// Hold sees to it that what the new process will load does not change any more, until Release. It may be nil.
	Hold func(ctx context.Context) error
	// Release undoes Hold. It may be nil.
	Release func()
	// Listeners are all sockets that accept, of the road and of HTTP, and their descriptors in the same order.
	Listeners func() (handoff.Listeners, []syscall.RawConn, error)
	// Settle waits for little to be buffered. It is called with a ctx that ends after a few seconds; its error only means
	// that the barrier will take longer. It may be nil.
	Settle func(ctx context.Context) error
	// Pause is the barrier: when it returns without an error, nothing in this process changes any state, until Resume. An
	// error may be a *Stuck. Whatever it returns, Resume undoes what it has done.
	Pause func(ctx context.Context) error
	// Send says all of the state, in messages of the kinds Conns and Exchanges, and returns how much that was. END is not
	// its to say. It changes nothing: Resume may follow.
	Send func(ctx context.Context, say Say) (handoff.Counts, error)
	// Resume undoes the barrier: the gates open. It takes less than 100 ms.
	Resume func()
	// Pauses says how long each connection was not read, for the report. It may be nil.
	Pauses func() []Bucket
	// Gone closes all copies of what was handed over, and what is left here. No socket may be shut down.
	Gone func()
	// Counters are what this process has counted. It may be nil.
	Counters func() *handoff.Counters
	// Left says what was not handed over, and why, a line each. It is called behind Send. It may be nil.
	Left func() []string
}

// Stuck is the error of a barrier that did not come to rest in time.
type Stuck struct {
	Err    error
	Oldest []string // the streams that have been under way for longest, as an operator wants to see them
}

func (e *Stuck) Error() string { return e.Err.Error() }

// Unwrap is the cause.
func (e *Stuck) Unwrap() error { return e.Err }

// Taker is what a new process does with the state that it takes. All are called on the goroutine that called Take, in this
// order, but Counters, for each message that there is, and Alone, which are called on a goroutine of their own, some time after Start.
//
//	Build
//	Take ... Prepare    or, when the old process dies before its state was whole, Forget
//	Start
//	Counters ... Alone
//
// The process leaves if one of them returns an error; then none of the others is called.
type Taker struct {
	// Build makes everything from the configuration, with these listeners, and binds what they lack. The files, one a
	// listener and in the same order, are its to close. Nothing is accepted yet. About so many descriptors will come.
	Build func(ctx context.Context, listeners *handoff.Listeners, files []*os.File, descriptors int) error
	// Take takes one message of the kinds Conns or Exchanges. The files are its to close. Nothing is read from them yet.
	Take func(m handoff.Message, files []*os.File) error
	// Prepare does all that can fail and returns how much state there is. Still nothing is read.
	Prepare func() (handoff.Counts, error)
	// Forget closes and forgets what Take was given. Build's work stays.
	Forget func()
	// Start opens the gates: from here this process is the proxy. It cannot fail.
	Start func()
	// Counters adds what the old process has counted. It may be nil.
	Counters func(*handoff.Counters)
	// Alone is called when the old process has ended, as Counters is: what signals have asked of that until then this one may have to do,
	// too. It may be nil.
	Alone func()
	// Pauses says how long each connection was not read, for the report. It is called once, behind Start. It may be nil.
	Pauses func() []Bucket
	// Left says what was not taken, and why, a line each. It is called once, behind Start. It may be nil.
	Left func() []string
}
