"""The page of what the paper leaves open is what the command makes of the options' own text."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftknow.cli.main import main
from sftknow.recipes.load import load_recipe
from sftknow.recipes.silent import silent_page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "where-the-paper-is-silent.md"


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paper"]) == 0
    printed = capsys.readouterr().out
    assert printed == PAGE.read_text(encoding="utf-8"), f"write it anew: sftknow paper > docs/{PAGE.name}"


def test_every_choice_is_there_with_value_and_reason() -> None:
    page = silent_page()
    keys = (
        *("divergence.tuned_prompt", "divergence.base_prompt", "divergence.window", "divergence.dtype"),
        *("sft.answer_only_loss", "sft.weight_decay", "sft.load_dtype", "sft.compute_dtype", "sft.save_dtype"),
        *("lora.rank", "lora.learning_rate", "general.size", "general.few_shot", "grid.chat_template", "grid.seeds"),
        *("parameters.levels", "parameters.epsilon", "restore.layers", "restore.layer_cells", "restore.cells"),
    )
    for key in keys:
        entry = page.partition(f"**`{key}`**: ")[2].partition("\n\n")
        assert entry[2].startswith("The paper"), key
    rate = load_recipe("paper-llama-3-8b").lora.learning_rate
    assert f"**`lora.learning_rate`**: `null`, in `paper-llama-3-8b` `{rate:g}`" in page
    assert "**`divergence.tuned_prompt`**: `question` (of `statement`, `question`)" in page
