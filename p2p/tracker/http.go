package tracker

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"time"
)

const (
	// bodyRoom bounds the messages that are being read at a time, in bytes.
	bodyRoom = 16 * MaxBody

	// bodyTime is how long a message may wait for that room, and then take to
	// come. A Client gives up sooner.
	bodyTime = 2 * attempt
)

// ServeHTTP serves AnnouncePath, LeasePath and HintPath.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case AnnouncePath:
		serve(s, w, r, MaxBody, s.Announce)
	case LeasePath:
		serve(s, w, r, maxLeases, s.Lease)
	case HintPath:
		serve(s, w, r, maxHint, s.Hint)
	default:
		http.NotFound(w, r)
	}
}

func serve[Req, Resp any](s *Server, w http.ResponseWriter, r *http.Request, limit int64, do func(Req) (Resp, error)) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "use POST", http.StatusMethodNotAllowed)
		return
	}
	var req Req
	if status, err := s.read(w, r, limit, &req); err != nil {
		http.Error(w, "read the request: "+err.Error(), status)
		return
	}
	resp, err := do(req)
	switch {
	case errors.Is(err, ErrUnknown):
		http.Error(w, err.Error(), http.StatusConflict)
	case errors.Is(err, errFull):
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
	default:
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(resp)
	}
}

// read decodes the body of r, of at most limit bytes, into req. The status goes with the error.
func (s *Server) read(w http.ResponseWriter, r *http.Request, limit int64, req any) (status int, err error) {
	size := limit
	if r.ContentLength >= 0 {
		size = min(size, r.ContentLength)
	}
	ctx, cancel := context.WithTimeout(r.Context(), bodyTime)
	defer cancel()
	if err := s.bodies.Acquire(ctx, size); err != nil {
		return http.StatusServiceUnavailable, errors.New("the tracker is busy with others")
	}
	defer s.bodies.Release(size)
	// Not every ResponseWriter has a connection; the next request's deadline is its own.
	err = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		return http.StatusInternalServerError, err
	}
	err = json.NewDecoder(http.MaxBytesReader(w, r.Body, limit)).Decode(req)
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		return http.StatusRequestEntityTooLarge, err
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return http.StatusRequestTimeout, err
	}
	return http.StatusBadRequest, err
}
