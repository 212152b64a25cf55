package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/spate-project/spate/signing"
)

// A keeper is the registry's repository for one admission. What lies on the
// shelf is not fetched again, and what was fetched is in memory until the
// admission is decided: as much as the policy and the index may ask for. It is
// safe for concurrent use.
type keeper struct {
	signing.Repository
	shelf *shelf

	mu      sync.Mutex
	fetched map[digest.Digest]signing.Document
}

var _ signing.Repository = (*keeper)(nil)

func newKeeper(repo signing.Repository, s *shelf) *keeper {
	return &keeper{Repository: repo, shelf: s, fetched: make(map[digest.Digest]signing.Document)}
}

// Fetch opens a document, whose size the caller has bounded.
func (k *keeper) Fetch(ctx context.Context, target ocispec.Descriptor) (io.ReadCloser, error) {
	b, err := k.shelf.fetch(target)
	if err != nil {
		if b, err = content.FetchAll(ctx, k.Repository, target); err != nil {
			return nil, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.fetched[target.Digest]; !ok || isManifest(target.MediaType) {
		k.fetched[target.Digest] = signing.Document{Descriptor: target, Bytes: b}
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

// keep puts on the shelf what steps, those of an admission, found in order, and
// what these manifests list. What anybody attached in vain does not get there.
func (k *keeper) keep(steps []*signing.Step) {
	for _, step := range steps {
		doc, ok := k.fetched[step.Digest]
		if !step.OK || !ok {
			continue
		}
		k.shelf.keep(doc.Descriptor, doc.Bytes)
		var m ocispec.Manifest
		if json.Unmarshal(doc.Bytes, &m) == nil {
			for _, part := range append(m.Layers, m.Config) {
				if doc, ok := k.fetched[part.Digest]; ok {
					k.shelf.keep(doc.Descriptor, doc.Bytes)
				}
			}
		}
		k.keep(step.Steps)
	}
}

// isAway reports whether err, an admission's, says that the registry could not be
// asked: it did not answer, not to the end, or that it cannot now. Whatever else
// it answers is an answer: that it does not know us or a document, or wrong bytes.
func isAway(err error) bool {
	var (
		answer    *errcode.ErrorResponse
		transport *url.Error
		network   *net.OpError
		timeout   net.Error
	)
	switch {
	case errors.As(err, &answer):
		return answer.StatusCode >= http.StatusInternalServerError || answer.StatusCode == http.StatusTooManyRequests
	case errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF):
		return true
	case errors.As(err, &transport) && errors.Is(transport, io.EOF):
		return true
	}
	return errors.As(err, &timeout) && timeout.Timeout()
}
