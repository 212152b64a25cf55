package torrent

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/anacrolix/torrent/bencode"
	"github.com/anacrolix/torrent/merkle"
	"github.com/anacrolix/torrent/metainfo"
	infohash_v2 "github.com/anacrolix/torrent/types/infohash-v2"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/p2p/p2ptest"
)

// TestInfo: the info dictionary and the info hash of an object never change.
// Nodes of different versions would not meet otherwise.
func TestInfo(t *testing.T) {
	o := piece.Object{Size: 5<<20 + 7, PieceLength: piece.MinLength}
	for i := range o.Digest {
		o.Digest[i], o.Root[i] = byte(i), 'A'+byte(i)
	}
	got, err := infoOf(o)
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "info.golden")
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("the info dictionary is\n%q\nand not, as in %s,\n%q", got, golden, want)
	}
	hash := infohash_v2.HashBytes(got)
	if got, want := hash.HexString(), "4aea84ff71e918d2875634dd361c7e15ec48e44369470e4e353fb8222964eb3e"; got != want {
		t.Errorf("the info hash is %s, want %s", got, want)
	}
}

// TestBEP52 checks our dictionary, root and piece layer against the engine's own parser and hashes.
func TestBEP52(t *testing.T) {
	const leaf = piece.LeafSize
	for _, size := range []int64{
		1, leaf, leaf + 1, 3 * leaf, piece.MinLength, piece.MinLength + 1, 3*piece.MinLength - leaf, 5*piece.MinLength + 12345, 16 * piece.MinLength,
	} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			data := p2ptest.Bytes(size, 3)
			tree := p2ptest.Tree(data)
			o := tree.Object()
			b, err := infoOf(o)
			if err != nil {
				t.Fatal(err)
			}

			var info metainfo.Info
			if err := bencode.Unmarshal(b, &info); err != nil {
				t.Fatal(err)
			}
			files := info.UpvertedFiles()
			if !info.HasV2() || info.HasV1() || info.BestName() != o.Digest.Hex() || info.PieceLength != o.PieceLength ||
				info.TotalLength() != size || info.NumPieces() != o.Pieces() || len(files) != 1 || [32]byte(files[0].PiecesRoot.Unwrap()) != o.Root {
				t.Errorf("parsed as %+v", info)
			}

			whole := merkle.NewHash()
			whole.Write(data)
			if root := whole.Sum(nil); string(root) != string(o.Root[:]) {
				t.Errorf("root %s, want %x", o.Root, root)
			}
			layers := map[string]string{}
			if layer := tree.Layer(); layer != nil {
				layers[string(o.Root[:])] = string(layer)
			}
			if err := metainfo.ValidatePieceLayers(layers, &info.FileTree, info.PieceLength); err != nil {
				t.Error(err)
			}
			for i := range o.Pieces() {
				off, n := o.Span(i)
				h := merkle.NewHash()
				h.Write(data[off : off+n])
				want := h.Sum(nil)
				if o.Pieces() > 1 {
					want = h.SumMinLength(nil, int(o.PieceLength))
				}
				if got := tree.Hash(i); string(got[:]) != string(want) {
					t.Errorf("piece %d has hash %x, want %x", i, got, want)
				}
			}
		})
	}
}

// TestPeerAddr: the address that stands for a name is a unique local one, and each name has its own.
func TestPeerAddr(t *testing.T) {
	seen := make(map[string]string)
	for _, name := range []string{"", "a", "b", "node-1", "node-10", "A"} {
		a := peerAddr(name)
		addr := a.String()
		if other, ok := seen[addr]; ok {
			t.Errorf("%q and %q have the same address", name, other)
		}
		seen[addr] = name
		if nameAt(a) != name {
			t.Errorf("%q is known as %q", name, nameAt(a))
		}
	}
	h := sha256.Sum256([]byte("node-1"))
	if want := fmt.Sprintf("[fd%02x:", h[0]); peerAddr("node-1").String()[:6] != want {
		t.Errorf("%s does not begin with %s", peerAddr("node-1"), want)
	}
}
