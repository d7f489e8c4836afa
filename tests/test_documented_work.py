"""Commands and Python of README and docs, started as they stand: some on tiny models, the rest on a lab run (slow).

What is not started here is named in ELSEWHERE with the test that does the like of it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from sftknow.answers import Synonyms
from sftknow.cli.main import main
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from tests.documented import DOCS, PAGES, blocks, command_lines
from tests.tiny import tiny_llama, tiny_tokenizer

COMMANDS = sorted({code.text for page in PAGES for code in command_lines(page) if code.text.startswith("sftknow ")})
FAST = (
    "sftknow changes base tuned",
    "sftknow paper",
    "sftknow restore base tuned --top 1%,5%,20% --out restored",
    "sftknow tasks path",
    "sftknow topics",
)
ELSEWHERE = {
    r"ray": "tests/test_cluster.py, tests/grading (ray)",
    r"org/|-ORG|publish|leaderboard": "tests/publishing/test_circle.py, tests/leaderboard",
    r"adapter": "tests/cli/test_adapters.py",
    r"select ": "tests/run/test_selecting.py",
    r"repair .*--keep": "tests/run/test_repairing.py",
    r"smallest-base|NAME|capitals|ability|xsum|--task": "tests/run/test_plug_ins.py, tests/evaluation/general",
    r"lab pretrain|small/model": "tests/lab/test_pretrain.py",
    r"materialize": "tests/run/test_materializing.py",
    r"--rescore|--apply-patch": "tests/run/test_rescoring.py, tests/cli/test_restore.py",
    r"run (paper-|any-model .*(?<!--dry-run)$|mine|lab)": "the recipes' own tests; the lab is run for these tests",
}
"""What is not started here: a pattern, and the tests that do the like of it."""
NAMES = {
    **dict.fromkeys(("BASE", "MODEL", "M", "A", "path/or/org/name"), "base"),
    **dict.fromkeys(("TUNED", "B"), "tuned"),
    **dict.fromkeys(("SOURCE", "FILE"), "facts.jsonl"),
    "C": "other",
    "DATA": "graded",
    "RUN": "runs/lab",
    **dict.fromkeys(("runs/a", "runs/b"), "runs/lab"),
}
"""What stands for a name of the reader's own."""


def started(command: str, folder: Path) -> None:
    """Start a command with the names replaced and what it writes in a folder of its own."""
    words = [NAMES.get(word, word) for word in shlex.split(command)[1:] if word != "--open"]
    for option in ("--out", "--json", "--markdown", "--html"):
        if option in words:
            place = words.index(option) + 1
            words[place] = str(folder / words[place])
    allowed = (0, 1, 3) if words[0] in ("check", "repair") else (0,)
    assert main(words) in allowed, command


@pytest.mark.parametrize("command", FAST)
def test_on_tiny_models(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command in COMMANDS, "say it in a page, or here no more"
    monkeypatch.chdir(tmp_path)
    if "base" in command or "tuned" in command:
        tokenizer = tiny_tokenizer()
        for seed, name in enumerate(("base", "tuned")):
            tiny_llama(Path(name), tokenizer)
            if seed:
                near(Path(name), seed)
    started(command, tmp_path / "new")


def near(folder: Path, seed: int) -> None:
    """Make the model one that was fine-tuned from what it is: every weight a little elsewhere."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    noise = torch.Generator().manual_seed(seed)
    moved = {name: t + 1e-3 * torch.randn(t.shape, generator=noise) for name, t in load_file(file).items()}
    save_file(moved, file, metadata={"format": "pt"})


def test_nothing_is_forgotten() -> None:
    """Every pattern of what is done elsewhere fits something, and its tests are there."""
    root = DOCS.parent
    for pattern, where in ELSEWHERE.items():
        assert any(re.search(pattern, command) for command in COMMANDS), pattern
        assert all((root / path).exists() for path in re.findall(r"tests/[\w./]+", where))


SETTINGS = (
    "grading.samples=1",
    "grid.buckets=[2,3]",
    "grid.sizes=[60,240]",
    "evaluation.splits=[dev,test]",
    "restore.cells=[b2-n240-s0]",
    "restore.levels=['5%']",
    "parameters.levels=['5%']",
    "restore.controls=0",
    "divergence.bootstrap=200",
)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_on_a_run_of_the_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of all pages that need nothing but the lab, and the guard of docs/check.md."""
    monkeypatch.chdir(tmp_path)
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    assert main(["run", "lab", "--out", "runs/lab", *sets]) == 0
    for name, model in {"base": "base", "tuned": "b2-n240-s0", "other": "b3-n60-s0"}.items():
        shutil.copytree(Path("runs/lab/models") / model, name)
    shutil.copytree("runs/lab/mastery/dataset", "graded")
    facts = load_facts("lab", topics=load_topics(), synonyms=Synonyms.load(), limit=40).facts
    rows = [{"topic": f.topic, "subject": f.subject, "object": f.object, "split": f.split} for f in facts]
    Path("facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    left = []
    for number, command in enumerate(COMMANDS):
        words = shlex.split(command)
        if "…" in words or not is_whole(words) or any(re.search(pattern, command) for pattern in ELSEWHERE):
            left.append(command)
            continue
        started(command, tmp_path / "new" / str(number))
    assert len(COMMANDS) - len(left) >= 15, left

    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTTrainer

    (guard,) = (block for block in blocks(DOCS / "check.md") if block.language == "python")
    answered = [{"prompt": f.question, "completion": f" {f.object}"} for f in facts[:8]]
    given = {
        "SFTTrainer": SFTTrainer,
        "model": AutoModelForCausalLM.from_pretrained("base", dtype=torch.float32),
        "data": Dataset.from_list(answered),
    }
    exec(compile(guard.text, "docs/check.md", "exec"), given)
    assert given["trainer"].state.global_step > 0


def is_whole(words: list[str]) -> bool:
    """Whether it is a command, and not the name of one within a sentence."""
    from sftknow.cli.main import build_parser
    from sftknow.errors import RecipeError

    if "--help" in words:
        return False
    try:
        build_parser().parse_args(words[1:])
    except RecipeError:
        return False
    return True
