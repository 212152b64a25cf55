package registry

import (
	"errors"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
)

// getBlob serves a blob, whole or in ranges (end-2). http.ServeContent knows
// Range, If-Range and If-None-Match, and reaches sendfile since it gets the file itself.
func (r *Registry) getBlob(w http.ResponseWriter, req *http.Request, rt route) error {
	f, err := r.store.OpenBlob(rt.name, rt.digest)
	if errors.Is(err, ErrBlobUnknown) {
		return r.follower.serveBlob(w, req, rt, err)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if req.Method == http.MethodHead {
		r.store.lookedFor(rt.name, rt.digest, f, r.opts.Retention.Grace)
	}
	identify(w, rt.digest, "application/octet-stream")
	http.ServeContent(w, req, "", time.Time{}, f)
	return nil
}

// deleteBlob takes a blob from a repository (end-10).
func (r *Registry) deleteBlob(w http.ResponseWriter, _ *http.Request, rt route) error {
	if err := r.store.DeleteBlob(rt.name, rt.digest); err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}

// identify says what the answer's bytes are. A digest never names other bytes, so it is also their ETag.
func identify(w http.ResponseWriter, d digest.Digest, contentType string) {
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Etag", `"`+d.String()+`"`)
	w.Header().Set("Content-Type", contentType)
}

// created answers a push: where the pushed bytes are, and their digest.
func created(w http.ResponseWriter, location string, d digest.Digest) {
	w.Header().Set("Location", location)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
}

func blobLocation(name string, d digest.Digest) string { return "/v2/" + name + "/blobs/" + d.String() }
