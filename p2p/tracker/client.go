package tracker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// ErrUnknown says that the tracker does not know the node in this swarm, as
// after a restart: announce, then ask again.
var ErrUnknown = errors.New("the tracker does not know this node yet")

// ErrRefused says that a tracker answered, and will not have the message: it
// is wrong, or larger than the tracker accepts.
var ErrRefused = errors.New("the message is refused")

const (
	// attempt is how long one tracker may take to answer before the next is asked.
	attempt = 5 * time.Second

	// rest is how long a tracker that failed is asked last, and may take no
	// longer than probe to answer.
	rest  = 30 * time.Second
	probe = time.Second
)

// A Client talks to one or more trackers (BEP 12's list, one tier). It
// announces to all of them; leases and hints come from one at a time, the first
// in the list that answers, so that all nodes with the same list have them from
// the same one. It is safe for concurrent use.
type Client struct {
	urls []string
	http *http.Client

	mu      sync.Mutex
	resting []time.Time // until when each of urls is asked last
}

// NewClient returns a client of the trackers at the given base URLs.
func NewClient(hc *http.Client, urls ...string) *Client {
	c := &Client{http: hc, resting: make([]time.Time, len(urls))}
	for _, u := range urls {
		c.urls = append(c.urls, strings.TrimSuffix(u, "/"))
	}
	return c
}

// Announce tells every tracker and returns all the peers that they know, with
// the shortest of their intervals. It fails only when no tracker took it; the
// error is ErrRefused when one answered with a refusal.
func (c *Client) Announce(ctx context.Context, a Announce) (Peers, error) {
	answers := make([]Peers, len(c.urls))
	errs := make([]error, len(c.urls))
	var wg sync.WaitGroup
	for i := range c.urls {
		wg.Go(func() { errs[i] = c.post(ctx, i, AnnouncePath, a, &answers[i]) })
	}
	wg.Wait()
	all := Peers{Swarms: make(map[SwarmID][]Peer)}
	answered := false
	for i, p := range answers {
		if errs[i] != nil {
			continue
		}
		if !answered || p.Interval < all.Interval {
			all.Interval = p.Interval
		}
		answered = true
		for id, peers := range p.Swarms {
			all.Swarms[id] = append(all.Swarms[id], peers...)
		}
		all.Keeps = append(all.Keeps, p.Keeps...)
	}
	if !answered {
		return Peers{}, fmt.Errorf("announce to the mesh: %w", errors.Join(errs...))
	}
	return all, nil
}

// Lease asks the first tracker, and the next ones in turn when it fails.
// The error is ErrUnknown when the node has to announce first, and ErrRefused
// when one answered with a refusal and none gave a lease.
func (c *Client) Lease(ctx context.Context, r LeaseRequest) (Lease, error) {
	l, err := first[Lease](ctx, c, LeasePath, r)
	if err != nil && !errors.Is(err, ErrUnknown) {
		err = fmt.Errorf("lease origin pieces: %w", err)
	}
	return l, err
}

// Hint asks the first tracker, and the next ones in turn when it fails. The
// error is ErrRefused when one answered with a refusal and none with anything else.
func (c *Client) Hint(ctx context.Context, r HintRequest) (HintAnswer, error) {
	a, err := first[HintAnswer](ctx, c, HintPath, r)
	if err != nil {
		err = fmt.Errorf("ask for a hint of blob %s: %w", r.Blob, err)
	}
	return a, err
}

// first returns the answer of the first tracker that gives one, which ErrUnknown is too.
func first[Answer any](ctx context.Context, c *Client, path string, in any) (Answer, error) {
	var errs []error
	for _, i := range c.order() {
		var a Answer
		err := c.post(ctx, i, path, in, &a)
		if err == nil || errors.Is(err, ErrUnknown) {
			return a, err
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	var none Answer
	return none, errors.Join(errs...)
}

// order returns the trackers as they are to be asked: by the list, those that failed lately last.
func (c *Client) order() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	var order, last []int
	for i, until := range c.resting {
		if now.Before(until) {
			last = append(last, i)
		} else {
			order = append(order, i)
		}
	}
	return append(order, last...)
}

// post asks tracker i and remembers whether it answered.
func (c *Client) post(ctx context.Context, i int, path string, in, out any) error {
	limit := attempt
	c.mu.Lock()
	if time.Now().Before(c.resting[i]) {
		limit = probe
	}
	c.mu.Unlock()
	try, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := c.send(try, c.urls[i]+path, in, out)
	if ctx.Err() != nil {
		return err // the caller left; that says nothing of the tracker
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.resting[i] = time.Time{}
	if err != nil && !errors.Is(err, ErrUnknown) {
		c.resting[i] = time.Now().Add(rest)
	}
	return err
}

func (c *Client) send(ctx context.Context, url string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return errors.New("a tracker's address is not a URL") // and may hold a password
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return err // names the URL, without a password
	}
	defer func() {
		io.CopyN(io.Discard, resp.Body, 1<<10) // to the end, so that the connection is used again
		resp.Body.Close()
	}()
	switch resp.StatusCode {
	case http.StatusOK:
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(out); err != nil {
			return fmt.Errorf("%s: read the answer: %w", req.URL.Redacted(), err)
		}
		return nil
	case http.StatusConflict:
		return ErrUnknown
	default:
		msg, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
		err := fmt.Errorf("%s: %s: %s", req.URL.Redacted(), resp.Status, bytes.TrimSpace(msg))
		if resp.StatusCode/100 == 4 && resp.StatusCode != http.StatusRequestTimeout && resp.StatusCode != http.StatusTooManyRequests {
			err = fmt.Errorf("%w: %w", ErrRefused, err)
		}
		return err
	}
}

// Local is a tracker in the same process.
type Local struct{ Server *Server }

// Announce calls the server's Announce; its errors are those of Client.Announce.
func (l Local) Announce(_ context.Context, a Announce) (Peers, error) {
	p, err := l.Server.Announce(a)
	return p, classed(err)
}

// Lease calls the server's Lease; its errors are those of Client.Lease.
func (l Local) Lease(_ context.Context, r LeaseRequest) (Lease, error) {
	lease, err := l.Server.Lease(r)
	return lease, classed(err)
}

// classed gives a server's error the class that it has over HTTP.
func classed(err error) error {
	if err == nil || errors.Is(err, ErrUnknown) || errors.Is(err, errFull) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrRefused, err)
}
