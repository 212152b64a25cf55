package model

import (
	"bytes"
	"encoding/json"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/index"
	"github.com/spate-project/spate/oci/remote"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestPack(t *testing.T) {
	places(t, func(t *testing.T, p place) {
		dir, files := modelDir(t)
		packed, err := Pack(t.Context(), dir, p, Options{})
		if err != nil {
			t.Fatal(err)
		}
		var paths []string
		for _, f := range packed.Files {
			paths = append(paths, f.Path)
			got, err := content.FetchAll(t.Context(), p, f.Descriptor)
			if err != nil || string(got) != files[f.Path] {
				t.Errorf("%s: %d bytes, %v", f.Path, len(got), err)
			}
		}
		want := []string{
			"config.json", "generation_config.json", "merges.txt", "model.safetensors.index.json", "tokenizer.json",
			"modeling_qwen.py", "run.sh",
			"empty.bin", "model-00001-of-00010.safetensors", "model-00002-of-00010.safetensors", "model-00010-of-00010.safetensors",
			"sub/dir/a file of größe ≠ 0.bin",
			"LICENSE", "README.md", "copy of LICENSE.md",
		}
		if !slices.Equal(paths, want) {
			t.Errorf("the files are %q, want %q", paths, want)
		}
		if packed.Skipped != nil {
			t.Errorf("skipped %q", packed.Skipped)
		}
		checkConfig(t, p, packed)
		checkIndex(t, p, packed, files)

		// What was packed can be tagged and found, and unpacks to the same files.
		if err := p.Tag(t.Context(), packed.Descriptor, "v1"); err != nil {
			t.Fatal(err)
		}
		if desc, err := p.Resolve(t.Context(), "v1"); err != nil || desc.Digest != packed.Descriptor.Digest {
			t.Fatalf("Resolve: %v, %v", desc, err)
		}
		to := filepath.Join(t.TempDir(), "new", "dir")
		if err := Unpack(t.Context(), p, packed.Files, to, Options{}); err != nil {
			t.Fatal(err)
		}
		checkFiles(t, to, files)
		for name, mode := range map[string]fs.FileMode{"run.sh": 0o755, "config.json": 0o644} {
			if info, err := os.Stat(filepath.Join(to, name)); err != nil || info.Mode() != mode {
				t.Errorf("%s: %v, %v, want mode %v", name, info.Mode(), err, mode)
			}
		}
	})
}

func checkConfig(t *testing.T, p place, packed *Packed) {
	t.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(packed.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	text, err := content.FetchAll(t.Context(), p, m.Config)
	if err != nil {
		t.Fatal(err)
	}
	var c config
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	if c.Descriptor.Name != "Qwen2.5" || c.Descriptor.Family != "qwen2" || c.Descriptor.CreatedAt != nil ||
		c.Config.Format != "safetensors" || c.Config.Precision != "bfloat16" || c.Config.ParamSize != "2.1M" || c.Config.Architecture != "transformer" {
		t.Errorf("config %s", text)
	}
	if c.ModelFS.Type != "layers" || len(c.ModelFS.DiffIDs) != len(packed.Files) {
		t.Fatalf("config %s", text)
	}
	for i, f := range packed.Files {
		if c.ModelFS.DiffIDs[i] != f.Descriptor.Digest {
			t.Errorf("diffId %d is %s, want %s", i, c.ModelFS.DiffIDs[i], f.Descriptor.Digest)
		}
	}
}

func checkIndex(t *testing.T, p place, packed *Packed, files map[string]string) {
	t.Helper()
	manifest, err := content.FetchAll(t.Context(), p, packed.Index.Descriptor)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Load(t.Context(), p, manifest)
	if err != nil {
		t.Fatal(err)
	}
	if x.Subject().Digest != packed.Descriptor.Digest {
		t.Errorf("the index is about %v, want %v", x.Subject(), packed.Descriptor)
	}
	for _, f := range packed.Files {
		d, err := piece.ParseDigest(f.Descriptor.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		tree, ok := x.Tree(d)
		if !ok {
			t.Errorf("%s is not in the index", f.Path)
			continue
		}
		for i := range tree.Object().Pieces() {
			off, n := tree.Object().Span(i)
			if _, err := tree.Verify(i, []byte(files[f.Path])[off:off+n]); err != nil {
				t.Errorf("%s: %v", f.Path, err)
			}
		}
	}
}

// The same files make the same bytes, whoever has them and since when.
func TestPackIsDeterministic(t *testing.T) {
	pack := func(change func(path string)) *Packed {
		dir, _ := modelDir(t)
		filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			change(path)
			return err
		})
		packed, err := Pack(t.Context(), dir, newLayout(t), Options{Concurrency: 3})
		if err != nil {
			t.Fatal(err)
		}
		return packed
	}
	one := pack(func(string) {})
	two := pack(func(path string) {
		os.Chtimes(path, time.Time{}, time.Unix(1, 0))
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		os.Chmod(path, info.Mode()&^0o077)
	})
	if !bytes.Equal(one.Manifest, two.Manifest) || !bytes.Equal(one.Index.Manifest, two.Index.Manifest) {
		t.Errorf("two machines made\n%s\n%s", one.Manifest, two.Manifest)
	}
}

// The bytes of a manifest are what is signed: the same files must make them for ever.
func TestGolden(t *testing.T) {
	dir := writeFiles(t, map[string]string{
		"config.json":       `{"model_type":"llama"}`,
		"model.safetensors": string(safetensorsOf(t, json.RawMessage(`{"w":{"dtype":"F16","shape":[1024,1],"data_offsets":[0,2048]}}`), make([]byte, 2048))),
		"run.sh":            "#!/bin/sh\n",
		"README.md":         "# A model\n",
	})
	store := newLayout(t)
	packed, err := Pack(t.Context(), dir, store, Options{Name: "golden", CreatedAt: time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))})
	if err != nil {
		t.Fatal(err)
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(packed.Manifest, &m); err != nil {
		t.Fatal(err)
	}
	text, err := content.FetchAll(t.Context(), store, m.Config)
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{"manifest.json": packed.Manifest, "config.json": text, "index.json": packed.Index.Manifest} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s has changed:\n%s\nwant:\n%s", name, got, want)
		}
	}
}

