package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/image"
	"github.com/spate-project/spate/signing"
)

const (
	maxHeader   = 1 << 10 // bytes of a document's first line
	maxReferrer = 4 << 20 // bytes of a manifest that may say what it refers to
)

// A shelf keeps the documents that references were admitted by: manifests,
// indexes with what they list, and signatures. From it an agent that starts anew
// admits what it had without a registry. It proves nothing: what lies on it is
// checked like what a registry sends. It is safe for concurrent use.
//
// Its directory is its own and holds one file for each document, named by the
// hex digits of its SHA-256: a line with its media type and size (writeHeader),
// then its bytes. A file appears whole, by a rename, and depends on no other, so
// a crash loses the document that was being written and no more. Nothing is
// synced: what a power cut leaves broken is a miss like any other broken
// document, and is removed when it is met.
//
// The bytes are found by their digest, whatever they are taken for. Only of a
// manifest the media type counts, so of bytes that were admitted as several
// things the shelf says that they are a manifest, of the type of the last time.
type shelf struct {
	dir string
	log *slog.Logger

	mu        sync.Mutex                      // held while a file is put in place or removed
	referrers map[digest.Digest][]listedEntry // by subject, the one kept last comes last; some may be gone
}

// A listedEntry is a manifest that refers to another.
type listedEntry struct {
	desc ocispec.Descriptor // with its artifact type, and of its annotations the time of creation
	kept time.Time
}

var _ signing.Repository = (*shelf)(nil)

// openShelf opens the shelf in dir. What is no document, or can be seen to be
// broken without hashing more than manifests, is removed: a registry has it.
func openShelf(dir string, log *slog.Logger) (*shelf, error) {
	s := &shelf{dir: dir, log: log, referrers: make(map[digest.Digest][]listedEntry)}
	if err := s.scan(); err != nil {
		return nil, fmt.Errorf("open the admitted documents in %s: %w", dir, err)
	}
	return s, nil
}

// scan reads what each document is; one manifest is in memory at a time.
func (s *shelf) scan() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return err
	}
	dropped := 0
	for _, e := range entries {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if e.Type().IsRegular() && s.read(d, s.list) == nil {
			continue
		}
		dropped++
		if err := os.RemoveAll(filepath.Join(s.dir, e.Name())); err != nil {
			s.log.Warn("drop a broken document", "err", err)
		}
	}
	for _, list := range s.referrers {
		slices.SortStableFunc(list, func(a, b listedEntry) int { return a.kept.Compare(b.kept) })
	}
	if dropped > 0 {
		s.log.Warn("not every file is a document by which something was admitted", "dir", s.dir, "dropped", dropped)
	}
	return nil
}

// list notes the document in r when it is a manifest that refers to another.
func (s *shelf) list(desc ocispec.Descriptor, kept time.Time, r io.Reader) error {
	if !isManifest(desc.MediaType) || desc.Size > maxReferrer {
		return nil
	}
	b, err := content.ReadAll(r, desc)
	if err != nil {
		return err
	}
	s.refer(desc, kept, b)
	return nil
}

// refer notes the document b when it refers to another. The caller holds s.mu, or has s alone.
func (s *shelf) refer(desc ocispec.Descriptor, kept time.Time, b []byte) {
	subject, entry, ok := referrer(desc, b)
	list := s.referrers[subject]
	if ok && !slices.ContainsFunc(list, func(e listedEntry) bool { return e.desc.Digest == entry.Digest }) {
		s.referrers[subject] = append(list, listedEntry{entry, kept})
	}
}

// referrer returns the subject that the manifest b has, and desc as a list of
// that subject's referrers holds it (distribution-spec, Listing Referrers).
func referrer(desc ocispec.Descriptor, b []byte) (subject digest.Digest, _ ocispec.Descriptor, ok bool) {
	if desc.MediaType != ocispec.MediaTypeImageManifest && desc.MediaType != ocispec.MediaTypeImageIndex {
		return "", ocispec.Descriptor{}, false
	}
	var m struct {
		Subject      *struct{ Digest digest.Digest }
		ArtifactType string
		Config       struct{ MediaType string }
		Annotations  map[string]string
	}
	if json.Unmarshal(b, &m) != nil || m.Subject == nil || m.Subject.Digest.Validate() != nil {
		return "", ocispec.Descriptor{}, false
	}
	desc.ArtifactType = strings.Clone(m.ArtifactType)
	if desc.ArtifactType == "" && desc.MediaType == ocispec.MediaTypeImageManifest {
		desc.ArtifactType = strings.Clone(m.Config.MediaType)
	}
	if created, err := time.Parse(time.RFC3339, m.Annotations[ocispec.AnnotationCreated]); err == nil {
		desc.Annotations = map[string]string{ocispec.AnnotationCreated: created.Format(time.RFC3339Nano)}
	}
	return m.Subject.Digest, desc, len(desc.ArtifactType) <= maxHeader
}

// Resolve finds the manifest of a reference that ends in its digest. Tags are for a registry to resolve.
func (s *shelf) Resolve(_ context.Context, reference string) (desc ocispec.Descriptor, err error) {
	d := digest.Digest(reference[strings.LastIndex(reference, "@")+1:])
	err = s.read(d, func(have ocispec.Descriptor, _ time.Time, _ io.Reader) error {
		desc = have
		return nil
	})
	if err == nil && !isManifest(desc.MediaType) {
		err = notKept(d)
	}
	return desc, err
}

