package registry

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
)

// A kind is what a path names.
type kind int

const (
	kindPing      kind = iota // /v2/
	kindBlob                  // /v2/<name>/blobs/<digest>
	kindUploads               // /v2/<name>/blobs/uploads/
	kindUpload                // /v2/<name>/blobs/uploads/<id>
	kindManifest              // /v2/<name>/manifests/<tag or digest>
	kindTags                  // /v2/<name>/tags/list
	kindReferrers             // /v2/<name>/referrers/<digest>
)

// A route is a parsed path. A name matches the specification's grammar, a
// digest is valid, a tag matches its grammar, an id is any one path element.
type route struct {
	kind   kind
	name   string
	digest digest.Digest // blobs, referrers, manifests by digest
	tag    string        // manifests by tag
	id     string        // an upload
}

// The grammars of the distribution specification.
var (
	nameGrammar = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagGrammar  = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
)

// maxName is the longest repository name: many clients stop at 255 characters,
// and it lets each element be a file name.
const maxName = 255

// parseRoute reads a path from its end, since a repository may be called "blobs" or "tags/list".
func parseRoute(path string) (route, error) {
	if path == "/v2" || path == "/v2/" {
		return route{kind: kindPing}, nil
	}
	unknown := fail(http.StatusNotFound, codeUnsupported, fmt.Errorf("%q is no path of the registry", path))
	rest, ok := strings.CutPrefix(path, "/v2/")
	if !ok {
		return route{}, unknown
	}
	elements := strings.Split(rest, "/")
	n := len(elements)
	if n < 3 {
		return route{}, unknown
	}
	last, name := elements[n-1], elements[:n-2]

	rt := route{}
	var err error
	switch elements[n-2] {
	case "uploads":
		if n < 4 || elements[n-3] != "blobs" {
			return route{}, unknown
		}
		name = elements[:n-3]
		rt.kind, rt.id = kindUpload, last
		if last == "" {
			rt.kind = kindUploads
		}
	case "blobs":
		rt.kind = kindBlob
		rt.digest, err = parseDigest(last)
	case "referrers":
		rt.kind = kindReferrers
		rt.digest, err = parseDigest(last)
	case "manifests":
		rt.kind = kindManifest
		if strings.Contains(last, ":") {
			rt.digest, err = parseDigest(last)
		} else {
			rt.tag, err = parseTag(last)
		}
	case "tags":
		if last != "list" {
			return route{}, unknown
		}
		rt.kind = kindTags
	default:
		return route{}, unknown
	}
	if err != nil {
		return route{}, err
	}
	rt.name, err = parseName(strings.Join(name, "/"))
	return rt, err
}

func parseName(s string) (string, error) {
	if len(s) > maxName || !nameGrammar.MatchString(s) {
		return "", fail(http.StatusBadRequest, codeNameInvalid,
			fmt.Errorf("%q is no repository name: want at most %d characters matching %s", s, maxName, nameGrammar))
	}
	return s, nil
}

func parseTag(s string) (string, error) {
	if !tagGrammar.MatchString(s) {
		return "", fail(http.StatusBadRequest, codeManifestInvalid,
			fmt.Errorf("%q is neither a digest nor a tag: a tag matches %s", s, tagGrammar))
	}
	return s, nil
}

func parseDigest(s string) (digest.Digest, error) {
	d, err := digest.Parse(s)
	if err != nil {
		return "", fail(http.StatusBadRequest, codeDigestInvalid, fmt.Errorf("parse digest %q: %v", s, err))
	}
	return d, nil
}