func TestPackSkipsHiddenFiles(t *testing.T) {
	dir := writeFiles(t, map[string]string{"model.gguf": "x", ".gitattributes": "x", ".git/config": "x", "sub/.DS_Store": "x", "__pycache__/x.pyc": "x"})
	packed, err := Pack(t.Context(), dir, newLayout(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(packed.Skipped)
	if len(packed.Files) != 1 || !slices.Equal(packed.Skipped, []string{".git", ".gitattributes", "__pycache__", "sub/.DS_Store"}) {
		t.Errorf("packed %v, skipped %q", packed.Files, packed.Skipped)
	}
}

// A snapshot of the Hugging Face cache is all links, into the blobs beside it.
func TestPackCacheSnapshot(t *testing.T) {
	repo := filepath.Join(t.TempDir(), "models--Qwen--Qwen2.5")
	snapshot := filepath.Join(repo, "snapshots", "0123abc")
	files := map[string]string{"config.json": "{}", "model.safetensors": "weights", "sub/x.bin": "x"}
	for name, text := range files {
		blob := filepath.Join(repo, "blobs", digest.FromString(text).Encoded())
		writeFile(t, blob, text)
		link(t, blob, filepath.Join(snapshot, name))
	}
	for _, dir := range []string{snapshot, func() string {
		l := filepath.Join(t.TempDir(), "current")
		link(t, snapshot, l)
		return l
	}()} {
		store := newLayout(t)
		packed, err := Pack(t.Context(), dir, store, Options{})
		if err != nil {
			t.Fatal(err)
		}
		to := t.TempDir()
		if err := Unpack(t.Context(), store, packed.Files, to, Options{}); err != nil {
			t.Fatal(err)
		}
		checkFiles(t, to, files)
	}
	outside := filepath.Join(filepath.Dir(repo), "outside")
	writeFile(t, outside, "x")
	link(t, outside, filepath.Join(snapshot, "y.bin"))
	_, err := Pack(t.Context(), snapshot, newLayout(t), Options{})
	checkError(t, err, "y.bin is a link out of the directory")
}

// link makes a relative link, as that cache has them.
func link(t *testing.T, to, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	rel, err := filepath.Rel(filepath.Dir(path), to)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(rel, path); err != nil {
		t.Fatal(err)
	}
}

func checkError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q does not hold %q", err, part)
		}
	}
}

