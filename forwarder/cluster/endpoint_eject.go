package cluster

// Ejection is what is known of an endpoint's ejections, all zero behind a quiet time.
type Ejection struct {
	Until  int64  // the end of the one under way; 0: it is not ejected
	Number int    // how many there were so far, less one for each interval in which it was not ejected
	Why    string // ByFailures or BySuccessRate: the last of them
	Since  int64  // when that ended, or the last interval that the number fell for
}

// Ejection reports what is known of the endpoint's ejections.
func (e *Endpoint) Ejection() Ejection {
	t := e.trouble.Load()
	if t == nil {
		return Ejection{}
	}
	return t.ejection
}

// eject leaves the endpoint out until a time that follows from how often that was so.
func (e *Endpoint) eject(why string, until func(number int) int64) (ejection Ejection) {
	e.update(func(t *trouble) bool {
		n := t.ejection.Number + 1
		t.ejected, t.ejection = true, Ejection{Until: until(n), Number: n, Why: why}
		ejection = t.ejection
		return true
	})
	return ejection
}

// readmit ends an ejection.
func (e *Endpoint) readmit(now int64) {
	e.update(func(t *trouble) bool {
		t.ejected, t.ejection.Until, t.ejection.Since = false, 0, now
		return true
	})
}

// forgive lets the number of ejections fall by one for each interval in which the endpoint was not ejected.
func (e *Endpoint) forgive(now, interval int64) {
	if t := e.trouble.Load(); t == nil || t.ejected || t.ejection.Number == 0 { // mostly
		return
	}
	e.update(func(t *trouble) bool {
		n := (now - t.ejection.Since) / interval
		switch {
		case t.ejected || n <= 0:
			return false
		case n >= int64(t.ejection.Number):
			t.ejection = Ejection{}
		default:
			t.ejection.Number -= int(n)
			t.ejection.Since += n * interval
		}
		return true
	})
}

// forget forgets the ejections of an endpoint that is not ejected.
func (e *Endpoint) forget() {
	e.update(func(t *trouble) bool {
		if t.ejected || t.ejection == (Ejection{}) {
			return false
		}
		t.ejection = Ejection{}
		return true
	})
}

// restoreEjection makes the ejections those that another process has known.
func (e *Endpoint) restoreEjection(known Ejection) {
	e.update(func(t *trouble) bool {
		t.ejected, t.ejection = known.Until != 0, known
		return true
	})
}
