package agent

import (
	"slices"
	"strings"

	"github.com/spate-project/spate/cache"
)

// A Status says what a node has and does.
type Status struct {
	Node      string           `json:"node,omitempty"`     // its name in the mesh
	MeshAddr  string           `json:"meshAddr,omitempty"` // where peers reach it
	Artifacts []ArtifactStatus `json:"artifacts"`
	Cache     cache.Stats      `json:"cache"`
	Sent      int64            `json:"sentBytes"`     // over the node's link, all traffic
	Received  int64            `json:"receivedBytes"` // over the node's link, all traffic
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
}

// An ObjectStatus is one file of an artifact.
type ObjectStatus struct {
	Path    string `json:"path"`
	Digest  string `json:"digest"`
	Size    int64  `json:"size"`
	Present int64  `json:"presentBytes"`
	Peers   int    `json:"peers"` // connected now
}

// Status returns what the node has and does now.
func (a *Agent) Status() Status {
	s := Status{
		Artifacts: []ArtifactStatus{},
		Cache:     a.store.Stats(),
		Sent:      a.opts.Link.Sent(), Received: a.opts.Link.Received(),
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
		o := f.object.Tree().Object()
		present := min(o.Size, int64(f.object.Progress().Present)*o.PieceLength)
		ms, _ := a.mesh.Stats(o.Digest)
		st.Files = append(st.Files, ObjectStatus{
			Path: f.Path, Digest: o.Digest.String(), Size: o.Size, Present: present, Peers: ms.Peers,
		})
		st.Size += o.Size
		st.Present += present
		st.Origin += ms.OriginBytes
		st.Peers += ms.Received
		st.Served += ms.Sent
		st.Refused += ms.Refused
	}
	return st
}