// events collects events and checks that those of a file are in order.
type events struct {
	t    *testing.T
	mu   sync.Mutex
	last map[string]Event
	all  []Event
}

func (e *events) add(event Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.last == nil {
		e.last = make(map[string]Event)
	}
	last, known := e.last[event.Path]
	switch {
	case (event.Step == Planned) != (len(e.all) == 0), (event.Step == Started) == known && event.Step != Planned,
		known && (last.Step == Finished || event.Done < last.Done || event.Size != last.Size), event.Done > event.Size:
		e.t.Errorf("event %+v after %+v", event, last)
	}
	e.last[event.Path] = event
	e.all = append(e.all, event)
}

// check checks that every file was finished.
func (e *events) check(files map[string]string) {
	e.t.Helper()
	var size int64
	for name, text := range files {
		size += int64(len(text))
		if last := e.last[name]; last.Step != Finished || last.Done != int64(len(text)) || last.Size != last.Done {
			e.t.Errorf("the last event of %s is %+v", name, last)
		}
	}
	if len(e.all) == 0 || e.all[0] != (Event{Step: Planned, Files: len(files), Size: size}) {
		e.t.Errorf("the first event is not the plan: %+v", e.all)
	}
}

func TestProgress(t *testing.T) {
	dir, files := modelDir(t)
	repo := openRegistry(t, nil)
	push := &events{t: t}
	packed, err := Pack(t.Context(), dir, repo, Options{Progress: push.add})
	if err != nil {
		t.Fatal(err)
	}
	push.check(files)
	to := t.TempDir()
	for range 2 { // the second time, all is there
		pull := &events{t: t}
		if err := Unpack(t.Context(), repo, packed.Files, to, Options{Progress: pull.add}); err != nil {
			t.Fatal(err)
		}
		pull.check(files)
	}
	for step, want := range map[Step]string{Planned: "planned", Started: "started", Advanced: "advanced", Finished: "finished"} {
		if step.String() != want {
			t.Errorf("%d is written %q", step, step)
		}
	}
}

func TestDescribe(t *testing.T) {
	for want, n := range map[string]int64{"": 900, "1.0K": 1000, "494.0M": 494032768, "1.0B": 999999999, "72.7B": 72706203648, "1.0T": 1_026_000_000_000} {
		if got := paramSize(map[string]int64{"BF16": n}); got != want {
			t.Errorf("%d parameters are %q, want %q", n, got, want)
		}
	}
	if got := precision(map[string]int64{"F32": 500, "BF16": 600, "F8_E4M3": 700, "I64": 1}); got != "float8_e4m3,bfloat16,float32" {
		t.Errorf("precision is %q", got)
	}
	for from, want := range map[string]string{"Qwen/Qwen2.5": "Qwen2.5", "gpt2": "gpt2", "": "", "/home/me/x": "", "./x": "", "a/b/c": ""} {
		if got := modelName(from); got != want {
			t.Errorf("modelName(%q) = %q, want %q", from, got, want)
		}
	}
}

var (
	_ Target      = (*remote.Repository)(nil)
	_ Ranger      = (*remote.Repository)(nil)
	_ oras.Target = place(nil)
)
