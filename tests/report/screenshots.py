"""Pictures of a report for docs/start.md, by headless Chromium: ``python -m tests.report.screenshots RUN [--out DIR]``.

The report is written anew from the run's artifacts; the run directory is only read.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops

from sftknow.report.compose import write_report
from tests.report.browser import Site, find_browser

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"
MOST_BYTES = 400_000


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One picture: which part of the page, in a window of which size (CSS pixels)."""

    name: str
    anchor: str = ""
    width: int = 1280
    height: int
    dark: bool = False


SHOTS = (
    Shot(name="report-top", height=1010),
    Shot(name="report-phone-dark", anchor="figure-2-accuracy", width=390, height=1010, dark=True),
)


def take(report: Path, shots: tuple[Shot, ...], out: Path) -> list[Path]:
    """Take pictures of a report that is written already.

    Args:
        report: folder with ``report.html``.
        shots: which.
        out: folder for the PNGs.

    Returns:
        The files, each of at most 400 KB.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = []
    with Site(report) as site:
        for shot in shots:
            page = "report.html" + (f"#{shot.anchor}" if shot.anchor else "")
            path = out / f"{shot.name}.png"
            site.screenshot(page, shot.width, shot.height, path.resolve(), dark=shot.dark)
            trim(path, shot.width)
            files.append(path)
    return files


def trim(path: Path, width: int) -> None:
    """Cut a picture to the page's width and to what is not blank below, and give it a palette to make it small.

    Raises:
        ValueError: it is larger than 400 KB all the same.
    """
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    picture = picture.crop((0, 0, min(width, picture.width), picture.height))
    ground = Image.new("RGB", picture.size, picture.getpixel((0, picture.height - 1)))
    box = ImageChops.difference(picture, ground).getbbox()
    if box:
        picture = picture.crop((0, 0, picture.width, min(picture.height, box[3] + 12)))
    picture.quantize(colors=256, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is larger than {MOST_BYTES:,} bytes; take a smaller part of the page")


def main() -> None:
    """Write the report of a run and take its pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder for the PNGs (default: docs/pictures)")
    arguments = parser.parse_args()
    if find_browser() is None:
        parser.error("no Chromium: apt-get install chromium, or set CHROMIUM")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / arguments.run.resolve().name
        write_report(arguments.run, report)
        for path in take(report, SHOTS, arguments.out):
            print(f"{path}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
