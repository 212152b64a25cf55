package registry

import "testing"

func TestUsage(t *testing.T) {
	c, reg, _ := serve(t, t.TempDir(), Options{})
	usage := func() Usage {
		t.Helper()
		u, err := reg.Store().Usage()
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if u := usage(); u != (Usage{}) {
		t.Errorf("an empty store: %+v", u)
	}
	a, b := noise(1, 1000), noise(2, 500)
	c.pushBlob("one", a)
	c.pushBlob("two", a)
	c.pushBlob("two", b)
	if u := usage(); u != (Usage{Blobs: 2, Bytes: 1500}) {
		t.Errorf("two blobs, one of them twice: %+v", u)
	}
}
