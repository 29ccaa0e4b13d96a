package handoff

import "fmt"

// KindOf returns the kind of a message.
func KindOf(m Message) Kind { return m.kind() }

// String returns the name of the kind, as docs/wire/handover.md has it.
func (k Kind) String() string {
	switch k {
	case KindOffer:
		return "OFFER"
	case KindListeners:
		return "LISTENERS"
	case KindWarm:
		return "WARM"
	case KindConns:
		return "CONNS"
	case KindExchanges:
		return "EXCHANGES"
	case KindEnd:
		return "END"
	case KindPrepared:
		return "PREPARED"
	case KindCommit:
		return "COMMIT"
	case KindStarted:
		return "STARTED"
	case KindAbort:
		return "ABORT"
	case KindFailed:
		return "FAILED"
	case KindCounters:
		return "COUNTERS"
	case KindFollow:
		return "FOLLOW"
	default:
		return fmt.Sprintf("KIND-%d", uint8(k))
	}
}

// Agree picks the version that both sides speak: the newest one. It is an error if there is none.
func Agree(o *Offer) (uint, error) { return agree(o, MinVersion, Version) }

func agree(o *Offer, oldest, newest uint) (uint, error) {
	v := min(o.Max, newest)
	if v < oldest || v < o.Min {
		return 0, fmt.Errorf("agreeing on a version of the hand-over: release %q offers %d to %d, this one reads %d to %d",
			o.Release, o.Min, o.Max, oldest, newest)
	}
	return v, nil
}
