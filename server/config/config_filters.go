package config

// ConnectionFilter is a filter of connections: the one of its fields that is there.
type ConnectionFilter struct {
	Source *SourceFilter `json:"source,omitempty" cfg:"one"`
}

// SourceFilter accepts connections by the address of the client. What Deny has is refused, and where Allow is not
// empty also what it lacks.
type SourceFilter struct {
	Allow []Prefix `json:"allow,omitempty" cfg:"some" form:"prefix" most:"1000"`
	Deny  []Prefix `json:"deny,omitempty" cfg:"some" form:"prefix" most:"1000"`
}

// Filter is a filter of exchanges: the one of its fields that is there.
type Filter struct {
	Headers   *HeaderFilter    `json:"headers,omitempty" cfg:"one"`
	Fault     *FaultFilter     `json:"fault,omitempty" cfg:"one"`
	RateLimit *RateLimitFilter `json:"rate_limit,omitempty" cfg:"one"`
}

// HeaderEdits are changes of a header block. A key stands in at most one of the three.
type HeaderEdits struct {
	// Set gives a key its value, whether it was there or not.
	Set map[string]string `json:"set,omitempty" most:"32"`
	// Add gives a key its value if it was absent.
	Add    map[string]string `json:"add,omitempty" most:"32"`
	Remove []string          `json:"remove,omitempty" form:"key" most:"32"`
}

// HeaderFilter changes the headers of requests, once and before any try, and of replies.
type HeaderFilter struct {
	Request HeaderEdits `json:"request,omitzero" cfg:"some"`
	Reply   HeaderEdits `json:"reply,omitzero" cfg:"some"`
}

// FaultFilter does to some requests what a bad network or server would.
type FaultFilter struct {
	// Match is zero where every request may be chosen.
	Match Match  `json:"match,omitzero"`
	Delay *Delay `json:"delay,omitempty" cfg:"some"`
	Abort *Abort `json:"abort,omitempty" cfg:"some"`
}

// Delay holds a share of the requests for a time.
type Delay struct {
	Time    Duration `json:"time" cfg:"required" min:"1ms" max:"10m"`
	Percent Percent  `json:"percent" default:"100%" min:"0.01%" max:"100%"`
}

// Abort answers a share of the requests with a status.
type Abort struct {
	Status  Status  `json:"status" cfg:"required" oneof:"SUCCESS ERROR SERVER_EXCEPTION UNKNOWN SERVER_THREADPOOL_BUSY ERROR_COMM NO_PROCESSOR TIMEOUT CLIENT_SEND_ERROR CODEC_EXCEPTION CONNECTION_CLOSED SERVER_SERIAL_EXCEPTION SERVER_DESERIAL_EXCEPTION"`
	Percent Percent `json:"percent" default:"100%" min:"0.01%" max:"100%"`
}

// LimitBy says which requests share a token bucket.
type LimitBy string

// The choices.
const (
	LimitByListener LimitBy = "listener"
	LimitByRoute    LimitBy = "route"
	// LimitByHeader is the requests that have the same value of a header.
	LimitByHeader LimitBy = "header"
)

// RateLimitFilter answers "busy" to what comes faster than its token buckets fill.
type RateLimitFilter struct {
	// Rate is the number of requests per second.
	Rate Rate `json:"rate" cfg:"required" min:"1" max:"1000000"`
	// Burst is the number of requests that a full bucket lets pass at once.
	Burst int `json:"burst" same:"rate" min:"1" max:"1000000"`
	// By is, where the file gives none, LimitByListener at a listener and LimitByRoute at a rule.
	By LimitBy `json:"by" oneof:"listener route header"`
	// Header is the key, with LimitByHeader.
	Header string `json:"header,omitempty" cfg:"required" when:"by=header" form:"key"`
	// MaxBuckets is the number of buckets.
	MaxBuckets int `json:"max_buckets" default:"10000" min:"1" max:"1000000"`
}
