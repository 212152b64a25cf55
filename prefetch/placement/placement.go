// Package placement says which nodes are near what a pod is going to read: for
// people and schedulers that ask, and for kube-scheduler as its extender.
package placement

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	orasregistry "oras.land/oras-go/v2/registry"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/image"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/prefetch/orders"
)

// The paths that a Handler serves.
//
//	GET  Path?ref=REF[&pool=POOL][&zone=ZONE]   Placement
//	POST FilterPath, PrioritizePath             kube-scheduler's extender, version 1
const (
	Path           = "/spate/v1/placement"
	FilterPath     = "/spate/v1/extender/filter"
	PrioritizePath = "/spate/v1/extender/prioritize"
)

// A Placement ranks nodes for a reference, the best first.
type Placement struct {
	Reference string         `json:"reference"`
	Nodes     []orders.Place `json:"nodes"`
}

// maxReference is the most bytes a reference may have.
const maxReference = 1 << 10

// A Board knows what nodes hold; a *orders.Board is one.
type Board interface {
	Places(objects []orders.Object, pool, zone string) []orders.Place
}

// Handler answers from what board knows of nodes and store of references: those
// of this registry, by whatever name of its host.
func Handler(board Board, store *registry.Store) http.Handler {
	h := handler{board, store}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Path, h.place)
	mux.HandleFunc("POST "+FilterPath, h.filter)
	mux.HandleFunc("POST "+PrioritizePath, h.prioritize)
	return mux
}

type handler struct {
	board Board
	store *registry.Store
}

func (h handler) place(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	ref := q.Get("ref")
	objects, err := h.objects(r.Context(), ref)
	if err != nil {
		status := http.StatusBadRequest
		if errors.Is(err, piece.ErrNotHere) {
			status = http.StatusNotFound
		}
		reply(w, status, map[string]string{"error": err.Error()})
		return
	}
	reply(w, http.StatusOK, Placement{ref, h.board.Places(objects, q.Get("pool"), q.Get("zone"))})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

// objects returns what a reference has: a model's files, or the layers of an
// image; of an image for several platforms those for this machine's. The error
// is piece.ErrNotHere for what is not in the store.
func (h handler) objects(ctx context.Context, reference string) ([]orders.Object, error) {
	objects, err := h.list(ctx, reference)
	if err != nil {
		return nil, fmt.Errorf("look for what %q needs: %w", reference[:min(len(reference), maxReference)], err)
	}
	return objects, nil
}

func (h handler) list(ctx context.Context, reference string) ([]orders.Object, error) {
	if len(reference) > maxReference {
		return nil, fmt.Errorf("a reference of %d bytes, at most %d are accepted", len(reference), maxReference)
	}
	ref, err := orasregistry.ParseReference(reference)
	if err != nil {
		return nil, err
	}
	d := digest.Digest(ref.Reference)
	if ref.ValidateReferenceAsDigest() != nil {
		tag := ref.Reference
		if tag == "" {
			tag = "latest" // as container runtimes have it
		}
		if d, err = h.store.Resolve(ref.Repository, tag); err != nil {
			return nil, err
		}
	}
	m, err := h.store.Manifest(ref.Repository, d)
	if err != nil {
		return nil, err
	}
	if image.IsIndex(m.Descriptor.MediaType) {
		images, err := image.Images(m.Bytes)
		if err != nil {
			return nil, err
		}
		desc, err := image.ForPlatform(images, "linux", runtime.GOARCH)
		if err != nil {
			return nil, err
		}
		if m, err = h.store.Manifest(ref.Repository, desc.Digest); err != nil {
			return nil, err
		}
	}
	layers, err := image.Layers(ctx, content.FetcherFunc(func(_ context.Context, target ocispec.Descriptor) (io.ReadCloser, error) {
		return h.store.OpenBlob(ref.Repository, target.Digest)
	}), m.Bytes)
	if err != nil {
		return nil, err
	}
	var objects []orders.Object
	for _, l := range layers {
		objects = append(objects, orders.Object{Digest: l.DiffID, Size: l.Blob.Size})
	}
	return objects, nil
}
