// A client of sockets and JSON alone: node classic_client.js [HOST [PORT]]
"use strict";
const net = require("net");
const { isDeepStrictEqual } = require("util");

const TIMEOUT = 10; // seconds, to connect and for each wait
const WRAP = 4096; // what stands around the max_length bytes that a server takes, when they come back

class Client {
  constructor(host = "localhost", port = "9999") {
    this.maxLength = 1048576; // until the welcome says it
    this.rest = Buffer.alloc(0); // came, and is not read yet
    // A name may have several addresses: all are tried.
    this.socket = net.connect({ host, port, autoSelectFamily: true });
    this.socket.setTimeout(TIMEOUT * 1000, () => {
      this.socket.destroy(new Error(`nothing came for ${TIMEOUT} seconds`));
    });
    this.pieces = this.socket[Symbol.asyncIterator]();
  }

  send(message) {
    // The length counts bytes of UTF-8; that of a string counts something else.
    const payload = Buffer.from(JSON.stringify(message));
    if (payload.length > this.maxLength) {
      throw new Error(`the server takes no message of ${payload.length} bytes`);
    }
    const length = Buffer.alloc(4);
    length.writeUInt32BE(payload.length); // network byte order
    // What the network does not take at once Node keeps. Who sends much waits for "drain" where this is false.
    this.socket.write(Buffer.concat([length, payload]));
  }

  // So many bytes: a piece may be a part of them, and hold some of the next message.
  async read(size) {
    const parts = [];
    for (let missing = size; missing > 0; ) {
      if (this.rest.length === 0) {
        const { value, done } = await this.pieces.next();
        if (done) throw new Error("the connection ended before a whole message was there");
        this.rest = value;
      }
      const part = this.rest.subarray(0, missing);
      this.rest = this.rest.subarray(part.length);
      missing -= part.length;
      parts.push(part);
    }
    return Buffer.concat(parts, size);
  }

  async receive() {
    const length = (await this.read(4)).readUInt32BE();
    if (length > this.maxLength + WRAP) throw new Error(`a message of ${length} bytes is too long`);
    const payload = await this.read(length);
    let message = null;
    try {
      message = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(payload));
    } catch {}
    if (message === null || typeof message !== "object" || Array.isArray(message)) {
      throw new Error("what came is no JSON object");
    }
    return message;
  }

  // The next message of a type. Others come at any time: somebody's broadcast, or an error.
  async waitFor(type) {
    for (;;) {
      const message = await this.receive();
      if (message.type === type) return message;
      if (message.type === "error") throw new Error(`error ${show(message.code)}: ${show(message.message)}`);
      console.log(`meanwhile: ${show(message.type)}`);
    }
  }

  ask(message, type) {
    this.send(message);
    return this.waitFor(type);
  }
}

// A field as JSON: one line, whatever it holds. U+0080 to U+009F JSON leaves as they are; terminals obey them.
function show(value) {
  return JSON.stringify(value ?? null).replace(/[\x80-\x9f]/g, "?");
}

async function main(host, port) {
  const client = new Client(host, port);
  const welcome = await client.waitFor("welcome");
  if (Number.isInteger(welcome.max_length) && welcome.max_length > 0) {
    client.maxLength = Math.min(welcome.max_length, 2 ** 28);
  }
  console.log(`welcome: client_id ${show(welcome.client_id)}`);
  await client.ask({ type: "ping" }, "pong");
  console.log("pong");
  const content = { text: "тест" };
  const echo = await client.ask({ type: "echo", content }, "echo_response");
  if (!isDeepStrictEqual(echo.content, content)) throw new Error("the echo is another");
  console.log("echo_response: the same content");
  const sent = await client.ask({ type: "broadcast", content }, "broadcast_sent");
  console.log(`broadcast_sent: recipients ${show(sent.recipients)}`);
  const stats = await client.ask({ type: "get_stats" }, "server_stats");
  console.log(`server_stats: connected_clients ${show(stats.connected_clients)}`);
  await client.ask({ type: "move", x: 1, y: 2 }, "response");
  console.log("response");
  client.socket.destroySoon(); // every answer is here: nothing is lost
}

main(...process.argv.slice(2, 4)).catch((error) => {
  console.error(`classic_client: ${error.message || error.code}`);
  process.exit(1);
});
