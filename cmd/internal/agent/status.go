package agent

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spate-project/spate/cache"
)

// A Status says what a node has and does.
type Status struct {
	Time      time.Time        `json:"time"`               // on the node's clock
	Node      string           `json:"node,omitempty"`     // its name in the mesh
	MeshAddr  string           `json:"meshAddr,omitempty"` // where peers reach it
	Artifacts []ArtifactStatus `json:"artifacts"`
	Layers    []LayerStatus    `json:"layers,omitempty"` // of containerd's images
	Warm      []WarmStatus     `json:"warm,omitempty"`   // the warm sets of the node's pool
	Bans      []BanStatus      `json:"bans"`
	Cache     cache.Stats      `json:"cache"`
	Sent      int64            `json:"sentBytes"`     // over the node's link, all traffic
	Received  int64            `json:"receivedBytes"` // over the node's link, all traffic

	// LinkRate is what the node could receive, in bytes a second: its limit,
	// else the most that it has received in one second so far; 0 when that is nothing.
	LinkRate int64 `json:"linkRate"`
}

// An ArtifactStatus is one reference that a node has open. Bytes are of pieces.
type ArtifactStatus struct {
	Reference string         `json:"reference"`
	Digest    string         `json:"digest"` // of the manifest
	Mounts    []string       `json:"mounts"`
	Files     []ObjectStatus `json:"files"`

	Size    int64 `json:"size"`
	Present int64 `json:"presentBytes"` // verified
	Origin  int64 `json:"originBytes"`  // read from the registry
	Peers   int64 `json:"peerBytes"`    // read from peers
	Served  int64 `json:"servedBytes"`  // sent to peers
	Refused int64 `json:"refusedPieces"`
	Wasted  int64 `json:"wastedBlocks"` // from peers, that were there already
}

// An ObjectStatus is one file of an artifact, and its swarm. Bytes are of pieces.
type ObjectStatus struct {
	Path    string `json:"path"`
	Digest  string `json:"digest"`
	Size    int64  `json:"size"`
	Present int64  `json:"presentBytes"`
	Peers   int    `json:"peers"` // connected now

	Pieces    int   `json:"pieces"`
	Held      int   `json:"heldPieces"`    // verified
	Drawing   int64 `json:"drawingPieces"` // that this node reads from the registry now, on behalf of all
	Origin    int64 `json:"originBytes"`   // read from the registry
	FromPeers int64 `json:"peerBytes"`     // read from peers
	Served    int64 `json:"servedBytes"`   // sent to peers
	Refused   int64 `json:"refusedPieces"`
	Wasted    int64 `json:"wastedBlocks"` // from peers, that were there already
}

// A LayerStatus is a layer of an image in containerd's store.
type LayerStatus struct {
	Image  string `json:"image,omitempty"`
	Layer  string `json:"layer,omitempty"`  // digest of the blob
	Path   string `json:"path"`             // how it is read: lazy-file, lazy-loop, unpacked; empty while it cannot be
	Reason string `json:"reason,omitempty"` // why it is unpacked
	Held   int64  `json:"heldBytes"`        // on this disk
}

// layers returns the layers in containerd's store.
func (a *Agent) layers() []LayerStatus {
	if a.snapshotter == nil {
		return nil
	}
	list, err := a.snapshotter.List(context.Background())
	if err != nil {
		a.log.Error("list the layers of images", "err", err)
	}
	var layers []LayerStatus
	for _, l := range list {
		if l.ChainID != "" {
			layers = append(layers, LayerStatus{l.Image, l.Layer, string(l.Path), string(l.Reason), l.Held})
		}
	}
	return layers
}

// A BanStatus is a peer that the node has nothing to do with for a while.
type BanStatus struct {
	Peer   string    `json:"peer"`
	Reason string    `json:"reason"`
	Until  time.Time `json:"until"`
}

// Status returns what the node has and does now.
func (a *Agent) Status() Status {
	s := Status{
		Time:      time.Now(),
		Artifacts: []ArtifactStatus{},
		Layers:    a.layers(),
		Warm:      a.warmth.status(),
		Bans:      a.bans(),
		Cache:     a.store.Stats(),
		Sent:      a.opts.Link.Sent(), Received: a.opts.Link.Received(),
		LinkRate: a.linkRate(),
	}
	if a.peers != nil {
		s.Node, s.MeshAddr = a.opts.Identity.Name(), a.peers.Addr()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, art := range a.artifacts {
		s.Artifacts = append(s.Artifacts, a.artifactStatus(art))
	}
	slices.SortFunc(s.Artifacts, func(x, y ArtifactStatus) int { return strings.Compare(x.Reference, y.Reference) })
	return s
}

func (a *Agent) artifactStatus(art *artifact) ArtifactStatus {
	st := ArtifactStatus{Reference: art.reference, Digest: art.digest, Mounts: []string{}}
	for dir, m := range a.mounts {
		if m.artifact == art {
			st.Mounts = append(st.Mounts, dir)
		}
	}
	slices.Sort(st.Mounts)
	for _, f := range art.files {
		st.Files = append(st.Files, a.objectStatus(f))
		o := &st.Files[len(st.Files)-1]
		st.Size += o.Size
		st.Present += o.Present
		st.Origin += o.Origin
		st.Peers += o.FromPeers
		st.Served += o.Served
		st.Refused += o.Refused
		st.Wasted += o.Wasted
	}
	return st
}

func (a *Agent) objectStatus(f file) ObjectStatus {
	o, p := f.object.Tree().Object(), f.object.Progress()
	ms, _ := a.mesh.Stats(o.Digest)
	return ObjectStatus{
		Path: f.Path, Digest: o.Digest.String(), Size: o.Size,
		Present: presentBytes(f.object),
		Peers:   ms.Peers,
		Pieces:  p.Total, Held: p.Present, Drawing: ms.Drawing,
		Origin: ms.OriginBytes, FromPeers: ms.Received, Served: ms.Sent, Refused: ms.Refused, Wasted: ms.Wasted,
	}
}

// presentBytes returns how many of an object's bytes are verified and here, as whole pieces.
func presentBytes(object *cache.Object) int64 {
	o := object.Tree().Object()
	return min(o.Size, int64(object.Progress().Present)*o.PieceLength)
}

// bans returns whom the node has banned, in the order in which they end.
func (a *Agent) bans() []BanStatus {
	bans := []BanStatus{}
	if a.peers != nil {
		for _, b := range a.peers.Bans() {
			bans = append(bans, BanStatus(b))
		}
	}
	return bans
}
