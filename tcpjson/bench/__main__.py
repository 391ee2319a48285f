"""`python -m tcpjson.bench`."""

import sys

from tcpjson.bench.program import main

if __name__ == "__main__":
    sys.exit(main())
