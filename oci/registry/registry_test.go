package registry

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestPathsAndMethods(t *testing.T) {
	c, _, _ := serve(t, t.TempDir(), Options{})
	const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for _, tt := range []struct {
		method, path string
		status       int
		code, allow  string
	}{
		{"GET", "/v2/", 200, "", ""},
		{"GET", "/v2", 200, "", ""},
		{"HEAD", "/v2/", 200, "", ""},
		{"POST", "/v2/", 405, codeUnsupported, "GET, HEAD"},
		{"GET", "/", 404, codeUnsupported, ""},
		{"GET", "/v1/", 404, codeUnsupported, ""},
		{"GET", "/v2/a", 404, codeUnsupported, ""},
		{"GET", "/v2/a/b/c/d", 404, codeUnsupported, ""},
		{"GET", "/v2/manifests/latest", 404, codeUnsupported, ""},
		{"GET", "/v2/blobs/uploads/x", 404, codeUnsupported, ""},
		{"GET", "/v2/a/tags/lists", 404, codeUnsupported, ""},
		{"GET", "/v2/a/manifests/latest", 404, codeManifestUnknown, ""},
		{"GET", "/v2/a/manifests/" + digest, 404, codeManifestUnknown, ""},
		{"GET", "/v2/a/blobs/" + digest, 404, codeBlobUnknown, ""},
		{"GET", "/v2/a/blobs/sha256:", 400, codeDigestInvalid, ""},
		{"GET", "/v2/a/blobs/uploads", 400, codeDigestInvalid, ""},
		{"GET", "/v2/a/blobs/uploads/x", 404, codeUploadUnknown, ""},
		{"GET", "/v2/a/blobs/uploads/", 405, codeUnsupported, "POST"},
		{"POST", "/v2/a/blobs/" + digest, 405, codeUnsupported, "DELETE, GET, HEAD"},
		{"PATCH", "/v2/a/manifests/latest", 405, codeUnsupported, "DELETE, GET, HEAD, PUT"},
		{"PUT", "/v2/a/tags/list", 405, codeUnsupported, "GET"},
		{"DELETE", "/v2/a/referrers/" + digest, 405, codeUnsupported, "GET"},
		{"GET", "/v2/A/tags/list", 400, codeNameInvalid, ""},
		{"GET", "/v2/a//b/tags/list", 400, codeNameInvalid, ""},
		{"GET", "/v2/a/../b/tags/list", 400, codeNameInvalid, ""},
		{"GET", "/v2/_blobs/tags/list", 400, codeNameInvalid, ""},
		{"GET", "/v2/a-/tags/list", 400, codeNameInvalid, ""},
		{"GET", "/v2/a___b/tags/list", 400, codeNameInvalid, ""},
		{"GET", "/v2/a%00/tags/list", 400, codeNameInvalid, ""},
		{"GET", "/v2/" + strings.Repeat("a", 256) + "/tags/list", 400, codeNameInvalid, ""},
		{"GET", "/v2/" + strings.Repeat("a", 255) + "/tags/list", 404, codeNameUnknown, ""},
		{"GET", "/v2/a.b_c__d--e/0/tags/list", 404, codeNameUnknown, ""},
		{"GET", "/v2/blobs/uploads/tags/list/tags/list", 404, codeNameUnknown, ""},
	} {
		r := c.want(tt.status, tt.method, tt.path, nil)
		if r.code() != tt.code || r.header.Get("Allow") != tt.allow {
			t.Errorf("%s %s: code %q, Allow %q; want %q, %q", tt.method, tt.path, r.code(), r.header.Get("Allow"), tt.code, tt.allow)
		}
		if tt.code != "" && r.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: the error is %s", tt.method, tt.path, r.header.Get("Content-Type"))
		}
	}
}

// One line a request, and nothing in it that a header or a query carried.
func TestLog(t *testing.T) {
	var log bytes.Buffer
	handler := slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})
	c, _, stop := serve(t, t.TempDir(), Options{Logger: slog.New(handler)})
	c.pushBlob("r", []byte("hello"))
	c.do("GET", "/v2/r/tags/list?n=x&secret=hunter2", nil, "Authorization", "Basic aHVudGVyMg==")
	stop()

	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != 2 {
		t.Fatalf("log:\n%s", &log)
	}
	for i, want := range [][]string{
		{"level=DEBUG", "method=POST", "path=/v2/r/blobs/uploads/", "status=201", "bytes=0"},
		{"level=DEBUG", "method=GET", "path=/v2/r/tags/list", "status=400", "error="},
	} {
		for _, w := range want {
			if !strings.Contains(lines[i], w) {
				t.Errorf("line %q lacks %q", lines[i], w)
			}
		}
	}
	if strings.Contains(log.String(), "hunter2") || strings.Contains(log.String(), "aHVudGVy") {
		t.Errorf("the log tells too much:\n%s", &log)
	}
}

func TestRunSweepsAndEnds(t *testing.T) {
	c, reg, _ := serve(t, t.TempDir(), Options{UploadExpiry: time.Nanosecond})
	loc := c.begin("r")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- reg.Run(ctx) }()
	for c.do("GET", loc, nil).status != http.StatusNotFound {
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
