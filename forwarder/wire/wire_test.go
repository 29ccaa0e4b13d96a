package wire

import (
	"strings"
	"testing"
)

func TestKindNames(t *testing.T) {
	seen := map[string]bool{}
	for k := Invalid; k <= Unknown; k++ {
		name := k.String()
		if name == "" || strings.HasPrefix(name, "kind-") || seen[name] {
			t.Errorf("kind %d is called %q, want a name of its own", uint8(k), name)
		}
		seen[name] = true
	}
	if got := (Unknown + 1).String(); got != "kind-8" {
		t.Errorf("a kind of no one's is called %q, want kind-8, and no panic", got)
	}
}

func TestStatusNames(t *testing.T) {
	seen := map[string]bool{}
	for s := range NumStatus {
		name := s.String()
		if name == "" || name != strings.ToUpper(name) || seen[name] {
			t.Errorf("status %d is called %q, want a name of its own in capitals", uint8(s), name)
		}
		seen[name] = true
	}
	if got := NumStatus.String(); got != "status-14" {
		t.Errorf("a status of no one's is called %q, want status-14, and no panic", got)
	}
}

func TestMessageParts(t *testing.T) {
	m := Message{Frame: []byte("..classheaderscontent...."), ClassAt: 2, HeaderAt: 7, ContentAt: 14, ContentEnd: 21}
	if got := string(m.Class()) + "|" + string(m.HeaderBlock()) + "|" + string(m.Content()); got != "class|headers|content" {
		t.Errorf("the parts of the frame are %q, want class|headers|content", got)
	}
}

func TestDecodeErrorText(t *testing.T) {
	if got, want := (&DecodeError{Reason: ReasonBadType, Detail: "type 3"}).Error(), "bad-type: type 3"; got != want {
		t.Errorf("the error with a detail reads %q, want %q", got, want)
	}
	if got, want := ErrHeaderBlock.Error(), "bad-header-block"; got != want {
		t.Errorf("the error without a detail reads %q, want %q", got, want)
	}
}
