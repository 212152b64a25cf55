// Package policyfile reads a signing.Policy from a YAML file: rules that say, for
// some repositories each, whose signatures count.
//
//	version: 1
//	rules:
//	- name: our models
//	  references: [registry.example/models/**]
//	  signers:
//	  - key: cosign.pub
//	  indexers:
//	  - key: registry-index.pub
//	- name: what our CI releases
//	  references: [ghcr.io/team/*]
//	  signers:
//	  - identityRegexp: https://github\.com/team/.*
//	    issuer: https://token.actions.githubusercontent.com
//	    trustedRoot: trusted_root.json
package policyfile

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/signing"
	"github.com/spate-project/spate/signing/cosign"
)

// Bounds of a policy file.
const (
	maxFile       = 256 << 10 // bytes
	maxRules      = 1000
	maxIdentities = 64 // of one rule, of either kind
	maxReferences = 256

	maxAttestations = 16 // of one rule
)

// version is that of the format that this package reads.
const version = 1

type file struct {
	Version int    `json:"version"`
	Rules   []rule `json:"rules"`
}

type rule struct {
	Name       string        `json:"name"`
	References []oci.Pattern `json:"references"`
	Signers    []identity    `json:"signers"`
	Indexers   []identity    `json:"indexers"`

	Attestations []attestation `json:"attestations"`
}

// An attestation is one that an artifact has to have.
type attestation struct {
	Type    string     `json:"type"`    // a URI, or one of predicates
	Signers []identity `json:"signers"` // the rule's when empty
}

// predicates are the names that cosign has for types of predicates.
var predicates = map[string]string{
	"slsaprovenance": "https://slsa.dev/provenance/v0.2", "slsaprovenance1": "https://slsa.dev/provenance/v1",
	"spdx": "https://spdx.dev/Document", "spdxjson": "https://spdx.dev/Document", "cyclonedx": "https://cyclonedx.org/bom",
	"vuln": "https://cosign.sigstore.dev/attestation/vuln/v1", "openvex": "https://openvex.dev/ns",
}

// PredicateType returns the URI of a type of predicates: of one that cosign has a
// name for, or as it is.
func PredicateType(name string) (string, error) {
	if uri, ok := predicates[name]; ok {
		return uri, nil
	}
	if u, err := url.Parse(name); err != nil || u.Scheme == "" || u.Host == "" {
		return "", fmt.Errorf("type %q is neither a URI nor one of %s", name, strings.Join(slices.Sorted(maps.Keys(predicates)), ", "))
	}
	return name, nil
}

// An identity is a key, or an identity of keyless signatures.
type identity struct {
	Key string `json:"key"` // file, PEM

	Identity       string `json:"identity"`
	IdentityRegexp string `json:"identityRegexp"`
	Issuer         string `json:"issuer"`
	IssuerRegexp   string `json:"issuerRegexp"`
	TrustedRoot    string `json:"trustedRoot"` // file, JSON

	// What is not asked for: entries in a transparency log, certificates in one.
	WithoutLog bool `json:"withoutTransparencyLog"`
	WithoutSCT bool `json:"withoutCertificateTransparency"`
}

// Load returns the policy in the file at path. Files that it names are relative to
// its directory. Whatever is wrong with it is an error, which names the rule and
// what to mend: a policy that is not understood whole admits nothing.
func Load(path string) (*signing.Policy, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	p, err := parse(b, filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("read the policy %s: %w", path, err)
	}
	return p, nil
}

