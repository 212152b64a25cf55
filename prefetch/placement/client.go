package placement

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// maxAnswer bounds what Ask reads, in bytes.
const maxAnswer = 16 << 20

// ErrNoPlacement says that whoever answers at an address ranks no nodes.
var ErrNoPlacement = errors.New("no nodes are ranked there: it is not `spate registry`")

// Ask asks the registry at the base URL to rank the nodes of a pool, all where it
// is empty, for a reference, those of zone first among equals. ctx governs all of
// it. Errors hold no credential.
func Ask(ctx context.Context, hc *http.Client, base, reference, pool, zone string) (p Placement, err error) {
	ask := strings.TrimSuffix(base, "/") + Path + "?" + url.Values{"ref": {reference}, "pool": {pool}, "zone": {zone}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, ask, nil)
	if err != nil {
		return p, errors.New("the registry's address is not a URL") // and may hold a password
	}
	resp, err := hc.Do(req)
	if err != nil {
		return p, fmt.Errorf("ask the registry for a placement: %w", err)
	}
	defer resp.Body.Close()
	answer := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer))
	if resp.StatusCode != http.StatusOK {
		var f struct {
			Error string `json:"error"`
		}
		if answer.Decode(&f) == nil && f.Error != "" {
			return p, errors.New(f.Error)
		}
		return p, fmt.Errorf("%s answers %s: %w", req.URL.Redacted(), resp.Status, ErrNoPlacement)
	}
	return p, answer.Decode(&p)
}
