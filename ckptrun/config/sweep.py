"""What a sweep and its cells are called: made from the overrides, the same on every rank and every day. Torch-free."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from ckptrun.config.run import default_run_name, folder_name, telling
from ckptrun.errors import ConfigError

__all__ = ["SweepNames"]

# They name the sweep; a cell gets a name of its own.
_OF_SWEEP = ("run.name", "run.dir")


class SweepNames:
    """The folder of a sweep, and of each of its cells.

    What all cells share is in the name of the sweep, what they differ in is in the names of the cells. As with a run,
    what may change between two starts (``train.steps``, ``checkpoint.*`` ...) is not in the name of the sweep, unless
    it is what is swept over.

    Args:
        arguments: The command line. Nothing is parsed before a name is asked for, which Hydra does only for sweeps,
            after it has parsed the same.
    """

    def __init__(self, arguments: Iterable[str]) -> None:
        self._typed = [text for text in arguments if text.startswith("~") or (text[:1] != "-" and "=" in text)]

    @cached_property
    def folder(self) -> str:
        """``run.dir``, or ``outputs/<experiment>/<run.name>``, or the same with a name made from the overrides."""
        given = {override.key_or_group: override.value() for override in self._shared}
        if given.get("run.dir"):
            return str(Path(str(given["run.dir"])).expanduser())
        swept = [text for text in self._swept.values() if not text.lstrip("+~").startswith("run.")]
        constant = [str(override.input_line) for override in self._shared]
        named = given.get("run.name") or folder_name([*telling(constant), *swept]) or default_run_name(())
        return f"outputs/{given.get('experiment') or 'default'}/{named}"

    def check(self) -> None:
        """Refuse what would give cells of one sweep several places.

        Raises:
            ConfigError: What names the sweep is swept over.
        """
        for key in _OF_SWEEP:
            if key in self._swept:
                raise ConfigError(
                    f"{key} names the whole sweep and cannot be swept over, got {self._swept[key]}. Give one value, or "
                    "leave it out: each cell has a folder of its own, named after its overrides."
                )

    def cell(self, overrides: Sequence[str]) -> str:
        """The name of the cell that has these overrides, which no other cell of the sweep has."""
        shared = {override.get_key_element() for override in self._shared}
        return folder_name([text for text in overrides if text.split("=", 1)[0] not in shared], distinct=True) or "cell"

    @cached_property
    def _overrides(self) -> list[Override]:
        return [
            override
            for override in OverridesParser.create().parse_overrides(self._typed)
            if not override.is_hydra_override()
        ]

    @property
    def _shared(self) -> list[Override]:
        return [override for override in self._overrides if not override.is_sweep_override()]

    @property
    def _swept(self) -> dict[str, str]:
        """Key -> the override as it was typed."""
        return {
            str(override.key_or_group): str(override.input_line)
            for override in self._overrides
            if override.is_sweep_override()
        }
