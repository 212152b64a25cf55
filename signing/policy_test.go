package signing_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/signing"
)

// An outcome is what a case of TestAdmit expects.
type outcome struct {
	index  ocispec.Descriptor // zero: admitted without one
	denied string             // not empty: denied, and the error says this
}

var admitCases = map[string]func(*bench) outcome{
	"signed and indexed": func(b *bench) outcome {
		b.signed(b.ours, b.manifest)
		index := b.index(b.manifest, "a", "")
		b.signed(b.ours, index)
		return outcome{index: index}
	},
	"signed": func(b *bench) outcome {
		b.signed(b.ours, b.manifest)
		return outcome{}
	},
	"signed by the second accepted key": func(b *bench) outcome {
		b.policy.Verifiers = []signing.Verifier{b.stranger.verifier, b.ours.verifier}
		b.signed(b.ours, b.manifest)
		return outcome{}
	},
	"signed by a stranger too": func(b *bench) outcome {
		b.signed(b.ours, b.manifest)
		b.signed(b.stranger, b.manifest)
		return outcome{}
	},
	"a list of images": func(b *bench) outcome {
		list := b.pushJSON(ocispec.MediaTypeImageIndex, ocispec.Index{
			MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{b.manifest},
		})
		b.tag(list)
		b.signed(b.ours, list)
		b.manifest = list
		return outcome{}
	},
	"unsigned": func(b *bench) outcome {
		b.signed(b.ours, b.index(b.manifest, "a", ""))
		return outcome{denied: "no signature is attached"}
	},
	"signed by a stranger": func(b *bench) outcome {
		b.signed(b.stranger, b.manifest)
		return outcome{denied: "another key"}
	},
	"signed by two strangers": func(b *bench) outcome {
		b.signed(b.stranger, b.manifest)
		b.signed(b.stranger, b.manifest)
		b.attach(b.manifest, b.sign(b.stranger, b.manifest), nil)
		return outcome{denied: "signatures attached to it is accepted"}
	},
	"signature of another manifest": func(b *bench) outcome {
		b.attach(b.manifest, b.sign(b.ours, b.image("other")), nil)
		return outcome{denied: "does not verify"}
	},
	"signed by neither accepted key": func(b *bench) outcome {
		b.policy.Verifiers = append(b.policy.Verifiers, goldenVerifier(b.t))
		b.signed(b.stranger, b.manifest)
		return outcome{denied: "not by " + goldenVerifier(b.t).Identity()}
	},
	"signature of its index": func(b *bench) outcome {
		b.attach(b.manifest, b.sign(b.ours, b.index(b.manifest, "a", "")), nil)
		return outcome{denied: "does not verify"}
	},
	"signature attached to another manifest": func(b *bench) outcome {
		other := b.image("other")
		b.listed(oci.ArtifactTypeBundle, b.attach(other, b.sign(b.ours, b.manifest), nil))
		return outcome{denied: "its subject is"}
	},
	"referrer without a subject": func(b *bench) outcome {
		b.listed(oci.ArtifactTypeBundle, b.attach(b.manifest, b.sign(b.ours, b.manifest), func(m *ocispec.Manifest) { m.Subject = nil }))
		return outcome{denied: "has no subject"}
	},
	"referrer of another artifact type": func(b *bench) outcome {
		b.listed(oci.ArtifactTypeBundle, b.attach(b.manifest, b.sign(b.ours, b.manifest), func(m *ocispec.Manifest) { m.ArtifactType = "text/x" }))
		return outcome{denied: `artifact type \"text/x\"`}
	},
	"referrer of another media type": func(b *bench) outcome {
		b.listed(oci.ArtifactTypeBundle, b.attach(b.manifest, b.sign(b.ours, b.manifest), func(m *ocispec.Manifest) { m.MediaType = "" }))
		return outcome{denied: "media type"}
	},
	"referrer with two layers": func(b *bench) outcome {
		b.attach(b.manifest, b.sign(b.ours, b.manifest), func(m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers...) })
		return outcome{denied: "not one layer"}
	},
	"referrer with a layer of another type": func(b *bench) outcome {
		b.attach(b.manifest, b.sign(b.ours, b.manifest), func(m *ocispec.Manifest) { m.Layers[0].MediaType = "text/x" })
		return outcome{denied: "not one layer"}
	},
	"referrer whose bundle is too large": func(b *bench) outcome {
		b.attach(b.manifest, append(b.sign(b.ours, b.manifest), bytes.Repeat([]byte(" "), 256<<10)...), nil)
		return outcome{denied: "at most 262144 are read"}
	},
	"referrer that is not a manifest": func(b *bench) outcome {
		desc := b.push(ocispec.MediaTypeImageManifest, []byte("null"))
		desc.ArtifactType = oci.ArtifactTypeBundle
		b.listed(oci.ArtifactTypeBundle, desc)
		return outcome{denied: `media type \"\"`}
	},
	"referrers that do not exist": func(b *bench) outcome {
		b.listed(oci.ArtifactTypeBundle, junk(oci.ArtifactTypeBundle, 2)...)
		return outcome{denied: "not found"}
	},
	"listed as something else": func(b *bench) outcome {
		desc := b.signed(b.ours, b.manifest)
		desc.ArtifactType = "text/x"
		b.listed(oci.ArtifactTypeBundle, desc)
		return outcome{denied: "no signature is attached"}
	},
	"listed with a foreign digest algorithm": func(b *bench) outcome {
		desc := b.signed(b.ours, b.manifest)
		desc.Digest = digest.SHA512.FromString("x")
		b.listed(oci.ArtifactTypeBundle, desc)
		return outcome{denied: "does not start with"}
	},
	"listed with a negative size": func(b *bench) outcome {
		desc := b.signed(b.ours, b.manifest)
		desc.Size = -1
		b.listed(oci.ArtifactTypeBundle, desc)
		return outcome{denied: "-1 bytes"}
	},
	"attestation only": func(b *bench) outcome {
		// What cosign itself wrote, by a key that the policy accepts.
		subject := b.push(ocispec.MediaTypeImageManifest, golden(b.t, "subject.json"))
		b.tag(subject)
		b.policy.Verifiers = []signing.Verifier{goldenVerifier(b.t)}
		b.attach(subject, golden(b.t, "attestation.json"), nil)
		b.manifest = subject
		return outcome{denied: "attestation"}
	},
	"signed by cosign": func(b *bench) outcome {
		subject := b.push(ocispec.MediaTypeImageManifest, golden(b.t, "subject.json"))
		b.push(oci.ArtifactTypeBundle, golden(b.t, "bundle.json"))
		b.push(ocispec.MediaTypeImageManifest, golden(b.t, "referrer.json"))
		b.tag(subject)
		b.policy.Verifiers = []signing.Verifier{goldenVerifier(b.t)}
		b.attach(subject, golden(b.t, "attestation.json"), nil)
		b.manifest = subject
		return outcome{}
	},
	"index unsigned": func(b *bench) outcome {
		b.signed(b.ours, b.manifest)
		b.index(b.manifest, "a", "")
		return outcome{}
	},
	"index signed by a stranger": func(b *bench) outcome {
		b.signed(b.ours, b.manifest)
		b.signed(b.stranger, b.index(b.manifest, "a", ""))
		return outcome{}
	},
	"index of another manifest": func(b *bench) outcome {
		b.signed(b.ours, b.manifest)
		index := b.index(b.image("other"), "a", "")
		b.signed(b.ours, index)
		index.ArtifactType = oci.ArtifactTypeIndex
		b.listed(oci.ArtifactTypeIndex, index)
		return outcome{}
	},
	"index that is not one": func(b *bench) outcome {
		b.signed(b.ours, b.manifest)
		b.signed(b.ours, b.manifest)
		image := b.manifest // signed, but no index
		image.ArtifactType = oci.ArtifactTypeIndex
		b.listed(oci.ArtifactTypeIndex, image)
		return outcome{}
	},
	"newest index": func(b *bench) outcome {
		b.signed(b.ours, b.manifest)
		b.signed(b.ours, b.index(b.manifest, "a", "2026-01-01T00:00:00Z"))
		newest := b.index(b.manifest, "b", "2026-01-03T00:00:00Z")
		b.signed(b.ours, newest)
		b.signed(b.ours, b.index(b.manifest, "c", "2026-01-02T23:59:59+00:00"))
		b.signed(b.ours, b.index(b.manifest, "d", ""))
		b.signed(b.ours, b.index(b.manifest, "e", "tomorrow"))
		return outcome{index: newest}
	},
	"newest signed index": func(b *bench) outcome {
		b.signed(b.ours, b.manifest)
		older := b.index(b.manifest, "a", "2026-01-01T00:00:00Z")
		b.signed(b.ours, older)
		b.signed(b.stranger, b.index(b.manifest, "b", "2027-01-01T00:00:00Z"))
		return outcome{index: older}
	},
	"index listed last": func(b *bench) outcome {
		b.signed(b.ours, b.manifest)
		var list []ocispec.Descriptor
		for _, data := range []string{"a", "b", "c"} {
			index := b.index(b.manifest, data, "")
			b.signed(b.ours, index)
			last := index
			last.ArtifactType = oci.ArtifactTypeIndex
			list = append(list, last)
		}
		b.listed(oci.ArtifactTypeIndex, list...)
		return outcome{index: list[2]}
	},
	"registry calls the manifest something else": func(b *bench) outcome {
		b.manifest = b.pushJSON(ocispec.MediaTypeImageIndex, b.artifact("application/octet-stream", "other"))
		b.tag(b.manifest)
		b.signed(b.ours, b.manifest)
		return outcome{denied: "itself says"}
	},
	"two manifests in one": func(b *bench) outcome {
		b.manifest = b.push(ocispec.MediaTypeImageManifest, []byte(`{"layers":[],"manifests":[]}`))
		b.tag(b.manifest)
		b.signed(b.ours, b.manifest)
		return outcome{denied: "at once"}
	},
	"manifest that is not one": func(b *bench) outcome {
		b.manifest = b.push("application/octet-stream", []byte("spate"))
		b.tag(b.manifest)
		return outcome{denied: "is not one"}
	},
	"manifest too large": func(b *bench) outcome {
		b.repo.resolve = func(d ocispec.Descriptor) (ocispec.Descriptor, error) {
			d.Size = 4<<20 + 1
			return d, nil
		}
		return outcome{denied: "at most 4194304 are read"}
	},
}

