package policyfile

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"

	"github.com/spate-project/spate/signing/cosign"
)

const good = `version: 1
rules:
- name: models
  references: [Registry.Example/models/**, 127.0.0.1:5000/*]
  signers:
  - key: cosign.pub
  indexers:
  - key: sub/../cosign.pub
- name: ci
  references: ["**"]
  signers:
  - identityRegexp: https://github\.com/team/.*
    issuer: https://token.actions.githubusercontent.com
    trustedRoot: root.json
    withoutCertificateTransparency: true
`

// folder returns a folder with what policies name.
func folder(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	_, public, err := cosign.GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	virtual, err := ca.NewVirtualSigstore()
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := root.NewTrustedRoot(root.TrustedRootMediaType01, virtual.FulcioCertificateAuthorities(), nil, virtual.TimestampingAuthorities(), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := trusted.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"cosign.pub": public, "root.json": text, "policy.yaml": []byte(good)} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoad(t *testing.T) {
	dir := folder(t)
	p, err := Load(filepath.Join(dir, "policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Rules) != 2 || len(p.Verifiers) != 0 {
		t.Fatalf("%+v", p)
	}
	models, ci := p.Rules[0], p.Rules[1]
	if models.Name != "models" || len(models.References) != 2 || models.References[0] != "registry.example/models/**" || len(models.Signers) != 1 || len(models.Indexers) != 1 {
		t.Errorf("%+v", models)
	}
	if id := ci.Signers[0].Identity(); !strings.Contains(id, "github") || !strings.Contains(id, "root.json") || len(ci.Indexers) != 0 {
		t.Errorf("%+v", ci)
	}
	if _, err := Load(filepath.Join(dir, "none.yaml")); err == nil {
		t.Error("a missing file is a policy")
	}

	// A file that is written only in part admits nothing that the whole does not.
	for n := range len(good) - 1 {
		part, err := parse([]byte(good[:n]), dir)
		if err != nil {
			continue
		}
		for i, r := range part.Rules {
			if whole := p.Rules[i]; r.Name != whole.Name || !slices.Equal(r.References, whole.References) || len(r.Signers) > len(whole.Signers) || len(r.Indexers) > len(whole.Indexers) {
				t.Errorf("%d bytes of %d are another policy: %+v", n, len(good), r)
			}
		}
	}
}

// TestExample: the documented policy is one.
func TestExample(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "policy.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, example, _ := strings.Cut(string(text), "```yaml\n")
	example, _, ok := strings.Cut(example, "```")
	if !ok {
		t.Fatal("there is no example")
	}
	dir := folder(t)
	for name, of := range map[string]string{"registry-index.pub": "cosign.pub", "trusted_root.json": "root.json", "private_root.json": "root.json"} {
		if err := os.Link(filepath.Join(dir, of), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	p, err := parse([]byte(example), dir)
	if err != nil || len(p.Rules) != 3 || len(p.Rules[0].Indexers) != 1 || len(p.Rules[0].Attestations) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestRefused(t *testing.T) {
	dir := folder(t)
	const begin = "version: 1\nrules:\n- name: a\n"
	const signers = "  signers: [{key: cosign.pub}]\n"
	const references = "  references: [registry.example/*]\n"
	for why, text := range map[string]string{
		"version 0":                      "rules: []",
		"version 2":                      "version: 2\nrules: []",
		"no rules":                       "version: 1",
		"unknown field":                  begin + references + signers + "  mode: warn\n",
		"rule 1 has no name":             "version: 1\nrules:\n-" + references[1:] + signers,
		"two rules are called":           begin + references + signers + "- name: a\n" + references + signers,
		"names 0 references":             begin + signers,
		"no pattern":                     begin + "  references: [a/**/b]\n" + signers,
		"names no registry":              begin + "  references: ['models']\n" + signers,
		"no signers":                     begin + references,
		"neither a key nor":              begin + references + "  signers: [{identity: x, issuer: y}]\n",
		"it is one by itself":            begin + references + "  signers: [{key: cosign.pub, issuer: y}]\n",
		"no such file":                   begin + references + "  signers: [{key: other.pub}]\n",
		"indexers: number 1":             begin + references + signers + "  indexers: [{key: root.json}]\n",
		"one of identity and":            begin + references + "  signers: [{trustedRoot: root.json, issuer: y}]\n",
		"one of issuer and":              begin + references + "  signers: [{trustedRoot: root.json, identity: y}]\n",
		"read the trusted root cosign":   begin + references + "  signers: [{trustedRoot: cosign.pub, identity: y, issuer: x}]\n",
		"neither a URI nor one of":       begin + references + signers + "  attestations: [{type: provenance}]\n",
		"attestation 1: signers":         begin + references + signers + "  attestations: [{type: spdx, signers: [{key: none.pub}]}]\n",
		"asks for 17 attestations":       begin + references + signers + "  attestations: [" + strings.Repeat("{type: spdx},", 17) + "]\n",
		"already set":                    begin + references + references + signers,
		"more than 262144":               strings.Repeat("#", maxFile+1),
		"there are 65, at most 64":       begin + references + "  signers: [" + strings.Repeat("{key: cosign.pub},", 65) + "]\n",
		"names 257 references, 1 to 256": begin + "  references: [" + strings.Repeat("a/b,", 257) + "]\n" + signers,
	} {
		if _, err := parse([]byte(text), dir); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%v, want %q", err, why)
		}
	}
}

func FuzzPolicyFile(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("version: 1\nrules: [{name: a, references: ['**'], signers: [{key: cosign.pub}]}]"))
	dir := folder(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parse(b, dir)
		if err != nil {
			return
		}
		for _, r := range p.Rules {
			if r.Name == "" || len(r.References) == 0 || len(r.Signers) == 0 {
				t.Errorf("%+v", r)
			}
		}
	})
}
