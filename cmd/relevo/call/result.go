package call

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/relevo-proxy/relevo/forwarder/wire"
	"github.com/relevo-proxy/relevo/forwarder/wire/bolt"
)

// Result is what came back. With Oneway there is nothing but the times.
type Result struct {
	Oneway  bool // nothing was waited for
	Ack     bool // the reply is a heartbeat's ack
	Status  wire.Status
	Code    uint16 // the status's number on the wire
	Version bolt.Version
	Codec   byte
	Class   string
	Headers []bolt.Pair // a null key or value is shown as an empty one
	Body    []byte

	Connect  time.Duration // until the connection was made
	Total    time.Duration // until the reply was read, Connect included
	Bytes    int           // of the reply's frame
	BytesOut int           // of the request's
}

// Failed says whether the reply has another status than SUCCESS.
func (r *Result) Failed() bool { return r.Status != wire.Success }

// Print writes the result for people, the body as a hex dump.
func (r *Result) Print(w io.Writer) error {
	var b strings.Builder
	switch {
	case r.Oneway:
		fmt.Fprintf(&b, "sent, one-way, %d bytes\n", r.BytesOut)
	case r.Ack:
		fmt.Fprintf(&b, "heartbeat acknowledged, status %v (%d)\n", r.Status, r.Code)
	default:
		fmt.Fprintf(&b, "status   %v (%d)\n", r.Status, r.Code)
	}
	fmt.Fprintf(&b, "time     %v, of which connecting %v\n", r.Total.Round(time.Microsecond), r.Connect.Round(time.Microsecond))
	if !r.Oneway && !r.Ack {
		fmt.Fprintf(&b, "frame    %v, %s, %d bytes\n", r.Version, bolt.CodecName(r.Codec), r.Bytes)
		if r.Class != "" {
			fmt.Fprintf(&b, "class    %q\n", r.Class)
		}
		for _, h := range r.Headers {
			fmt.Fprintf(&b, "header   %q = %q\n", h.Key, h.Value)
		}
		fmt.Fprintf(&b, "body     %d bytes\n%s", len(r.Body), hex.Dump(r.Body))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// PrintJSON writes the result as one JSON object, the body in hex.
func (r *Result) PrintJSON(w io.Writer) error {
	type pair struct {
		Key   string `json:"key"`
		Value string `json:"value"`
	}
	headers := make([]pair, 0, len(r.Headers))
	for _, h := range r.Headers {
		headers = append(headers, pair{h.Key, h.Value})
	}
	if r.Oneway {
		return json.NewEncoder(w).Encode(struct {
			Oneway   bool    `json:"oneway"`
			Connect  float64 `json:"connect_us"`
			Total    float64 `json:"total_us"`
			BytesOut int     `json:"bytes_out"`
		}{true, micros(r.Connect), micros(r.Total), r.BytesOut})
	}
	return json.NewEncoder(w).Encode(struct {
		Oneway   bool    `json:"oneway"`
		Ack      bool    `json:"ack"`
		Status   string  `json:"status"`
		Code     uint16  `json:"code"`
		Version  string  `json:"version"`
		Codec    string  `json:"codec"`
		Class    string  `json:"class"`
		Headers  []pair  `json:"headers"`
		Body     string  `json:"body"`
		Connect  float64 `json:"connect_us"`
		Total    float64 `json:"total_us"`
		Bytes    int     `json:"bytes"`
		BytesOut int     `json:"bytes_out"`
	}{
		r.Oneway, r.Ack, r.Status.String(), r.Code, r.Version.String(), bolt.CodecName(r.Codec), r.Class, headers,
		hex.EncodeToString(r.Body), micros(r.Connect), micros(r.Total), r.Bytes, r.BytesOut,
	})
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }
