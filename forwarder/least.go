package forwarder

import "slices"

// least keeps the n least of what it is shown, in memory for twice as many.
type least[T any] struct {
	// Static.
	n       int
	compare func(a, b T) int

	list []T // once there are n: the n least of all, in order, then what came since
	full bool
}

// add shows it one more.
func (l *least[T]) add(v T) {
	if l.full && l.compare(v, l.list[l.n-1]) >= 0 {
		return
	}
	if l.list = append(l.list, v); len(l.list) >= 2*l.n {
		l.trim()
	}
}

// trim forgets what is not among the least.
func (l *least[T]) trim() {
	slices.SortFunc(l.list, l.compare)
	if len(l.list) >= l.n {
		clear(l.list[l.n:])
		l.list, l.full = l.list[:l.n], l.n > 0
	}
}

// sorted is what it has kept, the least first.
func (l *least[T]) sorted() []T {
	l.trim()
	return l.list
}
