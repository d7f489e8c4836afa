"""`sftknow` with small shards, so that little work has several of them. Run as a script."""

import sys

if __name__ == "__main__":
    from functools import partialmethod

    from sftknow.cli.main import main
    from sftknow.grading.options import GradingOptions

    GradingOptions.__init__ = partialmethod(GradingOptions.__init__, shard_size=8)
    sys.exit(main(sys.argv[1:]))
