"""`python -m cohortium_verify FOLDER`, which is the command `cohortium-verify`."""

import sys

from cohortium_verify.command import main

if __name__ == "__main__":
    sys.exit(main())
