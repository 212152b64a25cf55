package agent

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestSpeedometer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s speedometer
		var count atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.run(ctx, count.Load) }()
		synctest.Wait()
		for _, tt := range []struct{ bytes, peak int64 }{{100, 100}, {300, 300}, {0, 300}, {200, 300}, {301, 301}} {
			count.Add(tt.bytes)
			time.Sleep(speedInterval)
			synctest.Wait()
			if got := s.peak.Load(); got != tt.peak {
				t.Errorf("after %d bytes in a second the highest rate is %d, want %d", tt.bytes, got, tt.peak)
			}
		}
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("run returned %v", err)
		}
	})
}
