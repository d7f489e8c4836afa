"""`sftknow` with small shards, so that little work has several of them. Run as a script."""

import sys

if __name__ == "__main__":
    from sftknow.cli.main import main
    from sftknow.recipes import schema

    field = schema.GradingSection.model_fields["shard_size"]
    field.default = 8
    schema.GradingSection.model_rebuild(force=True)
    sys.exit(main(sys.argv[1:]))
