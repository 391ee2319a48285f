// What an expert would write by hand for Node: one buffer's frames at a time, one write for each read.
//
// Usage: node node_server.js PORT
"use strict";

const net = require("node:net");

const clients = new Set();
const started = new Date();
let messages = 0;

const now = () => new Date().toISOString();

function frame(message) {
  const text = JSON.stringify(message);
  const length = Buffer.byteLength(text);
  const data = Buffer.allocUnsafe(4 + length);
  data.writeUInt32BE(length, 0);
  data.write(text, 4, length, "utf8");
  return data;
}

const HANDLERS = {
  ping: (message, client) => ({
    type: "pong",
    ping_timestamp: message.timestamp ?? null,
    pong_timestamp: now(),
    client_id: client.name,
  }),

  echo: (message) => ({
    type: "echo_response",
    content: message.content ?? "",
    timestamp: now(),
    echoed_by: "TCP Server",
  }),

  broadcast: (message, client) => {
    const data = frame({
      type: "broadcast",
      from_client: client.name,
      content: message.content,
      timestamp: now(),
    });
    for (const other of clients) {
      if (other !== client) other.socket.write(data);
    }
    return { type: "broadcast_sent", recipients: clients.size - 1, timestamp: now() };
  },

  get_stats: () => ({
    type: "server_stats",
    connected_clients: clients.size,
    uptime_seconds: Math.floor((Date.now() - started.getTime()) / 1000),
    total_messages: messages,
    server_start_time: started.toISOString(),
    current_time: now(),
    details: {},
  }),
};

class Client {
  constructor(socket) {
    this.socket = socket;
    this.name = `${socket.remoteAddress}:${socket.remotePort}`;
    this.rest = []; // pieces of a frame that is not whole yet
    this.size = 0; // bytes of them
    this.wanted = 4; // bytes without which nothing can be done
    socket.setNoDelay(true);
    socket.on("data", (data) => this.received(data));
    socket.on("error", () => socket.destroy());
    socket.on("close", () => clients.delete(this));
    clients.add(this);
    socket.write(frame({ type: "welcome", client_id: this.name, message: "hi", timestamp: now() }));
  }

  received(data) {
    // A long frame's pieces are joined once, when all are there.
    if (this.size > 0) {
      this.rest.push(data);
      this.size += data.length;
      if (this.size < this.wanted) return;
      data = Buffer.concat(this.rest, this.size);
      this.rest = [];
      this.size = 0;
    }
    const out = [];
    const end = data.length;
    let at = 0;
    this.wanted = 4;
    while (end - at >= 4) {
      const length = data.readUInt32BE(at);
      if (end - at - 4 < length) {
        this.wanted = 4 + length;
        break;
      }
      const message = JSON.parse(data.toString("utf8", at + 4, at + 4 + length));
      at += 4 + length;
      messages += 1;
      const handler = Object.hasOwn(HANDLERS, message.type) ? HANDLERS[message.type] : undefined;
      if (handler === undefined) continue;
      const reply = handler(message, this);
      if (message.id !== undefined) reply.id = message.id;
      out.push(frame(reply));
    }
    if (at < end) {
      this.rest.push(data.subarray(at));
      this.size = end - at;
    }
    if (out.length === 1) this.socket.write(out[0]);
    else if (out.length > 1) this.socket.write(Buffer.concat(out));
  }
}

const server = net.createServer((socket) => new Client(socket));
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 }, () => {
  console.log(`listening on 127.0.0.1:${server.address().port}`);
});
