"""The `sftknow` command: parse, one library call, print."""
