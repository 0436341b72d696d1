"""What surrounds the package: its version, its folder, and the three ways to name it to fairseq."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fairseq_hmrnn

ROOT = Path(__file__).resolve().parents[1]


def python(*arguments, cwd, installed=True):
    """Standard output of a Python that sees the package as installed, or not at all."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT) if installed else ""}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=str(cwd), env=environment, capture_output=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_setup_reads_the_version_of_the_package():
    text = (ROOT / "fairseq_hmrnn" / "__init__.py").read_text(encoding="utf-8")
    assert re.findall(r'^__version__ = "([^"]+)"$', text, re.MULTILINE) == [fairseq_hmrnn.__version__]


def test_main_prints_the_folder_and_nothing_else(tmp_path):
    printed = python("-m", "fairseq_hmrnn", cwd=tmp_path)
    assert printed == f"{ROOT / 'fairseq_hmrnn'}\n"


def test_main_explains_every_option_of_models_task_and_criterion(tmp_path):
    printed = python("-m", "fairseq_hmrnn", "--options", cwd=tmp_path)
    _, *sections = re.split(r"^with (--.*):$", printed, flags=re.MULTILINE)
    found = [set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)) for text in sections[1::2]]
    options = dict(zip(sections[::2], found))
    assert options["--task hmlstm_language_modeling"] >= {"--stateful", "--end-of-sample"}
    assert options["--criterion boundary_regularized_cross_entropy"] >= {"--boundary-rates", "--label-smoothing"}
    assert options["--task hmlstm_handwriting"] >= {"--max-line-steps"}
    assert options["--criterion handwriting_likelihood"] >= {"--boundary-regularizers"}
    assert options["--arch hmlstm_handwriting"] >= {"--mixtures", "--hidden-sizes"}
    assert options["--arch hmlstm_lm"] >= {"--hidden-sizes", "--backend"}
    readers = [name for name, names in options.items() if "--encoder-memory" in names]
    assert readers == ["--arch hmlstm", "--arch hmlstm_lstm", "--arch hmlstm_transformer"]


@pytest.mark.parametrize(
    "user_dir, from_root",
    [("fairseq_hmrnn", True), ("user_dir", True), (f"{ROOT}/user_dir", False), (f"{ROOT}/fairseq_hmrnn", False)],
    ids=["package", "user_dir", "user_dir-from-elsewhere", "package-from-elsewhere"],
)
def test_fairseq_finds_the_plugin(tmp_path, user_dir, from_root):
    script = tmp_path / "train.py"  # like the installed commands: a script outside the repository
    script.write_text(
        "import sys\nfrom argparse import Namespace\nfrom fairseq.utils import import_user_module\n"
        f"import_user_module(Namespace(user_dir={user_dir!r}))\nprint(sys.modules['fairseq_hmrnn'].__file__)\n"
    )
    printed = python(str(script), cwd=ROOT if from_root else tmp_path, installed=False)
    assert printed.splitlines()[-1] == str(ROOT / "fairseq_hmrnn" / "__init__.py")
