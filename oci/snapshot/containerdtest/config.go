package containerdtest

// The configurations. DIR, PROXY and NAME are replaced. NRI and CNI stay off:
// they work in folders that all containerds of a machine share.
const (
	// containerd 2.x. Labels with the image's name come through the transfer
	// service, also for CRI, if the proxy's exports ask for them; each
	// snapshotter that is pulled into needs its own unpack_config. Pods do not ask
	// for a better OOM score, which root of a container may not give.
	configV3 = `version = 3
root = "DIR/root"
state = "DIR/state"
[grpc]
  address = "DIR/c.sock"
[proxy_plugins.NAME]
  type = "snapshot"
  address = "PROXY"
  [proxy_plugins.NAME.exports]
    root = "DIR/root"
    enable_remote_snapshot_annotations = "true"
[plugins.'io.containerd.transfer.v1.local']
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = "linux"
    snapshotter = "overlayfs"
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = "linux"
    snapshotter = "NAME"
[plugins.'io.containerd.image-verifier.v1.bindir']
  bin_dir = "DIR/verifiers"
  max_verifiers = 1
[plugins.'io.containerd.cri.v1.images']
  snapshotter = "NAME"
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = "DIR/certs.d"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.nri.v1.nri']
  disable = true
[plugins.'io.containerd.internal.v1.opt']
  path = "DIR/opt"
`

	// containerd 1.6 and 1.7. Only pulls through CRI have labels, unless disabled as by default.
	configV2 = `version = 2
root = "DIR/root"
state = "DIR/state"
[grpc]
  address = "DIR/c.sock"
[proxy_plugins.NAME]
  type = "snapshot"
  address = "PROXY"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "NAME"
  disable_snapshot_annotations = false
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "DIR/certs.d"
[plugins."io.containerd.internal.v1.opt"]
  path = "DIR/opt"
`
)
