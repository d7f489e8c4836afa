"""Commands and Python of README and docs, started as they stand, one by one: some on tiny models, the rest on the lab.

    pytest -m slow tests/test_documented_work.py                                 # all, on one run of the lab
    DOCUMENTED_LAB=FOLDER pytest -m slow tests/test_documented_work.py -k hub     # a page; the run is kept in FOLDER

The run is small, so are the sizes in the commands (`SMALLER`), and names of the reader's own become names of that run
(`NAMES`). What is not started here is named in ELSEWHERE and PYTHON_ELSEWHERE with the tests that do the like of it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sftknow.answers import Synonyms
from sftknow.cli.main import main
from sftknow.facts.sources import load_facts
from sftknow.facts.topics import load_topics
from sftknow.models.resolving import resolve_base
from sftknow.resources import task_folder
from sftknow.run.stored_cells import store_small
from tests.documented import DOCS, PAGES, ROOT, blocks, command_lines
from tests.tiny import tiny_llama, tiny_tokenizer

FAST = (
    "sftknow changes base tuned",
    "sftknow paper",
    "sftknow restore base tuned --top 1%,5%,20% --out restored",
    "sftknow tasks path",
    "sftknow topics",
)
ELSEWHERE = {
    r"ray --address|mine\.yaml": "tests/test_cluster.py, tests/grading (ray)",
    r"leaderboard|pull|to org|publish (RUN|restored)": "tests/publishing/test_circle.py, tests/leaderboard",
    r"smallest-base|pull-back|--facts NAME|--sampler NAME|--strategy NAME": "tests/run/test_plug_ins.py",
    r"sftknow .*--tasks |ability|gsm8k": "tests/evaluation/general, tests/run/test_general_ability.py",
    r"lab pretrain|small/model": "tests/lab/test_pretrain.py",
    r"run (lab|lab-full|arena|arena-quick|smollm2-135m|paper-llama-3-8b)\b(?!.*--dry-run)": (
        "the recipes' own tests; the lab is run here"
    ),
    r"org/name,revision|FOLDER|sftknow_xsum|…|--include_path$": "tests/evaluation/test_lm_eval_task.py",
}
"""Commands that are not started here: a pattern, and the tests that do the like of them."""
PYTHON_ELSEWHERE = {
    "docs/extending/evaluation-task.md": "tests/evaluation/general/test_added_task.py",
    "docs/extending/facts-sources.md": "tests/run/test_plug_ins.py",
    "docs/extending/repair-method.md": "tests/parameters/test_candidates.py",
    "docs/extending/report-table.md": "tests/report/test_added_table.py",
    "docs/extending/samplers.md": "tests/run/test_plug_ins.py",
    "docs/extending/strategy.md": "tests/parameters/test_strategies.py",
    "docs/extending/training-strategy.md": "tests/run/test_plug_ins.py",
}
"""Pages whose Python other tests start, and which."""
NAMES = {
    **dict.fromkeys(("BASE", "MODEL", "M", "A", "path/or/org/name", "org/base", "org/name"), "base"),
    **dict.fromkeys(("TUNED", "B", "./tuned"), "tuned"),
    **dict.fromkeys(("SOURCE", "FILE"), "facts.jsonl"),
    "C": "other",
    "DATA": "graded",
    "RECIPE": "lab",
    **dict.fromkeys(("RUN", "runs/a"), "runs/lab"),
    "runs/b": "runs/second",
    "pretrained=MODEL": "pretrained=runs/lab/models/b2-n48-s0",
    "pretrained=runs/lab/models/b3-n60-s0": "pretrained=runs/lab/models/b3-n24-s0",
    "b3-n60-s0": "b3-n24-s0",
}
"""What stands for a name of the reader's own."""
OWN = {"--apply-patch": "five.safetensors", "--keep": "my-task.jsonl", "--rescore": "kept"}
"""What stands for a file that an option names."""
SMALLER = {"--size": "48", "--limit": "100"}
"""What stands for a larger number of an option."""
SETTINGS = (
    "facts.limit=700",
    "grading.samples=1",
    "grid.buckets=[2,3]",
    "grid.sizes=[24,48]",
    "evaluation.splits=[dev,test]",
    "evaluation.regrade=30",
    "restore.cells=[b2-n48-s0]",
    "restore.levels=['5%']",
    "parameters.levels=['5%']",
    "restore.controls=0",
    "divergence.bootstrap=200",
)
ANY_MODEL = (
    "grading.samples=1",
    "grid.buckets=[0]",
    "grid.sizes=[4]",
    "grid.seeds=[0]",
    "grid.mixed=false",
    "restore.controls=0",
    "evaluation.regrade=10",
    "parameters.levels=['5%']",
)
"""The lab's run and that of a model and facts of one's own, in small."""