func parse(b []byte, dir string) (*signing.Policy, error) {
	if len(b) > maxFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	var f file
	if err := yaml.UnmarshalStrict(b, &f); err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "error unmarshaling JSON: "))
	}
	switch {
	case f.Version != version:
		return nil, fmt.Errorf("it has version %d; write `version: %d`, or use a newer program", f.Version, version)
	case len(f.Rules) == 0:
		return nil, errors.New("it has no rules: nothing would be admitted")
	case len(f.Rules) > maxRules:
		return nil, fmt.Errorf("it has %d rules, more than %d", len(f.Rules), maxRules)
	}
	p, seen := &signing.Policy{}, make(map[string]bool)
	for i, r := range f.Rules {
		if r.Name == "" {
			return nil, fmt.Errorf("rule %d has no name", i+1)
		}
		if seen[r.Name] {
			return nil, fmt.Errorf("two rules are called %q", r.Name)
		}
		seen[r.Name] = true
		made, err := r.make(dir)
		if err != nil {
			return nil, fmt.Errorf("rule %q: %w", r.Name, err)
		}
		p.Rules = append(p.Rules, made)
	}
	return p, nil
}

func (r rule) make(dir string) (made signing.Rule, err error) {
	if n := len(r.References); n == 0 || n > maxReferences {
		return made, fmt.Errorf("it names %d references, 1 to %d are accepted", n, maxReferences)
	}
	made = signing.Rule{Name: r.Name, References: make([]oci.Pattern, len(r.References))}
	for i, p := range r.References {
		if err := p.Check(); err != nil {
			return made, err
		}
		host, name, ok := strings.Cut(string(p), "/")
		if !ok && p != "**" {
			return made, fmt.Errorf("reference %q names no registry: write it as HOST/NAME, such as registry.example/%s", string(p), string(p))
		}
		if made.References[i] = p; ok {
			made.References[i] = oci.Pattern(strings.ToLower(host) + "/" + name)
		}
	}
	if len(r.Signers) == 0 {
		return made, errors.New("it has no signers: nothing of it would be admitted")
	}
	if made.Signers, err = verifiers(r.Signers, dir); err != nil {
		return made, fmt.Errorf("signers: %w", err)
	}
	if made.Indexers, err = verifiers(r.Indexers, dir); err != nil {
		return made, fmt.Errorf("indexers: %w", err)
	}
	if len(r.Attestations) > maxAttestations {
		return made, fmt.Errorf("it asks for %d attestations, at most %d are accepted", len(r.Attestations), maxAttestations)
	}
	for i, a := range r.Attestations {
		predicateType, err := PredicateType(a.Type)
		if err != nil {
			return made, fmt.Errorf("attestation %d: %w", i+1, err)
		}
		signers, err := verifiers(a.Signers, dir)
		if err != nil {
			return made, fmt.Errorf("attestation %d: signers: %w", i+1, err)
		}
		made.Attestations = append(made.Attestations, signing.Attestation{PredicateType: predicateType, Signers: signers})
	}
	return made, nil
}

func verifiers(list []identity, dir string) (made []signing.Verifier, err error) {
	if len(list) > maxIdentities {
		return nil, fmt.Errorf("there are %d, at most %d are accepted", len(list), maxIdentities)
	}
	for i, id := range list {
		v, err := id.verifier(dir)
		if err != nil {
			return nil, fmt.Errorf("number %d: %w", i+1, err)
		}
		made = append(made, v)
	}
	return made, nil
}

func (id identity) verifier(dir string) (signing.Verifier, error) {
	at := func(path string) string {
		if filepath.IsAbs(path) {
			return path
		}
		return filepath.Join(dir, path)
	}
	if id.Key != "" {
		if id != (identity{Key: id.Key}) {
			return nil, errors.New("a key has no identity, issuer or trustedRoot: it is one by itself")
		}
		return cosign.LoadPublicKey(at(id.Key))
	}
	if id.TrustedRoot == "" {
		return nil, errors.New("it has neither a key nor a trustedRoot for an identity")
	}
	trusted, err := cosign.LoadTrustedRoot(at(id.TrustedRoot))
	if err != nil {
		return nil, err
	}
	return cosign.NewKeyless(cosign.KeylessOptions{
		Identity: id.Identity, IdentityRegexp: id.IdentityRegexp, Issuer: id.Issuer, IssuerRegexp: id.IssuerRegexp,
		TrustedRoot: trusted, RootSource: id.TrustedRoot, WithoutLog: id.WithoutLog, WithoutSCT: id.WithoutSCT,
	})
}
