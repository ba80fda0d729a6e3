"""`python -m mosa.cli`, where the command `mosa` is not on the path."""

import sys

from mosa.cli import main

sys.exit(main())
