package server

import (
	"github.com/relevo-proxy/relevo/forwarder/cluster"
	"github.com/relevo-proxy/relevo/server/config"
)

// outlierRules are the rules by which a cluster ejects endpoints, nil for none.
func outlierRules(o *config.OutlierDetection) *cluster.OutlierRules {
	if o == nil {
		return nil
	}
	rules := &cluster.OutlierRules{
		Failures: max(0, int(o.ConsecutiveFailures)), Interval: int64(o.Interval.D()),
		Time: int64(o.EjectionTime.D()), MaxTime: int64(o.MaxEjectionTime.D()), MaxShare: int(o.MaxEjectionPercent),
	}
	if r := o.SuccessRate; r != nil {
		rules.SuccessRate = &cluster.SuccessRate{MinRequests: r.MinRequests, MinEndpoints: r.MinEndpoints, Deviations: r.Deviations.Float()}
	}
	return rules
}
