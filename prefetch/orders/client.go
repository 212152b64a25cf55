package orders

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	patience  = 10 * time.Second // that a board may take to answer, beyond what it is allowed to hold a request
	maxAnswer = 16 << 20
)

// ErrNoBoard says that whoever answers at an address keeps no orders.
var ErrNoBoard = errors.New("no orders are kept there: it is not `spate registry`")

// A Client talks to the board of one registry. It is safe for concurrent use.
// Its errors hold no credential. They are ErrUnknown for an order that the board
// does not know, ErrNoNodes as Board.Place has it, and ErrNoBoard.
type Client struct {
	http *http.Client
	base string
}

// NewClient returns a client of the registry at the base URL.
func NewClient(hc *http.Client, base string) *Client {
	return &Client{http: hc, base: strings.TrimSuffix(base, "/")}
}

// Place is Board.Place.
func (c *Client) Place(ctx context.Context, r Request) (v View, err error) {
	if err := c.call(ctx, settling+patience, http.MethodPost, OrdersPath, r, &v); err != nil {
		return View{}, err
	}
	if v.ID != r.ID() {
		return View{}, fmt.Errorf("the registry took this for another order, %s, as one does that is older than this program; cancel that", v.ID)
	}
	return v, nil
}

// View is Board.View.
func (c *Client) View(ctx context.Context, id string) (v View, err error) {
	return v, c.call(ctx, patience, http.MethodGet, OrdersPath+"/"+url.PathEscape(id), nil, &v)
}

// List is Board.List.
func (c *Client) List(ctx context.Context) (list []View, err error) {
	return list, c.call(ctx, patience, http.MethodGet, OrdersPath, nil, &list)
}

// Cancel is Board.Cancel.
func (c *Client) Cancel(ctx context.Context, id string) (v View, err error) {
	return v, c.call(ctx, patience, http.MethodDelete, OrdersPath+"/"+url.PathEscape(id), nil, &v)
}

// Report is Board.Report.
func (c *Client) Report(ctx context.Context, r Report) (w Work, err error) {
	held := time.Duration(r.Wait * float64(time.Second))
	return w, c.call(ctx, held+patience, http.MethodPost, AgentsPath, r, &w)
}

func (c *Client) call(ctx context.Context, limit time.Duration, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, &body)
	if err != nil {
		return errors.New("the registry's address is not a URL") // and may hold a password
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return fmt.Errorf("ask the registry about orders: %w", err) // names the URL, without a password
	}
	defer resp.Body.Close()
	answer := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode == http.StatusOK {
		if err := answer.Decode(out); err != nil {
			return fmt.Errorf("%s: read the answer: %w", req.URL.Redacted(), err)
		}
		return nil
	}
	var f failure
	known := answer.Decode(&f) == nil && f.Error != ""
	switch {
	case known && resp.StatusCode == http.StatusNotFound:
		return answerError{f.Error, ErrUnknown}
	case known && resp.StatusCode == http.StatusConflict:
		return answerError{f.Error, ErrNoNodes}
	case known:
		return answerError{f.Error, nil}
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusMethodNotAllowed:
		return fmt.Errorf("%s: %w", req.URL.Redacted(), ErrNoBoard)
	}
	return fmt.Errorf("%s answered %s", req.URL.Redacted(), resp.Status)
}

// An answerError is an error of the board, with the class that it had there.
type answerError struct {
	text  string
	class error
}

func (e answerError) Error() string { return e.text }
func (e answerError) Unwrap() error { return e.class }
