"""`python -m cohortium_sim.storm`; see `command`."""

import sys

from cohortium_sim.storm.command import main

if __name__ == "__main__":
    sys.exit(main())
