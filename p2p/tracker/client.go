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
	"sync/atomic"
)

// ErrUnknown says that the tracker does not know the node in this swarm, as
// after a restart: announce, then ask again.
var ErrUnknown = errors.New("the tracker does not know this node yet")

// A Client talks to one or more trackers (BEP 12's list, one tier). It
// announces to all of them; leases come from one at a time, the first in the
// list that answers, so that all nodes with the same list draw from the same
// one. It is safe for concurrent use.
type Client struct {
	urls    []string
	http    *http.Client
	current atomic.Int32 // which of urls gave the last lease
}

// NewClient returns a client of the trackers at the given base URLs.
func NewClient(hc *http.Client, urls ...string) *Client {
	c := &Client{http: hc}
	for _, u := range urls {
		c.urls = append(c.urls, strings.TrimSuffix(u, "/"))
	}
	return c
}

// Announce tells every tracker and returns all the peers that they know. It
// fails only when no tracker answered.
func (c *Client) Announce(ctx context.Context, a Announce) (Peers, error) {
	var all Peers
	var errs []error
	for _, u := range c.urls {
		var p Peers
		if err := c.post(ctx, u+AnnouncePath, a, &p); err != nil {
			errs = append(errs, err)
			continue
		}
		if all.Swarms == nil {
			all = p
			continue
		}
		for id, peers := range p.Swarms {
			all.Swarms[id] = append(all.Swarms[id], peers...)
		}
	}
	if all.Swarms == nil {
		return Peers{}, fmt.Errorf("announce to the mesh: %w", errors.Join(errs...))
	}
	return all, nil
}

// Lease asks the current tracker, and the next ones in turn when it fails.
// The error is ErrUnknown when the node has to announce first.
func (c *Client) Lease(ctx context.Context, r LeaseRequest) (Lease, error) {
	var errs []error
	first := int(c.current.Load())
	for k := range c.urls {
		at := (first + k) % len(c.urls)
		var l Lease
		err := c.post(ctx, c.urls[at]+LeasePath, r, &l)
		if err == nil || errors.Is(err, ErrUnknown) {
			c.current.Store(int32(at))
			return l, err
		}
		errs = append(errs, err)
	}
	return Lease{}, fmt.Errorf("lease origin pieces: %w", errors.Join(errs...))
}

func (c *Client) post(ctx context.Context, url string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		if err := json.NewDecoder(io.LimitReader(resp.Body, MaxBody)).Decode(out); err != nil {
			return fmt.Errorf("%s: read the answer: %v", url, err)
		}
		return nil
	case http.StatusConflict:
		return ErrUnknown
	default:
		msg, _ := io.ReadAll(io.LimitReader(resp.Body, 512))
		return fmt.Errorf("%s: %s: %s", url, resp.Status, bytes.TrimSpace(msg))
	}
}

// Local is a tracker in the same process.
type Local struct{ Server *Server }

// Announce calls the server's Announce.
func (l Local) Announce(_ context.Context, a Announce) (Peers, error) { return l.Server.Announce(a) }

// Lease calls the server's Lease; its errors are those of Client.Lease.
func (l Local) Lease(_ context.Context, r LeaseRequest) (Lease, error) { return l.Server.Lease(r) }
