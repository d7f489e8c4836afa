"""Reports in headless Chromium at three widths. Needs Chromium or Chrome (or ``$CHROMIUM``); skipped without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.report.browser import Site, assert_sound, find_browser
from tests.report.screenshots import MOST_BYTES, Shot, take

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_browser() is None, reason="no Chromium: apt-get install chromium, or set CHROMIUM"),
]


@pytest.mark.parametrize(("width", "dark"), [(360, True), (800, False), (1280, False)])
def test_a_whole_report(rich_page: Path, width: int, dark: bool) -> None:
    with Site(rich_page.parent) as site:
        assert_sound(site, rich_page.name, width, pictures=9, dark=dark)


def test_faults_are_seen(rich_page: Path, tmp_path: Path) -> None:
    """The browser's checks are no empty words."""
    content = rich_page.read_text().replace(
        "</main>",
        '<div style="width:2000px">wide</div><img src="nowhere.png" style="width:9px">'
        "<script>console.error('odd'); throw new Error('broken')</script></main>",
    )
    (tmp_path / "bad.html").write_text(content)
    with Site(tmp_path) as site:
        seen = site.look("bad.html", 360)
    assert seen.facts["wide"]
    assert seen.facts["scroll"] > 360
    assert seen.facts["blank"] == 1
    assert any("odd" in entry for entry in seen.console)
    assert any("broken" in entry for entry in [*seen.console, *seen.facts["errors"]])


def test_pictures_for_a_readme(rich_page: Path, tmp_path: Path) -> None:
    shots = (Shot(name="claims", anchor="claims", height=500), Shot(name="phone", width=360, height=400, dark=True))
    light, dark = take(rich_page.parent, shots, tmp_path)
    with Image.open(light) as one, Image.open(dark) as two:
        assert (one.width, two.width) == (1280, 360)
        assert np.asarray(one.convert("L")).mean() > 200 > 90 > np.asarray(two.convert("L")).mean()
    assert light.stat().st_size < MOST_BYTES


def test_it_prints(rich_page: Path, tmp_path: Path) -> None:
    with Site(rich_page.parent) as site:
        site.pdf(rich_page.name, tmp_path / "report.pdf")
    content = (tmp_path / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF")
    assert content.count(b"/Type /Page\n") + content.count(b"/Type /Page ") > 3
