"""Group ``job``: whose training is run: ours, or a command of the user's."""

import re
import shlex
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ckptrun.config.ranges import at_least
from ckptrun.errors import ConfigError

__all__ = ["JobConfig", "JobKind", "quoted", "quoted_override"]

_RUN = "{run}"
_PLACEHOLDERS = (_RUN, "{checkpoint}", "{step}")
_TEXT = re.compile(r"job\.(command|resume|cwd|env\.\w+)=(?=[^'\"\[{\d]|\{(run|checkpoint|step)\})")


class JobKind(StrEnum):
    """Whose training loop; the names are those of the choices."""

    ckptrun = "ckptrun"
    """ckptrun's own, as the other groups describe it."""
    command = "command"
    """A command that trains: the other groups but ``fault``, ``proof`` and ``run`` say nothing of it."""


@dataclass(kw_only=True, slots=True)
class JobConfig:
    """Whose training is run. ``ckptrun prove -- COMMAND`` is short for ``job=command job.command=COMMAND``."""

    kind: JobKind = JobKind.ckptrun
    """Set by the choice: ``job=command``."""
    command: Any = None
    """What is started, as a list or as one text with the quoting of a shell. ``{run}`` in it stands for the folder
    that the job writes to, which a run and its resumes have in common."""
    resume: Any = None
    """What is started once the run was killed; unset: ``job.command`` again. Here ``{checkpoint}`` also stands for the
    newest complete checkpoint, and ``{step}`` for its step."""
    checkpoints: str | None = None
    """Which files or folders below ``{run}`` are checkpoints, as a pattern (``ckpt-*/state*``), in which a star stands
    for anything; unset: what is written by functions that are known to save, with more than weights in it."""
    cwd: str | None = None
    """Where the command runs; unset: where ckptrun runs. May hold ``{run}``."""
    env: dict[str, Any] = field(default_factory=dict)
    """Variables that are added to its environment, e.g. ``{SEED: 1}``; values may hold ``{run}``."""
    timeout_seconds: float = 3600.0
    """A start that takes longer is killed, and nothing is proved."""
    deterministic: bool = False
    """Make torch choose deterministic algorithms in the job, where it has them; for jobs of which two runs differ."""

    def __post_init__(self) -> None:
        at_least("job.timeout_seconds", self.timeout_seconds, 1)
        for key in ("command", "resume"):
            value = getattr(self, key)
            if value is not None:
                setattr(self, key, _argv(f"job.{key}", value))
        if self.kind is JobKind.ckptrun:
            self._check_nothing_is_said()
        else:
            self._check_command()

    def _check_nothing_is_said(self) -> None:
        for key in ("command", "resume", "checkpoints", "cwd"):
            if getattr(self, key) is not None:
                raise ConfigError(f"job.{key} has no effect on ckptrun's own runs. Choose job=command.")
        if self.env or self.deterministic:
            key = "env" if self.env else "deterministic"
            raise ConfigError(f"job.{key} has no effect on ckptrun's own runs. Choose job=command.")

    def _check_command(self) -> None:
        if not self.command:
            raise ConfigError(
                "job.command must be given for job=command: ckptrun prove -- python train.py --output_dir {run}"
            )
        elsewhere = [self.cwd or "", *(str(value) for value in self.env.values())]
        if not any(_RUN in text for text in [*self.command, *elsewhere]):
            raise ConfigError(
                "job.command says nowhere which folder the job writes to. Each run of a proof needs one of its own: "
                "put {run} where the command names its output folder, e.g. --output_dir {run}, or in job.cwd or "
                "job.env."
            )
        if self.checkpoints is not None and (not self.checkpoints or self.checkpoints.startswith(("/", "{run}", ".."))):
            raise ConfigError(
                f"job.checkpoints={self.checkpoints!r} must be a pattern of paths within {{run}}, e.g. checkpoint-*."
            )
        if self.resume is not None and not any(
            _RUN in text or "{checkpoint}" in text for text in [*self.resume, *elsewhere]
        ):
            raise ConfigError(
                "job.resume names neither {run} nor {checkpoint}: it could not know what to resume from. Put one of "
                "them in it."
            )
        for text in self.command:
            for name in _PLACEHOLDERS[1:]:
                if name in text and self.resume is None:
                    raise ConfigError(
                        f"job.command holds {name}, which there is none of when the job begins. Give the command that "
                        "resumes in job.resume."
                    )


def _argv(key: str, value: Any) -> list[str]:
    if isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError as error:
            raise ConfigError(f"{key}={value!r} cannot be read as a command line: {error}.") from None
    if not isinstance(value, list) or not value or not all(isinstance(part, str | int | float) for part in value):
        raise ConfigError(f"{key} must be a command: a text, or a list of texts, got {value!r}.")
    return [str(part) for part in value]


def quoted(text: str) -> str:
    """Return ``text`` as Hydra reads it back, whatever is in it."""
    # Only quotes, backslashes before them, and interpolations have a meaning between quotes.
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return "'" + text.replace("${", "\\${") + "'"


def quoted_override(override: str) -> str:
    """Return an override with a command, or a part of one, as Hydra reads it; any other as it is.

    Braces, spaces and commas have a meaning to Hydra; in a command they are the user's own.
    """
    if not _TEXT.match(override):
        return override
    key, _, value = override.partition("=")
    return f"{key}={quoted(value)}"
