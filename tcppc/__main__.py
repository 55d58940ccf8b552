"""`python -m tcppc`."""

import sys

from tcppc.cli import main

if __name__ == "__main__":
    sys.exit(main())
