// The fake Pub/Sub server that Google's Go client is tested with, as a process of its own for tests in Python.
//
// It listens on two free ports of loopback, which it prints as one line, "GRPC HTTP". On the second one GET
// answers what became of every message, as JSON: its id, how often it was delivered, how often acknowledged.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"

	"cloud.google.com/go/pubsub/v2/pstest"
)

type seen struct {
	ID         string `json:"id"`
	Deliveries int    `json:"deliveries"`
	Acks       int    `json:"acks"`
}

func main() {
	server := pstest.NewServer()
	defer server.Close()
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		all := []seen{}
		for _, message := range server.Messages() {
			all = append(all, seen{message.ID, message.Deliveries, message.Acks})
		}
		if err := json.NewEncoder(answer).Encode(all); err != nil {
			log.Print(err)
		}
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(server.Addr, listener.Addr())
	log.Fatal(http.Serve(listener, nil))
}
