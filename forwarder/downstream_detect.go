package forwarder

import (
	"fmt"

	"github.com/relevo-proxy/relevo/forwarder/wire"
)

// maxDetect is the most bytes that are looked at to find out what a client speaks; every protocol's fixed header is
// shorter.
const maxDetect = 256

// detect finds the connection's codec by the first bytes that the client sends. While they do not tell it returns how
// many bytes the next read must bring at least; an error says that they are nobody's.
func (d *downstream) detect(b *batch, data []byte) (need int, err error) {
	if d.detecting.Load() == 0 {
		d.detecting.Store(max(b.now, 1))
	}
	codec, found := wire.DetectFirst(b.snap.roads[d.listener.slot].codecs, data[:min(len(data), maxDetect)])
	switch {
	case found == wire.NeedMore && len(data) < maxDetect:
		return len(data) + 1, nil
	case found != wire.Mine:
		b.data = data // for the log
		return 0, &wire.DecodeError{Reason: ReasonUnknownProtocol, Detail: fmt.Sprintf("after %d bytes", len(data))}
	}
	d.detecting.Store(0)
	d.speak(codec)
	return 0, nil
}
