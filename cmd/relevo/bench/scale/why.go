package main

// Why each curve bends where it does: found with perf, on both sides of the bends. Whoever changes the road measures and looks
// again.
const (
	connectionsWhy = "It bends where a read no longer finds many frames. On 8 connections the kernel is asked (read, write, writev) once for about 20 " +
		"requests, and the profile is that of copying bytes; on 4,096 two and a half times for each: a read that finds one request, a read that finds " +
		"nothing and waits, and a write of one reply. Only the way to the server and back is shared still, about 30 requests a write. The " +
		"rest is the kernel's cost of a small segment, which haproxy pays twice. With several requests in flight on a connection the curve is lower " +
		"by as much as a read finds at once."
	routesWhy = "Exact services are one look into a map, whatever their number. Prefixes are a look for each length that they have, 32 here: it rises " +
		"until all lengths are there, and then only as the maps outgrow the processor's caches. Regular expressions are tried one after another until " +
		"one fits, which is most of the profile at 1,000: it bends where that is as much as all the rest of a request, at some hundred of them. " +
		"A rule that asks for something else too is tried only where that holds."
	endpointsWhy = "It is the curve of the connections, on the other side: the requests of one read go out in one write for each server among them, and " +
		"their replies come back in one read each. With one server the kernel is asked once for ten requests and more; with 100 it is asked about " +
		"once for each request, and with 1,000 more often still, since each read that finds one reply is followed by one that waits. " +
		"Choosing among 1,000 endpoints is a few hundredths of the profile."
	inFlightWhy = "The profile is the same at both ends, four fifths of it the kernel's: a request that waits costs nothing until its reply comes. What " +
		"differs is how many requests a read finds, which the echo server's batches decide, and that the places of 100,000 streams lie outside the " +
		"processor's caches. The memory is the stream table: a place takes 104 bytes, and between seven in sixteen and seven in eight of them are taken, " +
		"so 119 to 238 bytes each; a table that doubles stays where it is but for its keys, 16 bytes a place, which are left for the next collection. " +
		"There is no goroutine that was not there before."
)
