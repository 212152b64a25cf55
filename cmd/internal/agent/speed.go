package agent

import (
	"context"
	"sync/atomic"
	"time"
)

// A speedometer keeps the highest rate of a counter of bytes.
type speedometer struct{ peak atomic.Int64 } // bytes a second

// speedInterval is over how long a rate is measured.
const speedInterval = time.Second

// run looks at count until ctx ends. It returns the context's error.
func (s *speedometer) run(ctx context.Context, count func() int64) error {
	ticker := time.NewTicker(speedInterval)
	defer ticker.Stop()
	last, at := count(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		n, now := count(), time.Now()
		// A tick that came late and the one after it are closer together.
		if took := now.Sub(at); took >= speedInterval/2 {
			s.peak.Store(max(s.peak.Load(), int64(float64(n-last)/took.Seconds())))
		}
		last, at = n, now
	}
}

// linkRate returns what the node could receive, as Status has it.
func (a *Agent) linkRate() int64 {
	if _, down := a.opts.Link.Limits(); down > 0 {
		return down
	}
	return a.received.peak.Load()
}
