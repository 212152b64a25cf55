package torrent

import (
	"fmt"
	"net"
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
	got, err := infoOf(p2ptest.Tree(p2ptest.Bytes(5*piece.MinLength+7, 1)))
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
	if got, want := hash.HexString(), "3a116da7c7a9487ac994e4a8df73ba38a1983b233b61e9f5646521de8e19f568"; got != want {
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
			b, err := infoOf(tree)
			if err != nil {
				t.Fatal(err)
			}

			var info metainfo.Info
			if err := bencode.Unmarshal(b, &info); err != nil {
				t.Fatal(err)
			}
			files := info.UpvertedFiles()
			if !info.HasV2() || len(info.Pieces) != o.Pieces()*metainfo.HashSize || info.BestName() != o.Digest.Hex() || info.PieceLength != o.PieceLength ||
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
				if got := info.Piece(i).V1Hash().Unwrap(); string(got[:]) != string(want[:metainfo.HashSize]) {
					t.Errorf("piece %d has hash %s in the dictionary, want the beginning of %x", i, got, want)
				}
			}
		})
	}
}

// TestPeerAddr: a name stands for itself, and is nothing that the engine could take for an IP address.
func TestPeerAddr(t *testing.T) {
	for _, name := range []string{"a", "node-1", "node-1.example", "A_b", "10-0-0-1.example"} {
		a := peerAddr(name)
		if nameAt(a) != name {
			t.Errorf("%q is known as %q", name, nameAt(a))
		}
		if host, port, err := net.SplitHostPort(a.String()); err == nil {
			t.Errorf("%q is taken for host %q and port %q", name, host, port)
		}
	}
}
