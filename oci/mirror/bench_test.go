package mirror

import (
	"io"
	"net/http"
	"testing"

	"github.com/opencontainers/go-digest"
)

// BenchmarkBlob reads a blob through the mirror, from the mesh and from the
// origin, and for comparison from the registry itself.
func BenchmarkBlob(b *testing.B) {
	layer := random(64 << 20)
	for _, name := range []string{"mesh", "origin", "registry"} {
		b.Run(name, func(b *testing.B) {
			w := newBench(b, nil)
			img := w.image("v1", layer)
			w.sign(img.desc)
			if name == "mesh" {
				w.mesh.hold(layer)
			}
			if a := w.get("manifests/v1"); a.status != 200 {
				b.Fatalf("%s", a.body)
			}
			url := w.url + "/v2/team/app/blobs/" + digest.FromBytes(layer).String() + "?ns=" + w.host
			if name == "registry" {
				url = w.server.URL + "/v2/team/app/blobs/" + digest.FromBytes(layer).String()
			}
			client := &http.Client{Transport: &http.Transport{DisableCompression: true}}
			defer client.CloseIdleConnections()
			b.SetBytes(int64(len(layer)))
			for b.Loop() {
				resp, err := client.Get(url)
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, resp.Body); n != int64(len(layer)) || err != nil {
					b.Fatal(n, err)
				}
				resp.Body.Close()
			}
		})
	}
}
