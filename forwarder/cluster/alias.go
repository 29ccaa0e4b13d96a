package cluster

import "math"

// aliasTable draws one of many, each as likely as its weight says, for one look whatever their number: every column
// is as likely as the next, and belongs to its own endpoint up to a threshold and to another one above.
// (M. D. Vose, A linear algorithm for generating random numbers with a given distribution, 1991.)
type aliasTable []column

// column is one column of the table.
type column struct {
	threshold uint32
	other     int32
}

// draw turns 32 random bits into an index: the high bits of the product choose the column, the low ones the
// side of its threshold.
func (t aliasTable) draw(bits uint32) int {
	x := uint64(bits) * uint64(len(t))
	i := x >> 32
	if c := &t[i]; uint32(x) >= c.threshold {
		return int(c.other)
	}
	return int(i)
}

// newAliasTable fills the columns: each column that is too short for an average one is topped up by one that is
// too tall.
func newAliasTable(endpoints []*Endpoint) aliasTable {
	n := len(endpoints)
	var total int64
	for _, e := range endpoints {
		total += e.weight.Load()
	}
	columns := make(aliasTable, n)
	height := make([]int64, n) // in units of which an average column has total
	var short, tall []int
	for i, e := range endpoints {
		columns[i] = column{threshold: math.MaxUint32, other: int32(i)} // full
		height[i] = e.weight.Load() * int64(n)
		switch {
		case height[i] < total:
			short = append(short, i)
		case height[i] > total:
			tall = append(tall, i)
		}
	}
	for len(short) > 0 && len(tall) > 0 {
		s, t := short[len(short)-1], tall[len(tall)-1]
		short = short[:len(short)-1]
		columns[s] = column{
			threshold: uint32(float64(height[s]) / float64(total) * (1 << 32)),
			other:     int32(t),
		}
		height[t] -= total - height[s]
		if height[t] <= total {
			tall = tall[:len(tall)-1]
		}
		if height[t] < total {
			short = append(short, t)
		}
	}
	return columns
}
