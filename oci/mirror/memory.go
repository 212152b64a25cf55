package mirror

import (
	"container/list"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/spate-project/spate/oci"
)

// A manifest is an image manifest or an image index of one repository. It is immutable.
type manifest struct {
	repository string // HOST/NAME
	desc       ocispec.Descriptor
	bytes      []byte
	index      bool // it lists manifests, else blobs
	lists      []ocispec.Descriptor
}

// parseManifest reads a manifest that the origin calls mediaType. It keeps raw.
// A manifest that two readers can take for two things is an error (CVE-2021-41190).
func parseManifest(repository, mediaType string, algorithm digest.Algorithm, raw []byte) (*manifest, error) {
	m := &manifest{
		repository: repository,
		desc:       ocispec.Descriptor{MediaType: mediaType, Digest: algorithm.FromBytes(raw), Size: int64(len(raw))},
		bytes:      raw,
	}
	var doc struct {
		MediaType string                `json:"mediaType"`
		Config    *ocispec.Descriptor   `json:"config"`
		Layers    *[]ocispec.Descriptor `json:"layers"`
		Manifests *[]ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("it is not the JSON of a manifest: %v", err)
	}
	if doc.MediaType != "" && doc.MediaType != mediaType {
		return nil, fmt.Errorf("the registry calls it %q, itself says %q", mediaType, doc.MediaType)
	}
	switch mediaType {
	case ocispec.MediaTypeImageManifest, oci.MediaTypeDockerManifest:
		if doc.Config == nil || doc.Manifests != nil {
			return nil, fmt.Errorf("%s has a config and no manifests", mediaType)
		}
		m.lists = append(m.lists, *doc.Config)
		if doc.Layers != nil {
			m.lists = append(m.lists, *doc.Layers...)
		}
	case ocispec.MediaTypeImageIndex, oci.MediaTypeDockerList:
		if doc.Manifests == nil || doc.Config != nil || doc.Layers != nil {
			return nil, fmt.Errorf("%s has manifests, no config and no layers", mediaType)
		}
		m.index, m.lists = true, *doc.Manifests
	default:
		return nil, fmt.Errorf("media type %q is unknown; image manifests and indexes of OCI and Docker are mirrored", mediaType)
	}
	for _, d := range m.lists {
		if err := d.Digest.Validate(); err != nil {
			return nil, fmt.Errorf("it refers to digest %q: %v", d.Digest, err)
		}
		if d.Size < 0 {
			return nil, fmt.Errorf("it refers to %s with size %d", d.Digest, d.Size)
		}
	}
	return m, nil
}

// What a memory holds: at most this many manifests, and this many bytes of them.
const (
	maxManifests = 1024
	maxMemory    = 32 << 20
)

// A memory holds the manifests that were admitted and used last. An admission
// counts in its repository only, since that is where the signature was found. It
// is safe for concurrent use.
type memory struct {
	most      int
	mostBytes int64

	mu    sync.Mutex
	last  *list.List // of *manifest, the one used last in front
	byKey map[key]*list.Element
	bytes int64
}

type key struct {
	repository string
	digest     digest.Digest
}

func newMemory(most int, mostBytes int64) *memory {
	return &memory{most: most, mostBytes: mostBytes, last: list.New(), byKey: map[key]*list.Element{}}
}

// add remembers man, which was admitted.
func (m *memory) add(man *manifest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := key{man.repository, man.desc.Digest}
	if e := m.byKey[k]; e != nil {
		m.last.MoveToFront(e)
		return
	}
	m.byKey[k] = m.last.PushFront(man)
	m.bytes += man.desc.Size
	for m.last.Len() > m.most || m.bytes > m.mostBytes {
		old := m.last.Remove(m.last.Back()).(*manifest)
		delete(m.byKey, key{old.repository, old.desc.Digest})
		m.bytes -= old.desc.Size
	}
}

// get returns the manifest, or nil.
func (m *memory) get(repository string, d digest.Digest) *manifest {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.byKey[key{repository, d}]
	if e == nil {
		return nil
	}
	m.last.MoveToFront(e)
	return e.Value.(*manifest)
}

// lister returns the manifest, an index or an image as index says, that lists d,
// and what it says of d.
func (m *memory) lister(repository string, d digest.Digest, index bool) (*manifest, ocispec.Descriptor) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for e := m.last.Front(); e != nil; e = e.Next() {
		man := e.Value.(*manifest)
		if man.repository != repository || man.index != index {
			continue
		}
		for _, desc := range man.lists {
			if desc.Digest == d {
				m.last.MoveToFront(e)
				return man, desc
			}
		}
	}
	return nil, ocispec.Descriptor{}
}

// missing returns at most n manifests that remembered indexes list and that are
// not remembered themselves.
func (m *memory) missing(repository string, n int) []ocispec.Descriptor {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []ocispec.Descriptor
	for e := m.last.Front(); e != nil; e = e.Next() {
		man := e.Value.(*manifest)
		if man.repository != repository || !man.index {
			continue
		}
		for _, desc := range man.lists {
			if len(out) == n {
				return out
			}
			if m.byKey[key{repository, desc.Digest}] == nil {
				out = append(out, desc)
			}
		}
	}
	return out
}
