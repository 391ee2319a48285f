"""`python -m tcpjson.console`."""

import sys

from tcpjson.console.program import main

if __name__ == "__main__":
    sys.exit(main())
