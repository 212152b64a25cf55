package orders

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestHours(t *testing.T) {
	at := func(clock string) time.Time {
		c, err := time.Parse("15:04", clock)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, test := range []struct {
		hours   Hours
		in, out string
	}{
		{"", "00:00 12:00 23:59", ""},
		{"09:00-17:30", "09:00 12:00 17:29", "08:59 17:30 00:00"},
		{"22:00-06:00", "22:00 23:59 00:00 05:59", "06:00 21:59 12:00"},
		{"00:00-00:01", "00:00", "00:01 23:59"},
	} {
		if err := test.hours.check(); err != nil {
			t.Error(err)
		}
		for _, clock := range strings.Fields(test.in) {
			if !test.hours.Has(at(clock)) {
				t.Errorf("%s is not in %q", clock, test.hours)
			}
		}
		for _, clock := range strings.Fields(test.out) {
			if test.hours.Has(at(clock)) {
				t.Errorf("%s is in %q", clock, test.hours)
			}
		}
	}
	for _, bad := range []Hours{"22:00", "22:00-6:00", "22:00-24:00", "22:60-23:00", "22:00 06:00", "22:00-06:00 ", "-", "06:00-06:00", "22:00-06:00-07:00"} {
		if bad.check() == nil {
			t.Errorf("%q are hours", bad)
		}
	}
}

// TestPlanChecked: what no node could carry out no board accepts.
func TestPlanChecked(t *testing.T) {
	for want, change := range map[string]func(*Request){
		"no order of fetching":      func(r *Request) { r.Plan.Order = "full" },
		"only the order model":      func(r *Request) { r.Plan = Plan{TP: 2} },
		"which only the order":      func(r *Request) { r.Plan = Plan{Order: OrderTrace, Rank: 1} },
		"there is no rank 2":        func(r *Request) { r.Plan = Plan{Order: OrderModel, TP: 2, Rank: 2} },
		"there is no rank -1":       func(r *Request) { r.Plan = Plan{Order: OrderModel, Rank: -1} },
		"less than none":            func(r *Request) { r.Rate = -1 },
		"not written as":            func(r *Request) { r.Between = "night" },
		"not for both":              func(r *Request) { r.NodeNames = []string{"a"} },
		"3 of 2 nodes can never be": func(r *Request) { r.Pool, r.NodeNames, r.Ready = "", []string{"a", "b"}, 3 },
		`"a" is not after "b"`:      func(r *Request) { r.Pool, r.NodeNames = "", []string{"b", "a"} },
		`"a" is not after "a"`:      func(r *Request) { r.Pool, r.NodeNames = "", []string{"a", "a"} },
		"node name \"\"":            func(r *Request) { r.Pool, r.NodeNames = "", []string{""} },
		"at most 1024 are accepted": func(r *Request) { r.Pool, r.NodeNames = "", make([]string, MaxNodes+1) },
	} {
		r := request(1, time.Minute)
		change(&r)
		if err := r.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	r := request(1, time.Minute)
	r.Plan, r.Rate, r.Between = Plan{Order: OrderModel, TP: 2, PP: 2, Rank: 3}, 1, "22:00-06:00"
	if err := r.Check(); err != nil {
		t.Error(err)
	}
}

// TestPlanned: what an order says of the plan nodes are told and the order is kept
// with; it makes another order of it. One that says nothing is the order that it always was.
func TestPlanned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		b := openBoard(t, dir)
		plain := place(t, b, request(1, time.Minute))
		if plain.ID != "0a891e5fa994bade" {
			t.Errorf("an order for everything is %s", plain.ID)
		}
		r := request(1, time.Minute)
		r.Plan, r.Rate, r.Between = Plan{Order: OrderModel, PP: 4}, 1<<20, "22:00-06:00"
		v := place(t, b, r)
		if v.ID == plain.ID {
			t.Error("a plan makes no other order")
		}
		for range 2 {
			w := report(t, b, "a")
			if len(w.Tasks) != 2 {
				t.Fatalf("%+v", w)
			}
			for _, task := range w.Tasks {
				if task.Order == v.ID && (task.Plan != r.Plan || task.Rate != r.Rate || task.Between != r.Between) ||
					task.Order == plain.ID && (task.Plan != Plan{} || task.Rate != 0 || task.Between != "") {
					t.Errorf("%+v", task)
				}
			}
			b = openBoard(t, dir)
		}
	})
}

// TestNodeNames: an order for nodes by name is for those, whether they are
// connected or not and whatever their labels, and for no others.
func TestNodeNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openBoard(t, t.TempDir())
		report(t, b, "other")
		v := place(t, b, Request{References: []string{someRef}, NodeNames: []string{"a", "b"}, Deadline: 60})
		if v.Need != 2 || fmt.Sprint(v.Members) != "[a b]" || len(v.Nodes) != 2 || v.Nodes[0].Connected {
			t.Fatalf("%+v", v)
		}
		if w := report(t, b, "other"); len(w.Tasks) != 0 {
			t.Errorf("a node that is not named is given %+v", w)
		}
		if w, err := b.Report(t.Context(), Report{Node: "a"}); err != nil || len(w.Tasks) != 1 {
			t.Errorf("a named node without labels is given %+v, %v", w, err)
		}
		report(t, b, "a", at(v, Ready))
		report(t, b, "other", at(v, Ready))
		if v := view(t, b, v.ID); v.State != Active || v.Holding != 1 || len(v.Nodes) != 2 {
			t.Errorf("%+v", v)
		}
		report(t, b, "b", at(v, Ready))
		if v := view(t, b, v.ID); v.State != Done {
			t.Errorf("%+v", v)
		}
	})
}
