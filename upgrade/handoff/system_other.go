//go:build !linux

package handoff

import "errors"

const (
	sendFlags = 0
	recvFlags = 0
)

// socketpair refuses: elsewhere, a descriptor that is received can be inherited before it is marked.
func socketpair() ([2]int, error) { return [2]int{}, errors.ErrUnsupported }
