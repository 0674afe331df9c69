"""Every command and snippet of the README and of the pages in docs/, read from there, is one that works.

Commands are taken from indented blocks, from tables of commands and from the CI example. ``...`` stands for any run;
here it is a small one (``SMALL``). Each is read and composed, as ``--cfg job`` does; tools are called on places that are
not there; the examples of the storage engine run. Under ``slow`` each command is typed as it stands, in the order of the
pages, in a folder of a reader who has ``examples/`` there, and the examples of CI and pytest prove a model.

Links between the pages, and the files and folders of the repository that they name, are there.
"""

import ast
import inspect
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import ckptrun
from ckptrun.__main__ import main
from ckptrun.command_line import overrides_of_prove, read_command_line
from ckptrun.config.compose import config_from
from ckptrun.config.mistakes import check_overrides
from ckptrun.tools.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
INDEX = ROOT / "docs/README.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SMALL = "model.layers=1 model.width=32 model.heads=2 model.context=16 train.micro_batch=2 data.max_bytes=20000"
# What "..." stands for where keys of a model of one's own follow: the command above it on the page.
OWN = "model=custom model._target_=examples/mine.py:Net model.loss=mse data=custom data._target_=examples/mine.py:Pairs"
OPENINGS = ("ckptrun ", "python -m ckptrun", "torchrun ")


def lines_of(page: Path) -> Iterator[tuple[str | None, str]]:
    """The lines of a page, each with the language of the fence that it stands in: None outside, "" for a nameless one."""
    language: str | None = None
    for line in page.read_text().replace(" \\\n", " ").replace("\\|", "|").splitlines():
        fence = re.match(r" *```(\w*)", line)
        if fence is None:
            yield language, line
        else:
            language = fence[1] if language is None else None


def commands_in(language: str | None, line: str) -> list[str]:
    """What a reader would type of one line."""
    if language == "yaml":
        return [line.partition("run: ")[2]]
    if language is None and line.startswith("    "):
        return [line.strip()]
    if language is None and line.startswith("| `"):
        return re.findall(r"`([^`]+)`", line.split(" | ")[0])
    return []


def commands() -> list[str]:
    """What a reader would type, one line each, in the order of the pages; once, where two pages have the same."""
    found = [text for page in PAGES for line in lines_of(page) for text in commands_in(*line)]
    return list(dict.fromkeys(re.split(r"\s{2,}[#(]", text)[0].strip() for text in found if text.startswith(OPENINGS)))


def overrides_of(command: str) -> list[str]:
    """The arguments of ``ckptrun`` in ``command``, with ``...`` filled in."""
    words = shlex.split(command.replace(" -m ckptrun", " ckptrun"))
    arguments = words[words.index("ckptrun") + 1 :]
    if arguments[:1] == ["prove"]:
        return overrides_of_prove(arguments)
    filled = OWN if any(argument.startswith("model.") for argument in arguments) else SMALL
    return [word for argument in arguments for word in (filled.split() if argument == "..." else [argument])]


RUNS = [text for text in commands() if not text.split()[1:2] or text.split()[1] not in COMMANDS]
TOOLS = [text for text in commands() if text.split()[1:2] and text.split()[1] in COMMANDS]


def test_the_pages_hold_the_commands_that_are_looked_for() -> None:
    """What is read from them is not nothing."""
    assert len(RUNS) >= 21
    assert {text.split()[1] for text in TOOLS} == set(COMMANDS)
    assert any("experiment=smoke" in text and "my_package" in text for text in RUNS)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_command_of_a_page_goes_untried(page) -> None:
    """Wherever a line, or a cell of a table, begins like a command, it is one of those that are tried."""
    tried = set(commands())
    for language, line in lines_of(page):
        texts = re.findall(r"(?<=\| )`([^`]+)`", line)
        if language is not None or line.startswith("   "):
            texts.append(line.strip().removeprefix("- ").removeprefix("run: "))
        for text in texts:
            if text.startswith(OPENINGS):
                assert re.split(r"\s{2,}[#(]", text)[0].strip() in tried, f"{language}: {line}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_what_make_is_asked_for_is_there(page) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^    make (\w+)|`make (\w+)`", page.read_text(), re.MULTILINE):
        assert f"\n{''.join(target)}:" in makefile, target


