package worker_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/relevo-proxy/relevo/forwarder/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// task is one that runs until it is told to end.
type task struct {
	number int
	end    chan struct{}
}

// submit submits a task and lets its worker begin.
func submit[T any](p *worker.Pool[T], task T) worker.Fate {
	w, fate := p.Submit(task)
	if w != nil {
		w.Wake()
	}
	return fate
}

// model is what a pool is meant to be, and the pool. It lives in a synctest bubble, where after each step nothing moves.
type model struct {
	pool       *worker.Pool[*task]
	max, queue int

	// What is expected.
	running            []*task
	waiting            []*task
	workers, idle, low int
	taken              int   // tasks in all
	waited             []int // numbers of the tasks that were told so, in order

	// Guarded by mu: what is seen.
	mu        sync.Mutex
	started   []int
	gotWaited []int
}

func newModel(max, queue int) *model {
	m := &model{max: max, queue: queue}
	m.pool = worker.New(max, queue, func(_ *worker.Worker[*task], x *task, waited bool) {
		m.mu.Lock()
		m.started = append(m.started, x.number)
		if waited {
			m.gotWaited = append(m.gotWaited, x.number)
		}
		m.mu.Unlock()
		<-x.end
	})
	return m
}

// submit submits a task and says what is wrong with what became of it.
func (m *model) submit(number int) string {
	x := &task{number: number, end: make(chan struct{})}
	want := worker.Refused
	switch {
	case m.idle > 0:
		m.idle--
		m.low = min(m.low, m.idle)
		m.running, want = append(m.running, x), worker.Running
	case m.workers < m.max:
		m.workers++
		m.running, want = append(m.running, x), worker.Running
	case len(m.waiting) < m.queue:
		m.waiting, want = append(m.waiting, x), worker.Waiting
	}
	if want != worker.Refused {
		m.taken++
	}
	if got := submit(m.pool, x); got != want {
		return fmt.Sprintf("task %d: got fate %d, want %d", number, got, want)
	}
	return ""
}

// finish ends a task that runs; its worker takes the first that waits.
func (m *model) finish(i int) {
	if len(m.running) == 0 {
		return
	}
	i %= len(m.running)
	close(m.running[i].end)
	m.running = slices.Delete(m.running, i, i+1)
	if len(m.waiting) == 0 {
		m.idle++
		return
	}
	m.running = append(m.running, m.waiting[0])
	m.waited = append(m.waited, m.waiting[0].number)
	m.waiting = m.waiting[1:]
}

// trim ends as many workers as were idle all the time since the last trim.
func (m *model) trim() {
	m.idle -= m.low
	m.workers -= m.low
	m.low = m.idle
	m.pool.Trim()
}

