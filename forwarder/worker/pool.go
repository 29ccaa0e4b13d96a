// Package worker is the pool of parked goroutines that carry what may block.
//
// It knows no exchange: a task is its caller's, by value. A goroutine is started when there is a task and none is
// idle, up to a bound; beyond it tasks wait in a queue that is bounded too, and beyond that they are refused. Idle
// goroutines wait for their turn each, the one that worked last is the first to get a task, because the processor's
// cache knows it best, and Trim ends those that were not needed. Close ends all and waits for them.
package worker

import (
	"iter"
	"slices"
	"sync"
	"sync/atomic"
)

// Pool runs tasks on at most so many goroutines at a time. Its methods may be called by any number of goroutines.
type Pool[T any] struct {
	// Static after New.
	max, queueMax int
	run           func(w *Worker[T], task T, waited bool)
	group         sync.WaitGroup

	// Atomic.
	queued atomic.Int32 // tasks in queue; changed only under mu

	// Guarded by mu.
	mu      sync.Mutex
	workers int
	idle    []*Worker[T] // those that wait for a task, or are about to; who worked last is last
	low     int          // the least that idle was since the last Trim
	queue   []T          // tasks that wait for a worker, from head on, around the end
	head    int
	taken   uint64 // tasks that workers have taken out of queue
	held    bool   // none takes one any more: Hold
	closed  bool
}

// Worker is one goroutine of a pool. It has one thing to wait for at a time: while it is idle a task, or to end; while it
// runs one, whatever its task has agreed on with somebody.
type Worker[T any] struct {
	turn chan struct{} // holds one; never closed

	// Owned by who took it off idle, until the wake.
	task   T
	waited bool
	end    bool
}

// Wake ends the worker's Wait, this one or the next. It never waits, as long as there is one who wakes for each Wait.
func (w *Worker[T]) Wake() { w.turn <- struct{}{} }

// Wait waits for the Wake. Only the task that the worker runs calls it.
func (w *Worker[T]) Wait() { <-w.turn }

// Fate is what became of a task that was submitted.
type Fate uint8

// The fates.
const (
	Refused Fate = iota // nobody has it: every worker is busy and the queue full, or the pool is closed
	Waiting             // it is in the queue
	Running             // a worker has it
)

// New returns a pool of at most max goroutines, at least one, in which at most queue tasks wait. run carries a task, and
// is told by whom and whether it waited in the queue; it does not panic.
func New[T any](max, queue int, run func(w *Worker[T], task T, waited bool)) *Pool[T] {
	if max < 1 {
		max = 1
	}
	return &Pool[T]{max: max, queueMax: queue, run: run}
}

// Claim gives a task to a worker, if there is one for it, else it returns nil. The worker begins when the caller wakes it,
// which it must.
func (p *Pool[T]) Claim(task T) *Worker[T] {
	p.mu.Lock()
	w := p.claim(task)
	p.mu.Unlock()
	return w
}

// claim is Claim with mu held.
func (p *Pool[T]) claim(task T) (w *Worker[T]) {
	switch n := len(p.idle); {
	case p.closed:
		return nil
	case n > 0:
		w = p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.low = min(p.low, n-1)
	case p.workers < p.max:
		w = p.start()
	default:
		return nil
	}
	w.task = task
	return w
}

// start starts a worker. Called with mu held, so that Close waits for it.
func (p *Pool[T]) start() *Worker[T] {
	p.workers++
	w := &Worker[T]{turn: make(chan struct{}, 1)}
	p.group.Go(func() { p.work(w) }) // ends by Trim or Close
	return w
}

// Submit is Claim for a task that waits in the queue if there is no worker. One that is refused is still the caller's.
func (p *Pool[T]) Submit(task T) (*Worker[T], Fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch w := p.claim(task); {
	case w != nil:
		return w, Running
	case p.closed || int(p.queued.Load()) >= p.queueMax:
		return nil, Refused
	}
	p.push(task)
	return nil, Waiting
}

// work is a worker: one task after another, until it is to end.
func (p *Pool[T]) work(w *Worker[T]) {
	for {
		w.Wait()
		if w.end {
			return
		}
		var zero T
		task, waited := w.task, w.waited
		w.task, w.waited = zero, false
		p.run(w, task, waited)
		for {
			task, fate := p.next(w)
			if fate == Refused {
				return
			}
			if fate == Waiting {
				break
			}
			p.run(w, task, true)
		}
	}
}

