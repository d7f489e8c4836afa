"""``python -m sftknow``: the `sftknow` command, in the form that ``accelerate launch -m sftknow …`` starts."""

from __future__ import annotations

import sys

from sftknow.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
