package wire

// Outcome is what a reply's status says of the server that gave it.
type Outcome uint8

// The outcomes.
const (
	Neutral Outcome = iota // nothing: it is the client's fault, or nobody's
	Good                   // it does what it is for
	Bad                    // it does not
)

// outcomes are what each status says. What is not here is Neutral.
var outcomes = [NumStatus]Outcome{
	Success: Good,

	Error:            Bad, // it could not do it, and does not say why
	ServerException:  Bad, // what runs there has thrown
	UnknownStatus:    Bad, // it does not know itself what went wrong
	Busy:             Bad, // it has too much to do: others may have less
	ErrorComm:        Bad, // it could not reach what it needs
	Timeout:          Bad, // what it needs was too slow
	ConnectionClosed: Bad, // what it needs has left

	NoProcessor:             Neutral, // the client asks for what is not there: that of a rule, or of a release
	ClientSendError:         Neutral, // the client's own word for that it could not send
	CodecException:          Neutral, // it cannot read the frame, and no other server could
	ServerSerialException:   Neutral, // what the client asked for cannot be written down
	ServerDeserialException: Neutral, // what the client sent cannot be read
	Other:                   Neutral, // a number that the protocol does not define: it may mean anything
}

// Outcome is what the status, in the reply of a server, says of that server.
func (s Status) Outcome() Outcome {
	if s < NumStatus {
		return outcomes[s]
	}
	return Neutral
}
