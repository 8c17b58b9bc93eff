"""`python -m streamcca` is the `streamcca` command."""

import sys

from streamcca.cli import main

sys.exit(main())
