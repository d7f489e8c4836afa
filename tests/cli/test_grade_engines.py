"""`sftknow grade` on a Ray cluster and with vLLM: what is said where they cannot be had, and a whole run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sftknow.cli.main import main
from tests.tiny import tiny_facts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def facts(tmp_path):
    """Facts that the tiny model can be asked about: its context is short."""
    file = tmp_path / "facts.jsonl"
    rows = [
        {"topic": f.topic, "subject": f.subject[:3] + str(i), "object": f.object} for i, f in enumerate(tiny_facts(6))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def grade(model, facts, out, *options):
    return ["grade", str(model), "--facts", str(facts), "--out", str(out), "--samples", "2", *options]


def one_line(capsys):
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sftknow: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "ray", "--address", "127.0.0.1:1"], "no Ray cluster answers at 127.0.0.1:1"),
        (["--engine", "ray", "--address", "nonsense"], "no address of a Ray cluster"),
        (["--engine", "ray", "--device", "cuda:1"], "take --device cuda in place of cuda:1"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_code_2(tiny_model, facts, tmp_path, capsys, options, words):
    assert main(grade(tiny_model, facts, tmp_path / "out", *options)) == 2
    assert words in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("sampler", "missing"), [("vllm", "vllm"), ("transformers", "ray")])
def test_a_missing_package_is_one_line_with_the_command(
    tiny_model, facts, tmp_path, capsys, monkeypatch, sampler, missing
):
    for name in (missing, f"{missing}.platforms"):
        monkeypatch.setitem(sys.modules, name, None)
    engine = ["--engine", "ray", "--address", "local"] if missing == "ray" else []
    assert main(grade(tiny_model, facts, tmp_path / "out", "--sampler", sampler, *engine)) == 2
    assert f"pip install 'sftknow[{missing}]'" in one_line(capsys)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--cpus", "-1", "--cpus should be greater than or equal to 0, not '-1'"),
        ("--gpus", "many", "--gpus should be a valid number, not 'many'"),
        ("--replicas", "0", "--replicas should be greater than or equal to 1, not '0'"),
        ("--engine", "slurm", "--engine should be 'local' or 'ray', not 'slurm'"),
        ("--seed", "x", "--seed should be a valid integer, not 'x'"),
        ("--grain", "1", "there is no option --grain; did you mean --engine? See: sftknow grade --help"),
    ],
)
def test_options_that_make_no_sense_are_refused(tiny_model, facts, tmp_path, capsys, option, value, said):
    assert main(grade(tiny_model, facts, tmp_path / "out", option, value)) == 2
    assert capsys.readouterr().err == f"sftknow: {said}\n"


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.parquet"))}


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_run_on_ray_that_is_interrupted_goes_on_and_gives_the_files_of_one_machine(tmp_path):
    script = ROOT / "tests" / "cli" / "small_shards.py"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def command(out, *options):
        return [sys.executable, str(script), *grade("lab", "lab", out, "--limit", "40", "--seed", "3", *options)]

    plain = subprocess.run(command(tmp_path / "one"), env=environment, capture_output=True, text=True, check=False)
    assert plain.returncode == 0, plain.stderr
    on_ray = command(tmp_path / "many", "--engine", "ray", "--address", "local")
    work = tmp_path / ".many.grading" / "shards"
    with subprocess.Popen(on_ray, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not list(work.glob("0*.parquet")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "interrupted; what is done is saved. Go on with: sftknow grade" in said
    assert list(work.glob("0*.parquet"))
    again = subprocess.run(on_ray, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "Ray: 1 nodes" in again.stderr
    assert files(tmp_path / "many") == files(tmp_path / "one")
