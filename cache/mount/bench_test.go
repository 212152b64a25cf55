package mount

import (
	"io"
	"os"
	"strconv"
	"testing"
)

const benchSize = 128 << 20

// BenchmarkMountRead reads a file of 128 MiB, 1 MiB at a time:
//
//	direct       from the cache's own file
//	cold         nothing is in the cache: pieces come from memory, are verified, written and read back
//	cached       all is in the cache, nothing in the kernel's page cache of the mount
//	warm         all is in the page cache of the mount
//	passthrough  all is in the cache and the kernel reads it by itself
func BenchmarkMountRead(b *testing.B) {
	data := content(1, benchSize)
	full := (&origin{data: data}).open(b, patient)
	if err := full.into.Ensure(b.Context(), 0, benchSize); err != nil {
		b.Fatal(err)
	}
	entry := Entry{Path: "f", File: full.into}

	b.Run("direct", func(b *testing.B) {
		readFile(b, full.into.File().Name())
	})
	for _, ahead := range []int64{128 << 10, 1 << 20, 4 << 20} {
		opts := Options{ReadAhead: ahead, NoPassthrough: true}
		name := "/ahead=" + strconv.Itoa(int(ahead>>10)) + "KiB"
		b.Run("cold"+name, func(b *testing.B) {
			b.SetBytes(benchSize)
			for b.Loop() {
				b.StopTimer()
				src := (&origin{data: data}).open(b, patient)
				m := mountAt(b, opts, Entry{Path: "f", File: src.into})
				b.StartTimer()
				readOnce(b, m.path("f"))
				b.StopTimer()
				m.stop()
				<-m.done
				os.RemoveAll(src.into.File().Name())
				b.StartTimer()
			}
		})
		b.Run("cached"+name, func(b *testing.B) {
			b.SetBytes(benchSize)
			for b.Loop() {
				b.StopTimer()
				m := mountAt(b, opts, entry)
				b.StartTimer()
				readOnce(b, m.path("f"))
				b.StopTimer()
				m.stop()
				<-m.done
				b.StartTimer()
			}
		})
	}
	b.Run("warm", func(b *testing.B) {
		m := mountAt(b, Options{NoPassthrough: true}, entry)
		readOnce(b, m.path("f"))
		readFile(b, m.path("f"))
	})
	b.Run("passthrough", func(b *testing.B) {
		m := mountAt(b, Options{}, entry)
		readFile(b, m.path("f"))
	})
}

// BenchmarkMountRead4K reads 4 KiB at random places, warm.
func BenchmarkMountRead4K(b *testing.B) {
	src := (&origin{data: content(1, benchSize)}).open(b, patient)
	if err := src.into.Ensure(b.Context(), 0, benchSize); err != nil {
		b.Fatal(err)
	}
	for name, opts := range map[string]Options{"passthrough": {}, "warm": {NoPassthrough: true}} {
		b.Run(name, func(b *testing.B) {
			m := mountAt(b, opts, Entry{Path: "f", File: src.into})
			readOnce(b, m.path("f"))
			f, err := os.Open(m.path("f"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			buf := make([]byte, 4096)
			i := int64(0)
			for b.Loop() {
				i = (i*1103515245 + 12345) % (benchSize / 4096)
				if _, err := f.ReadAt(buf, i*4096); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func readFile(b *testing.B, path string) {
	b.SetBytes(benchSize)
	for b.Loop() {
		readOnce(b, path)
	}
}

func readOnce(b *testing.B, path string) {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, make([]byte, 1<<20))
	if err != nil || n != benchSize {
		b.Fatal(n, err)
	}
}