// differs says in what the pool is not what it is meant to be.
func (m *model) differs() string {
	synctest.Wait()
	workers, idle, queued := m.pool.Stats()
	if workers != m.workers || idle != m.idle || queued != len(m.waiting) {
		return fmt.Sprintf("got %d workers, %d idle, %d tasks queued, want %d, %d, %d", workers, idle, queued, m.workers, m.idle, len(m.waiting))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.Equal(m.gotWaited, m.waited) {
		return fmt.Sprintf("got the tasks %v out of the queue, want %v: first come, first served", m.gotWaited, m.waited)
	}
	if ends := len(m.started) - len(m.running); ends < 0 {
		return fmt.Sprintf("got %d tasks started, want the %d that run, too", len(m.started), len(m.running))
	}
	return ""
}

// TestPool: whatever the order of submits, ends and trims, the pool is what its documentation says, after each step.
func TestPool(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		most, queue := rapid.IntRange(1, 5).Draw(rt, "max"), rapid.IntRange(0, 40).Draw(rt, "queue")
		steps := rapid.SliceOfN(rapid.IntRange(0, 99), 1, 200).Draw(rt, "steps")
		wrong := ""
		synctest.Test(t, func(*testing.T) {
			m := newModel(most, queue)
			for number, step := range steps {
				switch {
				case step < 50:
					wrong = m.submit(number)
				case step < 90:
					m.finish(step)
				default:
					m.trim()
				}
				if wrong == "" {
					wrong = m.differs()
				}
				if wrong != "" {
					wrong = fmt.Sprintf("step %d: %s", number, wrong)
					break
				}
			}
			closed := make(chan struct{})
			go func() { defer close(closed); m.pool.Close() }() // ends when every task has
			synctest.Wait()
			if submit(m.pool, &task{number: -1}) != worker.Refused && wrong == "" {
				wrong = "got a task taken after Close, want it refused"
			}
			for len(m.running) > 0 {
				select {
				case <-closed:
					if wrong == "" {
						wrong = fmt.Sprintf("got Close to return while %d tasks ran and %d waited, want it to wait", len(m.running), len(m.waiting))
					}
				default:
				}
				m.finish(0)
				synctest.Wait()
			}
			<-closed
			m.pool.Close() // twice is fine
			if workers, idle, queued := m.pool.Stats(); wrong == "" && workers+idle+queued != 0 {
				wrong = fmt.Sprintf("got %d workers, %d idle, %d queued after Close, want none", workers, idle, queued)
			}
			slices.Sort(m.started)
			if once := len(slices.Compact(slices.Clone(m.started))); wrong == "" && (once != len(m.started) || once != m.taken) {
				wrong = fmt.Sprintf("got %d runs of %d different tasks, want each of the %d that were taken run once", len(m.started), once, m.taken)
			}
		})
		if wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

// TestTrim: who was needed once since the last Trim stays, and of the others none.
func TestTrim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(8, 0)
		busy := func(n int) { // n tasks at once, from beginning to end
			for i := range n {
				if wrong := m.submit(i); wrong != "" {
					t.Fatal(wrong)
				}
			}
			for range n {
				m.finish(0)
			}
			synctest.Wait()
		}
		wantWorkers := func(want int, why string) {
			t.Helper()
			synctest.Wait()
			if got, _, _ := m.pool.Stats(); got != want {
				t.Errorf("got %d workers, want %d: %s", got, want, why)
			}
		}
		busy(6)
		m.pool.Trim()
		wantWorkers(6, "all were at work since the beginning")
		busy(2)
		m.pool.Trim()
		wantWorkers(2, "four were idle all the time")
		m.pool.Trim()
		wantWorkers(0, "nobody was at work")
		busy(3)
		wantWorkers(3, "they come back when they are needed")
		m.pool.Close()
	})
}

// TestPoolUnderLoad: with submits, trims and at last Close at the same time each task that was taken is run once and
// before Close returns, and never more at a time than the bound.
func TestPoolUnderLoad(t *testing.T) {
	const most, queue, submitters, each = 7, 20, 8, 4000
	var now, peak, ran atomic.Int64
	var late atomic.Bool
	p := worker.New(most, queue, func(_ *worker.Worker[int], spin int, _ bool) {
		n := now.Add(1)
		for {
			if old := peak.Load(); n <= old || peak.CompareAndSwap(old, n) {
				break
			}
		}
		for range spin {
			_ = now.Load()
		}
		if late.Load() {
			t.Error("got a task run after Close had returned, want Close to wait for it")
		}
		ran.Add(1)
		now.Add(-1)
	})
	var taken, refused atomic.Int64
	var group, trimming sync.WaitGroup
	stop := make(chan struct{})
	trimming.Go(func() { // ends with stop
		for {
			select {
			case <-stop:
				return
			default:
				p.Trim()
			}
		}
	})
	for range submitters {
		group.Go(func() {
			for range each {
				if submit(p, rand.IntN(200)) == worker.Refused {
					refused.Add(1)
				} else {
					taken.Add(1)
				}
			}
		})
	}
	for taken.Load()+refused.Load() < submitters*each/2 {
		runtime.Gosched()
	}
	p.Close() // in the middle
	late.Store(true)
	group.Wait()
	close(stop)
	trimming.Wait()
	if ran.Load() != taken.Load() || taken.Load()+refused.Load() != submitters*each {
		t.Errorf("got %d tasks run, %d taken, %d refused, want those that were taken run and %d in all", ran.Load(), taken.Load(), refused.Load(), submitters*each)
	}
	if peak.Load() > most {
		t.Errorf("got %d tasks run at a time, want at most %d", peak.Load(), most)
	}
}

