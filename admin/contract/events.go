package contract

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

const eventStream = "text/event-stream"

// eventsOf are the blocks of a stream, each an object of its fields. data is JSON.
func eventsOf(body string) (list []any, err error) {
	for block := range strings.SplitSeq(strings.TrimRight(body, "\n"), "\n\n") {
		fields := map[string]any{}
		for line := range strings.SplitSeq(block, "\n") {
			name, value, some := strings.Cut(line, ": ")
			switch {
			case !some:
				return nil, fmt.Errorf("the line %q has no field", line)
			case name == "": // a comment
			case name == "data":
				var data any
				if err := json.Unmarshal([]byte(value), &data); err != nil {
					return nil, fmt.Errorf("the data %q: %w", value, err)
				}
				fields[name] = data
			default:
				fields[name] = value
			}
		}
		list = append(list, fields)
	}
	return list, nil
}

// watchedStream is the body of a stream, whose blocks are checked as they are read. It is read by one goroutine.
type watchedStream struct {
	io.ReadCloser
	check func(block []byte)
	begun []byte // of the block that is not whole yet
}

// Read looks at what comes.
func (s *watchedStream) Read(p []byte) (n int, err error) {
	n, err = s.ReadCloser.Read(p)
	s.begun = append(s.begun, p[:n]...)
	for {
		block, rest, whole := bytes.Cut(s.begun, []byte("\n\n"))
		if !whole {
			return n, err
		}
		s.check(block)
		s.begun = rest
	}
}
