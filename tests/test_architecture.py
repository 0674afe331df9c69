"""The layers, the torch-free modules and the size caps of the project, read from the source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ckptrun"

LAYERS = [
    {
        "console",
        "elements",
        "errors",
        "files",
        "forks",
        "local_part",
        "probe",
        "processes",
        "public_names",
        "rank_names",
        "text",
    },
    {"config", "exit_codes", "memory", "ranks", "targets", "values"},
    {"data", "digest", "embedded", "model", "parallelism", "precision", "process_groups", "schedule"},
    {"engine", "optimizer", "state"},
    {"checkpoint", "fault", "formats"},
    {"evidence", "trainer"},
    {"build", "checks", "report"},
    {"run", "tools"},
    {"command_line", "launch"},
    {"proof", "sweep"},
    {"foreign"},
    {"crash"},
    {"carry_out"},
    {"api", "app"},
    {"__main__", "pytest_plugin"},
]
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
SOURCES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in SOURCES}


def place(path: Path, line: int | None = None) -> str:
    return f"{path.relative_to(ROOT)}{'' if line is None else f':{line}'}"


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, node.lineno))
    return found


def test_imports_point_down() -> None:
    wrong = []
    for path in SOURCES:
        unit = unit_of(path)
        if unit == "__init__":
            continue
        for module, line in imports_of(TREES[path]):
            if not module.startswith("ckptrun."):
                continue
            other = module.split(".")[1]
            if other != unit and LEVEL[other] >= LEVEL[unit]:
                wrong.append(f"{place(path, line)}: {unit} (L{LEVEL[unit]}) imports {other} (L{LEVEL[other]})")
    assert wrong == []


def test_modules_and_functions_stay_within_their_caps() -> None:
    wrong = []
    for path, tree in TREES.items():
        wrong += [f"{place(path)} has more than 500 lines"] if len(path.read_text().splitlines()) > 500 else []
        wrong += [] if ast.get_docstring(tree) else [f"{place(path)} has no module docstring"]
        if path.name == "__init__.py":
            plain = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign)
            names = {getattr(node, "name", "") for node in tree.body if not isinstance(node, plain)}
            wrong += [] if names <= {"__getattr__", ""} else [f"{place(path)}: logic in __init__"]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name in ("run", "_train_step"):
                length = (node.end_lineno or 0) - node.lineno
                wrong += [f"{place(path, node.lineno)}: {node.name} is too long"] if length > 60 else []
    assert wrong == []


def test_backends_know_nothing_of_what_they_store() -> None:
    wrong = []
    for path in (PACKAGE / "engine/backends").glob("*.py"):
        of_engine = [(name, line) for name, line in imports_of(TREES[path]) if name.startswith("ckptrun.engine")]
        wrong += [place(path, line) for name, line in of_engine if not name.startswith("ckptrun.engine.backends.")]
    assert wrong == []


def test_every_unit_has_a_layer() -> None:
    units = {unit_of(path) for path in SOURCES} - {"__init__"}
    assert units == set(LEVEL)


def test_the_layers_are_those_that_the_package_tells_of() -> None:
    rows = re.findall(r"^L(\d+) +(.+)$", ast.get_docstring(TREES[PACKAGE / "__init__.py"]) or "", re.MULTILINE)
    assert [(int(number), set(units.split(", "))) for number, units in rows] == list(enumerate(LAYERS))


# Beside the modules whose docstrings say so: what is loaded first, by every command.
ALSO_TORCH_FREE = [
    "ckptrun",
    "ckptrun.__main__",
    "ckptrun.carry_out",
    "ckptrun.errors",
    "ckptrun.engine.layout",
    "ckptrun.tools.cli",
    "ckptrun.tools.inspect_command",
    "ckptrun.tools.verify_command",
    "ckptrun.tools.diff_command",
    "ckptrun.tools.convert_command",
]


def is_called_torch_free(path: Path) -> bool:
    said = " ".join((ast.get_docstring(TREES[path]) or "").split())
    return re.search(r"torch-free|must not import torch|loads no torch", said, re.IGNORECASE) is not None


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_modules_that_are_called_torch_free_import_no_torch() -> None:
    names = [module_name(path) for path in SOURCES if is_called_torch_free(path)]
    assert {"ckptrun.config", "ckptrun.launch", "ckptrun.app", "ckptrun.engine.manifest"} <= set(names)
    names += ALSO_TORCH_FREE
    code = f"import sys, importlib\nfor name in {names}:\n    importlib.import_module(name)\n"
    code += "    if 'torch' in sys.modules: sys.exit(name)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_no_assert_and_no_pickle_in_the_package() -> None:
    wrong = []
    for path, tree in TREES.items():
        wrong += [place(path, node.lineno) for node in ast.walk(tree) if isinstance(node, ast.Assert)]
        pickles = ("pickle", "cloudpickle", "dill")
        wrong += [place(path, line) for module, line in imports_of(tree) if module.split(".")[0] in pickles]
    assert wrong == []
