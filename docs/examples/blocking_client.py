import sys

from tcpjson import TCPClient


def on_message(message):
    print("<", message["type"])


port = int(sys.argv[1]) if len(sys.argv) > 1 else 9999
client = TCPClient("localhost", port)
client.set_message_callback(on_message)
if client.connect():
    client.ping()
    client.echo("Hello Server!")
    client.broadcast("Hello all clients!")
    client.get_server_stats()
    client.send_custom_message("custom_type", {"data": "value"})
    client.send_message("plain text")
    client.send_message({"type": "anything"})
    client.disconnect()
