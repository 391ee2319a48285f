import sys

from tcpjson import TCPServer

port = int(sys.argv[1]) if len(sys.argv) > 1 else 9999
TCPServer(host="localhost", port=port).start()  # until Ctrl+C