func TestAdmit(t *testing.T) {
	for kind, open := range stores {
		for name, build := range admitCases {
			t.Run(kind+"/"+name, func(t *testing.T) {
				b := newBench(t, open(t))
				want := build(b)
				trusted, chain, err := b.policy.Admit(t.Context(), b.repo, reference)
				if want.denied != "" {
					checkDenied(t, trusted, chain, err, b.manifest.Digest, want.denied)
					return
				}
				if err != nil {
					t.Fatalf("%v\n%s", err, chain)
				}
				if !trusted.Valid() || !chain.Admitted || trusted.Reference() != reference {
					t.Errorf("valid %t, admitted %t, reference %q", trusted.Valid(), chain.Admitted, trusted.Reference())
				}
				m := trusted.Manifest()
				if m.Descriptor.Digest != b.manifest.Digest || digest.FromBytes(m.Bytes) != b.manifest.Digest {
					t.Errorf("manifest %s (bytes %s), want %s", m.Descriptor.Digest, digest.FromBytes(m.Bytes), b.manifest.Digest)
				}
				index, ok := trusted.Index()
				if ok != (want.index.Digest != "") || index.Descriptor.Digest != want.index.Digest {
					t.Fatalf("index %q, want %q\n%s", index.Descriptor.Digest, want.index.Digest, chain)
				}
				if ok && digest.FromBytes(index.Bytes) != want.index.Digest {
					t.Errorf("the index's bytes are of %s", digest.FromBytes(index.Bytes))
				}
			})
		}
	}
}

