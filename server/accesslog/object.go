package accesslog

import (
	"time"

	"go.uber.org/zap/zapcore"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// Object is a record as a field of the program's own log, with the names and values of the access log's JSON.
type Object struct{ *stats.Record }

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (o Object) MarshalLogObject(to zapcore.ObjectEncoder) error {
	for i := range fields {
		v := fields[i].value(o.Record)
		if !v.known {
			continue
		}
		switch name := fields[i].name; v.sort {
		case sortText:
			to.AddString(name, v.text)
		case sortNumber:
			to.AddInt64(name, v.n)
		case sortDuration:
			to.AddFloat64(name, time.Duration(v.n).Seconds())
		case sortTime:
			to.AddByteString(name, appendTime(nil, v.n))
		}
	}
	return nil
}
