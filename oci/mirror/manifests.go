package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/signing"
)

// maxManifest bounds a manifest, in bytes, as in oci/registry and signing.
const maxManifest = 4 << 20

// getManifest answers with a manifest that was admitted, now or before.
func (m *Mirror) getManifest(w *recorder, req *http.Request, o *origin, rt route) error {
	man, from, err := m.manifest(req, o, rt)
	if err != nil {
		return err
	}
	w.path = from
	identify(w, man.desc.Digest, man.desc.MediaType)
	http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(man.bytes))
	return nil
}

// manifest returns what rt names. A digest that was admitted before needs no
// origin; a tag does, and for a HEAD the answer to a HEAD is mostly enough.
func (m *Mirror) manifest(req *http.Request, o *origin, rt route) (*manifest, path, error) {
	ctx, accept := req.Context(), http.Header{"Accept": req.Header.Values("Accept")}
	memory := m.admitted()
	if man := memory.get(o.repository, rt.digest); man != nil {
		return man, fromMemory, nil
	}
	if rt.digest == "" && req.Method == http.MethodHead {
		resp, err := o.ask(ctx, http.MethodHead, rt.rest(), accept)
		if err != nil {
			return nil, failed, err
		}
		resp.Body.Close()
		if man := memory.get(o.repository, digest.Digest(resp.Header.Get("Docker-Content-Digest"))); man != nil {
			return man, fromOrigin, nil
		}
	}
	man, err := o.fetch(ctx, rt, accept)
	if err != nil {
		return nil, failed, err
	}
	if err := m.admit(ctx, memory, o, rt, man); err != nil {
		return nil, failed, err
	}
	memory.add(man)
	return man, fromOrigin, nil
}

// fetch reads the manifest that rt names and checks that it is that.
func (o *origin) fetch(ctx context.Context, rt route, accept http.Header) (*manifest, error) {
	full := rt.full(o.repository)
	resp, err := o.ask(ctx, http.MethodGet, rt.rest(), accept)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("fetch %s: %w", full, err)
	case len(raw) > maxManifest:
		return nil, fmt.Errorf("fetch %s: the manifest has more than %d bytes, which is the limit here", full, maxManifest)
	}
	algorithm := digest.Canonical
	if rt.digest != "" {
		algorithm = rt.digest.Algorithm()
		if algorithm.FromBytes(raw) != rt.digest {
			return nil, fmt.Errorf("fetch %s: %w", full, wrongBytes(rt.digest, o))
		}
	}
	mediaType, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return nil, fmt.Errorf("fetch %s: the registry sent Content-Type %q: %v", full, resp.Header.Get("Content-Type"), err)
	}
	man, err := parseManifest(o.repository, mediaType, algorithm, raw)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", full, err)
	}
	return man, nil
}

// admit returns nil when man, which rt names, may be given out: an admitted index
// lists it, or the policy admits it. What it says of itself must be what the index says.
func (m *Mirror) admit(ctx context.Context, memory *memory, o *origin, rt route, man *manifest) error {
	if _, desc := memory.lister(o.repository, man.desc.Digest, true); desc.MediaType == man.desc.MediaType && desc.Size == man.desc.Size {
		return nil
	}
	_, _, err := m.opts.Policy.Admit(ctx, fetched{o.repo, man}, rt.full(o.repository))
	return err
}

// A fetched is a repository of which one manifest was fetched already: what the
// policy looks at is what is given out.
type fetched struct {
	*remote.Repository
	man *manifest
}

var _ signing.Repository = fetched{}

// Resolve resolves every reference to the manifest.
func (f fetched) Resolve(context.Context, string) (ocispec.Descriptor, error) { return f.man.desc, nil }

// Fetch fetches from the origin all but the manifest.
func (f fetched) Fetch(ctx context.Context, target ocispec.Descriptor) (io.ReadCloser, error) {
	if target.Digest == f.man.desc.Digest {
		return io.NopCloser(bytes.NewReader(f.man.bytes)), nil
	}
	return f.Repository.Fetch(ctx, target)
}

// identify says what the answer's bytes are. A digest never names other bytes, so it is also their ETag.
func identify(w http.ResponseWriter, d digest.Digest, contentType string) {
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Etag", etag(d))
	w.Header().Set("Content-Type", contentType)
}

func etag(d digest.Digest) string { return `"` + d.String() + `"` }

// wrongBytes blames o's registry for having sent other bytes than d names.
func wrongBytes(d digest.Digest, o *origin) error {
	object, err := piece.ParseDigest(d.String())
	if err != nil { // a digest, but no SHA-256
		return errors.New("the registry sent other bytes than " + d.String())
	}
	return &piece.WrongBytesError{Object: object, Piece: -1, From: o.repository}
}
