package config

// OutlierDetection ejects endpoints whose requests fail where those of others do not.
type OutlierDetection struct {
	// ConsecutiveFailures is the number of failures in a row that ejects; NoCount means that they are not looked at.
	ConsecutiveFailures Count `json:"consecutive_failures" default:"5" min:"1" max:"1000000" cfg:"none"`
	// SuccessRate compares the endpoints with each other; nil means that they are not compared.
	SuccessRate *SuccessRate `json:"success_rate,omitempty"`
	// Interval is how often success rates are compared, and after how long a time that an endpoint was not ejected it is
	// forgiven one ejection.
	Interval Duration `json:"interval" default:"10s" min:"100ms" max:"1h"`
	// EjectionTime is how long an endpoint is ejected the first time; the second time twice as long, and so on.
	EjectionTime Duration `json:"ejection_time" default:"30s" min:"100ms" max:"24h"`
	// MaxEjectionTime is the longest time. Up to a tenth comes on top, so that not all come back at once.
	MaxEjectionTime Duration `json:"max_ejection_time" default:"5m" min:"100ms" max:"24h"`
	// MaxEjectionPercent is the share of the cluster's endpoints that may be ejected at once; one always may.
	MaxEjectionPercent Percent `json:"max_ejection_percent" default:"10%" min:"1%" max:"100%"`
}

// SuccessRate ejects endpoints whose share of successes is far below that of the others.
type SuccessRate struct {
	// MinRequests is how many requests an endpoint must have ended in an interval to be compared.
	MinRequests int `json:"min_requests" default:"100" min:"1" max:"1000000000"`
	// MinEndpoints is how many such endpoints there must be.
	MinEndpoints int `json:"min_endpoints" default:"5" min:"3" max:"100000"`
	// Deviations is how many standard deviations below the mean a share must be.
	Deviations Decimal `json:"deviations" default:"1.9" min:"0.1" max:"100"`
}
