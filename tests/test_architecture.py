"""The layers, the torch-free modules and the size caps of the project, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ckptrun"

LAYERS = [
    {"console", "elements", "errors", "files", "forks", "processes", "public_names", "rank_names", "text"},
    {"config", "exit_codes", "memory", "ranks", "targets", "values"},
    {"data", "digest", "embedded", "model", "parallelism", "precision", "process_groups", "schedule"},
    {"engine", "optimizer", "state"},
    {"checkpoint", "fault", "formats"},
    {"evidence", "trainer"},
    {"build", "checks"},
    {"run", "tools"},
    {"command_line", "launch"},
    {"proof", "sweep"},
    {"start"},
    {"api", "app"},
    {"__main__", "pytest_plugin"},
]
LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}
# Within a layer: who may import whom.
SIDEWAYS: set[tuple[str, str]] = set()
SOURCES = sorted(PACKAGE.rglob("*.py"))


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


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    unit = unit_of(path)
    if unit == "__init__":
        return
    for module, line in imports_of(ast.parse(path.read_text())):
        if not module.startswith("ckptrun."):
            continue
        other = module.split(".")[1]
        allowed = other == unit or LEVEL[other] < LEVEL[unit] or (unit, other) in SIDEWAYS
        assert allowed, f"{path.relative_to(ROOT)}:{line}: {unit} (L{LEVEL[unit]}) imports {other} (L{LEVEL[other]})"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_stay_within_their_caps(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    tree = ast.parse(text)
    if path.name == "__init__.py":
        bodies = [
            node for node in tree.body if not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr | ast.Assign)
        ]
        names = [getattr(node, "name", "") for node in bodies]
        assert set(names) <= {"__getattr__", ""}, f"{path}: logic in __init__"
    assert ast.get_docstring(tree), f"{path} has no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("run", "_train_step"):
            assert (node.end_lineno or 0) - node.lineno <= 60, f"{path}:{node.lineno} {node.name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "engine/backends").glob("*.py")), ids=lambda path: path.name)
def test_backends_know_nothing_of_what_they_store(path: Path) -> None:
    modules = [module for module, _ in imports_of(ast.parse(path.read_text())) if module.startswith("ckptrun.engine")]
    assert all(module.startswith("ckptrun.engine.backends.") for module in modules), modules


def test_every_unit_has_a_layer() -> None:
    units = {unit_of(path) for path in SOURCES} - {"__init__"}
    assert units == set(LEVEL)


@pytest.mark.parametrize(
    "module",
    [
        "ckptrun",
        "ckptrun.__main__",
        "ckptrun.app",
        "ckptrun.config.run",
        "ckptrun.config.register",
        "ckptrun.console",
        "ckptrun.launch",
        "ckptrun.start",
        "ckptrun.sweep.sweep",
        "ckptrun.errors",
        "ckptrun.engine.manifest",
        "ckptrun.engine.layout",
        "ckptrun.tools.cli",
        "ckptrun.tools.inspect_command",
        "ckptrun.tools.verify_command",
        "ckptrun.tools.diff_command",
        "ckptrun.tools.convert_command",
    ],
)
def test_module_imports_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_assert_and_no_pickle_in_the_package(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    assert not [line for module, line in imports_of(tree) if module.split(".")[0] in ("pickle", "cloudpickle", "dill")]
