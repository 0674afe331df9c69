"""Looks for the user's own classes in their source, without running any of it: what is surely missing is told at once.

Only what the source says for certain is refused: a file or module that is not there, one that cannot be parsed, a name
that it does not bind, arguments that the class does not take. What only an import can tell (star imports, decorators,
inherited constructors, compiled modules) is left to the ranks.
"""

import ast
import inspect
from collections.abc import Iterable, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ckptrun.config.custom import Custom
from ckptrun.config.nearest import did_you_mean
from ckptrun.config.run import RunConfig
from ckptrun.errors import ConfigError

__all__ = ["check_source", "check_targets"]

# What build.py gives beside the arguments in the config.
_GIVEN: Mapping[str, tuple[int, tuple[str, ...]]] = {"optimizer": (1, ("lr",)), "schedule": (1, ())}
_OFFERED: Mapping[str, tuple[str, ...]] = {"data": ("rank", "world_size")}
_PARTS = (ast.If, ast.Try, ast.With, ast.For, ast.While)


def check_targets(config: RunConfig) -> None:
    """Look for everything of the user's own that ``config`` names.

    Raises:
        ConfigError: Something is surely not there, or cannot be called as it will be.
    """
    for group in ("model", "optimizer", "schedule", "data"):
        choice = getattr(config, group)
        if isinstance(choice, Custom):
            check_source(group, choice.target, choice.args)
    for name, spec in config.components.items():
        check_source(f"components.{name}", spec["_target_"], spec.get("args", {}))


def check_source(key: str, target: str, args: Mapping[str, Any]) -> None:
    """Look for ``target``, the ``_target_`` of ``key``, and whether it can be called with ``args``.

    Raises:
        ConfigError: It surely is not there, or surely cannot.
    """
    place, _, name = target.rpartition(":") if ".py:" in target else target.rpartition(".")
    if not place or not name:
        raise ConfigError(
            f"{key}._target_={target!r} names no class; write package.module.Name or path/to/file.py:Name."
        )
    source = _file(key, place) if ".py:" in target else _module(key, place)
    if source is None:
        return
    module = _parsed(key, source)
    bound = _bound(module.body)
    if name not in bound:
        if "*" in bound or "__getattr__" in bound:
            return
        near = did_you_mean(name, [other for other in bound if other[:1] != "_"])
        raise ConfigError(
            f"{key}._target_={target!r}: {place} has no class or function {name!r}{'; ' + near if near else '.'}"
        )
    if len(bound[name]) > 1:
        return
    (node,) = bound[name]
    if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant | ast.List | ast.Dict):
        raise ConfigError(f"{key}._target_={target!r}: {name!r} in {place} is no class or function.")
    _check_call(key, name, node, args)


def _file(key: str, place: str) -> Path:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"{key}._target_: there is no file {path}.")
    return path


def _module(key: str, name: str) -> Path | None:
    """The source of a module; None when only an import can tell."""
    first, *further = name.split(".")
    # A console script, unlike python -m, does not look into the working folder.
    spec = PathFinder.find_spec(first, [str(Path.cwd())]) or _installed(first)
    if spec is None:
        raise ConfigError(_no_module(key, first if not further else name))
    for part in further:
        places = spec.submodule_search_locations
        below = None if places is None else PathFinder.find_spec(part, list(places))
        if below is None:
            if _is_dynamic(spec):
                return None
            raise ConfigError(_no_module(key, name))
        spec = below
    return Path(spec.origin) if spec.origin is not None and spec.origin.endswith(".py") else None


def _installed(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except (ValueError, ImportError):
        return ModuleSpec(name, None)


def _is_dynamic(spec: ModuleSpec) -> bool:
    """Whether a package may have modules that are no files."""
    if spec.origin is None or not spec.origin.endswith(".py"):
        return True
    text = Path(spec.origin).read_text(errors="replace")
    return "__path__" in text or "sys.modules" in text


def _no_module(key: str, name: str) -> str:
    return (
        f"{key}._target_: there is no module {name!r} in {Path.cwd()} or in the environment; start ckptrun where the "
        "module lies, or write path/to/file.py:Name."
    )


def _parsed(key: str, source: Path) -> ast.Module:
    try:
        return ast.parse(source.read_bytes())
    except (SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise ConfigError(f"{key}._target_: {source}{where}: {getattr(error, 'msg', error)}.") from error


def _bound(body: Iterable[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """What statements of a module bind, by name; ``*`` for a star import."""
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        for name in _names(node):
            found.setdefault(name, []).append(node)
        if isinstance(node, _PARTS):
            parts = [getattr(node, part, []) for part in ("body", "orelse", "finalbody")]
            parts += [handler.body for handler in getattr(node, "handlers", [])]
            for part in parts:
                for name, nodes in _bound(part).items():
                    # Which of several is bound is known only when it runs.
                    found.setdefault(name, []).extend([*nodes, node])
    return found


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.Import):
        return [alias.asname or alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    if isinstance(node, _PARTS):
        return []
    return [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)]


def _check_call(key: str, name: str, node: ast.stmt, args: Mapping[str, Any]) -> None:
    signature = _signature(node)
    if signature is None:
        return
    count, given = _GIVEN.get(key, (0, ()))
    offered = [other for other in _OFFERED.get(key, ()) if other in signature.parameters]
    keywords: Sequence[str] = [*given, *(other for other in offered if other not in args), *args]
    try:
        signature.bind(*[None] * count, **dict.fromkeys(keywords))
    except TypeError as error:
        raise ConfigError(f"{key}: {name}{signature} is called with {key}.args, and cannot be: {error}.") from error


def _signature(node: ast.stmt) -> inspect.Signature | None:
    """How a class or function is called; None when the source does not say."""
    if isinstance(node, ast.FunctionDef):
        return None if node.decorator_list else _of_arguments(node.args, skip=0)
    if not isinstance(node, ast.ClassDef) or node.decorator_list or node.keywords:
        return None
    own = {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}
    start = own.get("__init__")
    if start is None or start.decorator_list or "__new__" in own:
        return None
    return _of_arguments(start.args, skip=1)


def _of_arguments(arguments: ast.arguments, *, skip: int) -> inspect.Signature:
    kinds = inspect.Parameter
    found: list[tuple[str, Any]] = [(arg.arg, kinds.POSITIONAL_ONLY) for arg in arguments.posonlyargs]
    found += [(arg.arg, kinds.POSITIONAL_OR_KEYWORD) for arg in arguments.args]
    first_default = len(found) - len(arguments.defaults)
    parameters = [
        kinds(name, kind, default=... if index >= first_default else kinds.empty)
        for index, (name, kind) in enumerate(found)
    ][skip:]
    if arguments.vararg is not None:
        parameters.append(kinds(arguments.vararg.arg, kinds.VAR_POSITIONAL))
    parameters += [
        kinds(arg.arg, kinds.KEYWORD_ONLY, default=kinds.empty if default is None else ...)
        for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg is not None:
        parameters.append(kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(parameters)