// TestCloseWaitsForTheFirst: a task that was taken while Close began is one that Close waits for, even when its worker
// has yet to be started.
func TestCloseWaitsForTheFirst(t *testing.T) {
	for range 3000 {
		var ran atomic.Bool
		p := worker.New(1, 0, func(*worker.Worker[struct{}], struct{}, bool) { ran.Store(true) })
		fate := make(chan worker.Fate, 1)
		go func() { fate <- submit(p, struct{}{}) }() // ends at once
		p.Close()
		done := ran.Load()
		if f := <-fate; f == worker.Running && !done {
			t.Fatal("got Close to return before a task that was taken had run, want it to wait")
		}
	}
}

// TestQueueIsGivenBack: the queue grows to its bound and around its end, keeps its order, and takes tasks again.
func TestQueueIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(1, 3000)
		for round := range 3 {
			for i := range 3001 {
				if wrong := m.submit(round*10_000 + i); wrong != "" {
					t.Fatal(wrong)
				}
			}
			if got := submit(m.pool, nil); got != worker.Refused {
				t.Fatalf("got fate %d for a task beyond the bound, want it refused", got)
			}
			for range 2000 + 1001*(round%2) {
				m.finish(0)
				synctest.Wait()
			}
			for len(m.running) > 0 {
				m.finish(0)
				synctest.Wait()
			}
			if wrong := m.differs(); wrong != "" {
				t.Fatal(wrong)
			}
		}
		m.pool.Close()
	})
}

// TestLeastPool: without bounds that make sense there is one worker and no queue.
func TestLeastPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(0, 0)
		m.max = 1
		for i := range 3 {
			if wrong := m.submit(i); wrong != "" {
				t.Error(wrong)
			}
		}
		m.finish(0)
		m.pool.Close()
	})
}

// TestSubmitAllocates nothing once there are workers and the queue has grown.
func TestSubmitAllocates(t *testing.T) {
	done := make(chan struct{}, 64)
	p := worker.New(4, 64, func(*worker.Worker[*task], *task, bool) { done <- struct{}{} })
	defer p.Close()
	x := &task{}
	burst := func() {
		for range 32 {
			if submit(p, x) == worker.Refused {
				t.Fatal("got a task refused, want it taken: 4 workers and 64 places")
			}
		}
		for range 32 {
			<-done
		}
	}
	for range 10 {
		burst()
	}
	if n := testing.AllocsPerRun(100, burst); n > 0 {
		t.Errorf("32 submits allocate %v times, want 0", n)
	}
}

// BenchmarkSubmit is the hand-over of a task from many goroutines, and the task's end.
func BenchmarkSubmit(b *testing.B) {
	var refused atomic.Int64
	p := worker.New(64, 1024, func(_ *worker.Worker[*sync.WaitGroup], done *sync.WaitGroup, _ bool) { done.Done() })
	defer p.Close()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var done sync.WaitGroup
		for pb.Next() {
			done.Add(1)
			if submit(p, &done) == worker.Refused {
				done.Done()
				refused.Add(1)
			}
		}
		done.Wait()
	})
	b.ReportMetric(float64(refused.Load())/float64(b.N), "refused/op")
}

// TestClaim: a claimed worker begins when it is woken, and a claim neither queues nor exceeds the bound.
func TestClaim(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(1, 1)
		x := &task{number: 1, end: make(chan struct{})}
		close(x.end)
		w := m.pool.Claim(x)
		synctest.Wait()
		if len(m.started) != 0 {
			t.Error("got the task begun before its worker was woken, want it to wait for that")
		}
		if m.pool.Claim(nil) != nil {
			t.Error("got a second worker, want none beyond the bound")
		}
		w.Wake()
		synctest.Wait()
		if len(m.started) != 1 {
			t.Error("got the task not begun when its worker was woken, want it to run")
		}
		if again := m.pool.Claim(x); again != w {
			t.Error("got no worker or another one, want the one that is idle")
		}
		w.Wake()
		m.pool.Close()
		if m.pool.Claim(nil) != nil {
			t.Error("got a worker after Close, want none")
		}
	})
}

