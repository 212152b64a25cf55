package agent

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/pprof"

	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/telemetry"
	"github.com/spate-project/spate/cmd/internal/ui"
)

// The agent's API: JSON over HTTP. All of it is on the control socket, which
// only its owner can open; GET alone is on the TCP listener as well.
const (
	statusPath  = "/spate/v1/status"
	mountPath   = "/spate/v1/mount"
	unmountPath = "/spate/v1/unmount"
	pullPath    = "/spate/v1/pull"
	limitsPath  = "/spate/v1/limits"
	tracePath   = "/spate/v1/trace"
	cachePath   = "/spate/v1/cache"
	quotaPath   = cachePath + "/quota"
	pinPath     = cachePath + "/pin"
	unpinPath   = cachePath + "/unpin"
	removePath  = cachePath + "/remove"
	gcPath      = cachePath + "/gc"
	healthPath  = "/healthz"
)

const maxRequest = 64 << 10

// A MountRequest asks for reference to be shown at Dir.
type MountRequest struct {
	Reference string `json:"reference"`
	Dir       string `json:"dir"`                // absolute
	Wait      bool   `json:"wait,omitempty"`     // answer when everything is here; not with Lazy
	Lazy      bool   `json:"lazy"`               // fetch only what is read
	Priority  int    `json:"priority,omitempty"` // of higher ones the rest is fetched first
}

// An UnmountRequest asks for the mount at Dir to be taken away.
type UnmountRequest struct {
	Dir   string `json:"dir"`
	Force bool   `json:"force"` // even while files are open
}

// A PullRequest asks for reference's files to be written into Dir. It is
// answered by one JSON message a line: events, then an empty one or a failure.
type PullRequest struct {
	Reference string `json:"reference"`
	Dir       string `json:"dir"`                // absolute
	Priority  int    `json:"priority,omitempty"` // what has a higher one is fetched first
}

// A failure carries an error over the API and keeps its class.
type failure struct {
	Error      string `json:"error"`
	Hint       string `json:"hint,omitempty"`
	NotTrusted bool   `json:"notTrusted,omitempty"`
	NotFound   bool   `json:"notFound,omitempty"`
}

func failureOf(err error) failure {
	return failure{
		Error: err.Error(), Hint: ui.Hint(err),
		NotTrusted: errors.Is(err, piece.ErrNotTrusted),
		NotFound:   errors.Is(err, errdef.ErrNotFound),
	}
}

func (f failure) status() int {
	switch {
	case f.NotTrusted:
		return http.StatusForbidden
	case f.NotFound:
		return http.StatusNotFound
	}
	return http.StatusInternalServerError
}

// public is what anybody on this machine may see.
func (a *Agent) public() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+statusPath, func(w http.ResponseWriter, r *http.Request) { reply(w, a.Status(), nil) })
	mux.HandleFunc("GET "+limitsPath, func(w http.ResponseWriter, r *http.Request) { reply(w, a.Limits(), nil) })
	mux.Handle("GET "+telemetry.MetricsPath, a.metrics.Handler())
	mux.Handle("/v2/", a.mirror)
	mux.HandleFunc("GET "+healthPath, func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("ok\n")) })
	return mux
}

// control is what the agent's owner may do.
func (a *Agent) control() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", a.public())
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("POST "+mountPath, func(w http.ResponseWriter, r *http.Request) {
		if req, ok := read[MountRequest](w, r); ok {
			reply(w, struct{}{}, a.Mount(r.Context(), req))
		}
	})
	mux.HandleFunc("POST "+unmountPath, func(w http.ResponseWriter, r *http.Request) {
		if req, ok := read[UnmountRequest](w, r); ok {
			reply(w, struct{}{}, a.Unmount(r.Context(), req))
		}
	})
	mux.HandleFunc("POST "+limitsPath, func(w http.ResponseWriter, r *http.Request) {
		if req, ok := read[LimitChange](w, r); ok {
			reply(w, a.SetLimits(req), nil)
		}
	})
	mux.HandleFunc("POST "+tracePath, func(w http.ResponseWriter, r *http.Request) {
		if req, ok := read[TraceRequest](w, r); ok {
			recording, err := a.Recording(r.Context(), req.Reference)
			reply(w, recording, err)
		}
	})
	mux.HandleFunc("GET "+cachePath, func(w http.ResponseWriter, r *http.Request) { reply(w, a.Cache(), nil) })
	mux.HandleFunc("POST "+quotaPath, func(w http.ResponseWriter, r *http.Request) {
		if req, ok := read[QuotaRequest](w, r); ok {
			reply(w, struct{}{}, a.SetQuota(req.Quota))
		}
	})
	mux.HandleFunc("POST "+gcPath, func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, a.CollectGarbage())
	})
	for path, do := range map[string]func(context.Context, string) error{
		pinPath: a.Pin, removePath: a.Remove,
		unpinPath: func(_ context.Context, name string) error { return a.Unpin(name) },
	} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			if req, ok := read[CacheRequest](w, r); ok {
				reply(w, struct{}{}, do(r.Context(), req.Name))
			}
		})
	}
	mux.HandleFunc("POST "+pullPath, func(w http.ResponseWriter, r *http.Request) {
		if req, ok := read[PullRequest](w, r); ok {
			a.servePull(w, r, req)
		}
	})
	return mux
}

// A pullMessage is one line of a pull's answer.
type pullMessage struct {
	Event   *Event   `json:"event,omitempty"`
	Failure *failure `json:"failure,omitempty"`
}

func (a *Agent) servePull(w http.ResponseWriter, r *http.Request, req PullRequest) {
	enc, rc := json.NewEncoder(w), http.NewResponseController(w)
	err := a.Pull(r.Context(), req, func(e Event) {
		enc.Encode(pullMessage{Event: &e})
		rc.Flush()
	})
	var last pullMessage
	if err != nil {
		f := failureOf(err)
		last.Failure = &f
	}
	enc.Encode(last)
}

func read[T any](w http.ResponseWriter, r *http.Request) (req T, ok bool) {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&req); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return req, false
	}
	return req, true
}

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		f := failureOf(err)
		w.WriteHeader(f.status())
		v = f
	}
	json.NewEncoder(w).Encode(v)
}
