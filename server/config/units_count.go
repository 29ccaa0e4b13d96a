package config

// Count is a number of things, where `none` may stand for it.
type Count int64

// NoCount is the Count that `none` stands for.
const NoCount Count = -1

// String is c as a file would have it.
func (c Count) String() string { return Rate(c).String() }

// MarshalJSON is a number, or the string none.
func (c Count) MarshalJSON() ([]byte, error) { return Rate(c).MarshalJSON() }

func (c *Count) set(n node) error { return (*Rate)(c).set(n) }
