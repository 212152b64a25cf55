package signing_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/signing"
)

var (
	_ signing.Target     = (*remote.Repository)(nil)
	_ signing.Repository = (*remote.Repository)(nil)
)

// TestAttachLikeCosign compares with the manifest that cosign pushed for the same bundle.
func TestAttachLikeCosign(t *testing.T) {
	b := newBench(t, stores["memory"](t))
	subject := b.push(ocispec.MediaTypeImageManifest, golden(t, "subject.json"))
	subject.Annotations = map[string]string{"not": "copied"}
	desc, err := signing.Attach(t.Context(), b.repo, subject, golden(t, "bundle.json"))
	if err != nil {
		t.Fatal(err)
	}
	created := func(m map[string]any) string {
		annotations := m["annotations"].(map[string]any)
		at := annotations[ocispec.AnnotationCreated].(string)
		delete(annotations, ocispec.AnnotationCreated)
		return at
	}
	var got, want map[string]any
	if err := errors.Join(
		json.Unmarshal(must(content.FetchAll(t.Context(), b.repo, desc)), &got),
		json.Unmarshal(golden(t, "referrer.json"), &want),
	); err != nil {
		t.Fatal(err)
	}
	if at, err := time.Parse(time.RFC3339, created(got)); err != nil || at.Location() != time.UTC {
		t.Errorf("created at %v, %v", at, err)
	}
	created(want)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("manifest %v\nwant     %v", got, want)
	}
	if desc.MediaType != ocispec.MediaTypeImageManifest || desc.ArtifactType != oci.ArtifactTypeBundle {
		t.Errorf("descriptor %+v", desc)
	}
}

func TestAttachTwice(t *testing.T) {
	for kind, open := range stores {
		t.Run(kind, func(t *testing.T) {
			b := newBench(t, open(t))
			bundle := b.sign(b.ours, b.manifest)
			for range 2 {
				if _, err := signing.Attach(t.Context(), b.repo, b.manifest, bundle); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, err := b.policy.Admit(t.Context(), b.repo, reference); err != nil {
				t.Error(err)
			}
		})
	}
}

// A full target takes n pushes.
type full struct {
	*repository
	n int
}

var errFull = errors.New("no space left")

func (f *full) Push(ctx context.Context, desc ocispec.Descriptor, r io.Reader) error {
	if f.n--; f.n < 0 {
		return errFull
	}
	return f.repository.Push(ctx, desc, r)
}

func TestAttachFails(t *testing.T) {
	for n := range 2 { // the bench has pushed the config; the bundle and the manifest remain
		b := newBench(t, stores["memory"](t))
		_, err := signing.Attach(t.Context(), &full{b.repo, n}, b.manifest, b.sign(b.ours, b.manifest))
		if !errors.Is(err, errFull) {
			t.Errorf("after %d pushes: %v", n, err)
		}
		if _, _, err := b.policy.Admit(t.Context(), b.repo, reference); err == nil {
			t.Errorf("after %d pushes: admitted", n)
		}
	}
}
