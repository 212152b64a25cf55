package registry

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"
)

// An Action is what somebody does in a repository.
type Action string

// The actions.
const (
	Pull   Action = "pull"
	Push   Action = "push"
	Delete Action = "delete"
)

// An Access decides who may do what. It is safe for concurrent use.
type Access interface {
	// Allow says who sends a request, empty when it does not say, and whether they
	// may do action in repo; an empty repo is the registry as such. Errors are
	// ErrUnauthorized, where a login may help, ErrDenied, and a *TooManyError.
	Allow(req *http.Request, repo string, action Action) (user string, err error)
}

// What an Access refuses with.
var (
	ErrUnauthorized = errors.New("log in first")
	ErrDenied       = errors.New("denied")
)

// A TooManyError says that somebody has to wait.
type TooManyError struct {
	What  string        // of what there are too many
	After time.Duration // until the next one is served
}

func (e *TooManyError) Error() string {
	return fmt.Sprintf("too many %s: try again in %v", e.What, e.After.Round(time.Millisecond))
}

// actionOf returns what a request does.
func actionOf(k kind, method string) Action {
	switch {
	case k == kindUploads || k == kindUpload || method == http.MethodPut:
		return Push
	case method == http.MethodDelete:
		return Delete
	}
	return Pull
}

// allow asks who may do what; without an Access everybody may do everything.
func (r *Registry) allow(req *http.Request, repo string, action Action) (user string, err error) {
	if r.opts.Access == nil {
		return "", nil
	}
	return r.opts.Access.Allow(req, repo, action)
}

// audit writes what a request did or was refused. What is not told is that a
// blob was read, which is many requests after the manifest's, and the parts of uploads.
func (r *Registry) audit(req *http.Request, rt route, user string, rec *recorder) {
	if r.opts.Audit == nil {
		return
	}
	refused := rec.status == http.StatusUnauthorized || rec.status == http.StatusForbidden
	switch rt.kind {
	case kindManifest:
	case kindBlob:
		if req.Method != http.MethodDelete && !refused {
			return
		}
	case kindUpload, kindUploads:
		if rec.status != http.StatusCreated && !refused {
			return
		}
	default:
		if !refused {
			return
		}
	}
	digest := rec.Header().Get("Docker-Content-Digest")
	if digest == "" {
		digest = rt.digest.String()
	}
	r.opts.Audit.LogAttrs(req.Context(), slog.LevelInfo, "registry",
		slog.String("user", user), slog.String("peer", req.RemoteAddr), slog.String("action", string(actionOf(rt.kind, req.Method))),
		slog.String("method", req.Method), slog.String("repository", rt.name), slog.String("tag", rt.tag), slog.String("digest", digest),
		slog.Int("status", rec.status))
}
