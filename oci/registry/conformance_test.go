package registry

import (
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The conformance suite of the distribution specification, with no failure, in
// the released version and in the one being written. What it skips is the mount
// without "from", which this registry refuses on purpose.
func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("builds a program")
	}
	program := filepath.Join(t.TempDir(), "conformance")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "github.com/opencontainers/distribution-spec/conformance")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the conformance suite: %v\n%s", err, out)
	}
	for _, version := range []string{"1.1", "dev"} {
		t.Run(version, func(t *testing.T) {
			c, _, _ := serve(t, t.TempDir(), Options{})
			results := t.TempDir()
			cmd := exec.CommandContext(t.Context(), program)
			cmd.Dir = results
			cmd.Env = append(os.Environ(), "OCI_REGISTRY="+strings.TrimPrefix(c.base, "http://"),
				"OCI_TLS=disabled", "OCI_VERSION="+version, "OCI_RESULTS_DIR="+results)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v", err)
			}

			var junit struct {
				Tests    int `xml:"tests,attr"`
				Failures int `xml:"failures,attr"`
				Errors   int `xml:"errors,attr"`
				Cases    []struct {
					Name   string `xml:"name,attr"`
					Status string `xml:"status,attr"`
					Out    string `xml:"system-out"`
				} `xml:"testsuite>testcase"`
			}
			b, err := os.ReadFile(filepath.Join(results, "junit.xml"))
			if err == nil {
				err = xml.Unmarshal(b, &junit)
			}
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, tc := range junit.Cases {
				switch {
				case tc.Status == "passed":
				case tc.Status == "skipped" && (tc.Out == "" || strings.HasSuffix(tc.Name, "/blob-mount-anonymous")):
				default:
					t.Errorf("%s: %s: %s", tc.Name, tc.Status, tc.Out)
				}
			}
			if junit.Failures > 0 || junit.Errors > 0 || junit.Tests < 800 {
				t.Errorf("%d tests, %d failures, %d errors", junit.Tests, junit.Failures, junit.Errors)
			}
		})
	}
}