@pytest.mark.parametrize("command", RUNS)
def test_a_command_of_the_pages_composes(command, capsys, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    arguments = overrides_of(command)
    if "--help" in arguments or "--version" in arguments:
        monkeypatch.setattr(sys, "argv", ["ckptrun", *arguments])
        assert main() == 0
        assert capsys.readouterr().out
        return
    line = read_command_line(arguments)
    if not line.is_sweep:
        config_from(line.overrides)
        return
    check_overrides(line.overrides, added={})
    values = [
        [f"{key}={value}" for value in values.split(",")]
        for key, _, values in (text.partition("=") for text in line.overrides)
    ]
    # The first and the last cell: between them every value of the sweeps is met.
    cells = list(itertools.product(*values))
    for cell in {cells[0], cells[-1]}:
        config_from(cell)


@pytest.mark.parametrize("command", TOOLS)
def test_a_tool_of_the_pages_takes_its_arguments(command, capsys) -> None:
    """Its options exist: the places are not there, which is another exit code than that of a wrong command line."""
    words = [word.split("|")[0] for word in shlex.split(command)[1:]]
    if words[0] == "help":
        words = words[:2]
    from ckptrun.tools.cli import main as run_tool

    code = run_tool(words)
    said = capsys.readouterr()
    assert "unrecognized arguments" not in said.err
    assert code == (0 if words[0] == "help" else 2), said
    assert words[0] == "help" or "there" in said.err or "no " in said.err


def snippets() -> list[str]:
    """Once each, where two pages have the same."""
    text = "\n".join(page.read_text() for page in PAGES)
    return list(dict.fromkeys(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))


def test_every_snippet_is_python() -> None:
    assert len(snippets()) >= 4
    for text in snippets():
        compile(text, "docs", "exec")


OF_THE_ENGINE = [text for text in snippets() if "storage_writer=ShardWriter(" in text]


def steps_saved(text: str) -> set[int]:
    return {int(step) for step in re.findall(r'ShardWriter\("/data/step_(\d{8})"\)', text)}


def test_the_snippets_of_the_storage_engine_show_all_of_it() -> None:
    assert set().union(*map(steps_saved, OF_THE_ENGINE)) == {20, 40, 60}
    assert any("digest(tensor_or_dtensor)" in text and "PlanCache()" in text for text in OF_THE_ENGINE)


@pytest.mark.parametrize("text", OF_THE_ENGINE)
@pytest.mark.filterwarnings("ignore")
def test_a_snippet_of_the_storage_engine_runs(text, tmp_path) -> None:
    state = {"weight": torch.arange(6.0), "step": 3}
    names = {"state": state, "tensor_or_dtensor": torch.ones(2)}
    # The future of the asynchronous save is waited for, as a program that goes on would.
    code = text.replace('"/data/', f'"{tmp_path}/').replace("dcp.async_save(", "saving = dcp.async_save(")
    code = code.replace("digest(tensor_or_dtensor)", "saving.result(); said = digest(tensor_or_dtensor)", 1)
    exec(compile(code, "docs", "exec"), names)
    if "digest(" in text:
        assert len(names["said"]) == 32
    assert steps_saved(text)
    for step in steps_saved(text):
        assert (tmp_path / f"step_{step:08d}" / "manifest.json").is_file()


def test_the_public_names_have_the_signatures_that_api_md_shows() -> None:
    (text,) = [text for text in snippets() if "class ShardWriter(" in text]
    nodes = ast.parse(text).body
    assert {node.target.id if isinstance(node, ast.AnnAssign) else node.name for node in nodes} == set(ckptrun.__all__)
    for node in nodes:
        members = [] if isinstance(node, ast.AnnAssign) else [node] if isinstance(node, ast.FunctionDef) else node.body
        for member in members:
            owner = getattr(ckptrun, node.name)
            got = inspect.signature(owner if member is node else getattr(owner, member.name)).parameters.values()
            shown = member.args
            assert [a.arg for a in shown.args] == [p.name for p in got if p.kind is not p.KEYWORD_ONLY], member.name
            assert [a.arg for a in shown.kwonlyargs] == [p.name for p in got if p.kind is p.KEYWORD_ONLY], member.name


def slugs(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_of_a_page_leads_somewhere(page) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.is_relative_to(ROOT), link
            assert target.exists(), link
            assert not anchor or anchor in slugs(target), link


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\((\w+\.md)\)", INDEX.read_text()))
    assert linked == {page.name for page in INDEX.parent.glob("*.md")} - {INDEX.name}


def is_there(path: str, page: Path) -> bool:
    """From the root, the package or the page; a bare name of a module anywhere in the package."""
    places = (ROOT, ROOT / "ckptrun", page.parent)
    return any((place / path).exists() for place in places) or (
        "/" not in path and any(ROOT.glob(f"ckptrun/**/{path}"))
    )


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_path_that_a_page_names_is_there(page) -> None:
    """What stands in the repository's folders, or is called ``.py``, in prose, tables and trees."""
    text = page.read_text()
    quoted = re.findall(r"`([\w./]+)(?::\w+)?`", text)
    in_trees = re.findall(r"^    ([\w./]+/[\w./]*) ", text, re.MULTILINE)
    tops = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and path.name not in ("outputs", "build"))
    named = [path for path in quoted if (path.startswith(tops) or path.endswith(".py")) and path != "path/to/file.py"]
    for path in [*named, *in_trees, *(re.findall(r"\b[\w/]+\.py\b", text) if page.name == "reading.md" else [])]:
        assert is_there(path, page), path


def test_paths_are_looked_for() -> None:
    """What is read from the pages is not nothing, and what is not there is missed."""
    assert len(re.findall(r"`tests/[\w./]+`", (ROOT / "docs/promises.md").read_text())) >= 30
    assert len(re.findall(r"^    ckptrun/", (ROOT / "docs/reading.md").read_text(), re.MULTILINE)) >= 40
    assert not is_there("tests/no_such_test.py", INDEX)
    assert not is_there("no_such_module.py", INDEX)
    assert is_there("tether.py", INDEX)


@pytest.mark.slow
def test_the_ci_line_and_the_pytest_example_prove_a_model_of_ones_own_and_show_what_differs(tmp_path) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/__init__.py").write_text("")
    (tmp_path / "my_package/model.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Embedding(256, 16), nn.Dropout(0.1), nn.Linear(16, 256))\n"
    )
    (example,) = [text for text in snippets() if "def test_" in text and "my_package" in text]
    (tmp_path / "test_example.py").write_text(example)
    # The same with a component that does not come back.
    forgetful = (
        "class Forgetful:\n"
        "    def __init__(self):\n        self.seen = 0\n"
        "    def on_step(self, *, step, loss):\n        self.seen = step\n"
        "    def state_dict(self):\n        return {'seen': self.seen}\n"
        "    def load_state_dict(self, state):\n        pass\n"
    )
    (tmp_path / "my_package/forgetful.py").write_text(forgetful)
    mine = '"parallelism=none", "components.mine._target_=my_package.forgetful.Forgetful", '
    (tmp_path / "test_forgetful.py").write_text(example.replace("prove([", f"prove([{mine}"))
    (line,) = [text for text in RUNS if "my_package" in text]
    for command in (["-m", "ckptrun", *overrides_of(line)], ["-m", "pytest", "-q", "."]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600
        )
        if "ckptrun" in command:
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "1 failed, 1 passed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert "FAILED test_forgetful.py" in done.stdout
    for shown in ("ckptrun proof", "DIFFERENT (blame: mine)", "mine.seen"):
        assert shown in done.stdout


@pytest.mark.slow
def test_the_pytest_example_proves_a_job(tmp_path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (example,) = [text for text in snippets() if "def test_" in text and "examples/jobs" in text]
    (tmp_path / "test_example.py").write_text(example)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "pytest", "-q", "test_example.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


def typed(command: str) -> str:
    """``command`` as a reader types it who fills in what it leaves open."""
    words, _, arguments = command.partition("ckptrun ... ")
    if arguments:
        filled = OWN if arguments.startswith(("parallelism=fsdp_tp", "model.")) else SMALL
        if arguments.startswith("proof.reference"):
            filled += " run.name=again train.steps=200"
        if arguments.startswith("checkpoint.resume=outputs"):
            filled += " run.name=longer train.steps=220"
        command = f"{words}ckptrun {filled} {arguments}"
    if command.startswith("ckptrun -m "):
        command += f" {SMALL} train.steps=4 checkpoint.interval_steps=2"  # else the longest of all
    return command.replace("--max-restarts 2 ...", "--max-restarts 2 --nproc-per-node 1")


@pytest.mark.slow
def test_every_command_of_the_pages_does_what_it_says(tmp_path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"

    def run(command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    # `make run` is the line of torchrun and four ranks; CI types it. my_package has a test of its own, below.
    lines = [typed(command) for command in RUNS if "my_package" not in command and "--nproc-per-node 4" not in command]
    if shutil.which("strace") is None:
        lines = [line for line in lines if "crash=save" not in line]
    # Others begin with the first run, or compare with it.
    for command in sorted(dict.fromkeys(lines), key=lambda command: "run.name=first" not in command):
        said = run(command)
        if (
            command.startswith("ckptrun prove")
            or ("fault=" in command and "torchrun" not in command)
            or "proof=full" in command
            or "smoke" in command
        ):
            assert re.search("verdict +EQUAL", said), said
        elif "--" not in command and " -m " not in command:
            assert "bitwise equal at step" in said, said
    checkpoint = "outputs/default/first/checkpoints/step_00000200"
    (sweep, *_) = sorted(path.parent for path in tmp_path.glob("outputs/*/*/summary.json"))
    for command in TOOLS:
        if command.startswith("ckptrun convert"):
            source, _, formats = command.partition("--to ")
            for to in formats.split("|"):
                target = {"torch": "state.pt", "safetensors": "state.safetensors"}.get(to, f"as_{to}")
                run(f"{source.replace('SRC DST', f'{checkpoint} {target}')} --to {to}")
                # torch numbers the state of an optimizer, safetensors holds tensors only.
                run(f"ckptrun diff {checkpoint} {target} {'--only model' if to in ('torch', 'safetensors') else ''}")
        else:
            assert run(
                command.replace("CKPT", checkpoint)
                .replace("A B", "outputs/default/first outputs/default/first")
                .replace(" FOLDER", f" {sweep if '--against' in command else 'outputs/default/first'}")
                .replace(" OLDER", f" {sweep}")
            )
