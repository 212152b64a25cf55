package indexer

import (
	"sync"

	"github.com/opencontainers/go-digest"
)

// maxQueued bounds a queue. A queue that is full forgets what comes, and asks for
// a look over the whole store instead.
const maxQueued = 4096

// A task is a manifest that may have to be indexed.
type task struct {
	repo     string
	manifest digest.Digest
}

// A queue holds tasks in the order of their coming, each once. The store is what
// remembers them: a queue is empty after a restart, and begins with a look over it.
type queue struct {
	wake chan struct{} // holds a value when there may be something to do

	mu     sync.Mutex
	tasks  []task
	queued map[task]bool
	look   bool // the store is to be looked over
	taken  int  // tasks and looks that are not done
}

func newQueue() *queue {
	q := &queue{wake: make(chan struct{}, 1), queued: map[task]bool{}, look: true}
	q.wake <- struct{}{}
	return q
}

// add never blocks.
func (q *queue) add(t task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.queued[t]:
	case len(q.tasks) == maxQueued:
		q.look = true
	default:
		q.tasks, q.queued[t] = append(q.tasks, t), true
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns the next task, until done; ok is false when there is none.
func (q *queue) take() (t task, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.tasks) == 0 {
		return t, false
	}
	t, q.tasks = q.tasks[0], q.tasks[1:]
	delete(q.queued, t)
	q.taken++
	return t, true
}

// takeLook reports, once and until done, that the store is to be looked over.
func (q *queue) takeLook() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.look {
		return false
	}
	q.look = false
	q.taken++
	return true
}

// done ends what was taken.
func (q *queue) done() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.taken--
}

// pending is how much is not done; a look counts as one.
func (q *queue) pending() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := len(q.tasks) + q.taken
	if q.look {
		n++
	}
	return n
}
