package main

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// A door that does not answer is said to, in words of this program and not of Go's.
func TestDoorThatDoesNotAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	door := newAdminClient(adminDoor{address: "http://" + l.Addr().String()})
	ask := func(ctx context.Context) string {
		_, err := door.ask(ctx, question{method: http.MethodGet, path: "/v1/status"})
		if err == nil {
			t.Fatal("a door that does not answer has answered")
		}
		return err.Error()
	}
	late, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if got := ask(late); !strings.HasSuffix(got, " has not answered in time") {
		t.Errorf("when its time is over the error is %q", got)
	}
	gone, stop := context.WithCancel(t.Context())
	stop()
	if got := ask(gone); got != "interrupted" {
		t.Errorf("behind Ctrl-C the error is %q", got)
	}
}

// A path of the API is all of what somebody typed, whatever it means in a URL.
func TestPathsMayHaveAnyCharacter(t *testing.T) {
	for path, want := range map[string]string{
		"/": "/v1/config", "log/level": "/v1/config/log/level",
		"routes/rpc/rules/r/headers/set/a?b#c": "/v1/config/routes/rpc/rules/r/headers/set/a%3Fb%23c",
	} {
		if got := partAPI(path); got != want {
			t.Errorf("%s is at %s, want %s", path, got, want)
		}
	}
}
