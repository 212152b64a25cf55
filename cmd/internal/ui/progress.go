package ui

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// summaryEvery is how often lines tell how far all tasks are.
const summaryEvery = 5 * time.Second

// A Progress shows how far one long operation is. An Output has at most one at
// a time. Its methods and those of its tasks are safe for concurrent use.
type Progress struct {
	counter // of all tasks
	name    string
	out     *Output
	bars    *bars // nil where lines are written

	tasks, finished, failed atomic.Int64
	due                     atomic.Int64 // when the next summary may be written, nanoseconds after began
}

// A Task is one item of a Progress: a file, a step.
type Task struct {
	counter
	p        *Progress
	name     string
	promised int64
	begin    sync.Once
	end      sync.Once
	drop     func() // removes the bar; nil where lines are written
}

// NewProgress returns the progress of the operation name, which comes before
// each line. The caller must Close it.
func NewProgress(out *Output, name string) *Progress {
	p := &Progress{counter: counter{began: time.Now()}, name: printable(name), out: out}
	p.due.Store(int64(summaryEvery))
	if tty, ok := out.terminal(out.messages.out); ok {
		p.bars = newBars(p, tty, &out.messages)
	}
	return p
}

// Task promises an item of total bytes; total is 0 for a step that moves none
// or an unknown number. The caller must call Done. Tasks promised early make
// the operation's total, and so the time left, known early: an item is shown as
// started not before its first Add, a step at once.
func (p *Progress) Task(name string, total int64) *Task {
	p.tasks.Add(1)
	p.total.Add(total)
	t := &Task{p: p, name: printable(name), promised: total}
	t.total.Store(total)
	if total == 0 {
		t.start()
	}
	return t
}

// Add counts n more bytes of the task; n is negative when bytes must be moved again.
func (t *Task) Add(n int64) {
	t.start()
	t.done.Add(n)
	t.p.done.Add(n)
	t.p.summarize()
}

// Done ends the task, failed when err is not nil; only the first call counts.
// A task that ends well before all its bytes were counted found the rest in place.
func (t *Task) Done(err error) {
	t.start()
	t.end.Do(func() {
		p := t.p
		p.total.Add(t.done.Load() - t.promised)
		p.finished.Add(1)
		e := t.event("done")
		if err != nil {
			p.failed.Add(1)
			e.State, e.Error = "failed", err.Error()
		}
		p.emit(e)
		if t.drop != nil {
			t.drop()
		}
	})
}

func (t *Task) start() {
	t.begin.Do(func() {
		t.began = time.Now()
		if t.p.bars != nil {
			t.drop = t.p.bars.task(t)
		} else {
			t.p.emit(t.event("started"))
		}
	})
}

// Close ends the display and sums up. Tasks that were not Done are left out.
func (p *Progress) Close() {
	if p.tasks.Load() > 0 {
		p.emit(p.event("ended"))
	}
	if p.bars != nil {
		p.bars.close()
	}
}

// emit writes the event's line to standard error.
func (p *Progress) emit(e event) {
	line := e.String()
	if p.out.Format == JSON {
		b, _ := json.Marshal(e)
		line = string(b)
	}
	fmt.Fprintf(&p.out.messages, "%s\n", line)
}

// summarize writes a line when one is due; bars say the same all the time.
func (p *Progress) summarize() {
	now, due := int64(time.Since(p.began)), p.due.Load()
	if p.bars == nil && now >= due && p.due.CompareAndSwap(due, now+int64(summaryEvery)) {
		p.emit(p.event("moving"))
	}
}

// A counter is bytes on their way.
type counter struct {
	began       time.Time
	done, total atomic.Int64
	bound       atomic.Int64 // nanoseconds; 0 is not known
}

// Bound tells how long the rest takes at least; 0 is not known.
func (c *counter) Bound(left time.Duration) { c.bound.Store(int64(left)) }

// String tells bytes, rate and time left, as far as they are known.
func (c *counter) String() string {
	done, total, d := c.done.Load(), c.total.Load(), time.Since(c.began)
	if done == 0 && total == 0 {
		return Duration(d)
	}
	parts := []string{Size(done)}
	if total > 0 {
		parts[0] += " of " + Size(total)
	}
	if rate := Speed(done, d); rate != "" {
		parts = append(parts, rate)
	}
	if done > 0 && total > done {
		left := time.Duration(float64(d) * float64(total-done) / float64(done))
		parts = append(parts, Duration(left.Round(time.Second))+" left")
		if bound := time.Duration(c.bound.Load()); bound > 0 {
			parts = append(parts, Duration(bound.Round(time.Second))+" at best")
		}
	}
	return strings.Join(parts, ", ")
}

// An event is one line: of a task, or of the whole operation when Task is empty.
type event struct {
	Operation string  `json:"operation"`
	Task      string  `json:"task,omitempty"`
	State     string  `json:"state"` // of a task: started, done, failed; of all: moving, ended
	Bytes     int64   `json:"bytes"`
	Total     int64   `json:"total,omitempty"`
	Seconds   float64 `json:"seconds"`
	Error     string  `json:"error,omitempty"`
	Tasks     int64   `json:"tasks,omitempty"`
	Finished  int64   `json:"finished,omitempty"`
	Failed    int64   `json:"failed,omitempty"`
	progress  string
}

func (t *Task) event(state string) event {
	return event{
		Operation: t.p.name, Task: t.name, State: state,
		Bytes: t.done.Load(), Total: t.promised, Seconds: time.Since(t.began).Seconds(),
	}
}

func (p *Progress) event(state string) event {
	return event{
		Operation: p.name, State: state,
		Bytes: p.done.Load(), Total: p.total.Load(), Seconds: time.Since(p.began).Seconds(),
		Tasks: p.tasks.Load(), Finished: p.finished.Load(), Failed: p.failed.Load(),
		progress: p.counter.String(),
	}
}

// String is the event as a line for people.
func (e event) String() string {
	took := time.Duration(e.Seconds * float64(time.Second))
	moved := Size(e.Bytes) + " in " + Duration(took)
	if r := Speed(e.Bytes, took); r != "" {
		moved += ", " + r
	}
	switch {
	case e.State == "started" && e.Total > 0:
		return fmt.Sprintf("%s: %s: started, %s", e.Operation, e.Task, Size(e.Total))
	case e.State == "started":
		return fmt.Sprintf("%s: %s: started", e.Operation, e.Task)
	case e.State == "failed":
		return fmt.Sprintf("%s: %s: failed: %s", e.Operation, e.Task,
			strings.ReplaceAll(printable(e.Error), "\n", "; "))
	case e.State == "done" && e.Bytes > 0:
		return fmt.Sprintf("%s: %s: done, %s", e.Operation, e.Task, moved)
	case e.State == "done" && e.Total > 0:
		return fmt.Sprintf("%s: %s: done, %s were in place", e.Operation, e.Task, Size(e.Total))
	case e.State == "done":
		return fmt.Sprintf("%s: %s: done in %s", e.Operation, e.Task, Duration(took))
	}
	line := fmt.Sprintf("%s: %d of %d done", e.Operation, e.Finished-e.Failed, e.Tasks)
	if e.Failed > 0 {
		line += fmt.Sprintf(", %d failed", e.Failed)
	}
	if e.State == "moving" {
		return line + ", " + e.progress
	}
	if e.Bytes > 0 {
		return line + ", " + moved
	}
	return line + " in " + Duration(took)
}
