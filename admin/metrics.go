package admin

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/relevo-proxy/relevo/forwarder/stats"
)

// maxScrapes is how many scrapes may run at once; further ones get 503.
const maxScrapes = 8

// maxCountedWait bounds how long a scrape waits for the metrics to be complete.
const maxCountedWait = time.Second

// whenCounted lets requests wait until the metrics are complete, or for maxCountedWait: counters that fell back and rose
// again would look like a restart, and a jump, to whoever scrapes them.
func whenCounted(state State, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if counted := state.Counted(); counted != nil {
			t := time.NewTimer(maxCountedWait)
			defer t.Stop()
			select {
			case <-counted:
			case <-t.C:
			case <-r.Context().Done():
				return // nobody is there to read
			}
		}
		next.ServeHTTP(w, r)
	})
}

// metrics serves reg, the Go runtime, the process and the build in one answer. A metric that cannot be
// shown is left out and counted in promhttp_metric_handler_errors_total.
func metrics(reg *stats.Registry, build BuildInfo) http.Handler {
	all := gatherer(reg, build)
	return promhttp.HandlerFor(all, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError,
		Registry:            all,
		MaxRequestsInFlight: maxScrapes,
	})
}

func gatherer(reg *stats.Registry, build BuildInfo) *prometheus.Registry {
	all := prometheus.NewRegistry()
	all.MustRegister(
		reg,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "relevo_build_info",
			Help: "Always 1. The labels say which program this is.",
			ConstLabels: prometheus.Labels{
				"version": build.Version, "commit": build.Commit, "go_version": build.GoVersion,
			},
		}, func() float64 { return 1 }),
	)
	return all
}
