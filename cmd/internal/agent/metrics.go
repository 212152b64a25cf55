package agent

import (
	"github.com/spate-project/spate/cache"
	"github.com/spate-project/spate/cmd/internal/telemetry"
	"github.com/spate-project/spate/oci/mirror"
	"github.com/spate-project/spate/oci/snapshot"
	"github.com/spate-project/spate/p2p"
)

// counts are what an agent's metrics are read from.
type counts struct {
	cache          cache.Stats
	mesh           p2p.Totals
	sent, received int64 // over the link
	limits         Limits
	linkRate       int64
	replayed       int64
	warm           []WarmStatus
	admitted       int64
	refused        int64
	artifacts      int
	mounts         int
	bans           int
	layers         snapshot.Stats
	mirror         mirror.Stats
	blobs          map[mirror.Reason]int64
}

func (a *Agent) counts() counts {
	c := counts{
		cache: a.store.Stats(), mesh: a.mesh.Totals(),
		sent: a.opts.Link.Sent(), received: a.opts.Link.Received(),
		limits: a.Limits(), linkRate: a.linkRate(), bans: len(a.bans()), replayed: a.replayed.Load(), warm: a.warmth.status(),
		mirror: a.mirror.Stats(), blobs: a.mirror.Blobs(),
	}
	c.admitted, c.refused = a.opts.Policy.Decisions()
	if a.snapshotter != nil {
		c.layers = a.snapshotter.Stats()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c.artifacts, c.mounts = len(a.artifacts), len(a.mounts)
	return c
}

// stallBounds returns the buckets of reads that wait, in seconds: a piece of
// 256 KiB takes 2 ms at 1 Gbit/s, and a read gives up after two minutes.
func stallBounds() []float64 {
	return []float64{.002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120}
}

// families are an agent's metrics. No label holds a reference, a digest or a
// peer: how many series there are does not depend on what a node does.
func families() []telemetry.Family[counts] {
	type values = telemetry.Values
	sources := func(peer, origin int64) values {
		return values{p2p.FromPeer: float64(peer), p2p.FromOrigin: float64(origin)}
	}
	return []telemetry.Family[counts]{
		// Where pieces come from and go to.
		telemetry.By("spate_received_bytes_total", "Bytes of pieces received from peers and read from the registry.", "source",
			func(c counts) values { return sources(c.mesh.Received, c.mesh.OriginBytes) }),
		telemetry.One("spate_sent_bytes_total", "Bytes of pieces sent to peers.",
			func(c counts) int64 { return c.mesh.Sent }),
		telemetry.By("spate_pieces_verified_total", "Pieces that were received and match their root.", "source",
			func(c counts) values { return sources(c.mesh.Verified, c.mesh.OriginPieces) }),
		telemetry.By("spate_pieces_rejected_total", "Pieces that were received and do not match their root.", "source",
			func(c counts) values { return sources(c.mesh.Refused, c.mesh.OriginWrong) }),
		telemetry.One("spate_wasted_blocks_total", "Blocks received from peers that were here already.",
			func(c counts) int64 { return c.mesh.Wasted }),

		// Readers. The histogram spate_read_stall_duration_seconds stands beside these.
		telemetry.By("spate_read_pieces_total", "Pieces wanted by reads: hit if they were here, miss if the read had to wait.", "result",
			func(c counts) values {
				return values{"hit": float64(c.cache.Hits), "miss": float64(c.cache.Misses)}
			}),
		telemetry.One("spate_read_stall_seconds_total", "Time that reads waited for absent pieces, of all reads that wait no more.",
			func(c counts) float64 { return c.cache.StallSeconds }),
		telemetry.One("spate_trace_replayed_bytes_total", "Bytes of pieces that came while a trace was replayed that names them.",
			func(c counts) int64 { return c.replayed }),
		telemetry.One("spate_reads_waiting", "Reads that wait for absent pieces now.",
			func(c counts) int64 { return c.cache.Waiting }),

		telemetry.By("spate_policy_decisions_total", "References that were held against the policy, by what it said.", "outcome",
			func(c counts) values { return values{"admitted": float64(c.admitted), "refused": float64(c.refused)} }),

		// The mesh.
		telemetry.One("spate_swarms", "Swarms that this node is in.",
			func(c counts) int { return c.mesh.Swarms }),
		telemetry.One("spate_mesh_objects", "Objects that this node fetches or shares.",
			func(c counts) int { return c.mesh.Objects }),
		telemetry.One("spate_peer_connections", "Connections to peers, of all swarms.",
			func(c counts) int { return c.mesh.Peers }),
		telemetry.One("spate_banned_peers", "Peers that are banned now.",
			func(c counts) int { return c.bans }),
		telemetry.One("spate_leased_pieces", "Pieces that this node reads from the registry now, on behalf of all.",
			func(c counts) int64 { return c.mesh.Drawing }),
		telemetry.By("spate_leases_ended_total", "Pieces leased to this node: drawn from the registry and verified, or given back.", "outcome",
			func(c counts) values {
				return values{"drawn": float64(c.mesh.OriginPieces), "returned": float64(c.mesh.Returned)}
			}),

		// Images.
		telemetry.By("spate_layers_total", "Layers of images by how they became readable: mounted as lazy-file or lazy-loop, unpacked by containerd, refused by the policy.", "path",
			func(c counts) values {
				v := values{string(snapshot.Unpacked): 0, "refused": float64(c.layers.Refused)}
				for _, path := range []snapshot.Path{snapshot.LazyFile, snapshot.LazyLoop} {
					v[string(path)] = float64(c.layers.Mounted[path])
				}
				for _, n := range c.layers.Unpacked {
					v[string(snapshot.Unpacked)] += float64(n)
				}
				return v
			}),
		telemetry.By("spate_layers_unpacked_total", "Layers of images that containerd was left to unpack, by why.", "reason",
			func(c counts) values {
				v := values{}
				for _, r := range snapshot.Reasons() {
					v[string(r)] = float64(c.layers.Unpacked[r])
				}
				return v
			}),
		telemetry.One("spate_layers_lost_total", "Layers of images that could not be opened again after a restart.",
			func(c counts) int64 { return c.layers.NotRestored }),
		telemetry.By("spate_mirror_answers_total", "Answers of the mirror by where they came from.", "source",
			func(c counts) values {
				return values{
					"origin": float64(c.mirror.Origin.Answers), "mesh": float64(c.mirror.Mesh.Answers), "memory": float64(c.mirror.Memory.Answers),
					"denied": float64(c.mirror.Denied.Answers), "failed": float64(c.mirror.Failed.Answers),
				}
			}),
		telemetry.By("spate_mirror_blobs_total", "Blobs that the mirror gave out by the way they took: where from, and why.", "path",
			func(c counts) values {
				v := values{}
				for _, r := range mirror.Reasons() {
					v[r.Path()] = float64(c.blobs[r])
				}
				return v
			}),
		telemetry.By("spate_mirror_bytes_total", "Bytes of the mirror's answers by where they came from.", "source",
			func(c counts) values {
				return values{"origin": float64(c.mirror.Origin.Bytes), "mesh": float64(c.mirror.Mesh.Bytes), "memory": float64(c.mirror.Memory.Bytes)}
			}),

		telemetry.By("spate_warm_entries", "Entries of the warm sets of the node's pool, by how far the node is.", "state",
			func(c counts) values { return warmEntries(c.warm) }),

		// The cache.
		telemetry.One("spate_cache_objects", "Objects open in the cache.",
			func(c counts) int { return c.cache.Objects }),
		telemetry.One("spate_cache_bytes", "Bytes of verified pieces of the open objects.",
			func(c counts) int64 { return c.cache.Bytes }),
		telemetry.One("spate_cache_quota_bytes", "Bytes that the cache may have; 0 is no limit.",
			func(c counts) int64 { return c.cache.Quota }),
		telemetry.One("spate_cache_used_bytes", "Bytes that count against the quota, of all objects, open or not.",
			func(c counts) int64 { return c.cache.Used }),
		telemetry.One("spate_cache_pinned_bytes", "Bytes that cannot be evicted: pinned, in use or on their way.",
			func(c counts) int64 { return c.cache.Pinned }),
		telemetry.One("spate_cache_evicted_bytes_total", "Bytes of objects that were evicted to make room.",
			func(c counts) int64 { return c.cache.EvictedBytes }),
		telemetry.One("spate_cache_evicted_objects_total", "Objects that were evicted to make room.",
			func(c counts) int64 { return c.cache.Evicted }),
		telemetry.One("spate_cache_broken_pieces_total", "Pieces that an earlier process recorded and that were found broken.",
			func(c counts) int64 { return c.cache.BadClaims }),
		telemetry.By("spate_cache_audits_total", "Complete objects compared with their digest.", "result",
			func(c counts) values {
				return values{"right": float64(c.cache.Audited), "quarantined": float64(c.cache.Quarantined)}
			}),

		// The node.
		telemetry.By("spate_link_bytes_total", "Bytes over the node's link, all traffic.", "direction",
			func(c counts) values { return values{"sent": float64(c.sent), "received": float64(c.received)} }),
		telemetry.By("spate_limit_bytes_per_second", "Limits of the node, up and down, and of classes of traffic; 0 is none.", "limit",
			func(c counts) values {
				return values{
					"up": float64(c.limits.Up), "down": float64(c.limits.Down),
					"seeding": float64(c.limits.Seeding), "prefetch": float64(c.limits.Prefetch), "demand": float64(c.limits.Demand),
				}
			}),
		telemetry.One("spate_link_rate_bytes_per_second", "What the node could receive: its limit, else the most that it has received in one second.",
			func(c counts) int64 { return c.linkRate }),
		telemetry.One("spate_artifacts", "References that are open.",
			func(c counts) int { return c.artifacts }),
		telemetry.One("spate_mounts", "Mounts of this agent.",
			func(c counts) int { return c.mounts }),
	}
}
