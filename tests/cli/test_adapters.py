"""Every command that takes a fine-tuned model takes an adapter: the commands of docs/adapters.md as they stand."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from sftknow.artifacts.mastery_data import write_mastery_data
from sftknow.artifacts.scores import read_eval
from sftknow.cli.main import main
from sftknow.records import SPLITS
from tests.checkpoints.test_adapters import ALL, adapter, merged_by_peft
from tests.hub_server import HubServer
from tests.parameters.checkpoint_pairs import read_checkpoint
from tests.tiny import graded, tiny_facts, tiny_llama, tiny_tokenizer

DOCS = Path(__file__).resolve().parents[2] / "docs" / "adapters.md"
COMMANDS = re.findall(r"^sftknow .*$", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, its adapter, that merged by peft, and graded facts."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    tiny_llama(Path("base"), tokenizer, dtype="bfloat16")
    adapter(Path("base"), Path("adapter"), use_dora=True, **ALL)
    merged_by_peft(Path("base"), Path("adapter"), Path("merged"))
    tokenizer.save_pretrained("merged")
    letters = tuple(chr(i) for i in range(33, 127))  # of which a random model says one
    rows = []
    for split in SPLITS:
        facts = [dataclasses.replace(fact, aliases=letters) for fact in tiny_facts(20, split=split)]
        rows += [graded(fact, i // 4) for i, fact in enumerate(facts)]
    write_mastery_data(Path("graded"), rows, {"graded_by": "base"})
    return tmp_path


def contents(*folders: str) -> dict[str, str]:
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*")) if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main(list(arguments))
    assert code == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_the_documented_commands(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They do what they do with the merged model, and touch neither base nor adapter."""
    before = contents("base", "adapter")
    printed = {}
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        running = ["--device", "cpu"] if words[0] in ("evaluate", "divergence", "compare") else []
        out = said(capsys, *words, *running)
        as_merged = [word.replace("adapter", "merged") for word in words]
        if "--out" in as_merged:
            as_merged[as_merged.index("--out") + 1] = f"merged-{as_merged[as_merged.index('--out') + 1]}"
        # What was merged elsewhere names no base; this one's random adapter is larger than any training makes it.
        far = ["--any-base"] if words[0] == "divergence" else []
        expected = said(capsys, *as_merged, *running, *far)
        printed[command] = out
        plain = [re.sub(r"merged-|merged|adapter", "", text) for text in (out, expected)]
        assert re.sub(r" +", " ", plain[0]) == re.sub(r" +", " ", plain[1]), command
    assert len(printed) == 7
    assert contents("base", "adapter") == before
    for name in ("restored", "best"):
        assert read_checkpoint(Path(name)) == read_checkpoint(Path(f"merged-{name}"))
        assert not (Path(name) / "adapter_config.json").exists()
    answers = [[q.output for q in read_eval(Path(name)).questions] for name in ("scores", "merged-scores")]
    assert answers[0] == answers[1]
    manifest = json.loads(Path("restored/sftknow.json").read_text())
    assert manifest["adapter"]["path"] == str(work / "adapter")
    assert "| LoRA adapter, merged into the base | adapter (not on the Hub) |" in Path("restored/README.md").read_text()


def test_plans_and_patches_fit_the_merged_model(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "changes", "base", "merged", "--levels", "5%", "--out", "changes")
    said(capsys, "restore", "base", "adapter", "--plan", "changes/plan.json", "--top", "5%", "--out", "restored")
    said(capsys, "restore", "base", "adapter", "--top", "5%", "--patch", "--out", "patch")
    said(capsys, "restore", "merged", "--apply-patch", "patch", "--out", "patched")
    assert read_checkpoint(Path("patched")) == read_checkpoint(Path("restored"))
    said(capsys, "restore", "base", "adapter", "--layer-sweep", "1", "--shard-size", "30kB", "--out", "layers")
    said(capsys, "restore", "base", "merged", "--layer-sweep", "1", "--out", "plain")
    assert read_checkpoint(Path("layers/layers-0-0")) == read_checkpoint(Path("plain/layers-0-0"))


def test_the_adapters_own_tokenizer_goes_with_it(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained("adapter")
    said(capsys, "restore", "base", "adapter", "--top", "5%", "--out", "restored")
    assert Path("restored/chat_template.jinja").read_text() == tokenizer.chat_template
    assert Path("restored/config.json").read_bytes() == Path("base/config.json").read_bytes()


def test_another_base_is_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_llama(Path("other"), tiny_tokenizer(), dtype="bfloat16", seed=9)
    message = refused(capsys, "changes", "other", "adapter")
    assert "other is not the base of the adapter" in message
    assert "give base as BASE" in message
    message = refused(capsys, "changes", "adapter", "merged")
    assert "adapter is a LoRA adapter, and a whole model is needed here" in message


def test_a_base_that_is_not_there(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move("base", "elsewhere")
    message = refused(capsys, "evaluate", "adapter", "--mastery", "graded", "--device", "cpu")
    assert "names base as its base (there is no model at base" in message
    assert "base_model_name_or_path of" in message
    assert said(capsys, "changes", "elsewhere", "adapter")


def test_scores_are_those_of_adapter_and_base(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second start skips what is done, unless the base has become another one."""
    command = ("evaluate", "adapter", "--mastery", "graded", "--device", "cpu", "--out", "scores")
    said(capsys, *command)
    done = Path("scores/scores.json").stat().st_mtime_ns
    said(capsys, *command)
    assert Path("scores/scores.json").stat().st_mtime_ns == done
    tiny_llama(Path("base"), tiny_tokenizer(), dtype="bfloat16", seed=9)
    said(capsys, *command)
    assert Path("scores/scores.json").stat().st_mtime_ns != done


def test_from_the_hub(work: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Adapter and base by their names there, the base found by the adapter's configuration."""
    api = HfApi(endpoint=hub.endpoint, token="hf_test")
    config = Path("adapter/adapter_config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "org/base"}))
    for name in ("base", "adapter"):
        api.create_repo(f"org/{name}")
        api.upload_folder(repo_id=f"org/{name}", folder_path=name)
    said(capsys, "restore", "org/base", "org/adapter@main", "--top", "5%", "--out", "restored")
    manifest = json.loads(Path("restored/sftknow.json").read_text())
    assert re.fullmatch(r"org/adapter@[0-9a-f]{40}", manifest["adapter"]["path"])
    assert "[org/adapter](https://huggingface.co/org/adapter)" in Path("restored/README.md").read_text()
    said(capsys, "restore", "base", "merged", "--top", "5%", "--out", "plain")
    assert read_checkpoint(Path("restored")) == read_checkpoint(Path("plain"))
    said(capsys, "evaluate", "org/adapter", "--mastery", "graded", "--device", "cpu", "--out", "scores")
    said(capsys, "evaluate", "merged", "--mastery", "graded", "--device", "cpu", "--out", "plain-scores")
    answers = [[q.output for q in read_eval(Path(name)).questions] for name in ("scores", "plain-scores")]
    assert answers[0] == answers[1]
