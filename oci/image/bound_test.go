package image

import (
	"context"
	"errors"
	"strings"
	"testing"

	"oras.land/oras-go/v2/content/memory"
)

// What expands too far is refused before it fills the disk, and leaves nothing.
func TestMaxExpanded(t *testing.T) {
	zeros := make([]byte, freeExpansion+1) // a thousandth of it when compressed
	bomb := []part{gzipPart(t, archive(t, map[string][]byte{"zeros": zeros}))}
	zstdBomb := []part{zstdPart(t, archive(t, map[string][]byte{"zeros": zeros}))}
	many := []part{
		gzipPart(t, archive(t, map[string][]byte{"a": noise(1, 300_000)})),
		zstdPart(t, archive(t, map[string][]byte{"b": noise(2, 300_000)})),
		tarPart(archive(t, map[string][]byte{"c": noise(3, 3_000_000)})), // is as large as it is
	}
	for name, tt := range map[string]struct {
		parts []part
		most  int64
		want  string // in the error; none when empty
	}{
		"a gzip bomb":             {bomb, 1 << 40, "it expands to more than 67108864 bytes"},
		"a zstd bomb":             {zstdBomb, 1 << 40, "it expands to more than 67108864 bytes"},
		"a bomb without a bound":  {bomb, 0, ""},
		"layers within the bound": {many, 700_000, ""},
		"layers beyond it":        {many, 500_000, "the image's layers expand to more than 500000 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			repo := open(t, nil)
			m := pushImage(t, repo, tt.parts...)
			dir := t.TempDir()
			_, err := Build(t.Context(), repo, m, Options{Dir: dir, MaxExpanded: tt.most, Concurrency: 1})
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("Build: %v, want %q", err, tt.want)
			}
			checkNothing(t, repo, m, dir)
		})
	}
}

// A large layer may expand further than a small one, by what its blob's size says.
func TestBounded(t *testing.T) {
	for _, tt := range []struct{ most, blob, want int64 }{
		{0, 1, 1 << 40}, {1 << 50, 1, freeExpansion}, {1 << 50, 1 << 20, 100 << 20}, {1 << 50, 1 << 62, 1 << 40},
	} {
		b := &builder{opts: Options{MaxExpanded: tt.most}}
		if got := b.bounded(nil, tt.blob).(*boundedReader).most; got != tt.want {
			t.Errorf("with a bound of %d a blob of %d bytes may expand to %d, want %d", tt.most, tt.blob, got, tt.want)
		}
	}
}

// ctx ends the second half of a layer too, where a store does not look at it.
func TestBuildCancelledExpanded(t *testing.T) {
	store := memory.New()
	m := pushImage(t, store, gzipPart(t, archive(t, map[string][]byte{"a": noise(1, 3<<20)})))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Build(ctx, store, m, Options{Dir: t.TempDir(), Progress: func(e Event) {
		if e.Step == Advanced && e.Done == e.Size {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("Build: %v", err)
	}
}
