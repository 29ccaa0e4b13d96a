package cluster

// Thresholds are how many results of checks in a row change what is thought of an endpoint. Less than 1 is 1.
type Thresholds struct {
	Unhealthy int // failures that make it unhealthy
	Healthy   int // successes that make it healthy again
}

// Checked tells whether the endpoint has passed a check, and says whether it is unhealthy from now on, or healthy again. Results
// that agree with what is thought of it already are not counted: the first that does not begins a row, and one that does ends it.
func (e *Endpoint) Checked(passed bool, t Thresholds) (changed bool) {
	if passed {
		if old := e.trouble.Load(); old == nil || !old.unhealthy && old.contrary == 0 { // do not write what all cores read without need
			return false
		}
	}
	e.update(func(k *trouble) bool {
		changed = false
		enough := t.Unhealthy
		if k.unhealthy {
			enough = t.Healthy
		}
		switch {
		case passed != k.unhealthy: // as expected
			was := k.contrary
			k.contrary = 0
			return was != 0
		case k.contrary+1 < enough:
			k.contrary++
		default:
			k.unhealthy, k.contrary, changed = !k.unhealthy, 0, true
		}
		return true
	})
	return changed
}

// Unchecked forgets what checks have found, because there are none any more. It says whether the endpoint was unhealthy.
func (e *Endpoint) Unchecked() (was bool) {
	e.update(func(k *trouble) bool {
		was = k.unhealthy
		changes := was || k.contrary != 0
		k.unhealthy, k.contrary = false, 0
		return changes
	})
	return was
}
