package forwarder

// balance does what follows from what is known of endpoints: those begin slowly that have joined a cluster which was there before, as
// with a change of the configuration while it runs; and a cluster that panics goes on with it.
func (a *adopter) balance() {
	for _, c := range a.snap.clusters {
		c.judge()
		if a.places[c] == nil {
			continue // none of its endpoints was there before
		}
		for _, e := range c.endpoints {
			if !a.known[e] {
				e.warm(a.f.now())
			}
		}
	}
}
