"""Entry point of ``python -m dcmpl``, the command ``dcmpl``."""

import sys

from dcmpl.cli.main import main

sys.exit(main())
