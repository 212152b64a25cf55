package agent

import (
	"slices"
	"time"

	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/prefetch/orders"
)

const (
	// stockEvery is how often a board is told what the cache holds, at most and only
	// when that has changed, and stockAgain how often it is told all the same.
	stockEvery = 5 * time.Second
	stockAgain = time.Minute
)

// A stocktaking is what a board was told of the cache. The zero value is nothing.
type stocktaking struct {
	told     *orders.Stock
	at       time.Time // when it was told
	lookedAt time.Time // when the cache was looked at
}

// news returns what to tell a board of the cache now, nil where it knows that.
func (s *stocktaking) news(store *cache.Store) *orders.Stock {
	now := time.Now()
	if s.told != nil && now.Sub(s.lookedAt) < stockEvery {
		return nil
	}
	s.lookedAt = now
	stats := store.Stats()
	next := &orders.Stock{Quota: stats.Quota, Used: stats.Used, Objects: []orders.Held{}}
	for _, h := range store.List() { // the last used first
		if len(next.Objects) == orders.MaxHeld {
			break
		}
		next.Objects = append(next.Objects, orders.Held{Digest: h.Digest, Bytes: h.Bytes, Size: h.Size})
	}
	same := s.told != nil && s.told.Quota == next.Quota && s.told.Used == next.Used && slices.Equal(s.told.Objects, next.Objects)
	if same && now.Sub(s.at) < stockAgain {
		return nil
	}
	s.told, s.at = next, now
	return next
}
