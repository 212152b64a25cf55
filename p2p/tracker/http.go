package tracker

import (
	"encoding/json"
	"errors"
	"net/http"
)

// ServeHTTP serves AnnouncePath and LeasePath.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case AnnouncePath:
		serve(w, r, MaxBody, s.Announce)
	case LeasePath:
		serve(w, r, maxLeases, s.Lease)
	default:
		http.NotFound(w, r)
	}
}

func serve[Req, Resp any](w http.ResponseWriter, r *http.Request, limit int64, do func(Req) (Resp, error)) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "use POST", http.StatusMethodNotAllowed)
		return
	}
	var req Req
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit)).Decode(&req); err != nil {
		status := http.StatusBadRequest
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			status = http.StatusRequestEntityTooLarge
		}
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
