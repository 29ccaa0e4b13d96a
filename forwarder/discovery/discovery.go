// Package discovery is the contract between a source of endpoints and whoever follows it: a file, DNS, and what may come
// after them, such as ZooKeeper, etcd, Consul, Nacos or xDS, each in a folder of its own.
//
// What a source owes:
//   - Run blocks until its context ends and returns then; it has one goroutine, its caller's, and leaves none behind. It goes
//     on by itself whatever fails, at a bounded pace; where others are asked, with a back-off and jitter.
//   - It tells its first Update soon: a set, or why there is none yet. From then on it tells one whenever it has looked, or was
//     told; it may leave out a set that is the same as before, but for the first one behind an error.
//   - A set is whole. What it has only a part of, it does not tell: an endpoint that is missing is taken out of use.
//   - A set is not empty. That there is no endpoint is an error, since it is hardly ever meant and would end all traffic; who
//     means it says of each endpoint that it drains. It has at most as many endpoints as the source says, each once.
//   - An error is short, has no port or id that differs from one look to the next, and says whom the source has asked.
//
// What a source need not do: remember. A State keeps the last good set, however long the source fails.
//
// The package is a leaf. It starts no goroutine and reads no clock.
package discovery

import (
	"cmp"
	"context"
	"slices"
	"strings"
)

// Source finds the endpoints of one cluster.
type Source interface {
	// Run tells what it finds until ctx ends. tell does not wait, and is called by one goroutine at a time.
	Run(ctx context.Context, tell func(Update))
}

// Update is what a look has brought: a whole set, or an error.
type Update struct {
	Endpoints []Endpoint // the receiver's
	Err       error      // nil: Endpoints is the set
}

// Endpoint is one endpoint of a set.
type Endpoint struct {
	Network string `json:"network"` // as in net.Dial: tcp or unix
	Address string `json:"address"`
	Weight  int    `json:"weight"` // 1 to 1000
	Drain   bool   `json:"drain,omitempty"`
}

// The bounds of a weight, and that of an endpoint whose source knows none: those of a configured one.
const (
	MinWeight     = 1
	MaxWeight     = 1000
	DefaultWeight = 100
)

// Normal sorts a set, so that two that are equal look equal, and makes one of endpoints at the same address: their weights
// add up, and it drains if all of them do. It returns its argument's array.
func Normal(set []Endpoint) []Endpoint {
	slices.SortFunc(set, func(a, b Endpoint) int {
		return cmp.Or(strings.Compare(a.Network, b.Network), strings.Compare(a.Address, b.Address))
	})
	out := set[:0]
	for _, e := range set {
		if n := len(out); n > 0 && out[n-1].Network == e.Network && out[n-1].Address == e.Address {
			out[n-1].Weight = min(out[n-1].Weight+e.Weight, MaxWeight)
			out[n-1].Drain = out[n-1].Drain && e.Drain
			continue
		}
		out = append(out, e)
	}
	return out
}
