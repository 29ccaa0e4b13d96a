package forwarder

import "slices"

// state is what a server connection is good for.
type state uint32

// The states of a server connection.
const (
	// stateDialling: it is being made, or is made and not yet its pool's. There is no upstream before there is a
	// socket; the pool counts the dial itself.
	stateDialling state = iota
	// stateReady: it takes streams.
	stateReady
	// stateDraining: it takes no more streams, and closes when its last one has ended.
	stateDraining
	// stateFailed: it is closed, for whatever reason, and is being cleaned up.
	stateFailed
	// stateExported: it was paused and its read loop has ended, so another process may have it. It takes nothing; what
	// is for it waits. When it is not given away after all it becomes what it was, or fails because it was closed meanwhile.
	stateExported
	numStates
)

var stateNames = [numStates]string{"dialling", "ready", "draining", "failed", "exported"}

func (s state) String() string { return stateNames[s] }

// mayFollow is from which states a state may be reached.
var mayFollow = [numStates][]state{
	stateReady:    {stateDialling, stateExported},
	stateDraining: {stateReady, stateExported},
	stateFailed:   {stateReady, stateDraining, stateExported},
	stateExported: {stateReady, stateDraining},
}

// become changes the connection's state. It reports false, and changes nothing, when the state that it is in does not
// allow that.
func (u *upstream) become(next state) bool {
	for {
		now := state(u.state.Load())
		if !slices.Contains(mayFollow[next], now) {
			return false
		}
		if u.state.CompareAndSwap(uint32(now), uint32(next)) {
			return true
		}
	}
}

// takes says whether the connection can take another frame.
func (u *upstream) takes() bool {
	return state(u.state.Load()) == stateReady && !u.conn.Above() && !u.conn.Closed()
}

// stays says whether the connection is not about to leave: what finds no room on it may wait for it.
func (u *upstream) stays() bool {
	s := state(u.state.Load())
	return s == stateReady || s == stateExported
}

// drain makes a connection that is ready leave: it takes no more streams, and closes for this reason once its last one has
// ended. It reports false when it was not ready.
func (u *upstream) drain(reason string) bool {
	if !u.become(stateDraining) {
		return false
	}
	u.drains.CompareAndSwap(nil, &reason)
	u.settle()
	return true
}

// settle asks the read loop of a draining connection that has nothing left to do to end it. No request is lost between the
// look and the end: from the seal on its table takes none, and Finish sends what was queued before it.
func (u *upstream) settle() {
	if state(u.state.Load()) == stateDraining && u.conn.Queued() == 0 && u.lease.Load() != leased && u.table.Seal() {
		u.conn.Leave()
	}
}

// leaveReason is why a connection that was asked to leave closes.
func (u *upstream) leaveReason() string {
	if why := u.drains.Load(); why != nil {
		return *why
	}
	return ReasonStopping
}

// resume undoes a Pause: the connection goes on as what it was.
func (u *upstream) resume() {
	u.conn.Resume()
	if u.rest.end() {
		u.restore()
		u.endpoint.cluster().f.reading.Go(u.run) // ends when the connection is closed, or with the shift
	}
}

// restore makes an exported connection what it was, for those too who have begun to wait for that.
func (u *upstream) restore() {
	if u.drains.Load() != nil {
		u.become(stateDraining)
		u.settle()
		u.pool.replace()
	} else if u.become(stateReady) {
		u.pool.serve()
	}
	u.pool.offer()
}
