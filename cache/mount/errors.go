package mount

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// errno is what a reader sees of an error: EINTR when it gave up itself, else EIO.
func errno(err error) fuse.Status {
	if errors.Is(err, context.Canceled) {
		return fuse.EINTR
	}
	return fuse.EIO
}

const (
	sayAgain = time.Minute // an error that goes on is told this often
	sayMost  = 20          // errors are told in that time
)

// complaints keeps a failing piece, which the kernel asks for again and again, from filling the log.
type complaints struct {
	mu   sync.Mutex
	told map[string]time.Time
}

// isNew reports whether text is to be told.
func (c *complaints) isNew(text string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for old, at := range c.told {
		if now.Sub(at) >= sayAgain {
			delete(c.told, old)
		}
	}
	if _, told := c.told[text]; told || len(c.told) >= sayMost {
		return false
	}
	if c.told == nil {
		c.told = make(map[string]time.Time)
	}
	c.told[text] = now
	return true
}
