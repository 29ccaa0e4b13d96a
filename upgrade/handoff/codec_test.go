package handoff

import (
	"bytes"

	"github.com/google/go-cmp/cmp/cmpopts"
)

// equateEmpty is what the format does: what is empty comes back as what is missing.
var equateEmpty = cmpopts.EquateEmpty()

// encoded is m as a frame.
func encoded(m Message) ([]byte, error) {
	var b bytes.Buffer
	err := appendFrame(&b, m, filesOf(m))
	return b.Bytes(), err
}
