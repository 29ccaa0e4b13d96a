// Command floor is the least that a Go program has to do for the wire work that Relevo does: it reads Bolt v1 frames from many
// clients, numbers the requests anew on one shared connection to the server, and takes each reply back to who asked. It has
// no routes, limits, deadlines, statistics, back-pressure or errors: it is what Relevo is measured against, and no proxy.
//
// A goroutine a connection reads, and does everything that follows from what it has read; each peer's bytes are gathered and
// written once a read. A write may wait for its peer, which is safe only with a load generator that always reads.
package main

import (
	"flag"
	"fmt"
	"net"
	"os"
)

func main() {
	listen := flag.String("listen", "", "where clients come, HOST:PORT")
	server := flag.String("server", "", "where requests go, HOST:PORT")
	flag.Parse()
	if err := run(*listen, *server); err != nil {
		fmt.Fprintln(os.Stderr, "floor:", err)
		os.Exit(1)
	}
}

// run serves until the process is killed, or the server goes.
func run(listen, server string) error {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	up, err := net.Dial("tcp", server)
	if err != nil {
		return err
	}
	r, err := newRelay(up)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)    // never closed: the process ends with the first
	go func() { failed <- r.up() }() // ends when the server's connection does
	go func() {                      // ends with the process
		for {
			client, err := l.Accept()
			if err != nil {
				failed <- err
				return
			}
			go r.down(client) // ends when the client's connection does
		}
	}()
	return <-failed
}
