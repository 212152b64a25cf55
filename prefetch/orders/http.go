package orders

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// The paths that a Handler serves. Bodies are JSON.
//
//	POST   OrdersPath     Request   View      place an order
//	GET    OrdersPath               []View    list them
//	GET    OrdersPath/ID            View
//	DELETE OrdersPath/ID            View      cancel it
//	POST   AgentsPath     Report    Work      held open while there is nothing else to do
const (
	OrdersPath = "/spate/v1/orders"
	AgentsPath = "/spate/v1/agents"
)

const (
	maxBody  = 512 << 10        // bytes of a request
	bodyTime = 10 * time.Second // that it may take to come
)

// An answer without success.
type failure struct {
	Error string `json:"error"`
}

// Handler serves the board.
func (b *Board) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+OrdersPath, func(w http.ResponseWriter, r *http.Request) { serve(w, r, b.Place) })
	mux.HandleFunc("POST "+AgentsPath, func(w http.ResponseWriter, r *http.Request) { serve(w, r, b.Report) })
	mux.HandleFunc("GET "+OrdersPath, func(w http.ResponseWriter, _ *http.Request) { reply(w, b.List(), nil) })
	mux.HandleFunc("GET "+OrdersPath+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		v, err := b.View(r.PathValue("id"))
		reply(w, v, err)
	})
	mux.HandleFunc("DELETE "+OrdersPath+"/{id}", func(w http.ResponseWriter, r *http.Request) {
		v, err := b.Cancel(r.PathValue("id"))
		reply(w, v, err)
	})
	return mux
}

func serve[Req, Resp any](w http.ResponseWriter, r *http.Request, do func(context.Context, Req) (Resp, error)) {
	var req Req
	if err := read(w, r, &req); err != nil {
		reply(w, nil, err)
		return
	}
	resp, err := do(r.Context(), req)
	reply(w, resp, err)
}

// read decodes the body of r. Afterwards the connection has no deadline: the answer may take a while.
func read(w http.ResponseWriter, r *http.Request, req any) error {
	deadline := func(t time.Time) error {
		err := http.NewResponseController(w).SetReadDeadline(t)
		if errors.Is(err, http.ErrNotSupported) { // not every ResponseWriter has a connection
			return nil
		}
		return err
	}
	if err := deadline(time.Now().Add(bodyTime)); err != nil {
		return err
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(req); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	return deadline(time.Time{})
}

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(statusOf(err))
		v = failure{err.Error()}
	}
	json.NewEncoder(w).Encode(v)
}

func statusOf(err error) int {
	_, large := errors.AsType[*http.MaxBytesError](err)
	_, disk := errors.AsType[*diskError](err)
	switch {
	case errors.Is(err, ErrUnknown):
		return http.StatusNotFound
	case errors.Is(err, ErrNoNodes):
		return http.StatusConflict
	case large:
		return http.StatusRequestEntityTooLarge
	case disk:
		return http.StatusInternalServerError
	case errors.Is(err, errBusy), errors.Is(err, errEnding), errors.Is(err, context.Canceled):
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}
