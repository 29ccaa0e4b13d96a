package handoff

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair returns both ends of a connection, the second one as a process opens it that has inherited it.
func pair(t testing.TB) (a, b *Conn) {
	t.Helper()
	a, f, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if b, err = Open(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// soon is a deadline that is never met, unless something hangs.
func soon() time.Time { return time.Now().Add(20 * time.Second) }

func TestMessagesArriveInOrderAndThenTheEnd(t *testing.T) {
	a, b := pair(t)
	sent := []Message{&Offer{Min: 1, Max: 2, Release: "1.2.3"}, &Commit{Again: true}, &Started{}, &Abort{Reason: "no"}}
	for _, m := range sent {
		if err := a.Send(soon(), m); err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	for _, want := range sent {
		got, _, err := b.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("a message has changed on its way (-sent +received):\n%s", diff)
		}
	}
	for range 2 {
		if _, _, err := b.Receive(); !errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
			t.Errorf("got %v behind the last message, want io.EOF", err)
		}
	}
}
