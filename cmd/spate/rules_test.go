package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/spate-project/spate/"

// rooms says what each package may import of this module. Everything may import cache/piece.
var rooms = map[string][]string{
	"cache/piece":                 {},
	"cache":                       {},
	"cache/mount":                 {"cache"},
	"cache/mount/holder":          {},
	"p2p":                         {"p2p/tracker"},
	"p2p/tracker":                 {},
	"p2p/identity":                {},
	"p2p/link":                    {},
	"p2p/torrent":                 {"p2p", "p2p/identity", "p2p/link", "p2p/tracker"},
	"p2p/p2ptest":                 {"p2p"},
	"oci":                         {},
	"oci/registry":                {"oci"},
	"oci/remote":                  {"oci"},
	"oci/remote/remotetest":       {},
	"oci/access":                  {"oci", "oci/registry"},
	"oci/artifact":                {"oci"},
	"oci/layer":                   {"oci"},
	"oci/index":                   {"oci"},
	"oci/image":                   {"oci", "oci/index", "oci/layer"},
	"oci/indexer":                 {"oci", "oci/image", "oci/registry", "signing"},
	"oci/model":                   {"oci", "oci/image", "oci/index", "oci/layer", "oci/model/format", "oci/remote"},
	"oci/model/format":            {"oci"},
	"oci/snapshot":                {},
	"oci/snapshot/containerdtest": {},
	"oci/mirror":                  {"oci", "oci/remote", "signing"},
	"prefetch":                    {"oci", "oci/model/format"},
	"prefetch/orders":             {"prefetch"},
	"prefetch/placement":          {"oci/image", "oci/registry", "prefetch/orders"},
	"prefetch/warm":               {"oci", "signing"},
	"signing":                     {"oci"},
	"signing/cosign":              {"signing"},
	"signing/policyfile":          {"oci", "signing", "signing/cosign"},
	"cmd/internal/ui":             {},
	"cmd/internal/telemetry":      {},
	"cmd/internal/lab":            {"oci/model/format", "p2p/identity", "signing/cosign"},
	"cmd/internal/lab/netns":      {},
	"cmd/internal/storm":          {"*"},
	"cmd/internal/agent":          {"*"},
	"cmd/internal/demo":           {"*"},
	"cmd/internal/liar":           {"*"},
	"cmd/spate":                   {"*"},
}

// heavy dependencies have one adapter each.
var heavy = map[string]string{
	"github.com/anacrolix/":        "p2p/torrent",
	"github.com/hanwen/go-fuse/":   "cache/mount",
	"github.com/containerd/":       "oci/snapshot",
	"k8s.io/cri-api/":              "oci/snapshot/containerdtest",
	"github.com/sigstore/":         "signing/cosign",
	"github.com/erofs/":            "oci/layer",
	"github.com/klauspost/":        "oci/layer",
	"github.com/spf13/cobra":       "cmd/spate",
	"github.com/prometheus/":       "cmd/internal/telemetry",
	"go.opentelemetry.io/":         "cmd/internal/telemetry",
	"github.com/vbauerster/mpb/v8": "cmd/internal/ui",
	"github.com/vishvananda/":      "cmd/internal/lab/netns",
}

// TestImports holds the table of rooms for everything but tests, and that each
// package has exactly one package comment. It parses the files in this process,
// so that the test cache sees them.
func TestImports(t *testing.T) {
	root := filepath.Join("..", "..")
	docs := map[string]int{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == "testdata" || strings.HasPrefix(name, ".") && name != ".." {
				return filepath.SkipDir
			}
			// A module of its own.
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != root {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		docs[rel] += 0
		if f.Doc != nil {
			docs[rel]++
		}
		checkImports(t, path, filepath.ToSlash(rel), f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range slices.Sorted(maps.Keys(docs)) {
		if docs[pkg] != 1 {
			t.Errorf("package %s has %d package comments, want 1", pkg, docs[pkg])
		}
	}
	for pkg := range rooms {
		if _, ok := docs[pkg]; !ok {
			t.Errorf("the table names %s, which is not there", pkg)
		}
	}
}

func checkImports(t *testing.T, path, pkg string, f *ast.File) {
	allowed, known := rooms[pkg]
	if !known {
		t.Errorf("%s: the table does not know the package %s", path, pkg)
		return
	}
	for _, spec := range f.Imports {
		name := strings.Trim(spec.Path.Value, `"`)
		if own, ok := strings.CutPrefix(name, module); ok {
			if own != "cache/piece" && !slices.Contains(allowed, own) && !slices.Contains(allowed, "*") {
				t.Errorf("%s: %s may not import %s", path, pkg, own)
			}
			continue
		}
		if pkg == "cache/piece" && strings.Contains(name, ".") {
			t.Errorf("%s: cache/piece imports only the standard library, not %s", path, name)
		}
		for prefix, room := range heavy {
			if strings.HasPrefix(name, prefix) && pkg != room {
				t.Errorf("%s: only %s may import %s", path, room, name)
			}
		}
	}
}
