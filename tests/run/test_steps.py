"""A step does what is not done, keeps what is, and finds its partial work again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from sftknow.artifacts.stages import RunDirectory
from sftknow.run.steps import Step


def test_a_step_is_done_once_and_again_where_its_inputs_change(tmp_path: Path) -> None:
    said: list[str] = []
    directory = RunDirectory(tmp_path)

    def step(size: int) -> Step:
        def work(folder: Path) -> int:
            (folder / "result").write_text(str(size))
            return size

        return Step.of(directory.stage("counted", {"size": size}), f"counting to {size}", work)

    assert not step(1).complete
    step(1).do(said.append)
    step(1).do(said.append)
    assert (step(1).complete, step(2).complete) == (True, False)
    assert (step(1).outputs, step(1).folder / "result") == (1, tmp_path / "counted" / "result")
    step(2).do(said.append)
    assert (step(2).folder / "result").read_text() == "2"
    assert said == ["counting to 1", "counting to 2"]


@pytest.mark.parametrize("one_pass", [False, True])
def test_what_one_pass_makes_is_kept_one_by_one(tmp_path: Path, one_pass: bool) -> None:
    said: list[str] = []
    asked: list[list[str]] = []
    directory = RunDirectory(tmp_path)

    def step(stop_at: str = "") -> Step:
        def work(folders: Mapping[str, Path]) -> Iterator[str]:
            asked.append(list(folders))
            for name, folder in folders.items():
                (folder / "partial").write_text(name)
                if name == stop_at:
                    raise KeyboardInterrupt
                yield name.upper()

        stages = {name: directory.stage(f"parts/{name}", {"name": name}) for name in "abc"}
        return Step(stages=stages, title="writing {left}", work=work, one_pass=one_pass)

    with pytest.raises(KeyboardInterrupt):
        step(stop_at="b").do(said.append)
    assert not step().complete
    assert (tmp_path / "parts" / "b" / "partial").is_file(), "partial work of the same key is kept"
    step().do(said.append)
    step().do(said.append)
    assert step().complete
    assert asked == [["a", "b", "c"], ["b", "c"]]
    assert said == ["writing a, b, c", "writing b, c"]
    assert [stage.outputs for stage in step().stages.values()] == ["A", "B", "C"]
