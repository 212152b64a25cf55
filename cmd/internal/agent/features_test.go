package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// labelled is what Kubernetes takes as a label, and node-feature-discovery as a line.
var labelled = regexp.MustCompile(`^feature\.node\.kubernetes\.io/spate-[0-9a-f]{12}=[a-z0-9]([-_.a-z0-9]{0,61}[a-z0-9])?$`)

func TestFeatures(t *testing.T) {
	sum := "sha256:3f1c0a9be2d47785" + strings.Repeat("0", 48)
	for name, value := range map[string]string{
		"127.0.0.1:5000/qwen":                                "qwen",
		"registry.example/team/models/qwen2.5-72b":           "qwen2.5-72b",
		"registry.example/" + strings.Repeat("a", 62) + "-b": strings.Repeat("a", 62),
	} {
		got := strings.TrimSuffix(string(features([]string{name + "@" + sum})), "\n")
		if got != "feature.node.kubernetes.io/spate-3f1c0a9be2d4="+value || !labelled.MatchString(got) {
			t.Errorf("%s has the label %s", name, got)
		}
	}
	var many []string
	for i := range 2 * maxFeatures {
		many = append(many, fmt.Sprintf("h/m-%d@%s", i, sum))
	}
	if n := strings.Count(string(features(many)), "\n"); n != maxFeatures {
		t.Errorf("%d labels", n)
	}

	path := filepath.Join(t.TempDir(), "spate")
	until := time.Now().Add(time.Hour)
	for range 2 {
		if err := writeFeatures(path, features(many[:1]), until); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), "\n# +expiry-time="+until.UTC().Format("2006-01-02T15:04:05Z")+"\nfeature.node") {
		t.Errorf("%q, %v", text, err)
	}
	if files, err := os.ReadDir(filepath.Dir(path)); err != nil || len(files) != 1 {
		t.Errorf("%v is left, %v", files, err)
	}
	if err := writeFeatures(filepath.Join(path, "spate"), nil, until); err == nil {
		t.Error("labels are written where no folder is")
	}
}
