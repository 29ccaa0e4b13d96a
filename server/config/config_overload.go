package config

// Overload says what is done while the process uses nearly all the memory and descriptors that it is granted. The shares are of
// the memory limit, and ascend.
type Overload struct {
	// MemoryLimit is the limit; NoSize means none, nil the one that GOMEMLIMIT or the control group sets, which only the running
	// process knows.
	MemoryLimit *Size `json:"memory_limit,omitempty" min:"64MiB" max:"64TiB" cfg:"none"`
	// StopReading is where the clients that hold most are not read from.
	StopReading Percent `json:"stop_reading" default:"75%" min:"1%" max:"100%"`
	// StopAccepting is where no more clients are accepted.
	StopAccepting Percent `json:"stop_accepting" default:"80%" min:"1%" max:"100%"`
	// RefuseLow is where requests of low priority are answered "busy", RefuseNormal where those of normal priority are, too.
	RefuseLow    Percent `json:"refuse_low" default:"85%" min:"1%" max:"100%"`
	RefuseNormal Percent `json:"refuse_normal" default:"90%" min:"1%" max:"100%"`
	// DescriptorReserve is the number of descriptors that clients do not get; NoCount means that they get all, nil that it suits
	// the limit of the process, which only that knows.
	DescriptorReserve *Count `json:"descriptor_reserve,omitempty" min:"8" max:"1000000" cfg:"none"`
}
