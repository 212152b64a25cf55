package cache

import (
	"os"
	"sync"
	"testing"

	"github.com/spate-project/spate/cache/piece"
)

const benchSize = 64 << 20

func benchObject(b *testing.B) (data []byte, tree *piece.Tree) {
	data = content(1, benchSize)
	return data, treeOf(b, data, piece.PieceLength(benchSize))
}

// BenchmarkObjectWrite fills a new object, including verification, as the mesh does.
func BenchmarkObjectWrite(b *testing.B) {
	data, tree := benchObject(b)
	for name, block := range map[string]int{"whole": 0, "blocks": 128 << 10} {
		b.Run(name, func(b *testing.B) {
			s := openStore(b, b.TempDir(), Options{})
			b.SetBytes(benchSize)
			for b.Loop() {
				src := &origin{data: data, block: block}
				src.into = openObject(b, s, tree, src)
				var wg sync.WaitGroup
				for w := range 2 {
					wg.Go(func() {
						for i := w; i < tree.Object().Pieces(); i += 2 {
							if err := src.Fetch(b.Context(), tree.Object().Digest, i); err != nil {
								b.Error(err)
							}
						}
					})
				}
				wg.Wait()
				b.StopTimer()
				src.into.Close()
				os.RemoveAll(s.objectPath(tree.Object().Digest))
				b.StartTimer()
			}
		})
	}
}

// BenchmarkObjectRead reads an object that is here, whole or but for its last
// piece, 128 KiB at a time as the kernel does, with and without reading ahead.
func BenchmarkObjectRead(b *testing.B) {
	data, tree := benchObject(b)
	buf := make([]byte, 128<<10)
	last := tree.Object().Pieces() - 1
	for name, lacks := range map[string]int{"whole": 0, "part": 1} {
		for ahead, limit := range map[string]int64{"plain": 0, "ahead": 8 << 20} {
			b.Run(name+"/"+ahead, func(b *testing.B) {
				o := openObject(b, openStore(b, b.TempDir(), Options{}), tree, &silent{asked: make(chan int, 1)})
				o.ReadAhead(limit)
				for i := range last + 1 - lacks {
					put(b, o, data, i)
				}
				end, _ := tree.Object().Span(last)
				b.SetBytes(end)
				for b.Loop() {
					for off := int64(0); off < end; off += int64(len(buf)) {
						if _, err := o.ReadContext(b.Context(), buf, off); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

// BenchmarkRecheck hashes what an earlier process left.
func BenchmarkRecheck(b *testing.B) {
	data, tree := benchObject(b)
	s := openStore(b, b.TempDir(), Options{})
	o := openObject(b, s, tree, nil)
	putAll(b, o, data)
	o.Close()
	b.SetBytes(benchSize)
	for b.Loop() {
		o := openObject(b, s, tree, nil)
		if err := o.Recheck(b.Context()); err != nil || !o.Complete() {
			b.Fatal("recheck:", err)
		}
		o.Close()
	}
}