// Fetch opens a document whose bytes were checked. One that is broken is removed and not found.
func (s *shelf) Fetch(_ context.Context, target ocispec.Descriptor) (io.ReadCloser, error) {
	b, err := s.fetch(target)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (s *shelf) fetch(target ocispec.Descriptor) (b []byte, err error) {
	other := false
	err = s.read(target.Digest, func(have ocispec.Descriptor, _ time.Time, r io.Reader) (err error) {
		if other = have.Size != target.Size; !other {
			b, err = content.ReadAll(r, have)
		}
		return err
	})
	if other {
		err = notKept(target.Digest)
	}
	return b, err
}

// Referrers lists what is here of artifactType, or of any when it is empty,
// whose subject has desc's digest: in the order in which it was first kept, with
// no annotation but the time of creation.
func (s *shelf) Referrers(ctx context.Context, desc ocispec.Descriptor, artifactType string, fn func([]ocispec.Descriptor) error) error {
	s.mu.Lock()
	list := slices.Clone(s.referrers[desc.Digest])
	s.mu.Unlock()
	var found []ocispec.Descriptor
	for _, e := range list {
		if artifactType != "" && e.desc.ArtifactType != artifactType {
			continue
		}
		if _, err := s.Resolve(ctx, e.desc.Digest.String()); err == nil {
			found = append(found, e.desc)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return fn(found)
}

// read calls fn with what the document d is, when it came and its bytes, which
// nobody has checked. When it is broken, or fn fails, it is removed and not found.
func (s *shelf) read(d digest.Digest, fn func(desc ocispec.Descriptor, kept time.Time, r io.Reader) error) error {
	path, ok := s.path(d)
	if !ok {
		return notKept(d)
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return notKept(d)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	r := bufio.NewReaderSize(f, maxHeader)
	desc, err := readHeader(r, info.Size())
	if err == nil {
		desc.Digest = d
		err = fn(desc, info.ModTime(), r)
	}
	if err != nil {
		s.drop(path, info, err)
		return notKept(d)
	}
	return nil
}

// drop removes the file at path unless another than the broken one lies there by now.
func (s *shelf) drop(path string, broken fs.FileInfo, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := os.Stat(path)
	if err != nil || !os.SameFile(now, broken) {
		return
	}
	s.log.Warn("a document by which something was admitted is broken, and is dropped", "path", path, "err", why)
	if err := os.Remove(path); err != nil {
		s.log.Warn("drop a broken document", "err", err)
	}
}

// keep puts a document on the shelf, whose bytes desc's digest names. That it
// fails costs a restarted agent a question to the registry.
func (s *shelf) keep(desc ocispec.Descriptor, b []byte) {
	var have string
	err := s.read(desc.Digest, func(d ocispec.Descriptor, _ time.Time, _ io.Reader) error {
		have = d.MediaType
		return nil
	})
	if err == nil && (have == desc.MediaType || !isManifest(desc.MediaType)) {
		return
	}
	if err := s.write(desc, b); err != nil {
		s.log.Warn("keep a document for the next start", "digest", desc.Digest, "err", err)
	}
}

// write replaces the file of a document.
func (s *shelf) write(desc ocispec.Descriptor, b []byte) (err error) {
	path, ok := s.path(desc.Digest)
	if !ok {
		return fmt.Errorf("%w: digest %q", errdef.ErrUnsupported, desc.Digest)
	}
	header, err := writeHeader(desc)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(s.dir, "new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(header); err == nil {
		_, err = tmp.Write(b)
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	s.refer(desc, time.Now(), b)
	return nil
}

// path returns where the document lies; ok is false for a digest of no document.
func (s *shelf) path(d digest.Digest) (path string, ok bool) {
	parsed, err := piece.ParseDigest(d.String())
	return filepath.Join(s.dir, parsed.Hex()), err == nil
}

// A header is the first line of a document's file, in JSON after its own CRC-32C.
type header struct {
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"` // bytes after the header
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// writeHeader returns the line that comes before the bytes of a document.
func writeHeader(desc ocispec.Descriptor) ([]byte, error) {
	text, err := json.Marshal(header{desc.MediaType, desc.Size})
	if err != nil {
		return nil, err
	}
	line := fmt.Appendf(nil, "%08x %s\n", crc32.Checksum(text, castagnoli), text)
	if len(line) > maxHeader {
		return nil, fmt.Errorf("its media type has %d bytes", len(desc.MediaType))
	}
	return line, nil
}

// readHeader reads what writeHeader wrote to a file of size bytes, and leaves r at
// the bytes that follow. r's buffer bounds the line.
func readHeader(r *bufio.Reader, size int64) (ocispec.Descriptor, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("its header: %w", err)
	}
	sum, text, _ := bytes.Cut(line[:len(line)-1], []byte(" "))
	if string(sum) != fmt.Sprintf("%08x", crc32.Checksum(text, castagnoli)) {
		return ocispec.Descriptor{}, errors.New("its header has another checksum")
	}
	var h header
	if err := json.Unmarshal(text, &h); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("its header: %w", err)
	}
	if h.Size < 0 || h.Size != size-int64(len(line)) {
		return ocispec.Descriptor{}, fmt.Errorf("it has %d bytes, and should have %d", size-int64(len(line)), h.Size)
	}
	return ocispec.Descriptor{MediaType: h.MediaType, Size: h.Size}, nil
}

func notKept(d digest.Digest) error {
	return fmt.Errorf("document %s is not kept on this node: %w", d, errdef.ErrNotFound)
}

// isManifest reports whether mediaType is one that references are resolved to.
func isManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || image.IsIndex(mediaType) ||
		mediaType == oci.MediaTypeDockerManifest
}
