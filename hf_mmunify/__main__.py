"""`python -m hf_mmunify` is the command `hf-mmunify`."""

import sys

from .cli import main


if __name__ == "__main__":
    sys.exit(main())
