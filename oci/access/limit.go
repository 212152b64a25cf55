package access

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"golang.org/x/time/rate"

	"github.com/spate-project/spate/oci/registry"
)

const (
	// burst is how many seconds' worth of requests may come at once: pulls begin
	// with many small ones.
	burst = 10

	// tries is how many wrong logins an address may send at once, and one more each tryAgain.
	tries    = 10
	tryAgain = 6 * time.Second

	// maxCallers bounds how many users, and how many addresses, are known at a
	// time. Who is forgotten begins anew.
	maxCallers = 16384
)

// A Limit is a registry.Access that lets each user, or each address that says no
// user, send so many requests a second, and each address so many wrong logins. It
// is safe for concurrent use.
type Limit struct {
	next    registry.Access // nil lets everybody do everything
	rate    rate.Limit
	callers *lru.Cache[string, *rate.Limiter]
	failed  *lru.Cache[string, *rate.Limiter] // by address
}

// NewLimit returns a Limit of so many requests a second before next, which may be
// nil; 0 limits wrong logins alone.
func NewLimit(next registry.Access, requests float64) *Limit {
	callers, _ := lru.New[string, *rate.Limiter](maxCallers) // fails for no size
	failed, _ := lru.New[string, *rate.Limiter](maxCallers)
	l := &Limit{next: next, rate: rate.Limit(requests), callers: callers, failed: failed}
	if requests <= 0 {
		l.rate = rate.Inf
	}
	return l
}

// Allow says what next says, or is a *registry.TooManyError.
func (l *Limit) Allow(req *http.Request, repo string, action registry.Action) (user string, err error) {
	host, _, err := net.SplitHostPort(req.RemoteAddr)
	if err != nil {
		host = req.RemoteAddr
	}
	wrong := of(l.failed, host, rate.Every(tryAgain), tries)
	_, _, login := req.BasicAuth()
	if login && wrong.Tokens() < 1 {
		return "", &registry.TooManyError{What: "wrong logins from " + host, After: tryAgain}
	}
	if l.next != nil {
		user, err = l.next.Allow(req, repo, action)
		// Its context's end says nothing about a password.
		if login && errors.Is(err, registry.ErrUnauthorized) && !errors.Is(err, context.Canceled) {
			wrong.Allow()
		}
	}
	if l.rate == rate.Inf {
		return user, err
	}
	caller, text := "address "+host, host
	if user != "" {
		caller, text = "user "+user, user
	}
	now := time.Now()
	r := of(l.callers, caller, l.rate, max(1, int(burst*float64(l.rate)))).ReserveN(now, 1)
	if wait := r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
		return user, &registry.TooManyError{What: "requests by " + text, After: wait}
	}
	return user, err
}

// of returns the limiter of a name, made when it is not known.
func of(cache *lru.Cache[string, *rate.Limiter], name string, limit rate.Limit, burst int) *rate.Limiter {
	if l, ok := cache.Get(name); ok {
		return l
	}
	made := rate.NewLimiter(limit, burst)
	if l, ok, _ := cache.PeekOrAdd(name, made); ok {
		return l
	}
	return made
}
