// Sends the lines of standard input to a stream, and ends with 0 once the relay has said that all are safe.
//
//	go run send.go HOST PORT STREAM
package main

import (
	"bufio"
	"fmt"
	"log"
	"net"
	"os"
)

func main() {
	host, port, stream := os.Args[1], os.Args[2], os.Args[3]
	relay, err := net.Dial("tcp", net.JoinHostPort(host, port))
	if err != nil {
		log.Fatal(err)
	}
	lines, input := bufio.NewWriter(relay), bufio.NewScanner(os.Stdin)
	input.Buffer(nil, 1<<20) // the longest payload that a relay takes is 1,023,999 bytes
	for input.Scan() {
		fmt.Fprintf(lines, "%s %s\n", stream, input.Bytes())
	}
	fmt.Fprint(lines, "!sync 1\n")
	if err := lines.Flush(); err != nil { // it keeps the first error of all writes
		log.Fatal(err)
	}
	if answer, err := bufio.NewReader(relay).ReadString('\n'); answer != "!synced 1\n" {
		log.Fatal(answer, err)
	}
}
