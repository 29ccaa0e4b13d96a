package server

import (
	"reflect"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/relevo-proxy/relevo/forwarder"
	"github.com/relevo-proxy/relevo/upgrade/handoff"
)

// TestAllOfAnEndpointGoesOver: each field that the road gives is what it takes.
func TestAllOfAnEndpointGoesOver(t *testing.T) {
	var given forwarder.EndpointState
	for i, field := range reflect.ValueOf(&given).Elem().Fields() {
		switch field.Kind() {
		case reflect.String:
			field.SetString(i.Name)
		case reflect.Int, reflect.Int64:
			field.SetInt(int64(len(i.Name)))
		case reflect.Uint64:
			field.SetUint(uint64(len(i.Name)))
		case reflect.Bool:
			field.SetBool(true)
		default:
			t.Fatalf("%s is a %v, which this test does not know", i.Name, field.Kind())
		}
	}
	taker := taker{dictionary: newDictionary()}
	giver := giver{ctx: t.Context(), dictionary: newDictionary(), say: func(m handoff.Message, _ ...syscall.RawConn) error {
		return taker.take(m, nil)
	}}
	if err := giver.all(&forwarder.Handover{Endpoints: []forwarder.EndpointState{given}}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]forwarder.EndpointState{given}, taker.h.Endpoints); diff != "" {
		t.Errorf("what goes over is not all that was given (-given +taken):\n%s", diff)
	}
}
