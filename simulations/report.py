"""``python -m simulations.report FOLDER ...``: the same as ``fedkd report``, tables and figures from run folders."""

import sys

from simulations.reports.builder import main

if __name__ == "__main__":
    sys.exit(main())
