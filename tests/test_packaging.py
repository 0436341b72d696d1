"""Packaging: its version, its folder, the three ways to name it to fairseq, and its archives."""

import argparse
import dataclasses
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from fairseq import criterions, tasks
from fairseq.models import MODEL_DATACLASS_REGISTRY
from running import ROOT, run, script

import fairseq_hmrnn
from fairseq_hmrnn.ops.cpu import kernel, remedy
from fairseq_hmrnn.optim.lr_scheduler import ExactReduceLROnPlateauConfig


def python(*arguments, cwd, installed=True):
    """Standard output of a Python that sees the package as installed, or not at all."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT) if installed else ""}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=str(cwd), env=environment, capture_output=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_main_prints_the_folder_and_nothing_else(tmp_path):
    printed = python("-m", "fairseq_hmrnn", cwd=tmp_path)
    assert printed == run("fairseq-hmrnn", "path", cwd=tmp_path).stdout == f"{ROOT / 'fairseq_hmrnn'}\n"


REGISTRIES = {
    "--arch": MODEL_DATACLASS_REGISTRY,
    "--task": tasks.TASK_DATACLASS_REGISTRY,
    "--criterion": criterions.CRITERION_DATACLASS_REGISTRY,
    "--lr-scheduler": {"exact_reduce_lr_on_plateau": ExactReduceLROnPlateauConfig},
}


def test_main_explains_every_option_of_models_tasks_criterions_and_the_scheduler(tmp_path):
    printed = run("fairseq-hmrnn", "options", cwd=tmp_path).stdout
    _, *sections = re.split(r"^with (--.*):$", printed, flags=re.MULTILINE)
    found = [set(re.findall(r"^  (--[a-z0-9-]+)", text, re.MULTILINE)) for text in sections[1::2]]
    options = {
        f"{kind} {name}": {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(config) if is_own(field)}
        for kind, registry in REGISTRIES.items()
        for name, config in registry.items()
        if config.__module__.startswith("fairseq_hmrnn.")
    }
    assert dict(zip(sections[::2], found)) == options and len(options) == 10
    assert options["--task hmlstm_language_modeling"] >= {"--stateful", "--end-of-sample"}
    assert "--self-target" not in options["--task hmlstm_language_modeling"]


def is_own(field):
    """Whether a field of a configuration is an option that is listed: not the folder, nor one that only takes over
    another part's, nor one of fairseq's that is of no use here."""
    is_taken_over = str(field.default).startswith("${") and not field.metadata.get("help")
    is_unlisted = field.metadata.get("help") == argparse.SUPPRESS
    return field.name not in ("_name", "data") and not is_taken_over and not is_unlisted


FINDS = """import os, sys
from argparse import Namespace
from fairseq.utils import import_user_module
for user_dir, folder in {cases!r}:
    if not os.fork():  # a process for each, after the seconds of fairseq's imports
        os.chdir(folder)
        import_user_module(Namespace(user_dir=user_dir))
        print(sys.modules["fairseq_hmrnn"].__file__, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, user_dir
"""


def test_fairseq_finds_the_plugin(tmp_path):
    cases = [("fairseq_hmrnn", ROOT), ("user_dir", ROOT), (ROOT / "user_dir", tmp_path)]
    cases.append((ROOT / "fairseq_hmrnn", tmp_path))
    script = tmp_path / "train.py"  # like the installed commands: a script outside the repository
    script.write_text(FINDS.format(cases=[tuple(map(str, case)) for case in cases]))
    printed = python(str(script), cwd=tmp_path, installed=False)
    assert printed.splitlines()[-4:] == [str(ROOT / "fairseq_hmrnn" / "__init__.py")] * 4


def test_a_commit_is_not_checked_without_its_kernel(monkeypatch):
    missing = runpy.run_path(str(ROOT / ".ci" / "complete.py"))["missing"]
    before = missing()
    monkeypatch.setattr(kernel, "compiled", None)
    monkeypatch.setattr(kernel, "MISSING", "was not built")
    assert missing()[:1] == [f"the compiled CPU kernel was not built: {remedy()}"]
    assert missing()[0].endswith("setup.py build_ext --inplace --force")
    assert missing()[1:] == [line for line in before if "Triton" in line]


STUB = """#!/bin/sh
case "$*" in
  *EXT_SUFFIX*) echo .this-python.so ;;
  -c*) ;;
  *build_ext*) echo "$@" >> "$LOG" && echo "error: no compiler" >&2 && exit "$BUILT" ;;
  *) echo "$@" >> "$LOG" ;;
