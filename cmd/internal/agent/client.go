package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"

	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// A Client talks to the agent of one data directory over its control socket.
// It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// NewClient returns a client of the agent whose data directory is data. It connects when it is used.
func NewClient(data string) *Client {
	socket := filepath.Join(data, SocketName)
	return &Client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Status asks what the agent has and does.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	return s, c.call(ctx, http.MethodGet, statusPath, nil, &s)
}

// Mount asks for a reference to be mounted, and returns when it can be read.
func (c *Client) Mount(ctx context.Context, req MountRequest) error {
	return c.call(ctx, http.MethodPost, mountPath, req, nil)
}

// Unmount asks for a mount to be taken away.
func (c *Client) Unmount(ctx context.Context, req UnmountRequest) error {
	return c.call(ctx, http.MethodPost, unmountPath, req, nil)
}

// SetLimits changes the agent's limits and returns those that hold then.
func (c *Client) SetLimits(ctx context.Context, change LimitChange) (Limits, error) {
	var l Limits
	return l, c.call(ctx, http.MethodPost, limitsPath, change, &l)
}

// Recording asks what was read of a reference through the agent's mounts.
func (c *Client) Recording(ctx context.Context, reference string) (Recording, error) {
	var r Recording
	return r, c.call(ctx, http.MethodPost, tracePath, TraceRequest{reference}, &r)
}

// Cache asks what the agent's cache holds.
func (c *Client) Cache(ctx context.Context) (CacheView, error) {
	var v CacheView
	return v, c.call(ctx, http.MethodGet, cachePath, nil, &v)
}

// SetQuota changes the cache's quota, in bytes; 0 is none.
func (c *Client) SetQuota(ctx context.Context, quota int64) error {
	return c.call(ctx, http.MethodPost, quotaPath, QuotaRequest{quota}, nil)
}

// Pin keeps a reference in the cache.
func (c *Client) Pin(ctx context.Context, reference string) error {
	return c.call(ctx, http.MethodPost, pinPath, CacheRequest{reference}, nil)
}

// Unpin takes back what Pin did.
func (c *Client) Unpin(ctx context.Context, reference string) error {
	return c.call(ctx, http.MethodPost, unpinPath, CacheRequest{reference}, nil)
}

// Remove removes a reference, or the object of a digest, from the cache.
func (c *Client) Remove(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodPost, removePath, CacheRequest{name}, nil)
}

// CollectGarbage has the cache drop what nobody can use.
func (c *Client) CollectGarbage(ctx context.Context) error {
	return c.call(ctx, http.MethodPost, gcPath, nil, nil)
}

// Pull asks for a reference's files and reports how far they are.
func (c *Client) Pull(ctx context.Context, req PullRequest, report func(Event)) error {
	body, err := c.do(ctx, http.MethodPost, pullPath, req)
	if err != nil {
		return err
	}
	defer body.Close()
	for dec := json.NewDecoder(body); ; {
		var m pullMessage
		if err := dec.Decode(&m); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("pull %s: the agent ended before it was done: %v", req.Reference, err)
		}
		switch {
		case m.Failure != nil:
			return m.Failure.err()
		case m.Event == nil:
			return nil
		}
		report(*m.Event)
	}
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	body, err := c.do(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer body.Close()
	if out == nil {
		return nil
	}
	return json.NewDecoder(body).Decode(out)
}

// do returns the body of a good answer; the caller closes it.
func (c *Client) do(ctx context.Context, method, path string, in any) (io.ReadCloser, error) {
	var b bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&b).Encode(in); err != nil {
			return nil, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, &b)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
			return nil, ui.WithHint(fmt.Errorf("no agent answers at %s: %w", c.socket, op.Err),
				"start one with `spate agent`, or name its directory with --data")
		}
		return nil, fmt.Errorf("ask the agent at %s: %w", c.socket, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxRequest))
	var f failure
	if json.Unmarshal(text, &f) != nil || f.Error == "" {
		return nil, fmt.Errorf("the agent answered %s: %s", resp.Status, bytes.TrimSpace(text))
	}
	return nil, f.err()
}

// An agentError is an error of the agent, with the class that it had there.
type agentError struct {
	text  string
	class error
}

func (e *agentError) Error() string { return e.text }
func (e *agentError) Unwrap() error { return e.class }

func (f failure) err() error {
	e := &agentError{text: f.Error}
	switch {
	case f.NotTrusted:
		e.class = piece.ErrNotTrusted
	case f.NotFound:
		e.class = errdef.ErrNotFound
	}
	if f.Hint != "" {
		return ui.WithHint(e, f.Hint)
	}
	return e
}
