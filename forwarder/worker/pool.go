// Package worker is the pool of parked goroutines that carry what may block.
//
// It knows no exchange: a task is its caller's, by value. A goroutine is started when there is a task and none is
// idle, up to a bound; beyond it tasks wait in a queue that is bounded too, and beyond that they are refused. Idle
// goroutines wait at one unbuffered channel, and Trim ends those that were not needed. Close ends all and waits for them.
package worker

import (
	"iter"
	"sync"
)

// Pool runs tasks on at most so many goroutines at a time. Its methods may be called by any number of goroutines.
type Pool[T any] struct {
	// Static after New.
	max, queueMax int
	run           func(task T, waited bool)
	orders        chan order[T] // unbuffered, never closed; who sends has taken one off idle before
	group         sync.WaitGroup

	// Guarded by mu.
	mu      sync.Mutex
	workers int
	idle    int // of workers, those that wait for a task, or are about to
	low     int // the least that idle was since the last Trim
	queue   []T // tasks that wait for a worker, from head on, around the end
	head    int
	queued  int
	taken   uint64 // tasks that workers have taken out of queue
	held    bool   // none takes one any more: Hold
	closed  bool
}

// order is what an idle worker waits for: a task, or to end.
type order[T any] struct {
	task   T
	waited bool
	end    bool
}

// Fate is what became of a task that was submitted.
type Fate uint8

// The fates.
const (
	Refused Fate = iota // nobody has it: every worker is busy and the queue full, or the pool is closed
	Waiting             // it is in the queue
	Running             // a worker has it
)

// New returns a pool of at most max goroutines, at least one, in which at most queue tasks wait. run carries a task, and
// is told whether it waited in the queue; it does not panic.
func New[T any](max, queue int, run func(task T, waited bool)) *Pool[T] {
	if max < 1 {
		max = 1
	}
	return &Pool[T]{max: max, queueMax: queue, run: run, orders: make(chan order[T])}
}

// Submit gives a task to a worker, or queues it. One that is refused is still the caller's. It never waits for a task to
// end.
func (p *Pool[T]) Submit(task T) Fate {
	p.mu.Lock()
	switch {
	case p.closed:
	case p.idle > 0:
		p.idle--
		p.low = min(p.low, p.idle)
		p.mu.Unlock()
		p.orders <- order[T]{task: task} // the worker that was counted idle is here, or about to be
		return Running
	case p.workers < p.max:
		p.workers++
		p.group.Go(func() { p.work(task) }) // with mu held, so that Close waits for it; ends by Trim or Close
		p.mu.Unlock()
		return Running
	case p.queued < p.queueMax:
		p.push(task)
		p.mu.Unlock()
		return Waiting
	}
	p.mu.Unlock()
	return Refused
}

// work is a worker: one task after another, until it is to end.
func (p *Pool[T]) work(task T) {
	for waited, more := false, true; more; task, waited, more = p.next() {
		p.run(task, waited)
	}
}

// next is the worker's next task, for which it waits; no more means that the worker must end.
func (p *Pool[T]) next() (task T, waited, more bool) {
	p.mu.Lock()
	if p.queued > 0 && !p.held {
		task = p.pop()
		p.taken++
		p.mu.Unlock()
		return task, true, true
	}
	if p.closed {
		p.workers--
		p.mu.Unlock()
		return task, false, false
	}
	p.idle++
	p.mu.Unlock()
	o := <-p.orders
	return o.task, o.waited, !o.end
}

// Hold keeps the tasks that wait for a worker waiting, whoever becomes idle, or lets them go on.
func (p *Pool[T]) Hold(held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = held
	for !held && p.queued > 0 && p.idle > 0 {
		p.idle--
		p.low = min(p.low, p.idle)
		p.taken++
		p.orders <- order[T]{task: p.pop(), waited: true} // the worker that was counted idle is here, or about to be
	}
}

// Taken is how many tasks workers have taken that had waited.
func (p *Pool[T]) Taken() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}

// push and pop are the queue's. Called with mu held.
func (p *Pool[T]) push(task T) {
	if p.queued == len(p.queue) {
		grown := make([]T, max(16, min(2*len(p.queue), p.queueMax)))
		n := copy(grown, p.queue[p.head:])
		copy(grown[n:], p.queue[:p.head])
		p.queue, p.head = grown, 0
	}
	p.queue[(p.head+p.queued)%len(p.queue)] = task
	p.queued++
}

func (p *Pool[T]) pop() T {
	var zero T
	task := p.queue[p.head]
	p.queue[p.head] = zero
	p.head = (p.head + 1) % len(p.queue)
	if p.queued--; p.queued == 0 && len(p.queue) > keepQueue {
		p.queue, p.head = nil, 0
	}
	return task
}

// keepQueue is the number of places that an empty queue keeps.
const keepQueue = 1024

// Trim ends the workers that were idle all the time since the last Trim.
func (p *Pool[T]) Trim() {
	p.mu.Lock()
	n := p.low
	p.idle -= n
	p.workers -= n
	p.low = p.idle
	p.mu.Unlock()
	p.end(n)
}

// Stats are the number of workers, of them those that wait for a task, and the tasks that wait for a worker.
func (p *Pool[T]) Stats() (workers, idle, queued int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.workers, p.idle, p.queued
}

// Queued walks the tasks that wait for a worker, the first one first. They stay where they are; nobody else may use the pool
// meanwhile.
func (p *Pool[T]) Queued() iter.Seq[T] {
	return func(yield func(T) bool) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for i := range p.queued {
			if !yield(p.queue[(p.head+i)%len(p.queue)]) {
				return
			}
		}
	}
}

// end ends n workers that were taken off idle.
func (p *Pool[T]) end(n int) {
	for range n {
		p.orders <- order[T]{end: true}
	}
}

// Close refuses further tasks and waits until those that were taken, queued ones included, have been run and every
// worker has ended. It may be called twice.
func (p *Pool[T]) Close() {
	p.mu.Lock()
	p.closed = true
	n := p.idle
	p.idle, p.low = 0, 0
	p.workers -= n
	p.mu.Unlock()
	p.end(n)
	p.group.Wait()
}
