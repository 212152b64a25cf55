package access

import (
	"errors"
	"fmt"
	"slices"

	"sigs.k8s.io/yaml"

	"github.com/spate-project/spate/oci"
	"github.com/spate-project/spate/oci/registry"
)

// Rules say who may do what: whatever one of them allows.
type Rules []Rule

// A Rule lets users do actions in repositories.
type Rule struct {
	Repositories []oci.Pattern `json:"repositories"`

	// Users are names, * for everybody who is logged in, or anonymous for
	// everybody.
	Users []string `json:"users"`

	Actions []registry.Action `json:"actions"` // pull, push, delete
}

// anonymous is what rules call whoever is not logged in.
const anonymous = "anonymous"

// allUsers is what holds without rules.
var allUsers = Rules{{
	Repositories: []oci.Pattern{"**"}, Users: []string{"*"},
	Actions: []registry.Action{registry.Pull, registry.Push, registry.Delete},
}}

// ParseRules reads YAML:
//
//	rules:
//	- repositories: [public/**]
//	  users: [anonymous]
//	  actions: [pull]
//	- repositories: [team/**]
//	  users: [alice, ci]
//	  actions: [pull, push]
func ParseRules(b []byte) (Rules, error) {
	var doc struct {
		Rules Rules `json:"rules"`
	}
	if err := yaml.UnmarshalStrict(b, &doc); err != nil {
		return nil, err
	}
	if len(doc.Rules) == 0 {
		return nil, errors.New("it has no rules: nobody could do anything")
	}
	for i, r := range doc.Rules {
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("rule %d: %w", i+1, err)
		}
	}
	return doc.Rules, nil
}

func (r Rule) check() error {
	switch {
	case len(r.Repositories) == 0:
		return errors.New("it names no repositories")
	case len(r.Users) == 0:
		return errors.New("it names no users")
	case len(r.Actions) == 0:
		return errors.New("it names no actions")
	}
	for _, p := range r.Repositories {
		if err := p.Check(); err != nil {
			return err
		}
	}
	for _, a := range r.Actions {
		if a != registry.Pull && a != registry.Push && a != registry.Delete {
			return fmt.Errorf("%q is no action: there are pull, push and delete", a)
		}
	}
	return nil
}

// allow reports whether user, empty for whoever is not logged in, may do action
// in repo; an empty repo is any one.
func (r Rules) allow(user, repo string, action registry.Action) bool {
	return slices.ContainsFunc(r, func(r Rule) bool {
		return slices.ContainsFunc(r.Users, func(u string) bool { return u == anonymous || user != "" && (u == "*" || u == user) }) &&
			(repo == "" || slices.Contains(r.Actions, action) && slices.ContainsFunc(r.Repositories, func(p oci.Pattern) bool { return p.Matches(repo) }))
	})
}