// TestWhoWorkedLastIsFirst: the idle worker that the cache knows best gets the next task, and Trim ends those that have been
// idle for longest.
func TestWhoWorkedLastIsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type worked = *worker.Worker[chan struct{}]
		p := worker.New(3, 0, func(_ worked, end chan struct{}, _ bool) { <-end })
		var workers [3]worked
		var ends [3]chan struct{}
		for i := range workers {
			ends[i] = make(chan struct{})
			workers[i] = p.Claim(ends[i])
			workers[i].Wake()
		}
		for _, i := range []int{2, 0, 1} {
			close(ends[i])
			synctest.Wait()
		}
		p.Trim() // counts from here on
		claim := func(want worked, why string) {
			t.Helper()
			end := make(chan struct{})
			close(end)
			w := p.Claim(end)
			if w != want {
				t.Errorf("got another worker than wanted: %s", why)
			}
			w.Wake()
			synctest.Wait()
		}
		claim(workers[1], "it has worked last")
		p.Trim()
		if n, idle, _ := p.Stats(); n != 1 || idle != 1 {
			t.Errorf("got %d workers, %d idle, want the 1 that was needed", n, idle)
		}
		claim(workers[1], "the two others were not needed")
		p.Close()
	})
}

// TestQueued: a task takes what waits in the queue over from the pool, once, and finds nothing where nothing waits.
func TestQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p *worker.Pool[int]
		var got []int
		p = worker.New(1, 2, func(_ *worker.Worker[int], task int, _ bool) {
			for more := true; more; task, more = p.Queued() {
				got = append(got, task)
			}
		})
		w := p.Claim(1)
		for _, n := range []int{2, 3} {
			if _, fate := p.Submit(n); fate != worker.Waiting {
				t.Errorf("got fate %d for task %d, want it to wait", fate, n)
			}
		}
		w.Wake()
		p.Close()
		if !slices.Equal(got, []int{1, 2, 3}) {
			t.Errorf("got the tasks %v run, want 1, 2, 3", got)
		}
	})
}

// TestHold: while the pool is held, who waits waits, whoever becomes idle; then the tasks are taken in order.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newModel(2, 5)
		var tasks []*task
		for n := range 5 {
			x := &task{n, make(chan struct{})}
			tasks = append(tasks, x)
			if w, _ := m.pool.Submit(x); w != nil {
				w.Wake()
			}
		}
		synctest.Wait()
		queued := func() (out []int) {
			for x := range m.pool.Waiting(0, 2) {
				out = append(out, x.number)
			}
			for x := range m.pool.Waiting(len(out), 100) { // the rest of them
				out = append(out, x.number)
			}
			return out
		}
		for x := range m.pool.Waiting(0, 1) {
			if x.number != 2 {
				t.Errorf("got task %d first in the queue, want 2", x.number)
			}
			break
		}
		m.pool.Hold(true)
		close(tasks[0].end)
		close(tasks[1].end)
		synctest.Wait()
		if got := queued(); !slices.Equal(got, []int{2, 3, 4}) || m.pool.Taken() != 0 {
			t.Errorf("got %v waiting and %d taken while the pool is held, want 2, 3 and 4, and none", got, m.pool.Taken())
		}
		if _, idle, _ := m.pool.Stats(); idle != 2 {
			t.Errorf("got %d idle workers, want 2", idle)
		}
		m.pool.Hold(false)
		synctest.Wait()
		if got := queued(); !slices.Equal(got, []int{4}) || m.pool.Taken() != 2 {
			t.Errorf("got %v waiting and %d taken, want 4, and 2", got, m.pool.Taken())
		}
		for _, x := range tasks[2:] {
			close(x.end)
		}
		m.pool.Close()
		slices.Sort(m.gotWaited)
		if !slices.Equal(m.gotWaited, []int{2, 3, 4}) || m.pool.Taken() != 3 {
			t.Errorf("got %v told that they had waited, and %d taken, want 2, 3 and 4, and 3", m.gotWaited, m.pool.Taken())
		}
	})
}
