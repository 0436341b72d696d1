"""The documents say what is so: links lead somewhere, commands and their options exist, examples run."""

import argparse
import contextlib
import re
import shlex
from pathlib import Path

import pytest
import torch
from fairseq import options
from running import ROOT, run, run_groups
from small_training import SMALL

from fairseq_hmrnn.cli.arguments import Parser, split_rest
from fairseq_hmrnn.cli.errors import UserError
from fairseq_hmrnn.cli.main import COMMANDS, build_parser
from fairseq_hmrnn.cli.recipe import RECIPES, load_recipe
from fairseq_hmrnn.cli.settings import OF_A_SECTION, settle

FOLDERS = (".", "docs", "fairseq_hmrnn/ops", "scripts/benchmark", "tests/checkpoints")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.md"))
FAIRSEQ = {
    "fairseq-train": options.get_training_parser,
    "fairseq-eval-lm": options.get_eval_lm_parser,
    "fairseq-generate": options.get_generation_parser,
    "fairseq-interactive": options.get_interactive_generation_parser,
    "fairseq-validate": options.get_validation_parser,
    "fairseq-preprocess": options.get_preprocessing_parser,
}
BENCHMARK = re.compile(r"scripts/benchmark/(\w+)\.py$")
# What `train FOLDER` may choose, beside which options after -- are given.
CHOSEN = [("hmlstm_language_modeling", "hmlstm_lm"), ("translation", "hmlstm_small")]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)


def anchors(path):
    """Of a document's headings, as Markdown viewers make them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(document):
    """The targets of a document's links, but for other sites."""
    targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    return [target for target in targets if not target.startswith(("http://", "https://"))]


