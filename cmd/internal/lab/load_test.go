package lab

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// copied returns a copy of the model in dir, to be spoiled.
func copied(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

var bothWays = map[string]LoadOptions{"mmap": {}, "read": {Read: true}}

func TestLoad(t *testing.T) {
	source := synthesized(t, 6<<20, ModelOptions{Shards: 3})
	mounted := copied(t, source)
	tensors := tensorsOf(t, source)
	var size int64
	for _, b := range tensors {
		size += int64(len(b))
	}
	for way, o := range bothWays {
		var seen int64
		o.Start = time.Now().Add(-time.Hour)
		o.Loaded = func(n int64) { seen += n }
		r, err := Load(t.Context(), mounted, source, o)
		if err != nil {
			t.Fatalf("%s: %v", way, err)
		}
		if r.Bytes != size || seen != size || r.Tensors != len(tensors) {
			t.Errorf("%s: %d bytes, %d told, %d tensors; want %d, %d", way, r.Bytes, seen, r.Tensors, size, len(tensors))
		}
		last := r.FirstByte
		var names []string
		for _, s := range r.Shards {
			if s.Begin < last || s.End < s.Begin || s.Bytes == 0 {
				t.Errorf("%s: %+v", way, s)
			}
			last = s.End
			names = append(names, s.Name)
		}
		if r.FirstByte < time.Hour || r.LastTensor < last {
			t.Errorf("%s: first byte %v, last tensor %v; the clock started an hour ago", way, r.FirstByte, r.LastTensor)
		}
		if want := []string{shardName(0, 3), shardName(1, 3), shardName(2, 3)}; !slices.Equal(names, want) {
			t.Errorf("%s: loaded in the order %q", way, names)
		}
	}
}

func TestLoadWithoutIndex(t *testing.T) {
	source := synthesized(t, 1<<20, ModelOptions{})
	for _, name := range []string{indexName, "tokenizer.json", "generation_config.json"} {
		if err := os.Remove(filepath.Join(source, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Rename(filepath.Join(source, shardName(0, 1)), filepath.Join(source, "model.safetensors")); err != nil {
		t.Fatal(err)
	}
	r, err := Load(t.Context(), copied(t, source), source, LoadOptions{})
	if err != nil || len(r.Shards) != 1 || r.Shards[0].Name != "model.safetensors" || r.Tensors != 27 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestLoadFindsEveryFlippedByte(t *testing.T) {
	source := synthesized(t, 2<<20, ModelOptions{Shards: 2})
	entries, err := os.ReadDir(source)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == "README.md" { // engines do not read it
			continue
		}
		mounted := copied(t, source)
		path := filepath.Join(mounted, e.Name())
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int{0, 9, len(b) / 2, len(b) - 1} {
			at = min(at, len(b)-1)
			b[at] ^= 1
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
			for way, o := range bothWays {
				r, err := Load(t.Context(), mounted, source, o)
				if err == nil || !strings.HasPrefix(err.Error(), "load model from "+mounted+": ") {
					t.Errorf("byte %d of %s flipped, by %s: %v", at, e.Name(), way, err)
				}
				if r.Bytes != 0 || r.Shards != nil {
					t.Errorf("byte %d of %s flipped, by %s: a result of %+v", at, e.Name(), way, r)
				}
			}
			b[at] ^= 1
		}
	}
}

func TestLoadNamesTheTensor(t *testing.T) {
	source := synthesized(t, 2<<20, ModelOptions{Shards: 1})
	mounted := copied(t, source)
	path := filepath.Join(mounted, shardName(0, 1))
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 0x80
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = Load(t.Context(), mounted, source, LoadOptions{})
	if err == nil || !strings.Contains(err.Error(), shardName(0, 1)+": tensor model.norm.weight: byte ") {
		t.Errorf("got %v", err)
	}
}

func TestLoadFails(t *testing.T) {
	source := synthesized(t, 2<<20, ModelOptions{Shards: 2})
	shard := shardName(1, 2)
	remove := func(name string) func(string) error {
		return func(dir string) error { return os.Remove(filepath.Join(dir, name)) }
	}
	tests := map[string]struct {
		spoil func(mounted string) error
		want  string
	}{
		"no configuration": {remove("config.json"), "config.json"},
		"no tokenizer":     {remove("tokenizer.json"), "tokenizer.json"},
		"no index":         {remove(indexName), indexName},
		"no shard":         {remove(shard), shard},
		"short shard": {func(dir string) error {
			return os.Truncate(filepath.Join(dir, shard), 1<<19)
		}, shard},
		"empty shard": {func(dir string) error {
			return os.Truncate(filepath.Join(dir, shard), 0)
		}, shard},
		"shards exchanged": {func(dir string) error {
			a, b := filepath.Join(dir, shardName(0, 2)), filepath.Join(dir, shard)
			return errors.Join(os.Rename(a, a+".tmp"), os.Rename(b, a), os.Rename(a+".tmp", b))
		}, "bytes, the source"},
		"another layout": {func(dir string) error {
			path := filepath.Join(dir, shard)
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			// The two have one shape, so the file stays a valid one.
			b = bytes.Replace(b, []byte("layers.1.mlp.gate_proj"), []byte("layers.1.mlp.swap_proj"), 1)
			return os.WriteFile(path, b, 0o644)
		}, "its header differs from the source's"},
	}
	for name, tt := range tests {
		mounted := copied(t, source)
		if err := tt.spoil(mounted); err != nil {
			t.Fatal(err)
		}
		for way, o := range bothWays {
			if _, err := Load(t.Context(), mounted, source, o); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s, by %s: %v", name, way, err)
			}
		}
	}
	if _, err := Load(t.Context(), source, t.TempDir(), LoadOptions{}); err == nil || !strings.Contains(err.Error(), "no such file in the source") {
		t.Errorf("no source: %v", err)
	}
	bare := copied(t, source)
	if err := errors.Join(remove(indexName)(bare), remove(shardName(0, 2))(bare), remove(shard)(bare)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(t.Context(), bare, bare, LoadOptions{}); err == nil || !strings.Contains(err.Error(), "no .safetensors file") {
		t.Errorf("no weights: %v", err)
	}
	if _, err := Load(t.Context(), t.TempDir(), source, LoadOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing mounted: %v", err)
	}
}

// A mapped page that cannot be had is SIGBUS, here because a file is cut short
// while it is being loaded.
func TestLoadOfAShrinkingFile(t *testing.T) {
	source := synthesized(t, 8<<20, ModelOptions{Shards: 1})
	for name, tt := range map[string]struct {
		o    LoadOptions
		cut  func(mounted, source string) string // which directory's file is cut
		want string
	}{
		"mount":          {LoadOptions{}, func(m, _ string) string { return m }, ": " + errFault.Error()},
		"mount, by read": {LoadOptions{Read: true}, func(m, _ string) string { return m }, ": EOF"},
		"source":         {LoadOptions{}, func(_, s string) string { return s }, "of the source: " + errFault.Error()},
	} {
		mounted, source := copied(t, source), copied(t, source)
		path := filepath.Join(tt.cut(mounted, source), shardName(0, 1))
		tt.o.Loaded = func(int64) {
			if err := os.Truncate(path, 1<<20); err != nil {
				t.Error(err)
			}
		}
		_, err := Load(t.Context(), mounted, source, tt.o)
		if err == nil || !strings.Contains(err.Error(), "tensor ") || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
}

// The same without the kernel's warning, as between MADV_POPULATE_READ and the touch.
func TestDifferenceSurvivesSIGBUS(t *testing.T) {
	dir := synthesized(t, 1<<20, ModelOptions{})
	path := filepath.Join(dir, shardName(0, 1))
	w, err := openWeights(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	intact := bytes.Clone(w.mapped)
	if i, err := difference(w.mapped, intact); i != -1 || err != nil {
		t.Fatalf("before: %d, %v", i, err)
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2][]byte{"first": {w.mapped, intact}, "second": {intact, w.mapped}} {
		if i, err := difference(pair[0], pair[1]); !errors.Is(err, errFault) {
			t.Errorf("%s is cut short: %d, %v", name, i, err)
		}
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("another panic was taken for a page fault")
			}
		}()
		difference(intact, nil)
	}()
}

// The same where a file system answers EIO, as a mount does for bytes it cannot verify.
func TestLoadFromAFailingMount(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Getuid() != 0 {
		t.Skip("needs root and /dev/fuse")
	}
	source := synthesized(t, 8<<20, ModelOptions{Shards: 1})
	dir := t.TempDir()
	h := newHerd(t)
	p := startChild(t, h, "mount", "failing mount", dir, source)
	line(t, p, "mounted")
	for way, o := range bothWays {
		var loaded int64
		o.Loaded = func(n int64) { loaded += n }
		_, err := Load(t.Context(), dir, source, o)
		want := map[string]error{"mmap": errFault, "read": syscall.EIO}[way]
		if !errors.Is(err, want) || loaded == 0 {
			t.Errorf("by %s: %v after %d bytes, want %v", way, err, loaded, want)
		}
	}
}

func TestLoadIsCancelled(t *testing.T) {
	source := synthesized(t, 8<<20, ModelOptions{Shards: 1})
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	_, err := Load(ctx, source, source, LoadOptions{Loaded: func(int64) { calls++; cancel() }})
	if !errors.Is(err, context.Canceled) || calls != 1 {
		t.Errorf("%v after %d steps", err, calls)
	}
}

func TestLoadMemoryIsConstant(t *testing.T) {
	source := synthesized(t, 128<<20, ModelOptions{Shards: 1})
	h := newHerd(t)
	p := startChild(t, h, "load", "load", source, source)
	line(t, p, "loaded ")
	if peak := p.Usage().PeakRSS; peak == 0 || peak > 64<<20 {
		t.Errorf("loading 128 MiB took %d MiB of memory", peak>>20)
	}
}

func BenchmarkLoad(b *testing.B) {
	const size = 256 << 20
	source := synthesized(b, size, ModelOptions{})
	mounted := copied(b, source)
	for _, way := range slices.Sorted(maps.Keys(bothWays)) {
		b.Run(way, func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				if _, err := Load(b.Context(), mounted, source, bothWays[way]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
