package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// getManifest serves a manifest by tag or digest (end-3).
func (r *Registry) getManifest(w http.ResponseWriter, req *http.Request, rt route) error {
	if err := r.follower.manifest(req.Context(), rt); err != nil {
		return err
	}
	d := rt.digest
	if rt.tag != "" {
		var err error
		if d, err = r.store.Resolve(rt.name, rt.tag); err != nil {
			return err
		}
	}
	m, err := r.store.Manifest(rt.name, d)
	if err != nil {
		return err
	}
	identify(w, d, m.Descriptor.MediaType)
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(m.Bytes))
	return nil
}

// putManifest stores a manifest by tag, or by digest with any number of tags beside it (end-7a, end-7b).
func (r *Registry) putManifest(w http.ResponseWriter, req *http.Request, rt route) error {
	algorithm, tags := digest.Canonical, []string{rt.tag}
	if rt.digest != "" {
		algorithm, tags = rt.digest.Algorithm(), req.URL.Query()["tag"]
		for _, t := range tags {
			if _, err := parseTag(t); err != nil {
				return err
			}
		}
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, req.Body, r.opts.MaxManifestBytes))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return fail(http.StatusRequestEntityTooLarge, codeSizeInvalid,
			fmt.Errorf("the manifest has more than %d bytes, which is the limit here", tooLarge.Limit))
	}
	if err != nil {
		return fmt.Errorf("receive a manifest of %s: %w: %v", rt.name, ErrInterrupted, err)
	}
	m, err := ParseManifest(raw, algorithm)
	if err == nil {
		err = m.matches(req.Header.Get("Content-Type"))
	}
	if err != nil {
		return fmt.Errorf("take a manifest of %s: %w", rt.name, err)
	}
	d := m.Descriptor.Digest
	if rt.digest != "" && rt.digest != d {
		return fmt.Errorf("take a manifest of %s: %w", rt.name, &DigestError{Want: rt.digest, Got: d})
	}
	if err := r.store.PutManifest(rt.name, m, tags...); err != nil {
		return err
	}
	if r.opts.Pushed != nil {
		r.opts.Pushed(rt.name, m)
	}
	if m.Subject != "" {
		w.Header().Set("OCI-Subject", m.Subject.String())
	}
	if rt.digest != "" && len(tags) > 0 {
		w.Header().Set("OCI-Tag", strings.Join(tags, ", "))
	}
	created(w, "/v2/"+rt.name+"/manifests/"+d.String(), d)
	return nil
}

// deleteManifest removes a tag, or a manifest with all its tags (end-9).
func (r *Registry) deleteManifest(w http.ResponseWriter, _ *http.Request, rt route) error {
	var err error
	if rt.tag != "" {
		err = r.store.DeleteTag(rt.name, rt.tag)
	} else {
		err = r.store.DeleteManifest(rt.name, rt.digest)
	}
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusAccepted)
	return nil
}
