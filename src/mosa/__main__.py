"""`python -m mosa`, which launchers of several processes take: `accelerate launch -m mosa ...`."""

import sys

from mosa.cli import main

sys.exit(main())
