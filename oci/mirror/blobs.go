package mirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/signing"
)

// getBlob answers with a blob that an admitted manifest lists, from the mesh or else from the origin.
func (m *Mirror) getBlob(w *recorder, req *http.Request, o *origin, rt route) error {
	by, blob, err := m.listed(req.Context(), o, rt)
	if err != nil {
		return err
	}
	r, err := m.opts.Blobs.Open(req.Context(), o.repository+"@"+by.desc.Digest.String(), blob)
	switch {
	case err == nil:
		defer r.Close()
		w.why = ByIndex
		return fromTheMesh(w, req, blob, r)
	case errors.Is(err, piece.ErrNotTrusted):
		return err
	case !errors.Is(err, piece.ErrNotHere):
		m.log.Warn("open a blob that a trusted index may list", slog.String("reference", rt.full(o.repository)), slog.String("error", err.Error()))
	}
	if req.Method == http.MethodHead {
		return fromTheOrigin(w, req, o, rt, blob, nil)
	}
	p := m.opts.Blobs.Pass(req.Context(), blob)
	w.why = p.Reason
	if p.Reader != nil {
		defer p.Reader.Close()
		return fromTheMesh(w, req, blob, p.Reader)
	}
	if p.Sink != nil {
		defer p.Sink.Close()
	}
	return fromTheOrigin(w, req, o, rt, blob, p.Sink)
}

// maxChildren bounds how many manifests of admitted indexes are read to find the one that lists a blob.
const maxChildren = 64

// listed returns an admitted manifest that lists the blob rt names, and what it
// says of it. A client that has an image's manifest from before asks only for its
// index and then for blobs; the manifests that the index lists are read here then.
func (m *Mirror) listed(ctx context.Context, o *origin, rt route) (*manifest, ocispec.Descriptor, error) {
	memory := m.admitted()
	man, blob := memory.lister(o.repository, rt.digest, false)
	if man != nil {
		return man, blob, nil
	}
	for _, child := range memory.missing(o.repository, maxChildren) {
		crt := route{what: manifests, name: rt.name, reference: child.Digest.String(), digest: child.Digest}
		man, err := o.fetch(ctx, crt, http.Header{"Accept": {child.MediaType}})
		if a := (*answered)(nil); errors.As(err, &a) && a.status == http.StatusUnauthorized || ctx.Err() != nil {
			return nil, blob, err
		}
		if err != nil || m.admit(ctx, memory, o, crt, man) != nil {
			continue // an index may list what its repository does not hold
		}
		memory.add(man)
		if man, blob := memory.lister(o.repository, rt.digest, false); man != nil {
			return man, blob, nil
		}
	}
	return nil, blob, &signing.DeniedError{
		Reference: o.repository, Digest: rt.digest,
		Rule:    "a blob is given out when a manifest lists it that the policy admitted",
		Missing: "no such manifest of this repository was asked for since the agent started",
		Next:    "pull the image by its name again",
	}
}

// fromTheMesh answers from r, whole or in ranges. http.ServeContent knows Range, If-Range and If-None-Match.
func fromTheMesh(w *recorder, req *http.Request, blob ocispec.Descriptor, r io.ReadSeeker) error {
	w.path = fromMesh
	identify(w, blob.Digest, "application/octet-stream")
	watched := &watchedReader{ReadSeeker: r}
	http.ServeContent(w, req, "", time.Time{}, watched)
	if watched.err != nil {
		return fmt.Errorf("read blob %s: %w", blob.Digest, watched.err)
	}
	return nil
}

// A watchedReader remembers why it failed, which http.ServeContent does not tell.
type watchedReader struct {
	io.ReadSeeker
	err error
}

func (r *watchedReader) Read(p []byte) (int, error) {
	n, err := r.ReadSeeker.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// fromTheOrigin answers with the origin's bytes, and with them alone that the
// digest names: it takes the answer's end back until all were seen. A part cannot
// be checked, so a Range is not heeded, as RFC 9110 section 14.2 permits. A sink,
// where there is one, takes the bytes too.
func fromTheOrigin(w *recorder, req *http.Request, o *origin, rt route, blob ocispec.Descriptor, sink Sink) error {
	resp, err := o.ask(req.Context(), req.Method, rt.rest(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.ContentLength >= 0 && resp.ContentLength != blob.Size || resp.Header.Get("Content-Encoding") != "" {
		return fmt.Errorf("fetch %s: its manifest says %d bytes, the registry announced %d (encoding %q)",
			rt.full(o.repository), blob.Size, resp.ContentLength, resp.Header.Get("Content-Encoding"))
	}
	w.path = fromOrigin
	identify(w, blob.Digest, "application/octet-stream")
	if req.Header.Get("If-None-Match") == etag(blob.Digest) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	w.Header().Set("Content-Length", strconv.FormatInt(blob.Size, 10))
	if req.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return nil
	}
	body := io.Reader(resp.Body)
	if sink != nil {
		body = io.TeeReader(body, sink)
	}
	if err := copyChecked(w, body, blob); err != nil {
		if errors.Is(err, content.ErrMismatchedDigest) || errors.Is(err, content.ErrTrailingData) {
			err = wrongBytes(rt.digest, o)
		}
		return fmt.Errorf("fetch %s: %w", rt.full(o.repository), err)
	}
	if sink != nil {
		sink.Commit()
	}
	return nil
}

// maxTail is how much of a blob waits for the whole to be checked, in bytes.
const maxTail = 32 << 10

// copyChecked copies a blob, of which the last bytes only when all have its digest.
func copyChecked(w io.Writer, body io.Reader, blob ocispec.Descriptor) error {
	checked := content.NewVerifyReader(body, ocispec.Descriptor{Digest: blob.Digest, Size: blob.Size})
	tail := make([]byte, min(blob.Size, maxTail))
	if _, err := io.CopyN(w, checked, blob.Size-int64(len(tail))); err != nil {
		return unexpected(err)
	}
	if _, err := io.ReadFull(checked, tail); err != nil {
		return unexpected(err)
	}
	if err := checked.Verify(); err != nil {
		return err
	}
	_, err := w.Write(tail)
	return err
}

func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
