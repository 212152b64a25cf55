package containerdtest

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// images calls f with the image service of CRI.
func (c *Containerd) images(f func(ctx context.Context, images cri.ImageServiceClient) error) error {
	conn, err := grpc.NewClient("unix://"+c.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return f(ctx, cri.NewImageServiceClient(conn))
}

// TryPullCRI pulls an image as the kubelet does. auth may be nil.
func (c *Containerd) TryPullCRI(image string, auth *cri.AuthConfig) error {
	return c.images(func(ctx context.Context, images cri.ImageServiceClient) error {
		_, err := images.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}, Auth: auth})
		return err
	})
}

// PullCRI is TryPullCRI for what must work.
func (c *Containerd) PullCRI(image string) {
	c.t.Helper()
	if err := c.TryPullCRI(image, nil); err != nil {
		c.t.Fatalf("pull %s: %v\ncontainerd:\n%s", image, err, c.tail())
	}
}

// RemoveImage removes an image as the kubelet does, also one that ctr pulled:
// CRI has taken notice of it, and would keep it. Garbage is collected before it returns.
func (c *Containerd) RemoveImage(image string) {
	c.t.Helper()
	err := c.images(func(ctx context.Context, images cri.ImageServiceClient) error {
		_, err := images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image}})
		return err
	})
	if err != nil {
		c.t.Fatalf("remove %s: %v\ncontainerd:\n%s", image, err, c.tail())
	}
}
