package mirror

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
)

// pass answers with what the origin says: that it is a registry, or a list of
// tags or referrers. Lists have no digest, so nothing in them is known to be true.
func (m *Mirror) pass(w *recorder, req *http.Request, o *origin, rt route) error {
	rest := ""
	if rt.what != ping {
		rest = rt.rest()
	}
	query := req.URL.Query()
	query.Del("ns")
	if len(query) > 0 {
		rest += "?" + query.Encode()
	}
	resp, err := o.ask(req.Context(), req.Method, rest, http.Header{"Accept": req.Header.Values("Accept")})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	maps.Copy(w.Header(), passable(resp.Header))
	if link := nextPage(resp.Header.Get("Link"), req.URL); link != "" {
		w.Header().Set("Link", link)
	}
	w.WriteHeader(resp.StatusCode)
	if req.Method == http.MethodHead {
		return nil
	}
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("list the %s of %s: %w", rt.what, o.repository, err)
	}
	return nil
}

// nextPage rewrites a Link field of the origin's (RFC 8288) so that the next page
// is asked of the mirror too: the path that was asked for, with the link's query and
// the same ns. It is empty when there is no next page.
func nextPage(link string, asked *url.URL) string {
	target, params, ok := strings.Cut(strings.TrimPrefix(link, "<"), ">")
	if !ok || !strings.HasPrefix(link, "<") || !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
		return ""
	}
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	query := u.Query()
	query.Del("ns")
	if ns := asked.Query().Get("ns"); ns != "" {
		query.Set("ns", ns)
	}
	next := url.URL{Path: asked.Path, RawQuery: query.Encode()}
	return "<" + next.String() + `>; rel="next"`
}