esac
"""


def test_an_environment_of_a_relative_name_gets_a_new_kernel_alone(tmp_path):
    """With a python that only notes how it was called."""
    root, log, python = tmp_path / "root", tmp_path / "log", tmp_path / "here" / "env" / "bin" / "python"
    csrc = root / "fairseq_hmrnn" / "ops" / "cpu" / "csrc"
    for folder in (csrc, root / "scripts", python.parent):
        folder.mkdir(parents=True)
    for name in ("scripts/setup_venv.sh", "constraints.txt", "constraints-py310.txt", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    python.write_text(STUB)
    python.chmod(0o755)
    (csrc / "cell.h").write_text("1")
    (csrc.parent / "loading.py").touch()

    def calls(warning="", **settings):
        log.write_text("")
        source = f"source {root}/scripts/setup_venv.sh && cd / && command -v python"
        environment = {**os.environ, "FAIRSEQ_HMRNN_NO_EXTENSION": "", "VENV": "env", "LOG": str(log), "BUILT": "0"}
        made = subprocess.run(
            ["bash", "-c", source], cwd=str(tmp_path / "here"), env={**environment, **settings}, capture_output=True
        )
        assert made.returncode == 0 and made.stdout.decode().splitlines()[-1] == str(python), made.stderr.decode()
        assert re.fullmatch(warning, made.stderr.decode()), made.stderr.decode()
        return log.read_text().splitlines()

    assert any(f"-e {root}" in call for call in calls()) and calls() == []
    (csrc / "cell.h").write_text("2")
    (csrc.parent / "_kernel.another-python.so").write_text("")
    assert calls() == [], "it was installed without a kernel"
    (csrc.parent / "_kernel.this-python.so").write_text("")
    assert calls(FAIRSEQ_HMRNN_NO_EXTENSION="1") == []
    compiled = ["setup.py -q build_ext --inplace --force"]
    failed = r"setup: warning: compiling _kernel\.this-python\.so failed \(error: no compiler; .*: fix that .*\n"
    for _ in range(2):  # it is not taken for done
        assert calls(failed, BUILT="1") == compiled
    assert calls() == compiled and calls() == []
    (csrc.parent / "loading.py").write_text("# another digest\n")
    assert calls() == compiled and calls() == []
    with (root / "constraints.txt").open("a") as file:
        file.write("# others\n")
    (csrc / "cell.h").write_text("3")
    assert any(f"-e {root}" in call for call in calls(FAIRSEQ_HMRNN_NO_EXTENSION="1"))
    assert calls() == compiled and calls() == [], "installed anew, but not the kernel"


def test_lines_of_scripts_are_as_short_as_those_of_python():
    scripts = sorted((ROOT / "scripts").rglob("*.sh"))
    lines = [(path.name, number) for path in scripts for number, line in numbered(path) if len(line) > 120]
    assert len(scripts) > 10 and lines == []


def numbered(path):
    return enumerate(path.read_text(encoding="utf-8").splitlines(), 1)


GPU_STUB = """#!/bin/sh
case "$*" in
  *cuda*) echo 0 ;;
  "-m fairseq_hmrnn train "*) ls "$5" >> "$7/hydra_train.log" && touch "$7/checkpoint_best.pt" ;;
  "-m fairseq_hmrnn average "*) head -c "$SIZE" /dev/zero > "$7" ;;
