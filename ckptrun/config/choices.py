"""Where the choices of the config lie, and which there are. Without Hydra: an answer to a question must be quick."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ckptrun.config.schemas import SCHEMAS

__all__ = ["CONF_DIR", "EXPERIMENT", "axes_of", "choices_of", "default_choices", "given_by", "schema_of"]

EXPERIMENT = "experiment"


def _conf_dir() -> Path:
    """Inside the package when it was installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if (inside / "config.yaml").is_file() else package.parent / "conf"


CONF_DIR = _conf_dir()


@cache
def _groups() -> dict[str, tuple[str, ...]]:
    return {
        group: tuple(sorted(file.stem for file in (CONF_DIR / group).glob("*.yaml")))
        for group in (*SCHEMAS, EXPERIMENT)
    }


def choices_of(group: str | None = None) -> dict[str, tuple[str, ...]]:
    """Group -> its choices; only ``group`` where one is named."""
    return {name: choices for name, choices in _groups().items() if group in (None, name)}


@cache
def default_choices() -> dict[str, str]:
    """Group -> what is chosen when nothing is said."""
    defaults = yaml.safe_load((CONF_DIR / "config.yaml").read_text())["defaults"]
    pairs = [pair for entry in defaults if isinstance(entry, dict) for pair in entry.items()]
    return {group: choice for group, choice in pairs if group in SCHEMAS}


@cache
def _file_of(group: str, choice: str) -> dict[str, Any]:
    content = yaml.safe_load((CONF_DIR / group / f"{choice}.yaml").read_text())
    return content if isinstance(content, dict) else {}


def axes_of(experiment: str) -> dict[str, str]:
    """What an experiment of ours sweeps over: key -> values, as they would be typed; nothing where it is one run."""
    if experiment not in choices_of(EXPERIMENT)[EXPERIMENT]:
        return {}
    axes: dict[str, str] = _file_of(EXPERIMENT, experiment).get("sweep", {}).get("axes", {})
    return axes


def schema_of(group: str, choice: str) -> type:
    """The dataclass that types ``group=choice``."""
    for entry in _file_of(group, choice).get("defaults", ()):
        name = str(entry).removeprefix(f"/schema/{group}_").removesuffix("@_here_")
        if name in SCHEMAS[group]:
            return SCHEMAS[group][name]
    raise LookupError(f"{CONF_DIR / group / choice}.yaml names no schema of the group.")


def given_by(group: str, choice: str) -> dict[str, Any]:
    """The values that the choice sets, by key."""
    return {key: value for key, value in _file_of(group, choice).items() if key != "defaults"}
