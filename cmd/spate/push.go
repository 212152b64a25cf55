package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/image"
	"github.com/spate-project/spate/oci/model"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

// A pushed is what `spate push` did.
type pushed struct {
	Reference string   `json:"reference"`
	Digest    string   `json:"digest"` // of what the reference names
	Index     string   `json:"index"`  // digest of the model's index
	Files     int      `json:"files"`
	Bytes     int64    `json:"bytes"`
	Skipped   []string `json:"skipped,omitempty"`
	Signed    bool     `json:"signed"`
	Seconds   float64  `json:"seconds"`

	// Of an image volume.
	Model  string        `json:"model,omitempty"` // digest of the model's manifest
	Images []pushedImage `json:"images,omitempty"`
}

// A pushedImage is an image volume for one platform.
type pushedImage struct {
	Platform string `json:"platform"`
	Digest   string `json:"digest"`
	Index    string `json:"index"` // digest of the index
}

func (a *app) pushCommand() *cobra.Command {
	var (
		signKey string
		volume  bool
		remotes remoteFlags
	)
	cmd := &cobra.Command{
		Use:   "push DIR REF",
		Short: "Pack a model directory, upload, index and sign it",
		Long: `Pack a model directory in the CNCF ModelPack format, one layer a file, upload
it, attach the index that lazy reading needs, and sign both. Every file is read
once. REF is named last: until then nobody sees a part.

--sign-key takes a key pair's private half as ` + "`cosign generate-key-pair`" + ` makes
it; its password comes from COSIGN_PASSWORD or the terminal. Without it nothing
is signed, and agents will refuse the model until somebody signs it.

--image-volume packs each file into a tar of its own, and lists the same blobs as
a model and as an image for linux/amd64 and one for linux/arm64, all in one OCI
image index. Container runtimes then mount REF as they mount any image, lazily
where the agent is their snapshotter: as a Kubernetes image volume, say. Such a
model has at most as many files as an image layers, and ` + "`spate mount`" + ` shows
only models that are pushed without this.`,
		Example: `  cosign generate-key-pair
  spate push ./qwen 127.0.0.1:5000/qwen:v1 --sign-key cosign.key
  spate push ./qwen 127.0.0.1:5000/qwen:volume --image-volume --sign-key cosign.key`,
		Args: a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			signer, err := optionalSigner(signKey)
			if err != nil {
				return err
			}
			p, err := a.push(cmd.Context(), args[0], args[1], volume, signer, remotes.options())
			if err != nil {
				return err
			}
			return a.out.Result(p, p.print)
		},
	}
	cmd.Flags().StringVar(&signKey, "sign-key", "", "private key `file` to sign with, as cosign makes it")
	cmd.Flags().BoolVar(&volume, "image-volume", false, "pack the model as an image too, which container runtimes mount")
	remotes.register(cmd.Flags())
	return cmd
}

// push packs dir into reference's repository, signs it when there is a signer, and tags it.
func (a *app) push(ctx context.Context, dir, reference string, volume bool, signer signing.Signer, opts remote.Options) (*pushed, error) {
	start := time.Now()
	repo, err := remote.Open(reference, opts)
	if err != nil {
		return nil, err
	}
	tag := repo.Reference.Reference
	if tag == "" || repo.Reference.ValidateReferenceAsDigest() == nil {
		return nil, usage(fmt.Errorf("push to %s: name a tag, as in %s:v1", reference, repo.Reference.Repository))
	}
	p := &pushed{Reference: reference, Signed: signer != nil}
	pack := p.packModel
	if volume {
		pack = p.packVolume
	}
	progress := ui.NewProgress(a.out, "push")
	root, others, err := pack(ctx, dir, repo, model.Options{Progress: newTasks(progress).event})
	progress.Close()
	if err != nil {
		return nil, err
	}
	if signer != nil {
		for _, d := range append(others, root) {
			if _, err := signing.Sign(ctx, repo, signer, d); err != nil {
				return nil, fmt.Errorf("sign %s: %w", reference, err)
			}
		}
	}
	if err := repo.Tag(ctx, root, tag); err != nil {
		return nil, err
	}
	p.Digest, p.Seconds = root.Digest.String(), time.Since(start).Seconds()
	return p, nil
}