def commands(page: Path) -> list[str]:
    """The commands of a page that are whole, in their order, each once."""
    found = [code.text for code in command_lines(page) if code.text.startswith(("sftknow ", "lm_eval "))]
    whole = (text for text in found if text.startswith("lm_eval ") or is_whole(shlex.split(text)))
    return list(dict.fromkeys(" ".join(text.split()) for text in whole))


def is_elsewhere(command: str) -> bool:
    return any(re.search(pattern, command) for pattern in ELSEWHERE)


def is_whole(words: list[str]) -> bool:
    """Whether it is a command, and not the name of one within a sentence."""
    from sftknow.cli.main import build_parser
    from sftknow.errors import RecipeError

    if "--help" in words:
        return False
    try:
        build_parser().parse_args(words[1:])
    except RecipeError as error:
        return "pull-back" in str(error)
    return words[1:] not in (["grade"], ["publish"], ["materialize"])


ALL = sorted({command for page in PAGES for command in commands(page)})
STARTED: dict[Path, list[str]] = {}
"""The commands that are started on the lab: by the first page that has them."""
for _page in PAGES:
    _before = {command for found in STARTED.values() for command in found}
    STARTED[_page] = [c for c in commands(_page) if not is_elsewhere(c) and c not in FAST and c not in _before]


def started(command: str, folder: Path) -> None:
    """Start a command with the names replaced and what it writes in a folder of its own."""
    words = [NAMES.get(word, word) for word in shlex.split(command) if word != "--open"]
    if words[1] == "select":
        words = ["train.jsonl" if word == "graded" else word for word in words]
    for option, value in {**OWN, **SMALLER}.items():
        if option in words:
            words[words.index(option) + 1] = value
    for option in ("--out", "--json", "--markdown", "--html", "--output_path"):
        if option in words:
            place = words.index(option) + 1
            words[place] = str(folder / words[place])
    if words[1:3] == ["run", "any-model"]:
        words += [word for setting in ANY_MODEL for word in ("--set", setting)]
    if words[1] in ("check", "repair"):
        words += ["--facts", "facts.jsonl"]  # instead of the 1,200 that ship
    if words[1] == "grade" and "--rescore" not in words:
        words += ["--samples", "2"]
    if words[0] == "lm_eval":
        line = [sys.executable, "-m", *words, "--include_path", str(task_folder())]
        assert subprocess.run(line, check=False).returncode == 0, command
        return
    allowed = (0, 1, 3) if words[1] in ("check", "repair") else (0,)
    print(f"$ {shlex.join(words)}", flush=True)
    assert main(words[1:]) in allowed, command


@pytest.mark.parametrize("command", FAST)
def test_on_tiny_models(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command in ALL, "say it in a page, or here no more"
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
    """Every pattern of what is done elsewhere fits something, its tests are there, and most commands are started."""
    for pattern, where in ELSEWHERE.items():
        assert any(re.search(pattern, command) for command in ALL), pattern
        assert all((ROOT / path).exists() for path in re.findall(r"tests/[\w./]+", where))
    assert len({command for page in PAGES for command in STARTED[page]}) >= 38


def test_all_python_is_started() -> None:
    """Every block of Python of a page has a test here or elsewhere that reads that page."""
    pages = {str(page.relative_to(ROOT)) for page in PAGES if any(b.language == "python" for b in blocks(page))}
    here = {"docs/python.md", "docs/check.md", "docs/select.md", "docs/extending/step.md"}
    assert pages == here | set(PYTHON_ELSEWHERE)
    for page, where in PYTHON_ELSEWHERE.items():
        assert Path(page).name in (ROOT / where).read_text(encoding="utf-8")


# ---- on a run of the lab --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the pages speak of: a run of the lab, a base with tuned models and an adapter, facts, data."""
    kept = os.environ.get("DOCUMENTED_LAB")
    place = Path(kept).resolve() if kept else tmp_path_factory.mktemp("documented")
    # As in a run: its models find the graded facts that they were trained on two folders up.
    folder = place / "models"
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SFTKNOW_CACHE", str(folder / "cache"))
        assert main(["run", "lab", "--out", "runs/lab", *(w for s in SETTINGS for w in ("--set", s))]) == 0
        for name, model in {"base": "base", "tuned": "b2-n48-s0", "other": "b3-n24-s0"}.items():
            if not Path(name).exists():
                shutil.copytree(Path("runs/lab/models") / model, name)
        copies = {"graded": "runs/lab/mastery/dataset", "../mastery/dataset": "graded", "runs/second": "runs/lab"}
        for name, whole in copies.items():
            if not Path(name).exists():
                shutil.copytree(whole, name, symlinks=True)
        small = Path("runs/lab-full/models/b2-n240-s0")  # as that recipe keeps its models
        if not small.exists():
            shutil.copytree("tuned", small)
            store_small(resolve_base("lab", None, None), small)
        own_files()
        yield folder


def own_files() -> None:
    """Facts, examples, a task, an adapter, a patch and kept texts, in the current folder."""
    from tests.checkpoints.test_adapters import adapter

    facts = load_facts("lab", topics=load_topics(), synonyms=Synonyms.load(), limit=24).facts
    tables = {
        "facts.jsonl": [{"topic": f.topic, "subject": f.subject, "object": f.object, "split": f.split} for f in facts],
        "train.jsonl": [{"prompt": f.question, "completion": f" {f.object}"} for f in facts[:24]],
        "my-task.jsonl": [{"prompt": f.question, "answer": f.object} for f in facts[:40]],
    }
    for name, rows in tables.items():
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if not Path("adapter").exists():
        adapter(Path("base"), Path("adapter"), target_modules="all-linear")
    if not Path("five.safetensors").exists():
        assert main(["restore", "base", "tuned", "--top", "5%", "--patch", "--out", "five.safetensors"]) == 0
    if not Path("kept").exists():
        asked = ["grade", "base", "--facts", "facts.jsonl", "--samples", "1", "--keep-texts", "--out", "kept"]
        assert main(asked) == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("page", "command"), [(page.stem, c) for page, found in STARTED.items() for c in found])
