package piece

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestPieceLength(t *testing.T) {
	for _, test := range []struct{ size, want int64 }{
		{0, MinLength}, {1, MinLength}, {4 << 30, MinLength}, {4<<30 + 1, 2 * MinLength},
		{64 << 30, 4 << 20}, {145e9, 16 << 20}, {MaxSize, MaxLength}, {1 << 62, MaxLength},
	} {
		if got := PieceLength(test.size); got != test.want {
			t.Errorf("PieceLength(%d) = %d, want %d", test.size, got, test.want)
		}
		o := Object{Size: test.size, PieceLength: PieceLength(test.size)}
		if err := o.Check(); test.size <= MaxSize && (err != nil || o.Pieces() > TargetPieces) {
			t.Errorf("%d bytes: %d pieces, %v", test.size, o.Pieces(), err)
		}
	}
}

func TestSpanAndRange(t *testing.T) {
	o := Object{Size: 2*LeafSize + 10, PieceLength: LeafSize}
	for i, want := range [][2]int64{{0, LeafSize}, {LeafSize, LeafSize}, {2 * LeafSize, 10}} {
		if off, n := o.Span(i); off != want[0] || n != want[1] {
			t.Errorf("Span(%d) = %d, %d", i, off, n)
		}
	}
	for _, test := range []struct {
		off, n      int64
		first, last int
	}{
		{0, 1, 0, 1}, {0, LeafSize, 0, 1}, {0, LeafSize + 1, 0, 2}, {LeafSize - 1, 2, 0, 2},
		{LeafSize, LeafSize, 1, 2}, {2*LeafSize + 9, 1, 2, 3}, {0, 1 << 62, 0, 3}, {1, 1<<63 - 1, 0, 3},
		{0, 0, 0, 0}, {0, -1, 0, 0}, {-1, 5, 0, 0}, {2*LeafSize + 10, 1, 0, 0}, {1 << 62, 1, 0, 0},
	} {
		if first, last := o.Range(test.off, test.n); first != test.first || last != test.last {
			t.Errorf("Range(%d, %d) = %d, %d", test.off, test.n, first, last)
		}
	}
	for _, i := range []int{-1, 3} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Span(%d) did not panic", i)
				}
			}()
			o.Span(i)
		}()
	}
}

func TestDigestHasOneSpelling(t *testing.T) {
	hexed := strings.Repeat("0a", 32)
	d, err := ParseDigest("sha256:" + hexed)
	if err != nil || d.String() != "sha256:"+hexed || d.Hex() != hexed {
		t.Fatalf("%v, %v", d, err)
	}
	r, err := ParseRoot(hexed)
	if err != nil || r.String() != hexed {
		t.Fatalf("%v, %v", r, err)
	}
	for _, s := range []string{
		"", hexed, "sha256:", "sha512:" + hexed, "SHA256:" + hexed, "sha256:" + strings.ToUpper(hexed),
		"sha256:" + hexed[1:], "sha256:" + hexed + "0", "sha256:" + hexed[:63] + "g", "sha256:" + hexed + "\n", " sha256:" + hexed,
	} {
		if _, err := ParseDigest(s); err == nil {
			t.Errorf("ParseDigest(%q) passed", s)
		}
		if _, err := ParseRoot(strings.TrimPrefix(s, "sha256:")); err == nil && s != hexed {
			t.Errorf("ParseRoot of %q passed", s)
		}
	}
}

func TestObjectJSON(t *testing.T) {
	tree, o, _ := refTree(t, content(2*LeafSize), LeafSize)
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var again Object
	if err := json.Unmarshal(b, &again); err != nil || again != tree.Object() {
		t.Fatalf("%s: %+v, %v", b, again, err)
	}
	for _, s := range []string{`{"digest":"md5:00"}`, `{"root":"00"}`, `{"digest":7}`} {
		if err := json.Unmarshal([]byte(s), &again); err == nil {
			t.Errorf("%s passed", s)
		}
	}
}

func FuzzParseDigest(f *testing.F) {
	f.Add("sha256:" + strings.Repeat("0a", 32))
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := ParseDigest(s); err == nil && d.String() != s {
			t.Errorf("%q and %q name one digest", s, d)
		}
	})
}
