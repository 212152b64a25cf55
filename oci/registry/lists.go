package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// referrersPageBytes bounds a page of referrers: clients refuse documents above 4 MiB.
const referrersPageBytes = 2 << 20

// getTags lists a repository's tags in lexical order, by pages of n after last (end-8).
func (r *Registry) getTags(w http.ResponseWriter, req *http.Request, rt route) error {
	tags, err := r.store.Tags(rt.name)
	if err != nil {
		return err
	}
	q := req.URL.Query()
	if last := q.Get("last"); last != "" {
		i, found := slices.BinarySearch(tags, last)
		if found {
			i++
		}
		tags = tags[i:]
	}
	if s := q.Get("n"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 {
			return fail(http.StatusBadRequest, codeUnsupported, fmt.Errorf("n=%q is not a number of tags", s))
		}
		if n < len(tags) {
			tags = tags[:n]
			if n > 0 {
				next(w, rt.name+"/tags/list", url.Values{"n": {s}, "last": {tags[n-1]}})
			}
		}
	}
	return writeJSON(w, "application/json", struct {
		Name string   `json:"name"`
		Tags []string `json:"tags"`
	}{rt.name, tags})
}

// getReferrers lists the manifests whose subject is a digest, in the order of
// their digests, by pages where they are many (end-12). What they say of
// themselves is read from the manifests, so the list cannot contradict them.
func (r *Registry) getReferrers(w http.ResponseWriter, req *http.Request, rt route) error {
	if err := r.follower.referrers(req.Context(), rt); err != nil {
		return err
	}
	q := req.URL.Query()
	artifactType, last := q.Get("artifactType"), digest.Digest(q.Get("last"))
	found, err := r.store.Referrers(rt.name, rt.digest)
	if err != nil {
		return err
	}
	page := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
		Manifests: []ocispec.Descriptor{},
	}
	size := 0
	for _, d := range found {
		if d <= last {
			continue
		}
		m, err := r.store.Manifest(rt.name, d)
		if errors.Is(err, ErrManifestUnknown) {
			continue
		}
		if err != nil {
			return err
		}
		if artifactType != "" && m.Descriptor.ArtifactType != artifactType {
			continue
		}
		b, err := json.Marshal(m.Descriptor)
		if err != nil {
			return err
		}
		if size += len(b); size > referrersPageBytes && len(page.Manifests) > 0 {
			q.Set("last", page.Manifests[len(page.Manifests)-1].Digest.String())
			next(w, rt.name+"/referrers/"+rt.digest.String(), q)
			break
		}
		page.Manifests = append(page.Manifests, m.Descriptor)
	}
	if artifactType != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	return writeJSON(w, ocispec.MediaTypeImageIndex, page)
}

// next links to the page after this one (RFC 5988).
func next(w http.ResponseWriter, path string, q url.Values) {
	w.Header().Set("Link", fmt.Sprintf(`</v2/%s?%s>; rel="next"`, path, q.Encode()))
}

func writeJSON(w http.ResponseWriter, contentType string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, err = w.Write(b)
	return err
}
