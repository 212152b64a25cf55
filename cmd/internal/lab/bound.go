package lab

import (
	"math"
	"time"
)

// Bound returns the shortest time in which nodes can all have the same size
// bytes: mesh when they may pass them on, direct when each draws all of them
// from the origin. origin is what the origin sends, down and up what one node
// receives and sends, in bytes a second; 0 is no limit.
//
// It is the fluid bound of Kumar and Ross, "Peer-Assisted File Distribution:
// The Minimum Distribution Time" (2006).
func Bound(size int64, nodes int, origin, down, up float64) (mesh, direct time.Duration) {
	m, n := float64(size), float64(nodes)
	once := max(seconds(m, origin), seconds(m, down))
	together := seconds(n*m, origin+n*up)
	if origin == 0 || up == 0 {
		together = 0
	}
	return duration(max(once, together)), duration(max(seconds(m, down), seconds(n*m, origin)))
}

func seconds(bytes, rate float64) float64 {
	if rate == 0 {
		return 0
	}
	return bytes / rate
}

func duration(seconds float64) time.Duration {
	return time.Duration(math.Round(seconds * float64(time.Second)))
}
