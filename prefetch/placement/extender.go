package placement

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/spate-project/spate/prefetch/orders"
)

// What a pod may say in its annotations.
const (
	// AnnotationReferences holds references that it is going to read beside its
	// images, divided by spaces, such as the model that it mounts by other means.
	AnnotationReferences = "dev.spate.references"

	// AnnotationLeastShare holds the share, from 0 to 1, of all that it reads that a
	// node has to hold for the pod to be put there.
	AnnotationLeastShare = "dev.spate.least-share"
)

const (
	maxArgs       = 16 << 20 // bytes of a request: with nodeCacheCapable it has names only
	maxReferences = 64       // of a pod that are looked at
	maxScore      = 10       // extender/v1's MaxExtenderPriority
)

// The types of k8s.io/kube-scheduler/extender/v1, as far as they count here: on
// the wire their fields have these names.
type (
	extenderArgs struct {
		Pod       pod
		Nodes     *nodeList
		NodeNames *[]string
	}
	filterResult struct {
		Nodes       *nodeList         `json:",omitempty"`
		NodeNames   *[]string         `json:",omitempty"`
		FailedNodes map[string]string `json:",omitempty"`
		Error       string            `json:",omitempty"`
	}
	hostPriority struct {
		Host  string
		Score int64
	}
)

type pod struct {
	Metadata struct {
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		Containers     []container `json:"containers"`
		InitContainers []container `json:"initContainers"`
		Volumes        []struct {
			Image struct {
				Reference string `json:"reference"`
			} `json:"image"`
		} `json:"volumes"`
	} `json:"spec"`
}

type container struct {
	Image string `json:"image"`
}

// A nodeList is given back as it came.
type nodeList struct {
	Items []json.RawMessage `json:"items"`
}

// references returns what the pod reads, each once.
func (p *pod) references() (list []string) {
	seen := map[string]bool{"": true}
	add := func(ref string) {
		if !seen[ref] && len(list) < maxReferences {
			seen[ref] = true
			list = append(list, ref)
		}
	}
	for _, ref := range strings.Fields(p.Metadata.Annotations[AnnotationReferences]) {
		add(ref)
	}
	for _, v := range p.Spec.Volumes {
		add(v.Image.Reference)
	}
	for _, c := range append(p.Spec.Containers, p.Spec.InitContainers...) {
		add(c.Image)
	}
	return list
}

// leastShare returns what the pod asks for, 0 when it asks for nothing.
func (p *pod) leastShare() (float64, error) {
	s, ok := p.Metadata.Annotations[AnnotationLeastShare]
	if !ok {
		return 0, nil
	}
	share, err := strconv.ParseFloat(s, 64)
	if err != nil || !(share >= 0 && share <= 1) {
		return 0, fmt.Errorf("annotation %s: %.40q is not a share from 0 to 1", AnnotationLeastShare, s)
	}
	return share, nil
}

// shares returns the share that each node known holds of what the pod reads. What
// is not in this registry does not count; nothing at all is known of a pod that
// reads only such.
func (h handler) shares(ctx context.Context, p *pod) (shares map[string]float64, known bool) {
	var objects []orders.Object
	for _, ref := range p.references() {
		if found, err := h.objects(ctx, ref); err == nil {
			objects = append(objects, found...)
		}
	}
	shares = make(map[string]float64)
	if len(objects) == 0 {
		return shares, false
	}
	for _, place := range h.board.Places(objects, "", "") {
		shares[place.Node] = place.Share
	}
	return shares, true
}

// filter leaves all nodes in but those that hold less than the pod's annotation asks for.
func (h handler) filter(w http.ResponseWriter, r *http.Request) {
	args, names, err := readArgs(w, r)
	if err != nil {
		reply(w, http.StatusOK, filterResult{Error: err.Error()}) // where the scheduler looks for it
		return
	}
	least, err := args.Pod.leastShare()
	if err != nil {
		reply(w, http.StatusOK, filterResult{Error: err.Error()})
		return
	}
	shares, known := h.shares(r.Context(), &args.Pod)
	result := filterResult{}
	if args.Nodes != nil {
		result.Nodes = &nodeList{Items: []json.RawMessage{}}
	} else {
		result.NodeNames = &[]string{}
	}
	for i, name := range names {
		if known && shares[name] < least {
			if result.FailedNodes == nil {
				result.FailedNodes = make(map[string]string)
			}
			result.FailedNodes[name] = fmt.Sprintf("it holds %.0f %% of what the pod reads, and %s asks for %.0f %%", 100*shares[name], AnnotationLeastShare, 100*least)
			continue
		}
		if args.Nodes != nil {
			result.Nodes.Items = append(result.Nodes.Items, args.Nodes.Items[i])
		} else {
			*result.NodeNames = append(*result.NodeNames, name)
		}
	}
	reply(w, http.StatusOK, result)
}

// prioritize gives each node a score by its share.
func (h handler) prioritize(w http.ResponseWriter, r *http.Request) {
	args, names, err := readArgs(w, r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	shares, _ := h.shares(r.Context(), &args.Pod)
	list := make([]hostPriority, 0, len(names))
	for _, name := range names {
		list = append(list, hostPriority{name, int64(math.Round(maxScore * min(1, shares[name])))})
	}
	reply(w, http.StatusOK, list)
}

func readArgs(w http.ResponseWriter, r *http.Request) (args extenderArgs, names []string, err error) {
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxArgs)).Decode(&args); err != nil {
		return args, nil, fmt.Errorf("read the scheduler's request: %w", err)
	}
	if args.Nodes == nil {
		if args.NodeNames != nil {
			names = *args.NodeNames
		}
		return args, names, nil
	}
	for i, raw := range args.Nodes.Items {
		var n struct {
			Metadata struct {
				Name string `json:"name"`
			} `json:"metadata"`
		}
		if err := json.Unmarshal(raw, &n); err != nil {
			return args, nil, fmt.Errorf("read node %d of the scheduler's request: %w", i, err)
		}
		names = append(names, n.Metadata.Name)
	}
	return args, names, nil
}