func checkDenied(t *testing.T, trusted signing.Trusted, chain *signing.Chain, err error, manifest digest.Digest, want string) {
	t.Helper()
	var denied *signing.DeniedError
	if !errors.Is(err, piece.ErrNotTrusted) || !errors.As(err, &denied) {
		t.Fatalf("error %v, want a denial\n%s", err, chain)
	}
	if denied.Reference != reference || denied.Digest != manifest || denied.Next == "" {
		t.Errorf("denied %+v", denied)
	}
	quoted := strings.NewReplacer(`"`, `\"`).Replace(err.Error())
	for _, s := range []string{reference, manifest.String(), ".pub)", want} {
		if !strings.Contains(quoted, s) {
			t.Errorf("error %q does not say %q", quoted, s)
		}
	}
	if trusted.Valid() || trusted.Manifest().Bytes != nil || chain.Admitted {
		t.Error("denied, and trusted")
	}
	if len(chain.Steps) == 0 || chain.Steps[0].OK {
		t.Errorf("the chain does not say it:\n%s", chain)
	}
}

func golden(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("cosign/testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestEmptyPolicy(t *testing.T) {
	b := newBench(t, stores["memory"](t))
	b.signed(b.ours, b.manifest)
	for name, p := range map[string]*signing.Policy{"nil": nil, "zero": {}} {
		trusted, chain, err := p.Admit(t.Context(), b.repo, reference)
		if !errors.Is(err, piece.ErrNotTrusted) || trusted.Valid() || chain == nil || chain.Admitted {
			t.Errorf("%s policy: %v", name, err)
		}
		if denied, ok := errors.AsType[*signing.DeniedError](err); !ok || !strings.Contains(denied.Hint(), "--key cosign.pub") {
			t.Errorf("%s policy: %v does not say how to name a key", name, err)
		}
	}
	if b.repo.fetched != 0 {
		t.Error("a policy that admits nothing fetched something")
	}
}

func TestUnknownReference(t *testing.T) {
	b := newBench(t, stores["memory"](t))
	_, chain, err := b.policy.Admit(t.Context(), b.repo, "v2")
	if !errors.Is(err, errdef.ErrNotFound) || errors.Is(err, piece.ErrNotTrusted) || chain == nil {
		t.Fatal(err)
	}
	if !strings.Contains(err.Error(), "v2") || !strings.Contains(err.Error(), "no such manifest") {
		t.Errorf("error %q", err)
	}
}

func TestDigestReference(t *testing.T) {
	b := newBench(t, stores["memory"](t))
	b.signed(b.ours, b.manifest)
	other := b.image("other")
	b.signed(b.ours, other)
	for _, ref := range []string{other.Digest.String(), "localhost/model@" + other.Digest.String()} {
		// A registry that answers with another manifest, and a signed one at that.
		if err := b.repo.Tag(t.Context(), b.manifest, ref); err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.policy.Admit(t.Context(), b.repo, ref); !errors.Is(err, piece.ErrNotTrusted) {
			t.Errorf("%s stands for %s: %v", ref, b.manifest.Digest, err)
		}
		if err := b.repo.Tag(t.Context(), other, ref); err != nil {
			t.Fatal(err)
		}
		if _, _, err := b.policy.Admit(t.Context(), b.repo, ref); err != nil {
			t.Error(err)
		}
	}
}
