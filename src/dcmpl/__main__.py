"""``python -m dcmpl`` is the command ``dcmpl``."""

import sys

from dcmpl.cli.main import main

sys.exit(main())
