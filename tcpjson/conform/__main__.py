"""`python -m tcpjson.conform`."""

import sys

from tcpjson.conform.program import main

if __name__ == "__main__":
    sys.exit(main())
