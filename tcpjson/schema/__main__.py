"""`python -m tcpjson.schema`."""

import sys

from tcpjson.schema.program import main

if __name__ == "__main__":
    sys.exit(main())