def code_lines(document):
    """Lines of a document's blocks of code, of Python aside, those that end in a backslash joined with the next."""
    text = re.sub(r"^```python\n.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    indented = [line for line in text.split("\n") if line.startswith("    ")]
    return "\n".join(indented).replace("\\\n", " ").split("\n")


def words_of(line):
    """The words of a line as a shell splits it, operators apart; none if it is no shell's."""
    lexer = shlex.shlex(line.replace('"$(fairseq-hmrnn path)"', "fairseq_hmrnn"), posix=True, punctuation_chars="|<>;&")
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return []


def commands(document):
    """(name, arguments) of every command of ours and of fairseq's, and of every benchmark by its file, in the
    document's code that is whole: without "..." and variables."""
    spans = re.findall(r"`(?:python )?(scripts/benchmark/\w+\.py [^`]*)`", document.read_text(encoding="utf-8"))
    for line in [*code_lines(document), *spans]:
        calls, is_file = [[]], False
        for word in words_of(line):
            if set(word) <= set("|;&"):
                calls.append([])
            elif not is_file and not set(word) <= set("<>"):
                calls[-1].append(word)
            is_file = set(word) <= set("<>")
        for words in calls:
            is_set = [bool(re.match(r"[A-Z_]+=|python$", word)) for word in words]  # variables before the command
            name, *arguments = words[is_set.index(False) :] if False in is_set else [""]
            is_whole = not re.search(r"\.\.\.|COMMAND|\$", " ".join(arguments))
            if is_whole and (name == "fairseq-hmrnn" or name in FAIRSEQ or BENCHMARK.match(name)):
                yield name, arguments


def forget_types(parser):
    """Have a parser, and those of its commands, take any value: the files that the documents name are not here."""
    for action in parser._actions:
        action.type = None
        for child in action.choices.values() if action.nargs == argparse.PARSER else ():
            forget_types(child)
    return parser


def parse_fairseq(name, arguments):
    """As a command of fairseq's parses its options; SystemExit for wrong ones."""
    if name == "fairseq-preprocess":  # which looks at no options of its task
        FAIRSEQ[name]().parse_args(arguments)
        return
    with contextlib.suppress(FileNotFoundError):  # a checkpoint that the documents name
        options.parse_args_and_arch(FAIRSEQ[name](), input_args=arguments)


def check_train(what, data, behind):
    """What stands after -- of `train`; an error for what cannot be."""
    if data is not None:
        assert what in RECIPES or what.endswith(".yaml"), what
        settle(load_recipe(what if what in RECIPES else "ptb_small"), behind)
        return
    chosen = ["--user-dir", "fairseq_hmrnn", "--criterion", "boundary_regularized_cross_entropy", "--optimizer", "adam"]
    for task, arch in CHOSEN if behind else ():
        try:
            parse_fairseq("fairseq-train", [what, *chosen, "--task", task, "--arch", arch, *behind])
            return
        except SystemExit as refused:
            error = refused
    if behind:
        raise error


class Found(Exception):
    """Raised in place of reading arguments, with the parser."""


def parser_of(module, monkeypatch):
    """The parser of a benchmark, which does not run."""

    def found(parser, *_):
        raise Found(parser)

    with monkeypatch.context() as patch, pytest.raises(Found) as raised:
        patch.setattr(Parser, "parse_known_args", found)
        module.main()
    return forget_types(raised.value.args[0])


@every_document
def test_links_lead_to_files_and_headings(document):
    for target in links(document):
        name, _, heading = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{target} leads nowhere"
        assert not heading or heading in anchors(path), f"{target}: no such heading"


@every_document
def test_paths_in_code_are_there(document):
    text = document.read_text(encoding="utf-8")
    roots = "scripts|tests|docs|fairseq_hmrnn|user_dir"
    found = re.findall(rf"(?<![\w/.]){roots.join(['(?:', ')'])}/[\w/.-]*\w", re.sub(r"\]\([^)]*\)", "", text))
    former = {"CHANGELOG.md"}  # tells of files that were
    missing = [name for name in found if not (ROOT / name).exists()]
    assert not missing or document.name in former, missing


@every_document
def test_commands_exist_and_take_their_options(document):
    parser = forget_types(build_parser())
    for name, arguments in commands(document):
        if name == "fairseq-hmrnn":
            own, behind = split_rest(arguments)
            if "--help" not in own and "--print-completion" not in own:
                args = parser.parse_args(own)
                if own[0] == "train":
                    check_train(args.what, args.data, behind)
        elif name in FAIRSEQ:
            parse_fairseq(name, arguments)
    spans = re.findall(r"`fairseq-hmrnn ([a-z]+)", document.read_text(encoding="utf-8"))
    assert set(spans) <= set(COMMANDS)


@every_document
def test_benchmarks_exist_and_take_their_options(document, import_benchmark, monkeypatch):
    for name, arguments in commands(document):
        file = BENCHMARK.match(name)
        if file:
            own, _ = split_rest(arguments)
            parser_of(import_benchmark(file.group(1)), monkeypatch).parse_args(own)
            recipe = next((word for word in own if word in RECIPES), "ptb_small")
            settle(load_recipe(recipe), [word for word in arguments if OF_A_SECTION.match(word) and "=" in word])


@pytest.mark.parametrize(
    "command",
    [
        "fairseq-hmrnn train ptb data/ptb -- model.hiden_sizes=3",
        "fairseq-hmrnn train data/mytext -- --max-updates-of 3",
        "fairseq-hmrnn train data/pairs -- --encoder-memories means:1",
        "python scripts/benchmark/past.py data/ptb checkpoints/ptb --subsets valid",
        "OMP_NUM_THREADS=1 python scripts/benchmark/precision.py data/ptb -- dataset.batchsize=16",
    ],
)
def test_wrong_options_in_documents_are_found(command, import_benchmark, monkeypatch, tmp_path):
    document = tmp_path / "page.md"
    document.write_text(f"# Page\n\n    {command}\n", encoding="utf-8")
    with pytest.raises((SystemExit, UserError)):
        test_commands_exist_and_take_their_options(document)
        test_benchmarks_exist_and_take_their_options(document, import_benchmark, monkeypatch)


def test_documents_have_commands_at_all():
    """That the reader above reads: the README has each command but options and path in a line of its own."""
    found = {arguments[0] for name, arguments in commands(ROOT / "README.md") if name == "fairseq-hmrnn"}
    assert {"prepare", "train", "sample", "segment", "plot"} <= found
    names = {name for path in DOCUMENTS for name, _ in commands(path)}
    assert {"fairseq-hmrnn", "fairseq-train", "fairseq-eval-lm", "fairseq-interactive"} <= names
    assert len([name for name in names if BENCHMARK.match(name)]) > 9


def test_documents_have_links_at_all():
    """That they are found: to files, and to headings of the same file and of others."""
    found = {name: links(path) for name, path in zip(NAMES, DOCUMENTS)}
    assert len(found["README.md"]) > 10 and len(found["docs/results.md"]) > 10
    assert any("#" in target for targets in found.values() for target in targets)


def test_the_documents_have_every_recipe():
    text = (ROOT / "docs" / "language_models.md").read_text(encoding="utf-8")
    assert [name for name in RECIPES if f"`{name}`" not in text] == []


def test_the_readme_has_every_document_in_its_index():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"](docs/{path.name})" not in text] == []
    assert len(text.splitlines()) <= 170


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_but_those_of_tables_are_no_longer_than_those_of_code(document):
    lines = document.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def text_of(count):
    return "Once upon a time there was any number of texts.\nThere was\ta train to the station (100)!\n" * count


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder as docs/python.md takes it: models of a few updates, a text and its translation."""
    folder = tmp_path_factory.mktemp("documents")
    pairs, checkpoints = folder / "data" / "pairs", folder / "checkpoints"
    pairs.mkdir(parents=True)
    checkpoints.mkdir()
    (folder / "mytext.txt").write_text(text_of(40), encoding="utf-8")
    for split, count in (("train", 40), ("valid", 4)):
        (pairs / f"{split}.de").write_text("Wo ist der Bahnhof?\nDer Zug ist hier.\n" * count, encoding="utf-8")
        (pairs / f"{split}.en").write_text("Where is the station?\nThe train is here.\n" * count, encoding="utf-8")
    run("fairseq-hmrnn", "prepare", "text", "mytext.txt", "--dest", "data/mytext", cwd=folder)
    sizes = ("--source-size", 40, "--target-size", 40)
    run("fairseq-hmrnn", "prepare", "translation", "de", "en", "data/pairs", *sizes, cwd=folder)
    train = ["--user-dir", ROOT / "fairseq_hmrnn", "--optimizer", "adam", "--lr", "0.01", "--batch-size", 8, "--cpu"]
    train += ["--max-update", 2, "--num-workers", 0, "--disable-validation", "--no-epoch-checkpoints", "--seed", 1]
    text = [folder / "data" / "mytext", "--task", "hmlstm_language_modeling", *SMALL, "--tokens-per-sample", 30]
    translation = [pairs / "bin", "--task", "translation", "--arch", "hmlstm_transformer_tiny"]
    jobs = []
    for name, options_ in (("mytext", text), ("pairs", translation)):
        save = checkpoints / name
        jobs.append([("fairseq-train", [*options_, *train, "--save-dir", save], folder / f"{name}.log")])
    run_groups(jobs)
    return folder


@pytest.mark.slow
def test_the_examples_in_python_run(workplace):
    """One after the other in one interpreter, after the export that the page has before them."""
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    export = [arguments for _, arguments in commands(ROOT / "docs" / "python.md")]
    assert [arguments[0] for arguments in export] == ["export"]
    run("fairseq-hmrnn", *export[0], cwd=workplace)
    examples = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 8
    if not hasattr(torch.library, "custom_op"):  # operators that graphs record
        examples = [example for example in examples if "torch.jit.trace" not in example]
    path = Path(workplace) / "examples.py"
    path.write_text("\n".join(examples) + "\nprint('all ran')\n", encoding="utf-8")
    assert run("-c", f"exec(open({str(path)!r}).read())", cwd=workplace).stdout.rstrip().endswith("all ran")
