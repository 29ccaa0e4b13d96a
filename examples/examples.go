// Package examples holds example configurations, as the files beside it, for whoever has the program and no
// checkout.
package examples

import "embed"

// Sidecar holds the folder sidecar: the classic sample with two hops.
//
//go:embed sidecar/*.yaml
var Sidecar embed.FS
