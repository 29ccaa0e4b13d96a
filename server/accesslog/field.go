package accesslog

import (
	"time"

	"github.com/relevo-proxy/relevo/forwarder/stats"
	"github.com/relevo-proxy/relevo/systemd"
)

// field is one thing that a record says.
type field struct {
	name    string
	value   func(*stats.Record) value
	journal string // its name in the journal
}

// value is what a field is in one record.
type value struct {
	sort  sort
	known bool   // whether there is anything to say
	text  string // sortText
	n     int64  // a number, nanoseconds, or microseconds since 1970
}

type sort uint8

const (
	sortText sort = iota
	sortNumber
	sortDuration
	sortTime
)

// fields are all fields, in the order in which a record tells them.
var fields = []field{
	newField("time", func(r *stats.Record) value {
		return value{sort: sortTime, known: !r.Time.IsZero(), n: r.Time.UnixMicro()}
	}),
	newField("listener", func(r *stats.Record) value { return text(r.Listener) }),
	newField("client", func(r *stats.Record) value { return text(r.Client) }),
	newField("protocol", func(r *stats.Record) value { return text(r.Protocol) }),
	newField("kind", func(r *stats.Record) value { return text(r.Kind) }),
	newField("service", func(r *stats.Record) value { return text(r.Service) }),
	newField("method", func(r *stats.Record) value { return text(r.Method) }),
	newField("trace", func(r *stats.Record) value { return text(r.Trace) }),
	newField("rpc", func(r *stats.Record) value { return text(r.RPC) }),
	newField("id", func(r *stats.Record) value { return number(int64(r.ID)) }),
	newField("upstream_id", func(r *stats.Record) value { return number(int64(r.Upstream)).unless(r.Upstream == 0) }),
	newField("route", func(r *stats.Record) value { return text(r.Route) }),
	newField("cluster", func(r *stats.Record) value { return text(r.Cluster) }),
	newField("endpoint", func(r *stats.Record) value { return text(r.Endpoint) }),
	newField("attempts", func(r *stats.Record) value { return number(int64(r.Attempts)) }),
	newField("status", func(r *stats.Record) value { return text(r.Status) }),
	newField("reason", func(r *stats.Record) value { return text(r.Reason) }),
	newField("request_bytes", func(r *stats.Record) value { return number(int64(r.Request)) }),
	newField("reply_bytes", func(r *stats.Record) value { return number(int64(r.Reply)).unless(r.Reply == 0) }),
	newField("wait", func(r *stats.Record) value { return duration(r.Wait) }),
	newField("server", func(r *stats.Record) value { return duration(r.Server).unless(r.Server == 0) }),
	newField("total", func(r *stats.Record) value { return duration(r.Total) }),
}

func newField(name string, v func(*stats.Record) value) field {
	return field{name: name, value: v, journal: systemd.Field(name)}
}

func text(s string) value            { return value{sort: sortText, known: s != "", text: s} }
func number(n int64) value           { return value{sort: sortNumber, known: true, n: n} }
func duration(d time.Duration) value { return value{sort: sortDuration, known: true, n: int64(d)} }

// unless is v, of which nothing is known if that is so.
func (v value) unless(unknown bool) value {
	v.known = !unknown
	return v
}

// Fields are the names of all fields, in the order in which a record tells them.
func Fields() []string {
	names := make([]string, len(fields))
	for i := range fields {
		names[i] = fields[i].name
	}
	return names
}

// fieldNamed is the field of that name.
func fieldNamed(name string) (*field, bool) {
	for i := range fields {
		if fields[i].name == name {
			return &fields[i], true
		}
	}
	return nil, false
}

// timeLayout is RFC 3339 with microseconds. Times are UTC.
const timeLayout = "2006-01-02T15:04:05.000000Z"

func appendTime(b []byte, micros int64) []byte {
	return time.UnixMicro(micros).UTC().AppendFormat(b, timeLayout)
}
