package cluster

// WholeThreshold is a threshold of 100 %.
const WholeThreshold = 100_00

// Panics says whether so few endpoints are usable, of those that are not drained, that those should be used too that are only
// thought to be bad: less than threshold, in hundredths of a percent. It never does where that would help nobody, because all that
// can be reached are usable.
func (c *Cluster) Panics(threshold int) bool {
	usable, spare, all := 0, 0, 0
	for _, e := range c.endpoints {
		t := e.trouble.Load()
		switch {
		case t == nil || t.usable():
			usable++
		case t.drained:
			continue
		case t.reachable():
			spare++
		}
		all++
	}
	return spare > 0 && usable*WholeThreshold < threshold*all
}
