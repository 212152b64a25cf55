package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Retention says what a collection keeps although nothing leads to it, and which
// tags it takes away.
type Retention struct {
	// Grace is how long anything is kept after it was pushed or looked for; it has
	// to be longer than the longest push.
	Grace time.Duration

	// Untagged is how long a manifest without a tag is kept after its push; 0 is for
	// ever. A referrer whose subject is not here is kept for Grace.
	Untagged time.Duration

	// Tags take tags away. The first rule that matches a tag is the one that counts.
	Tags []TagRule
}

// A TagRule takes away the tags that it matches, but for the Keep newest of a
// repository and those that are not older than Age. Patterns are path.Match's:
// a * ends at a slash. A tag is as old as its last push.
type TagRule struct {
	Repository, Tag string
	Keep            int
	Age             time.Duration
}

// ParseTagRule reads REPOSITORY:TAG followed by keep=N, age=DURATION or both, as
// in "team/*:pr-* keep=10 age=720h".
func ParseTagRule(s string) (TagRule, error) {
	fields := strings.Fields(s)
	if len(fields) < 2 {
		return TagRule{}, fmt.Errorf("%q is not REPOSITORY:TAG with keep=N or age=DURATION", s)
	}
	var r TagRule
	var ok bool
	r.Repository, r.Tag, ok = strings.Cut(fields[0], ":")
	if _, err := path.Match(r.Repository, ""); !ok || err != nil || r.Repository == "" {
		return TagRule{}, fmt.Errorf("%q is not REPOSITORY:TAG, two patterns", fields[0])
	}
	if _, err := path.Match(r.Tag, ""); err != nil || r.Tag == "" {
		return TagRule{}, fmt.Errorf("%q is not REPOSITORY:TAG, two patterns", fields[0])
	}
	seen := map[string]bool{}
	for _, f := range fields[1:] {
		key, value, _ := strings.Cut(f, "=")
		var err error
		switch key {
		case "keep":
			if r.Keep, err = strconv.Atoi(value); err == nil && r.Keep < 0 {
				err = errors.New("negative")
			}
		case "age":
			if r.Age, err = time.ParseDuration(value); err == nil && r.Age < 0 {
				err = errors.New("negative")
			}
		default:
			err = errors.New("unknown")
		}
		if err != nil || seen[key] {
			return TagRule{}, fmt.Errorf("%q of %q is neither keep=N, a number of tags, nor age=DURATION, as in 720h; each once", f, s)
		}
		seen[key] = true
	}
	return r, nil
}

// String returns what ParseTagRule reads.
func (r TagRule) String() string {
	return fmt.Sprintf("%s:%s keep=%d age=%s", r.Repository, r.Tag, r.Keep, r.Age)
}

func (r TagRule) matches(repo, tag string) bool {
	inRepo, _ := path.Match(r.Repository, repo)
	named, _ := path.Match(r.Tag, tag)
	return inRepo && named
}

// expireTags takes away the tags that the rules do not keep, and returns them.
func (c *collection) expireTags(repo string) (map[string]bool, error) {
	if !slices.ContainsFunc(c.keep.Tags, func(r TagRule) bool { ok, _ := path.Match(r.Repository, repo); return ok }) {
		return nil, nil
	}
	entries, err := c.store.list(repository(repo, "_tags"))
	if err != nil {
		return nil, err
	}
	type tag struct {
		name   string
		pushed time.Time
	}
	byRule := make([][]tag, len(c.keep.Tags))
	for _, e := range entries {
		i := slices.IndexFunc(c.keep.Tags, func(r TagRule) bool { return r.matches(repo, e.Name()) })
		if i < 0 {
			continue
		}
		if fi, err := e.Info(); err == nil {
			byRule[i] = append(byRule[i], tag{e.Name(), fi.ModTime()})
		}
	}
	expired := map[string]bool{}
	for i, tags := range byRule {
		rule := c.keep.Tags[i]
		slices.SortFunc(tags, func(a, b tag) int { return b.pushed.Compare(a.pushed) })
		for _, t := range tags[min(rule.Keep, len(tags)):] {
			if c.now.Sub(t.pushed) < rule.Age {
				continue
			}
			gone, err := c.expireTag(repo, t.name, t.pushed)
			if err != nil {
				return nil, err
			}
			if gone {
				expired[t.name] = true
				c.Tags++
			}
		}
	}
	return expired, nil
}

// expireTag removes a tag unless it was pushed again meanwhile.
func (c *collection) expireTag(repo, tag string, pushed time.Time) (bool, error) {
	c.store.names.Lock()
	defer c.store.names.Unlock()
	fi, err := c.store.root.Stat(tagPath(repo, tag))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || !fi.ModTime().Equal(pushed) {
		return false, err
	}
	if c.dry {
		return true, nil
	}
	return true, c.store.remove(tagPath(repo, tag))
}
