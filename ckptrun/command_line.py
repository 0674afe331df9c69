"""Reads the command line of a run or a sweep: options, overrides, the choices that a user's folder adds. Torch-free."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ckptrun.config.choices import EXPERIMENT, axes_of
from ckptrun.config.compose import plain_overrides
from ckptrun.config.job import quoted
from ckptrun.config.mistakes import check_overrides, no_assignment
from ckptrun.config.nearest import did_you_mean
from ckptrun.errors import ConfigError
from ckptrun.tools.cli import COMMANDS

__all__ = ["CommandLine", "overrides_of_prove", "read_command_line"]

_PROVE = "prove"
_SWEEP = "--multirun"
_EXAMPLE = "ckptrun prove fault=sigkill -- python train.py --output_dir {run}"


def overrides_of_prove(arguments: Sequence[str]) -> list[str]:
    """Turn ``prove [OVERRIDES] -- COMMAND`` into the overrides that it is short for; return anything else as it is.

    Raises:
        ConfigError: There is no ``--``, or nothing on one side of it that makes sense.
    """
    if list(arguments[:1]) != [_PROVE]:
        return list(arguments)
    if "--" not in arguments:
        raise ConfigError(f"ckptrun prove needs -- before the command that trains: {_EXAMPLE}")
    place = list(arguments).index("--")
    own, command = list(arguments[1:place]), list(arguments[place + 1 :])
    if not command:
        raise ConfigError(f"ckptrun prove: there is no command after --: {_EXAMPLE}")
    keys = {text.lstrip("+~").partition("=")[0] for text in own}
    for key in ("job", "job.command"):
        if key in keys:
            raise ConfigError(f"ckptrun prove: {key} is given by the command after --. Leave {key}=... out.")
    fault = [] if keys & {"fault", "crash"} else ["fault=sigkill"]
    return [*own, *fault, "job=command", f"job.command=[{','.join(map(quoted, command))}]"]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say it as every other mistake is said."""
        raise ConfigError(f"{message[0].upper()}{message[1:]}. See ckptrun --help.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """What was typed."""

    overrides: tuple[str, ...]
    """As typed."""
    hydra_overrides: tuple[str, ...]
    """The same as Hydra takes them."""
    axes: tuple[str, ...]
    """What the experiment sweeps over, as Hydra takes it."""
    flags: tuple[str, ...]
    """The options, for Hydra."""
    is_sweep: bool

    @property
    def is_plain(self) -> bool:
        """Whether nothing but a config is given, so that Hydra's own entry is not needed."""
        return not self.flags and not any(text.lstrip("+~").startswith("hydra") for text in self.overrides)


def read_command_line(arguments: Sequence[str]) -> CommandLine:
    """Read the options and overrides, in any order; refuse what cannot be meant.

    Raises:
        ConfigError: An option, a key or a choice does not exist, or an override cannot be read.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes positional arguments in one piece only; those after an option are left over.
    overrides = [*options.overrides, *(text for text in rest if not text.startswith("-"))]
    flags = _flags(parser, options)
    unknown = [text for text in rest if text.startswith("-")]
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        near = did_you_mean(unknown[0].partition("=")[0], known) or "see ckptrun --help."
        raise ConfigError(f"{unknown[0]}: there is no such option; {near}")
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise ConfigError(no_assignment(text, commands=COMMANDS))
    added = _added(options)
    check_overrides(overrides, added=added)
    groups = () if added is None else tuple(added)
    axes = _axes(overrides)
    if axes and not options.multirun:
        flags.append(_SWEEP)
    return CommandLine(
        overrides=tuple(overrides),
        hydra_overrides=tuple(plain_overrides(overrides, added_groups=groups)),
        axes=tuple(axes),
        flags=tuple(flags),
        is_sweep=bool(options.multirun or axes),
    )


def _axes(overrides: Sequence[str]) -> list[str]:
    """What the experiment that is chosen sweeps over, but for what was typed."""
    typed = dict(text.lstrip("+~").partition("=")[::2] for text in overrides)
    axes = axes_of(typed.get(EXPERIMENT, ""))
    return [f"{key}={values}" for key, values in axes.items() if key not in typed]


def _parser() -> _Parser:
    parser = _Parser(prog="ckptrun", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument(_SWEEP, "-m", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument(
        "--info",
        "-i",
        nargs="?",
        const="all",
        choices=["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"],
    )
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--config-name", "-cn")
    parser.add_argument("--hydra-help", action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    parser.add_argument("--run", "-r", action="store_true")
    return parser


def _flags(parser: _Parser, options: argparse.Namespace) -> list[str]:
    """The options that were given, as Hydra takes them."""
    found: list[str] = []
    for action in parser._actions:
        value = getattr(options, action.dest)
        if action.option_strings and value not in (None, False):
            found += [action.option_strings[0]] if value is True else [action.option_strings[0], str(value)]
    return found


def _added(options: argparse.Namespace) -> Mapping[str, Sequence[str]] | None:
    """The choices of a folder of the user's own, by group; None where only Hydra knows what there is."""
    if (
        options.config_path
        or options.config_name
        or any(text.startswith("hydra.searchpath") for text in options.overrides)
    ):
        return None
    if options.config_dir is None:
        return {}
    folder = Path(options.config_dir).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"--config-dir {options.config_dir}: there is no such folder.")
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*.yaml")):
        found.setdefault(file.parent.relative_to(folder).as_posix(), []).append(file.stem)
    return found
