package image

import (
	"slices"
	"testing"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content/memory"
)

func TestPrograms(t *testing.T) {
	store := memory.New()
	for name, tt := range map[string]struct {
		config string
		want   []string
	}{
		"an entrypoint":       {`{"Entrypoint":["/usr/bin/../bin/server","--all"],"Cmd":["serve"]}`, []string{"/usr/bin/server"}},
		"a command":           {`{"Cmd":["./run","x"],"WorkingDir":"/app"}`, []string{"/app/run"}},
		"in the PATH":         {`{"Entrypoint":["python"],"Env":["A=B","PATH=/opt/bin:bin::/usr/bin"]}`, []string{"/opt/bin/python", "/usr/bin/python"}},
		"no PATH":             {`{"Cmd":["sh"]}`, []string{"/usr/local/sbin/sh", "/usr/local/bin/sh", "/usr/sbin/sh", "/usr/bin/sh", "/sbin/sh", "/bin/sh"}},
		"no program":          {`{}`, nil},
		"an empty program":    {`{"Cmd":[""]}`, nil},
		"out of the root":     {`{"Cmd":["../../server"],"WorkingDir":"/app"}`, []string{"/server"}},
		"relative to nowhere": {`{"Cmd":["bin/server"]}`, []string{"/bin/server"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := ocispec.Manifest{
				Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
				Config: pushBytes(t, store, ocispec.MediaTypeImageConfig, []byte(`{"config":`+tt.config+`}`)),
			}
			got, err := Programs(t.Context(), store, marshal(t, m))
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("Programs: %q, %v; want %q", got, err, tt.want)
			}
		})
	}
	for name, config := range map[string]string{"no JSON": `{"config":`, "no command": `{"config":{"Cmd":"sh"}}`} {
		m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, Config: pushBytes(t, store, ocispec.MediaTypeImageConfig, []byte(config))}
		if _, err := Programs(t.Context(), store, marshal(t, m)); err == nil {
			t.Errorf("%s has a program", name)
		}
	}
}