// next makes a worker idle, Waiting, unless there is a task in the queue, which it is Running then, or the pool is closed.
func (p *Pool[T]) next(w *Worker[T]) (task T, fate Fate) {
	fate = Waiting
	p.mu.Lock()
	switch {
	case p.queued.Load() > 0 && !p.held:
		task, fate = p.take(), Running
	case p.closed:
		p.workers--
		fate = Refused
	default:
		p.idle = append(p.idle, w)
	}
	p.mu.Unlock()
	return task, fate
}

// Queued takes a task out of the queue, for a worker whose task has ended and that runs this one in its place.
func (p *Pool[T]) Queued() (task T, ok bool) {
	if p.queued.Load() == 0 {
		return task, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queued.Load() == 0 || p.held {
		return task, false
	}
	return p.take(), true
}

// Hold keeps the tasks that wait for a worker waiting, whoever becomes idle, or lets them go on.
func (p *Pool[T]) Hold(held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = held
	for n := len(p.idle); !held && p.queued.Load() > 0 && n > 0; n = len(p.idle) {
		w := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.low = min(p.low, n-1)
		w.task, w.waited = p.take(), true
		w.Wake()
	}
}

// Taken is how many tasks workers have taken that had waited.
func (p *Pool[T]) Taken() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.taken
}

// take is pop for a worker. Called with mu held.
func (p *Pool[T]) take() T {
	p.taken++
	return p.pop()
}

// push and pop are the queue's. Called with mu held.
func (p *Pool[T]) push(task T) {
	queued := int(p.queued.Load())
	if queued == len(p.queue) {
		grown := make([]T, max(16, min(2*len(p.queue), p.queueMax)))
		n := copy(grown, p.queue[p.head:])
		copy(grown[n:], p.queue[:p.head])
		p.queue, p.head = grown, 0
	}
	p.queue[(p.head+queued)%len(p.queue)] = task
	p.queued.Add(1)
}

func (p *Pool[T]) pop() T {
	var zero T
	task := p.queue[p.head]
	p.queue[p.head] = zero
	p.head = (p.head + 1) % len(p.queue)
	if p.queued.Add(-1) == 0 && len(p.queue) > keepQueue {
		p.queue, p.head = nil, 0
	}
	return task
}

// keepQueue is the number of places that an empty queue keeps.
const keepQueue = 1024

// Trim ends the workers that were idle all the time since the last Trim.
func (p *Pool[T]) Trim() {
	p.mu.Lock()
	unused := slices.Clone(p.idle[:p.low]) // who idles longest is first
	p.idle = slices.Delete(p.idle, 0, p.low)
	p.workers -= p.low
	p.low = len(p.idle)
	p.mu.Unlock()
	end(unused)
}

// Stats are the number of workers, of them those that wait for a task, and the tasks that wait for a worker.
func (p *Pool[T]) Stats() (workers, idle, queued int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.workers, len(p.idle), int(p.queued.Load())
}

// Waiting walks the tasks in the queue, the first one first, most of them behind the first from. They stay where they are, and are
// the queue's as long as the loop's body runs; nobody else can use the pool meanwhile.
func (p *Pool[T]) Waiting(from, most int) iter.Seq[T] {
	return func(yield func(T) bool) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for i := range min(most, max(int(p.queued.Load())-from, 0)) {
			if !yield(p.queue[(p.head+from+i)%len(p.queue)]) {
				return
			}
		}
	}
}

// end ends workers that were taken off idle.
func end[T any](workers []*Worker[T]) {
	for _, w := range workers {
		w.end = true
		w.Wake()
	}
}

// Close refuses further tasks and waits until those that were taken, queued ones included, have been run and every
// worker has ended. It may be called twice.
func (p *Pool[T]) Close() {
	p.mu.Lock()
	p.closed = true
	idle := p.idle
	p.idle, p.low = nil, 0
	p.workers -= len(idle)
	p.mu.Unlock()
	end(idle)
	p.group.Wait()
}
