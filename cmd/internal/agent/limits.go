package agent

// Limits are the node's bandwidth limits in bytes a second; 0 is none. A byte
// passes when every limit that is on its way lets it.
type Limits struct {
	Up       int64 `json:"up"`       // everything that the node sends
	Down     int64 `json:"down"`     // everything that it receives
	Seeding  int64 `json:"seeding"`  // what it sends to peers
	Prefetch int64 `json:"prefetch"` // pieces that it fetches in the background
	Demand   int64 `json:"demand"`   // pieces that readers wait for, and what is read ahead of them
}

// A LimitChange says which limits become what; nil leaves one as it is.
type LimitChange struct {
	Up       *int64 `json:"up,omitempty"`
	Down     *int64 `json:"down,omitempty"`
	Seeding  *int64 `json:"seeding,omitempty"`
	Prefetch *int64 `json:"prefetch,omitempty"`
	Demand   *int64 `json:"demand,omitempty"`
}

// Limits returns the limits that hold now.
func (a *Agent) Limits() (l Limits) {
	l.Up, l.Down = a.opts.Link.Limits()
	l.Seeding, _ = a.seeding.Limits()
	l.Prefetch, l.Demand = a.mesh.Limits()
	return l
}

// SetLimits changes limits and returns those that hold then. They hold at once,
// for what is under way too, and until the agent ends.
func (a *Agent) SetLimits(change LimitChange) Limits {
	a.limiting.Lock()
	defer a.limiting.Unlock()
	l := a.Limits()
	for _, c := range []struct{ limit, to *int64 }{
		{&l.Up, change.Up}, {&l.Down, change.Down},
		{&l.Seeding, change.Seeding}, {&l.Prefetch, change.Prefetch}, {&l.Demand, change.Demand},
	} {
		if c.to != nil {
			*c.limit = *c.to
		}
	}
	a.opts.Link.SetLimits(l.Up, l.Down)
	a.seeding.SetLimits(l.Seeding, 0)
	a.mesh.SetLimits(l.Prefetch, l.Demand)
	return a.Limits()
}
