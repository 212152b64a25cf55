package orders

// Stats are what a Board knows now.
type Stats struct {
	Orders map[State]int    // every State has its number
	Nodes  int              // that are connected
	Parts  map[Standing]int // nodes' parts in active orders, of nodes that have told; every Standing has its number
	Have   int64            // bytes that the nodes hold of active orders, verified
	Total  int64            // and that they are to hold
}

// Stats returns what the board knows now. It looks at every node's part in every active order.
func (b *Board) Stats() Stats {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := Stats{
		Orders: map[State]int{Active: 0, Done: 0, Late: 0, Refused: 0, Cancelled: 0},
		Parts:  map[Standing]int{Waiting: 0, Fetching: 0, Failing: 0, Denied: 0, Ready: 0},
	}
	for _, n := range b.nodes {
		if b.connected(n) {
			st.Nodes++
		}
	}
	for _, o := range b.orders {
		st.Orders[o.State]++
		if o.State != Active {
			continue
		}
		for _, p := range o.progress {
			st.Parts[p.State]++
			st.Have += p.Have
			st.Total += p.Total
		}
	}
	return st
}
