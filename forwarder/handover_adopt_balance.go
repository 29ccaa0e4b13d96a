package forwarder

// balance does what follows from what is known of endpoints: those begin slowly that have joined a cluster which was there before, as
// with a change of the configuration while it runs; and a cluster that panics goes on with it.
func (a *adopter) balance() {
	known := make(map[*upCluster]map[string]bool)
	for i := range a.h.Endpoints {
		s := &a.h.Endpoints[i]
		if c := a.clusterNamed(s.Cluster, ""); c != nil {
			if known[c] == nil {
				known[c] = make(map[string]bool)
			}
			known[c][s.Address] = true
		}
	}
	for _, c := range a.snap.clusters {
		c.judge()
		if known[c] == nil {
			continue
		}
		for _, e := range c.endpoints {
			if !known[c][e.address] {
				e.warm(a.f.now())
			}
		}
	}
}
