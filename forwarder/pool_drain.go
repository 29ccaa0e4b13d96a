package forwarder

import "go.uber.org/zap"

// drain takes an endpoint out of the balancing, or lets it in again. Requests in flight finish and then its connections close;
// those that wait for one go elsewhere, as does every further one, within the cluster as it is known to others by now: with none
// left they are answered.
func (e *upEndpoint) drain(drain bool) {
	if !e.policy.Drain(drain) {
		return
	}
	c := e.cluster()
	c.f.log.Info("an endpoint drains, or serves again", zap.String("cluster", c.spec.Name), zap.String("endpoint", e.address), zap.Bool("drain", drain))
	c.f.sweep.change()
	if !drain {
		e.pokeForProbe()
		return
	}
	for _, p := range e.pools() {
		for _, u := range *p.conns.Load() {
			u.drain(ReasonEndpointDrained)
		}
		p.mu.Lock()
		waiting := p.waiting
		p.waiting = nil
		p.mu.Unlock()
		c.f.resumeAll(waiting, phaseChooseEndpoint, ReasonNoEndpoint)
		p.offer()
	}
}

// elsewhere lets the exchange choose again because its endpoint drains, which is not a try that failed.
func (b *batch) elsewhere() {
	b.leaveEndpoint()
	b.x.attempts--
	b.reason = ReasonNoEndpoint // if no other is left
	b.x.phase = phaseChooseEndpoint
}

// renew replaces a connection that is past max_age: another one is made beside it, one more than there may be else, and
// then it drains. Where that cannot be it stays, and the sweeper asks again.
func (p *pool) renew(old *upstream) {
	e := p.endpoint
	c := e.cluster()
	if p == e.uploads {
		old.drain(ReasonMaxAge) // they are made when they are needed
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !e.policy.Reachable() || c.f.draining.Load() || c.f.resting.Load() || c.f.now() < p.notBefore || !p.takePlace(c.spec.ConnectionsPerEndpoint+1) {
		return
	}
	p.dialling = true
	c.f.dialling.Go(func() { // ends within connect_timeout, or with the shift
		u, err := p.connect()
		if err != nil {
			p.failed(err)
			return
		}
		p.add(u)
		old.drain(ReasonMaxAge)
		p.serve()
	})
}

// takePlace takes the place for one more connection, if with it there are no more than this many. Called with mu
// held.
func (p *pool) takePlace(most int) bool {
	return !p.dialling && !p.closed && p.staying() < most && p.endpoint.cluster().takeConnection()
}
