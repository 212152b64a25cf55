package placement

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/spate-project/spate/cache/piece"
	"github.com/spate-project/spate/oci/registry"
	"github.com/spate-project/spate/prefetch/orders"
)

// A site is a registry with an image of two layers and nodes that hold all, a
// half and nothing of it.
func newSite(t testing.TB) *httptest.Server {
	t.Helper()
	reg, err := registry.Open(t.TempDir(), registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	board, err := orders.Open(t.TempDir(), orders.Options{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/v2/", reg)
	h := Handler(board, reg.Store())
	for _, path := range []string{Path, FilterPath, PrioritizePath} {
		mux.Handle(path, h)
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(func() {
		srv.Close()
		if err := reg.Close(); err != nil {
			t.Error(err)
		}
	})
	push := func(method, path string, body []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := srv.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
	}
	layers := [][]byte{bytes.Repeat([]byte("a"), 300), bytes.Repeat([]byte("b"), 100)}
	config := fmt.Appendf(nil, `{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[%q,%q]}}`,
		digest.FromBytes(layers[0]), digest.FromBytes(layers[1]))
	list := ""
	var held []orders.Held
	for _, b := range append(layers, config) {
		push("POST", "/v2/qwen/blobs/uploads/?digest="+digest.FromBytes(b).String(), b)
	}
	for i, b := range layers {
		list += fmt.Sprintf(`%s{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}`, strings.Repeat(",", min(i, 1)), digest.FromBytes(b), len(b))
		d, err := piece.ParseDigest(digest.FromBytes(b).String())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, orders.Held{Digest: d, Bytes: int64(len(b)), Size: int64(len(b))})
	}
	push("PUT", "/v2/qwen/manifests/v1", fmt.Appendf(nil,
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[%s]}`,
		digest.FromBytes(config), len(config), list))
	half := held[0]
	half.Bytes = 200
	for node, objects := range map[string][]orders.Held{"node-a": held, "node-b": {half}, "node-c": {}} {
		if _, err := board.Report(t.Context(), orders.Report{Node: node, Stock: &orders.Stock{Objects: objects}}); err != nil {
			t.Fatal(err)
		}
	}
	return srv
}

func ask(t testing.TB, srv *httptest.Server, method, path string, body []byte) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, b
}

func recorded(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPlacement(t *testing.T) {
	srv := newSite(t)
	status, b := ask(t, srv, "GET", Path+"?ref=registry.example:5000/qwen:v1", nil)
	var p Placement
	if err := json.Unmarshal(b, &p); err != nil || status != 200 || len(p.Nodes) != 3 {
		t.Fatalf("%d %s, %v", status, b, err)
	}
	for i, want := range []orders.Place{
		{Node: "node-a", Have: 400, Total: 400, Share: 1, Free: -1}, {Node: "node-b", Have: 200, Total: 400, Share: 0.5, Free: -1}, {Node: "node-c", Total: 400, Free: -1},
	} {
		if p.Nodes[i] != want {
			t.Errorf("place %d is %+v, want %+v", i, p.Nodes[i], want)
		}
	}
	for query, want := range map[string]int{
		"?ref=h/qwen:v2": 404, "?ref=h/none:v1": 404, "?ref=": 400, "?ref=qwen": 400, "": 400, "?ref=h/" + strings.Repeat("a", maxReference): 400,
		"?ref=h/../../etc:v1": 400, "?ref=h/qwen@" + digest.FromString("x").String(): 404,
	} {
		if status, b := ask(t, srv, "GET", Path+query, nil); status != want || !bytes.Contains(b, []byte(`"error"`)) {
			t.Errorf("%s: %d %s, want %d", query, status, b, want)
		}
	}
}

// TestExtender answers requests in the form of extender/v1: with node names, and
// with whole nodes. They were written by hand after its types.
func TestExtender(t *testing.T) {
	srv := newSite(t)
	for _, c := range []struct{ path, request, want string }{
		{PrioritizePath, string(recorded(t, "names.json")), `[{"Host":"node-a","Score":10},{"Host":"node-b","Score":5},{"Host":"node-c","Score":0}]`},
		{FilterPath, string(recorded(t, "names.json")), `{"NodeNames":["node-a","node-b","node-c"]}`},
		{PrioritizePath, string(recorded(t, "nodes.json")), `[{"Host":"node-a","Score":10},{"Host":"node-b","Score":5},{"Host":"node-c","Score":0}]`},
		{FilterPath, string(recorded(t, "nodes.json")), `{"Nodes":{"items":[` +
			`{"metadata":{"name":"node-a","labels":{"kubernetes.io/hostname":"node-a"}},"spec":{"podCIDR":"10.244.0.0/24"},"status":{"capacity":{"cpu":"8"}}},` +
			`{"metadata":{"name":"node-b"},"spec":{},"status":{}}]},` +
			`"FailedNodes":{"node-c":"it holds 0 % of what the pod reads, and dev.spate.least-share asks for 50 %"}}`},
		// Nodes that have never told anything, and pods that read nothing from here.
		{PrioritizePath, `{"Pod":{"spec":{"containers":[{"image":"h/qwen:v1"}]}},"NodeNames":["stranger","node-b"]}`, `[{"Host":"stranger","Score":0},{"Host":"node-b","Score":5}]`},
		{FilterPath, `{"Pod":{"metadata":{"annotations":{"dev.spate.least-share":"1"}},"spec":{"containers":[{"image":"elsewhere/x"}]}},"NodeNames":["stranger"]}`, `{"NodeNames":["stranger"]}`},
		{PrioritizePath, `{"Pod":{},"NodeNames":[]}`, `[]`},
		{FilterPath, `{"pod":{},"nodenames":["x"]}`, `{"NodeNames":["x"]}`}, // whose types have tags
		{FilterPath, `{"Pod":{"metadata":{"annotations":{"dev.spate.least-share":"half"}}},"NodeNames":["x"]}`,
			`{"Error":"annotation dev.spate.least-share: \"half\" is not a share from 0 to 1"}`},
	} {
		status, b := ask(t, srv, "POST", c.path, []byte(c.request))
		if got := strings.TrimSpace(string(b)); status != 200 || got != c.want {
			t.Errorf("%s %s:\n%d %s, want\n%s", c.path, c.request, status, got, c.want)
		}
	}
	if status, b := ask(t, srv, "POST", PrioritizePath, []byte("{")); status != 400 {
		t.Errorf("half a request: %d %s", status, b)
	}
	if status, b := ask(t, srv, "POST", FilterPath, []byte("{")); status != 200 || !bytes.Contains(b, []byte(`"Error":"read the scheduler's request`)) {
		t.Errorf("half a request: %d %s", status, b)
	}
}

func FuzzExtender(f *testing.F) {
	f.Add(recorded(f, "names.json"))
	f.Add(recorded(f, "nodes.json"))
	srv := newSite(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, path := range []string{FilterPath, PrioritizePath} {
			r := httptest.NewRequest("POST", path, bytes.NewReader(b))
			w := httptest.NewRecorder()
			srv.Config.Handler.ServeHTTP(w, r)
			if w.Code != 200 && w.Code != 400 {
				t.Errorf("%s: status %d", path, w.Code)
			}
		}
	})
}
