"""`python -m auricle`, and `torchrun -m auricle`: the command line."""

import sys

from auricle.cli import main

sys.exit(main())
