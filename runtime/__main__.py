"""`python -m understudy.runtime`: the command line without its script on PATH."""

import sys

from understudy.runtime.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
