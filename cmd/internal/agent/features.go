package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry"
)

const (
	// featuresEvery is how often it is looked whether the node's labels change.
	featuresEvery = 5 * time.Second

	// featuresExpiry is for how long they hold when the agent is gone.
	featuresExpiry = 10 * time.Minute

	// featureLabel is what the labels' names begin with, and maxFeatures bounds
	// how many there are: a node's labels are in each copy of the node.
	featureLabel = "feature.node.kubernetes.io/spate-"
	maxFeatures  = 100

	maxLabelValue = 63 // bytes, in Kubernetes
)

// label keeps a file of node-feature-discovery's local source as it should be,
// until ctx ends: a label for each image and model of which this node holds
// everything, open or left to linger. It returns nil.
func (a *Agent) label(ctx context.Context) error {
	ticker := time.NewTicker(featuresEvery)
	defer ticker.Stop()
	var last []byte
	var failed string
	for at := (time.Time{}); ; {
		now := features(a.holds())
		if !bytes.Equal(now, last) || time.Since(at) > featuresExpiry/2 {
			err := writeFeatures(a.opts.Features, now, time.Now().Add(featuresExpiry))
			switch {
			case err == nil:
				last, at, failed = now, time.Now(), ""
			case err.Error() != failed:
				failed = err.Error()
				a.log.Error("the node's labels are not what it holds", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// holds returns the references of which everything is here, by digest, in order.
func (a *Agent) holds() (references []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropEvicted()
	for _, art := range a.artifacts {
		if ref, err := registry.ParseReference(art.reference); err == nil && art.complete() {
			ref.Reference = art.digest
			references = append(references, ref.String())
		}
	}
	slices.Sort(references)
	return references
}

// features returns a label for each reference, named by the first 12 digits of
// its manifest's digest, with the last part of its name as the value.
func features(references []string) []byte {
	var b bytes.Buffer
	for i, reference := range references {
		if i == maxFeatures {
			break
		}
		name, digest, _ := strings.Cut(reference, "@")
		_, hex, _ := strings.Cut(digest, ":")
		value := path.Base(name)
		value = strings.TrimRight(value[:min(len(value), maxLabelValue)], "._-")
		fmt.Fprintf(&b, "%s%.12s=%s\n", featureLabel, hex, value)
	}
	return b.Bytes()
}

// writeFeatures puts labels, which hold until then, in the place of the file at
// path, in one step. node-feature-discovery reads no files that begin with a dot.
func writeFeatures(path string, labels []byte, until time.Time) error {
	text := fmt.Appendf(nil, "# What the cache of spate holds.\n# +expiry-time=%s\n%s", until.UTC().Format(time.RFC3339), labels)
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
