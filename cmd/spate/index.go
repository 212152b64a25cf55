package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/image"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

// An indexed is what `spate index` did.
type indexed struct {
	Reference string         `json:"reference"`
	Digest    string         `json:"digest"` // of what the reference names
	Manifests []indexedImage `json:"manifests"`
	Signed    bool           `json:"signed"`
	Seconds   float64        `json:"seconds"`
}

// An indexedImage is one manifest with its index: an image of one platform, or a model.
type indexedImage struct {
	Platform string          `json:"platform,omitempty"`
	Digest   string          `json:"digest"`
	Index    string          `json:"index"` // digest of the index
	Layers   int             `json:"layers"`
	Bytes    int64           `json:"bytes"`              // of all objects
	Unpacked []unpackedLayer `json:"unpacked,omitempty"` // layers that nodes have to unpack
}

type unpackedLayer struct {
	Layer  string `json:"layer"` // digest of the blob
	Reason string `json:"reason"`
}

func (a *app) indexCommand() *cobra.Command {
	var (
		signKey string
		remotes remoteFlags
	)
	cmd := &cobra.Command{
		Use:   "index REF",
		Short: "Attach the index that lazy reading needs to an image, and sign it",
		Long: `Attach the index that lazy reading needs to any image in any registry, or to a
model. Each layer is expanded once and checked against the image's config; what
the registry has compressed only is stored beside it as it is, so that nodes can
read it from the middle. Of an image for several platforms each one gets an
index. The image itself, its digest and its tags do not change.

--sign-key signs each index, and the image too unless it carries a signature of
that key; see ` + "`spate push --help`" + `. Layers are expanded into TMPDIR.`,
		Example: `  cosign generate-key-pair
  spate index 127.0.0.1:5000/apps/web:v1 --sign-key cosign.key`,
		Args: a.args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var signer *cosign.Signer
			if signKey != "" {
				s, err := loadSigner(signKey)
				if err != nil {
					return err
				}
				signer = s
			}
			x, err := a.index(cmd.Context(), args[0], signer, signKey, remotes.options())
			if err != nil {
				return err
			}
			return a.out.Result(x, x.print)
		},
	}
	cmd.Flags().StringVar(&signKey, "sign-key", "", "private key `file` to sign with, as cosign makes it")
	remotes.register(cmd.Flags())
	return cmd
}

// index attaches indexes to what reference names, and signs when there is a signer, whose key is from the file keyFile.
func (a *app) index(ctx context.Context, reference string, signer *cosign.Signer, keyFile string, opts remote.Options) (*indexed, error) {
	start := time.Now()
	repo, err := remote.Open(reference, opts)
	if err != nil {
		return nil, err
	}
	if repo.Reference.Reference == "" {
		return nil, usage(fmt.Errorf("index %s: name a tag or a digest, as in %s:v1", reference, repo.Reference.Repository))
	}
	root, manifests, err := image.Manifests(ctx, repo, reference)
	if err != nil {
		return nil, err
	}
	x := &indexed{Reference: reference, Digest: root.Digest.String(), Signed: signer != nil}
	toSign := []ocispec.Descriptor{root}
	progress := ui.NewProgress(a.out, "index")
	defer progress.Close()
	for _, m := range manifests {
		built, err := image.Build(ctx, repo, m, image.Options{Progress: newTasks(progress).layer})
		if err != nil {
			return nil, fmt.Errorf("index %s: %w", reference, err)
		}
		x.Manifests = append(x.Manifests, describeBuilt(m, built))
		toSign = append(toSign, built.Index.Descriptor)
		if m.Descriptor.Digest != root.Digest {
			toSign = append(toSign, m.Descriptor)
		}
	}
	if signer != nil {
		if err := signUnsigned(ctx, repo, signer, keyFile, toSign); err != nil {
			return nil, fmt.Errorf("sign %s: %w", reference, err)
		}
	}
	x.Seconds = time.Since(start).Seconds()
	return x, nil
}

func describeBuilt(m image.Manifest, built *image.Built) indexedImage {
	d := indexedImage{
		Platform: image.Platform(m.Descriptor),
		Digest:   m.Descriptor.Digest.String(), Index: built.Index.Descriptor.Digest.String(),
		Layers: len(built.Objects),
	}
	for _, o := range built.Objects {
		d.Bytes += o.Size
		if o.Unsupported != nil {
			d.Unpacked = append(d.Unpacked, unpackedLayer{Layer: o.Blob.Digest.String(), Reason: o.Unsupported.Error()})
		}
	}
	return d
}

// signUnsigned signs those of descs that carry no signature of the signer's key.
func signUnsigned(ctx context.Context, repo *remote.Repository, signer *cosign.Signer, keyFile string, descs []ocispec.Descriptor) error {
	verifier, err := signer.Verifier(keyFile)
	if err != nil {
		return err
	}
	policy := &signing.Policy{Verifiers: []signing.Verifier{verifier}}
	for _, desc := range descs {
		ref := repo.Reference
		ref.Reference = desc.Digest.String()
		_, _, err := policy.Admit(ctx, repo, ref.String())
		if errors.Is(err, piece.ErrNotTrusted) {
			_, err = signing.Sign(ctx, repo, signer, desc)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// layer draws what indexing an image tells.
func (t *tasks) layer(e image.Event) {
	name := e.Layer[:min(len(e.Layer), len("sha256:0123456789ab"))]
	switch e.Step {
	case image.Started, image.Advanced:
		t.set(name, e.Done, e.Size)
	case image.Finished:
		t.done(name)
	}
}

// print writes x for people.
func (x *indexed) print(w io.Writer) error {
	var text strings.Builder
	var layers int
	var size int64
	for _, m := range x.Manifests {
		layers += m.Layers
		size += m.Bytes
		text.WriteString("manifest " + m.Digest)
		if m.Platform != "" {
			text.WriteString(" for " + m.Platform)
		}
		text.WriteString("\nindex    " + m.Index + "\n")
		for _, l := range m.Unpacked {
			fmt.Fprintf(&text, "layer    %s: nodes have to unpack it: %s\n", l.Layer, l.Reason)
		}
	}
	if !x.Signed {
		text.WriteString("not signed: agents will refuse it; see --sign-key\n")
	}
	_, err := fmt.Fprintf(w, "indexed %s: %d layers, %s in %s\n%s", x.Reference, layers,
		ui.Size(size), ui.Duration(time.Duration(x.Seconds*float64(time.Second))), &text)
	return err
}
