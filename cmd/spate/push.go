package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/cmd/internal/ui"
	"github.com/spate-project/spate/oci/model"
	"github.com/spate-project/spate/oci/remote"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

// A pushed is what `spate push` did.
type pushed struct {
	Reference string   `json:"reference"`
	Digest    string   `json:"digest"` // of the manifest
	Index     string   `json:"index"`  // digest of the index
	Files     int      `json:"files"`
	Bytes     int64    `json:"bytes"`
	Skipped   []string `json:"skipped,omitempty"`
	Signed    bool     `json:"signed"`
	Seconds   float64  `json:"seconds"`
}

func (a *app) pushCommand() *cobra.Command {
	var (
		signKey string
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
is signed, and agents will refuse the model until somebody signs it.`,
		Example: `  cosign generate-key-pair
  spate push ./qwen 127.0.0.1:5000/qwen:v1 --sign-key cosign.key`,
		Args: a.args(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			var signer signing.Signer
			if signKey != "" {
				s, err := loadSigner(signKey)
				if err != nil {
					return err
				}
				signer = s
			}
			p, err := a.push(cmd.Context(), args[0], args[1], signer, remotes.options())
			if err != nil {
				return err
			}
			return a.out.Result(p, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "pushed %s: %d files, %s in %s\nmanifest %s\nindex    %s\n", p.Reference,
					p.Files, ui.Size(p.Bytes), ui.Duration(time.Duration(p.Seconds*float64(time.Second))), p.Digest, p.Index)
				if err == nil && !p.Signed {
					_, err = fmt.Fprintln(w, "not signed: agents will refuse it; see --sign-key")
				}
				return err
			})
		},
	}
	cmd.Flags().StringVar(&signKey, "sign-key", "", "private key `file` to sign with, as cosign makes it")
	remotes.register(cmd.Flags())
	return cmd
}

// push packs dir into reference's repository, signs it when there is a signer, and tags it.
func (a *app) push(ctx context.Context, dir, reference string, signer signing.Signer, opts remote.Options) (*pushed, error) {
	start := time.Now()
	repo, err := remote.Open(reference, opts)
	if err != nil {
		return nil, err
	}
	tag := repo.Reference.Reference
	if tag == "" || repo.Reference.ValidateReferenceAsDigest() == nil {
		return nil, usage(fmt.Errorf("push to %s: name a tag, as in %s:v1", reference, repo.Reference.Repository))
	}
	progress := ui.NewProgress(a.out, "push")
	packed, err := model.Pack(ctx, dir, repo, model.Options{Progress: newTasks(progress).event})
	progress.Close()
	if err != nil {
		return nil, err
	}
	if signer != nil {
		for _, d := range []ocispec.Descriptor{packed.Descriptor, packed.Index.Descriptor} {
			if err := sign(ctx, repo, signer, d); err != nil {
				return nil, fmt.Errorf("sign %s: %w", reference, err)
			}
		}
	}
	if err := repo.Tag(ctx, packed.Descriptor, tag); err != nil {
		return nil, err
	}
	return &pushed{
		Reference: reference,
		Digest:    packed.Descriptor.Digest.String(), Index: packed.Index.Descriptor.Digest.String(),
		Files: len(packed.Files), Bytes: packed.Size, Skipped: packed.Skipped,
		Signed: signer != nil, Seconds: time.Since(start).Seconds(),
	}, nil
}

func sign(ctx context.Context, target signing.Target, signer signing.Signer, d ocispec.Descriptor) error {
	digest, err := piece.ParseDigest(d.Digest.String())
	if err != nil {
		return err
	}
	bundle, err := signer.Sign(ctx, digest)
	if err != nil {
		return err
	}
	_, err = signing.Attach(ctx, target, d, bundle)
	return err
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