esac
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the script is for GNU's timeout, stat and sha256sum")
def test_gpu_check_takes_relative_names_goes_on_and_leaves_no_old_pieces(tmp_path):
    """With a python that makes the files alone: names are of the folder it is called in."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dict.txt").touch()
    (tmp_path / "python").write_text(GPU_STUB)
    (tmp_path / "python").chmod(0o755)
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), "train", "out", "data"]
    for size, names in ((31, ["best.pt.aa", "best.pt.ab", "best.pt.ac"]), (16, ["best.pt.aa", "best.pt.ab"])):
        environment = {**os.environ, "PYTHON": "./python", "SAVE": "save", "SIZE": str(size << 20)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        told = subprocess.run(command, cwd=str(tmp_path), env=environment, **pipes)
        assert told.returncode == 0, told.stdout.decode()
        assert sorted(path.name for path in (tmp_path / "out").glob("best*")) == names
    assert (tmp_path / "save" / "ptb" / "hydra_train.log").read_text() == "dict.txt\n" * 2, "the second call goes on"


OLD_NAMES = {
    ("prepare_ptb.sh", "in", "out", "--overwrite"): "prepare ptb in --dest out --overwrite",
    ("prepare_text8.sh", "in", "out", "--overwrite"): "prepare text8 in --dest out --overwrite",
    ("prepare_enwik8.sh", "in", "out", "--overwrite"): "prepare enwik8 in --dest out --overwrite",
    ("prepare_ptb.sh", "in", "--overwrite"): "error: --overwrite in place of DEST",
    ("train_recipe.sh", "ptb", "in", "--cpu"): "error: --cpu in place of SAVE_DIR",
    ("train_translation.sh", "in", "--cpu"): "error: --cpu in place of SAVE_DIR",
}


@pytest.mark.parametrize("called", OLD_NAMES, ids=" ".join)
def test_old_names_of_commands_pass_options_on(called, tmp_path, monkeypatch):
    (tmp_path / "python").write_text('#!/bin/sh\n[ "$1" = -c ] || echo "$@"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr("running.BIN", tmp_path)
    assert OLD_NAMES[called] in script(*called, check="error" not in OLD_NAMES[called])


BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_{}(sys.argv[1]))"


def build(kind, source, target, **variables):
    """The archive that setuptools builds of a source folder, as pip has it build: "sdist" or "wheel"."""
    command, environment = [sys.executable, "-c", BUILD.format(kind), str(target)], {**os.environ, **variables}
    result = subprocess.run(command, cwd=str(source), env=environment, capture_output=True, encoding="utf-8")
    assert result.returncode == 0, result.stdout + result.stderr
    return target / result.stdout.splitlines()[-1]


def install(archive, folder):
    """Into a fresh environment, which sees what is installed here besides."""
    venv.create(folder)
    python = folder / "bin" / "python"
    found = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, check=True
    )
    own = Path(found.stdout.decode().strip())
    (own / "others.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    command = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--force-reinstall"]
    environment = {**os.environ, "PYTHONPATH": "", "FAIRSEQ_HMRNN_NO_EXTENSION": "1"}
    result = subprocess.run(
        [*command, "--no-build-isolation", str(archive)],
        cwd=str(folder), env=environment, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr


def sampled(folder):
    """Standard error of the installed command while it samples; the package must be that of the folder."""
    command, outputs = folder / "bin" / "fairseq-hmrnn", []
    checkpoint = ROOT / "tests" / "checkpoints" / "hmlstm_lm.pt"
    arguments = [checkpoint, "--prompt", "der baum", "--length", "5", "--seed", "1"]
    for given in (["path"], ["sample", *map(str, arguments)]):
        result = subprocess.run(
            [str(command), *given],
            cwd=str(folder), env={**os.environ, "PYTHONPATH": ""}, capture_output=True, encoding="utf-8",
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
    assert outputs[0].startswith(str(folder)) and outputs[0].rstrip("\n").endswith("fairseq_hmrnn")
    assert outputs[1].startswith("der baum") and len(outputs[1].rstrip("\n")) <= len("der baum") + 5
    return result.stderr


COMPILER = """#!/bin/sh
case " $* " in *" -c "*) touch "$COMPILED"; exit 1 ;; *) exec c++ "$@" ;; esac
"""


@pytest.fixture
def source(tmp_path):
    """A folder with what setuptools takes, without a kernel."""
    folder = tmp_path / "source"
    shutil.copytree(ROOT / "fairseq_hmrnn", folder / "fairseq_hmrnn", ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder)
    return folder


def build_folder(source):
    """Where setuptools puts a package with a kernel before it makes an archive of it."""
    return source / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"


@pytest.mark.slow
@pytest.mark.skipif(kernel.compiled is None, reason="the compiled kernel was not built")
def test_a_kernel_that_would_not_be_loaded_is_built_anew(source, tmp_path):
    """However new its file is; with a compiler that only notes that it was called."""
    compiler, called = tmp_path / "compiler", tmp_path / "called"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    fits = Path(kernel.compiled.__file__).read_bytes()
    other = re.sub(rb"(fairseq_hmrnn kernel; source )\w{16}", rb"\g<1>0123456789abcdef", fits)
    here = source / "fairseq_hmrnn" / "ops" / "cpu" / Path(kernel.compiled.__file__).name
    built = build_folder(source) / here.relative_to(source)
    built.parent.mkdir(parents=True)

    def compiles(*options):
        called.unlink(missing_ok=True)
        environment = {**os.environ, "CC": str(compiler), "CXX": str(compiler), "COMPILED": str(called)}
        command = [sys.executable, "setup.py", "-q", "build_ext", *options]
        done = subprocess.run(command, cwd=str(source), env=environment, capture_output=True)
        assert called.exists() == (done.returncode != 0), done.stderr.decode()
        return called.exists()

    built.write_bytes(fits)
    assert not compiles()
    here.write_bytes(other)
    assert not compiles() and compiles("--inplace")
    built.write_bytes(other)
    here.unlink()
    assert compiles()


def test_a_header_that_is_gone_is_in_no_archive(source):
    csrc = Path("fairseq_hmrnn", "ops", "cpu", "csrc")
    built = source / "build" / "lib" / csrc
    built.mkdir(parents=True)
    (built / "gone.h").touch()
    environment = {**os.environ, "FAIRSEQ_HMRNN_NO_EXTENSION": "1"}
    subprocess.run([sys.executable, "setup.py", "-q", "build"], cwd=str(source), env=environment, check=True)
    assert sorted(os.listdir(built)) == sorted(os.listdir(source / csrc))


@pytest.mark.slow
def test_archives_install_and_sample(source, tmp_path):
    """The wheel is built of the source archive, with the kernel of this checkout: to compile it takes minutes. The
    source archive is installed without, and says so."""
    dist = tmp_path / "dist"
    archive = build("sdist", source, dist, FAIRSEQ_HMRNN_NO_EXTENSION="1")
    with tarfile.open(archive) as tar:
        packed = {Path(*Path(name).parts[1:]).as_posix() for name in tar.getnames()}
        tar.extractall(tmp_path)
    tracked = subprocess.run(["git", "ls-files", "fairseq_hmrnn"], cwd=str(ROOT), capture_output=True, encoding="utf-8")
    assert {*tracked.stdout.split(), "setup.py", "pyproject.toml", "LICENSE", "README.md"} <= packed

    unpacked = tmp_path / archive.name[: -len(".tar.gz")]
    if kernel.compiled is not None:
        place = build_folder(unpacked) / "fairseq_hmrnn" / "ops" / "cpu"
        place.mkdir(parents=True)
        shutil.copy(kernel.compiled.__file__, place)  # newer than its sources: setuptools takes it as it is
    wheel = build("wheel", unpacked, dist)
    assert f"-{fairseq_hmrnn.__version__}-" in wheel.name
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    data = {"py.typed", "configs/ptb.yaml", "analysis/page.html", "ops/cpu/csrc/cell.h"}
    assert {f"fairseq_hmrnn/{name}" for name in data} <= names
    assert not any(name.startswith(("tests", "user_dir", "scripts")) for name in names)
    assert any("_kernel" in name for name in names) == (kernel.compiled is not None)

    install(wheel, tmp_path / "of-wheel")
    assert ("its Python path runs" in sampled(tmp_path / "of-wheel")) == (kernel.compiled is None)
    install(archive, tmp_path / "of-source")
    told = sampled(tmp_path / "of-source")
    assert told.count("the compiled CPU kernel was not built; its Python path runs, which takes 3 to 10 times") == 1
    assert "-m pip install --no-build-isolation --no-deps -U ." in told
