"""What every process of a launched training runs: ``python -m sftknow.run.launched FOLDER``.

The folder holds the job; the main process writes there how far it is, what was made, or the one line of an error. See
`sftknow.run.launching`.
"""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftknow import processes
from sftknow.errors import SftknowError
from sftknow.run.launching import JOB, LOCK, REPORTS, RESULT


def main(folder: Path) -> int:
    """Do the job; return the exit code: 0, or 2 for a mistake of the user's."""
    processes.end_with_the_starter(folder / LOCK)
    work, arguments, named = pickle.loads((folder / JOB).read_bytes())

    def report(**content: Any) -> None:
        with (folder / REPORTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")

    options = replace(named["options"], on_step=lambda step, steps, loss: report(step=step, steps=steps, loss=loss))
    try:
        trained = work(*arguments, **{**named, "options": options})
    except SftknowError as error:
        if processes.is_main():
            report(error=type(error).__name__, message=str(error))
        processes.say_error(f"sftknow: {error}")
        return error.exit_code
    if processes.is_main():
        (folder / RESULT).write_bytes(pickle.dumps(trained))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