def test_a_command(page: str, command: str, lab: Path, tmp_path: Path) -> None:
    started(command, tmp_path / "new")


def python_of(page: str) -> list[str]:
    return [block.text for block in blocks(DOCS / page) if block.language == "python"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_python_as_it_stands(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/python.md, which needs nothing but the lab."""
    monkeypatch.chdir(tmp_path)
    (block,) = python_of("python.md")
    exec(compile(block, "docs/python.md", "exec"), {})


TRLS_OWN = pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")
"""TRL's own arguments have a name that transformers is about to drop."""


def trained(data: Any, **given: Any) -> dict[str, Any]:
    """What the examples with a trainer take as given."""
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(Path("base").resolve(), dtype=torch.float32)
    args = SFTConfig("tuned", bf16=False, report_to="none")
    return {"SFTTrainer": SFTTrainer, "model": model, "args": args, "data": data, **given}


@TRLS_OWN
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_python_of_select(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selected, own = python_of("select.md")
    assert main(["select", "train.jsonl", "--model", "base", "--size", "12", "--out", str(tmp_path / "selected")]) == 0
    space = trained(None)
    monkeypatch.chdir(tmp_path)
    exec(compile(selected, "docs/select.md", "exec"), space)
    known = sum(len(rows) for name, rows in space["buckets"].items() if name != "bucket_0")
    assert known > 0
    assert len(space["trainer"].train_dataset) == min(12, known), "as many as were asked for, or all"
    assert sum(map(len, space["buckets"].values())) == 24
    monkeypatch.chdir(lab)
    exec(compile(own.replace("org/base", "base").replace("480", "12"), "docs/select.md", "exec"), space)
    assert len(space["result"].to_pandas()) == 24


@TRLS_OWN
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_python_of_the_guard(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    space = trained(Dataset.from_json("train.jsonl"))
    monkeypatch.chdir(tmp_path)  # where the trainer puts its checkpoints
    (guard,) = python_of("check.md")
    exec(compile(guard, "docs/check.md", "exec"), space)
    assert space["trainer"].state.global_step > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_python_of_a_step(lab: Path) -> None:
    """The method of docs/extending/step.md, in a class derived from the one that it names."""
    from sftknow.artifacts.stages import RunDirectory
    from sftknow.recipes.load import load_recipe
    from sftknow.run.workbench import Workbench

    (block,) = python_of("extending/step.md")
    lines = [
        "from pathlib import Path",
        "from sftknow.artifacts.files import write_json",
        "from sftknow.artifacts.scores import read_eval",
        "from sftknow.run.cell_steps import CellSteps, TunedModel",
        "from sftknow.run.steps import Step",
        "class Longer(CellSteps):",
        textwrap.indent(textwrap.dedent(block), "    "),
    ]
    space: dict[str, Any] = {}
    exec(compile("\n".join(lines), "docs/extending/step.md", "exec"), space)
    run = Path("runs/lab")
    with RunDirectory(run) as directory:
        bench = Workbench(load_recipe(str(run / "recipe.yaml")), directory, print)
        steps = space["Longer"](bench, bench.cells[0])
        step = steps.lengths(steps._model)
        step.do(print)
        assert step.complete
        assert step.outputs["questions"] == len(json.loads((step.folder / "lengths.json").read_text())["words"])
