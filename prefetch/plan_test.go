package prefetch

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/spate-project/spate/cache/piece"
)

// object returns an object of 16 KiB pieces.
func object(name byte, size int64) piece.Object {
	return piece.Object{Digest: piece.Digest{name}, Size: size, PieceLength: piece.LeafSize}
}

func TestPieces(t *testing.T) {
	const k = piece.LeafSize
	a, b := object('a', 4*k+1), object('b', k)
	p := Plan{
		{a.Digest, 3*k - 1, 2},    // both sides of an edge
		{b.Digest, 0, 1},          //
		{piece.Digest{'?'}, 0, k}, // no object
		{a.Digest, 0, 4*k + 1},    // all of it
		{a.Digest, 4 * k, 9 * k},  // past the end
		{b.Digest, k, 1},          // behind the end
	}
	walk := func(objects ...piece.Object) string {
		var got []string
		for d, i := range p.Pieces(objects...) {
			got = append(got, fmt.Sprintf("%c%d", d[0], i))
		}
		return strings.Join(got, " ")
	}
	for want, got := range map[string]string{
		"a2 a3 b0 a0 a1 a4": walk(b, a),
		"a2 a3 a0 a1 a4":    walk(a),
		"":                  walk(),
	} {
		if got != want {
			t.Errorf("pieces %q, want %q", got, want)
		}
	}
	for d, i := range p.Pieces(a, b) { // whoever has enough stops
		if d != a.Digest || i != 2 {
			t.Errorf("piece %d of %s is first", i, d)
		}
		break
	}
}

func TestPresent(t *testing.T) {
	const k = piece.LeafSize
	a, b := object('a', 3*k+5), object('b', 2*k)
	p := Plan{{a.Digest, k - 10, k + 20}, {a.Digest, 3*k + 1, 4}, {b.Digest, 0, 2 * k}}
	here := map[string]bool{}
	has := func(d piece.Digest, i int) bool { return here[fmt.Sprintf("%c%d", d[0], i)] }
	for _, step := range []struct {
		piece string
		want  int64
	}{
		{"none", 0}, {"a0", 10}, {"a2", 20}, {"a3", 24}, {"a1", 24 + k}, {"b1", 24 + 2*k}, {"b0", p.Bytes()},
	} {
		here[step.piece] = true
		if got := p.Present(has, a, b); got != step.want {
			t.Errorf("with %s there are %d bytes, want %d", step.piece, got, step.want)
		}
	}
	if got := p.Present(has, b); got != 2*k {
		t.Errorf("of b there are %d bytes", got)
	}
}

func TestPlanJSON(t *testing.T) {
	p := Plan{{piece.Digest{1}, 5, 7}, {piece.Digest{2}, 0, piece.MaxSize}}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var again Plan
	if err := json.Unmarshal(b, &again); err != nil || fmt.Sprint(again) != fmt.Sprint(p) {
		t.Fatalf("%s: %v, %v", b, again, err)
	}
	if p.Bytes() != 7+piece.MaxSize {
		t.Errorf("it has %d bytes", p.Bytes())
	}
	for _, text := range []string{
		`{}`, `[{"object":"md5:00","offset":0,"length":1}]`, `[{"offset":-1,"length":1}]`, `[{"offset":0,"length":0}]`,
		`[{"offset":0,"length":-1}]`, `[{"offset":1,"length":1099511627776}]`, `[{"offset":9223372036854775807,"length":9223372036854775807}]`,
	} {
		if err := json.Unmarshal([]byte(text), &again); err == nil {
			t.Errorf("%s is accepted", text)
		}
	}
}

func FuzzPlanJSON(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(`[{"object":%q,"offset":1,"length":16384},{"object":%q,"offset":0,"length":1}]`, piece.Digest{'a'}, piece.Digest{'b'})))
	f.Fuzz(func(t *testing.T, text []byte) {
		var p Plan
		if json.Unmarshal(text, &p) != nil {
			return
		}
		a, b := object('a', 3*piece.LeafSize), object('b', 1)
		pieces := 0
		for range p.Pieces(a, b) {
			pieces++
		}
		all := p.Present(func(piece.Digest, int) bool { return true }, a, b)
		if pieces > a.Pieces()+b.Pieces() || all < 0 || all > p.Bytes() {
			t.Fatalf("%d pieces, %d of %d bytes", pieces, all, p.Bytes())
		}
	})
}
