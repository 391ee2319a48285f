// A client of sockets and JSON alone: go run classic_client.go [HOST [PORT]]
package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

const (
	timeout = 10   // seconds, to connect and for each message
	wrap    = 4096 // what stands around the max_length bytes that a server takes, when they come back
)

type message map[string]any

type client struct {
	net.Conn
	maxLength int64
}

func (c *client) send(m message) {
	payload, err := json.Marshal(m)
	check(err)
	if int64(len(payload)) > c.maxLength {
		check(fmt.Errorf("the server takes no message of %d bytes", len(payload)))
	}
	frame := make([]byte, 4, 4+len(payload))
	binary.BigEndian.PutUint32(frame, uint32(len(payload))) // network byte order
	_, err = c.Write(append(frame, payload...))             // all of it, or it fails
	check(err)
}

// The next message. Read gives what is there, be it a part of what is due; ReadFull goes on.
func (c *client) receive() (m message) {
	check(c.SetDeadline(time.Now().Add(timeout * time.Second)))
	head := make([]byte, 4)
	_, err := io.ReadFull(c, head)
	check(err)
	length := int64(binary.BigEndian.Uint32(head))
	if length > c.maxLength+wrap {
		check(fmt.Errorf("a message of %d bytes is too long", length))
	}
	payload := make([]byte, length)
	_, err = io.ReadFull(c, payload)
	check(err)
	if json.Unmarshal(payload, &m) != nil || m == nil {
		check(fmt.Errorf("what came is no JSON object"))
	}
	return m
}

// The next message of a type. Others come at any time: somebody's broadcast, or an error.
func (c *client) waitFor(kind string) message {
	for {
		m := c.receive()
		if m["type"] == kind {
			return m
		} else if m["type"] == "error" {
			check(fmt.Errorf("error %s: %s", m.show("code"), m.show("message")))
		}
		fmt.Println("meanwhile:", m.show("type"))
	}
}

func (c *client) ask(m message, kind string) message {
	c.send(m)
	return c.waitFor(kind)
}

// A field as JSON: one line, whatever it holds. U+0080 to U+009F JSON leaves as they are; terminals obey them.
func (m message) show(name string) string {
	text, _ := json.Marshal(m[name])
	return strings.Map(func(r rune) rune {
		if r >= 0x80 && r <= 0x9f {
			return '?'
		}
		return r
	}, string(text))
}

func check(err error) {
	if err == nil {
		return
	}
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = fmt.Errorf("the connection ended before a whole message was there")
	} else if waited, ok := err.(net.Error); ok && waited.Timeout() {
		err = fmt.Errorf("nothing came for %d seconds", timeout)
	}
	fmt.Fprintln(os.Stderr, "classic_client:", err)
	os.Exit(1)
}

func main() {
	where := []string{"localhost", "9999"}
	copy(where, os.Args[1:])
	connection, err := net.DialTimeout("tcp", net.JoinHostPort(where[0], where[1]), timeout*time.Second)
	check(err)
	c := &client{connection, 1048576} // until the welcome says it
	welcome := c.waitFor("welcome")
	if length, ok := welcome["max_length"].(float64); ok && length >= 1 && length <= 1<<28 {
		c.maxLength = int64(length)
	}
	fmt.Println("welcome: client_id", welcome.show("client_id"))
	c.ask(message{"type": "ping"}, "pong")
	fmt.Println("pong")
	request := message{"type": "echo", "content": message{"text": "тест"}}
	if c.ask(request, "echo_response").show("content") != request.show("content") {
		check(fmt.Errorf("the echo is another"))
	}
	fmt.Println("echo_response: the same content")
	sent := c.ask(message{"type": "broadcast", "content": request["content"]}, "broadcast_sent")
	fmt.Println("broadcast_sent: recipients", sent.show("recipients"))
	stats := c.ask(message{"type": "get_stats"}, "server_stats")
	fmt.Println("server_stats: connected_clients", stats.show("connected_clients"))
	c.ask(message{"type": "move", "x": 1, "y": 2}, "response")
	fmt.Println("response")
	check(c.Close()) // every answer is here: nothing is lost
}
