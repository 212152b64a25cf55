package ui

import (
	"io"
	"math"
	"os"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// bars are one bar for each task that has begun, over one line for all of them.
// While they stand, messages appear above them.
type bars struct {
	container *mpb.Progress
	messages  *messages

	mu  sync.Mutex
	all []*mpb.Bar
}

func newBars(p *Progress, tty *os.File, m *messages) *bars {
	b := &bars{container: mpb.New(mpb.WithOutput(tty)), messages: m}
	summary := decor.Any(func(decor.Statistics) string { return p.event("moving").String() })
	b.add(mpb.NopStyle().Build(), mpb.BarPriority(math.MaxInt), mpb.PrependDecorators(summary))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bars = b.container
	return b
}

// task adds a bar that reads t whenever it is drawn.
func (b *bars) task(t *Task) (drop func()) {
	filler := mpb.SpinnerStyle().PositionLeft().Build()
	if t.promised > 0 {
		filler = mpb.BarStyle().Build()
	}
	read := func(w io.Writer, s decor.Statistics) error {
		s.Total = t.promised
		s.Current = max(0, min(t.done.Load(), s.Total))
		return filler.Fill(w, s)
	}
	state := decor.Any(func(decor.Statistics) string { return t.counter.String() })
	return b.add(mpb.BarFillerFunc(read),
		mpb.PrependDecorators(decor.Name(t.name, decor.WCSyncWidthR)), mpb.AppendDecorators(state))
}

// add adds a bar without a total of its own, so that only drop ends it.
func (b *bars) add(filler mpb.BarFiller, options ...mpb.BarOption) (drop func()) {
	bar, err := b.container.Add(0, filler, options...)
	if err != nil { // closed
		return func() {}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all = append(b.all, bar)
	return func() { bar.Abort(true) }
}

// close removes all bars. It holds messages back meanwhile, so that none is lost.
func (b *bars) close() {
	b.messages.mu.Lock()
	defer b.messages.mu.Unlock()
	b.mu.Lock()
	for _, bar := range b.all {
		bar.Abort(true)
	}
	b.mu.Unlock()
	b.container.Wait()
	b.messages.bars = nil
}
