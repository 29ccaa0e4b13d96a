package admin

import (
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// How often one caller may ask, and be refused for its credential; and how many callers are told apart. 16 writers that
// change one list at full speed ask 1200 to 2000 times a second on two cores (TestWritersLoseNoUpdate).
const (
	requestRate  = 2000 // a second
	requestBurst = 10000
	refusedRate  = 5 // a second
	refusedBurst = 20
	maxCallers   = 4096 // twice
)

// origin is whose requests are counted together: those of a user at a unix socket, of an IPv4 address, or of the /64 of an
// IPv6 address, which is what one host has.
type origin struct {
	uid     int
	network netip.Prefix
}

func originOf(r *http.Request) origin {
	if c := peerAt(r); c != nil {
		return origin{uid: c.uid}
	}
	host, _, _ := net.SplitHostPort(r.RemoteAddr) // a unix socket has none
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return origin{uid: -1}
	}
	ip = ip.Unmap().WithZone("")
	bits := ip.BitLen()
	if ip.Is6() {
		bits = 64
	}
	network, _ := ip.Prefix(bits) // of an address without a zone, and no more bits than it has
	return origin{-1, network}
}

// buckets bounds how often each caller does something, with a token bucket for each. Of callers that have not been seen for
// a while it forgets: those that none of the last maxCallers others came behind.
type buckets struct {
	// Static after newBuckets.
	rate  rate.Limit
	burst int

	mu sync.Mutex
	// Guarded by mu.
	young, old map[origin]*rate.Limiter // maxCallers each at most; who is asked for moves to the young
}

func newBuckets(perSecond float64, burst int) *buckets {
	return &buckets{rate: rate.Limit(perSecond), burst: burst, young: make(map[origin]*rate.Limiter)}
}

// allow says whether a caller may do it once more.
func (b *buckets) allow(who origin, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.young[who]
	if l == nil {
		if l = b.old[who]; l == nil {
			l = rate.NewLimiter(b.rate, b.burst)
		}
		if len(b.young) >= maxCallers {
			b.young, b.old = make(map[origin]*rate.Limiter), b.young
		}
		b.young[who] = l
	}
	return l.AllowN(now, 1)
}

// limitRate answers 429 to who asks too often.
func limitRate(callers *buckets, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !callers.allow(originOf(r), time.Now()) {
			w.Header().Set("Retry-After", retryAfter)
			writeProblem(w, http.StatusTooManyRequests, "you ask too often")
			return
		}
		next.ServeHTTP(w, r)
	})
}