// packModel packs dir as a model. It returns what the tag is to name and what is to be signed besides.
func (p *pushed) packModel(ctx context.Context, dir string, repo model.Target, opts model.Options) (root ocispec.Descriptor, others []ocispec.Descriptor, err error) {
	packed, err := model.Pack(ctx, dir, repo, opts)
	if err != nil {
		return root, nil, err
	}
	p.describe(packed)
	return packed.Descriptor, []ocispec.Descriptor{packed.Index.Descriptor}, nil
}

// packVolume is packModel for an image volume.
func (p *pushed) packVolume(ctx context.Context, dir string, repo model.Target, opts model.Options) (root ocispec.Descriptor, others []ocispec.Descriptor, err error) {
	v, err := model.PackVolume(ctx, dir, repo, opts)
	if err != nil {
		return root, nil, err
	}
	p.describe(v.Packed)
	p.Model = v.Descriptor.Digest.String()
	others = []ocispec.Descriptor{v.Descriptor, v.Packed.Index.Descriptor}
	for _, im := range v.Images {
		p.Images = append(p.Images, pushedImage{
			Platform: image.Platform(im.Descriptor),
			Digest:   im.Descriptor.Digest.String(), Index: im.Index.Descriptor.Digest.String(),
		})
		others = append(others, im.Descriptor, im.Index.Descriptor)
	}
	return v.Root, others, nil
}

func (p *pushed) describe(packed *model.Packed) {
	p.Index = packed.Index.Descriptor.Digest.String()
	p.Files, p.Bytes, p.Skipped = len(packed.Files), packed.Size, packed.Skipped
}

// print writes p for people.
func (p *pushed) print(w io.Writer) error {
	var text strings.Builder
	if p.Model == "" {
		fmt.Fprintf(&text, "manifest %s\nindex    %s\n", p.Digest, p.Index)
	} else {
		fmt.Fprintf(&text, "volume   %s\nmodel    %s\nindex    %s\n", p.Digest, p.Model, p.Index)
	}
	for _, im := range p.Images {
		fmt.Fprintf(&text, "image    %s for %s\nindex    %s\n", im.Digest, im.Platform, im.Index)
	}
	if !p.Signed {
		text.WriteString("not signed: agents will refuse it; see --sign-key\n")
	}
	_, err := fmt.Fprintf(w, "pushed %s: %d files, %s in %s\n%s", p.Reference, p.Files, ui.Size(p.Bytes),
		ui.Duration(time.Duration(p.Seconds*float64(time.Second))), &text)
	return err
}

// optionalSigner is loadSigner that returns nil where no key is named.
func optionalSigner(path string) (signing.Signer, error) {
	if path == "" {
		return nil, nil
	}
	return loadSigner(path)
}

// loadSigner reads a private key, asking for its password where it has one.
func loadSigner(path string) (*cosign.Signer, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the signing key: %w", err)
	}
	s, err := cosign.NewSigner(b, func() ([]byte, error) {
		if pw, ok := os.LookupEnv("COSIGN_PASSWORD"); ok {
			return []byte(pw), nil
		}
		if !term.IsTerminal(int(os.Stdin.Fd())) {
			return nil, errors.New("the key has a password: set COSIGN_PASSWORD")
		}
		fmt.Fprintf(os.Stderr, "password of %s: ", path)
		defer fmt.Fprintln(os.Stderr)
		return term.ReadPassword(int(os.Stdin.Fd()))
	})
	if err != nil {
		return nil, fmt.Errorf("load the signing key %s: %w", path, err)
	}
	return s, nil
}
