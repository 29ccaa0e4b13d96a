package bolt

import "github.com/relevo-proxy/relevo/forwarder/wire"

// statusGap is the first number after the gap in Bolt's list of statuses, which runs 0 to 9 and 0x10 to 0x12.
const statusGap = 0x10

// StatusCode is the number that s has on the wire. wire.Other, and whatever is no status, becomes UNKNOWN:
// Java clients throw on a number outside the list.
func StatusCode(s wire.Status) uint16 {
	switch {
	case s < wire.ConnectionClosed:
		return uint16(s)
	case s < wire.Other:
		return uint16(s-wire.ConnectionClosed) + statusGap
	}
	return uint16(wire.UnknownStatus)
}

// StatusOf is the status with the given number on the wire, wire.Other for a number outside the list.
func StatusOf(code uint16) wire.Status {
	if code < uint16(wire.ConnectionClosed) {
		return wire.Status(code)
	}
	if code -= statusGap; code < uint16(wire.Other-wire.ConnectionClosed) {
		return wire.ConnectionClosed + wire.Status(code)
	}
	return wire.Other
}
