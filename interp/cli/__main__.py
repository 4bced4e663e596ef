"""`python -m interp.cli`, where the script `interp` is not on the path."""

import sys

from interp.cli import main

if __name__ == "__main__":
    sys.exit(main())
