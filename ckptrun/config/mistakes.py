"""Turns what Hydra and OmegaConf say of a wrong config into one line that names key, value and way out. Torch-free.

Two doors: :func:`check_overrides` reads the overrides before anything is composed, and finds what can be known from a
name alone; :func:`explained` translates what went wrong while a config was composed.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
)

from ckptrun.config.choices import EXPERIMENT, choices_of
from ckptrun.config.job import quoted_override
from ckptrun.config.keys import all_keys, plain_sections, type_of
from ckptrun.config.nearest import did_you_mean, no_such_choice
from ckptrun.config.schemas import SCHEMAS
from ckptrun.errors import ConfigError

__all__ = ["FAULTS_OF_A_CONFIG", "check_keys", "check_overrides", "explained", "no_assignment"]

FAULTS_OF_A_CONFIG = (HydraException, OmegaConfBaseException, RecursionError, yaml.YAMLError)
"""What Hydra and OmegaConf raise over what a user has written."""

_INTERPOLATION = (
    GrammarParseError,
    InterpolationKeyError,
    InterpolationResolutionError,
    InterpolationToMissingValueError,
    UnsupportedInterpolationType,
)
_MOST_VALUES_SHOWN = 60
_LONGEST_PATH = 200


def check_overrides(overrides: Iterable[str], *, added: Mapping[str, Sequence[str]] | None = None) -> None:
    """Refuse overrides that name no choice, no key, or no value, whatever the rest of the config says.

    Args:
        overrides: As typed.
        added: The choices that a folder of the user's own adds, by group; None: nobody but Hydra knows them.

    Raises:
        ConfigError: One of them is wrong; one line.
    """
    for override in _parsed(overrides):
        # What is typed with a + is a group of the user's own, or a key to be checked like any other.
        key = str(override.key_or_group)
        if override.is_hydra_override() or override.package:
            continue
        values = [] if override.is_delete() else _values(override)
        if override.is_delete():
            _check_removal(key)
        elif key in choices_of() and added is not None:
            choices = (*choices_of(key)[key], *added.get(key, ()))
            for value in values:
                _check_choice(key, value, choices)


def _parsed(overrides: Iterable[str]) -> list[Override]:
    """The overrides, read one by one with Hydra's grammar.

    Raises:
        ConfigError: One cannot be read.
    """
    found, parser = [], OverridesParser.create()
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise ConfigError(no_assignment(text))
        if not text.partition("=")[0].strip("+~"):
            raise ConfigError(f"{_short(text)} has a value and no key; write KEY=VALUE.")
        try:
            found.append(parser.parse_override(quoted_override(text)))
        except (OverrideParseException, HydraException, ValueError) as error:
            key, _, value = text.partition("=")
            shown = f"'{key}=\"{value}\"'" if _is_quotable(value) else "'KEY=\"a value\"'"
            raise ConfigError(
                f"{_short(text)} cannot be read as KEY=VALUE. Close brackets and quotes, and quote a value that has "
                f"spaces, commas, brackets or '=' in it twice: {shown}."
            ) from error
        if "@" in text.partition("=")[0] and not isinstance(found[-1].value(), str | list):
            raise ConfigError(f"{_short(text)}: no choice of a group has such a name.")
    return found


def _is_quotable(value: str) -> bool:
    """Whether quotes around it are all that it lacks: a path such as that of a folder named after its overrides."""
    return len(value) <= _LONGEST_PATH and not set(value) & set("\"'\\$[]{}()")


def check_keys(composed: DictConfig) -> None:
    """Refuse keys that were put past Hydra's own check, as ``++`` does.

    Raises:
        ConfigError: A section has a key that its dataclass has not.
    """
    for section in composed:
        schema = OmegaConf.get_type(composed, str(section))
        if schema is not None and is_dataclass(schema):
            unknown = [str(key) for key in composed[section] if key not in {item.name for item in fields(schema)}]
            if unknown:
                key = f"{section!s}.{unknown[0]}"
                raise ConfigError(_unknown_key(key, key, schema))


def explained(error: BaseException, overrides: Sequence[str] = ()) -> ConfigError:
    """Return what ``error``, one of ``FAULTS_OF_A_CONFIG``, means to the user: one line.

    Args:
        error: Raised while the config of ``overrides`` was composed or read.
        overrides: As typed, so that the value can be shown.
    """
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, ConfigError):
            return link
    for link in chain:
        if isinstance(link, RecursionError):
            return ConfigError(f"{_typed_interpolation(overrides)} refers to itself, directly or through other keys.")
        if isinstance(link, yaml.YAMLError):
            return ConfigError(_bad_yaml(link))
        if isinstance(link, OmegaConfBaseException):
            return ConfigError(f"{_in_file(chain)}{_of_omegaconf(link, chain, overrides)}")
    return ConfigError(_of_hydra(error))


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    """The error and what it came from, the innermost first: it knows the key."""
    found = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return reversed(found)


# Before anything is composed ------------------------------------------------------------------------------------------


def no_assignment(text: str, *, commands: Collection[str] = ()) -> str:
    """What to say of an argument that gives no value to anything.

    Args:
        text: As typed.
        commands: What may be typed in its place.
    """
    groups = choices_of()
    if text in groups:
        return f"{text!r} needs a choice: {text}={'|'.join(groups[text])}."
    if text in all_keys() or text in plain_sections():
        return f"{text!r} needs a value: {text}{'' if text in all_keys() else '.KEY'}=..."
    named = [f"{group}={text}" for group, choices in groups.items() if text in choices]
    command = did_you_mean(text, commands)
    near = command or (f"did you mean {named[0]}?" if named else did_you_mean(text, [*groups, *all_keys()]))
    return f"{text!r} is neither a command nor KEY=VALUE; {near or 'see ckptrun --help.'}"


def _check_removal(key: str) -> None:
    if key in SCHEMAS:
        raise ConfigError(
            f"~{key}: a run cannot be without it; choose another one with {key}={'|'.join(choices_of(key)[key])}."
        )
    if key != EXPERIMENT and (key in all_keys() or key in plain_sections()):
        raise ConfigError(f"~{key}: a key of the config cannot be taken away; leave it out to get its default.")
    if key != EXPERIMENT and not key.startswith(("components.", *(f"{group}.args." for group in SCHEMAS))):
        raise ConfigError(_unknown_key(f"~{key}", key))


def _values(override: Override) -> list[Any]:
    """The values of an override: one, or those of a sweep."""
    text, value = str(override.input_line), override.value()
    if not override.is_sweep_override():
        return [value]
    if isinstance(value, RangeSweep) and value.step == 0:
        raise ConfigError(f"{text} gives no value: the step is 0.")
    if isinstance(value, ChoiceSweep) and not value.list:
        raise ConfigError(f"{text} gives no value, so there is nothing to run.")
    if not isinstance(value, RangeSweep | ChoiceSweep):
        return []
    values = list(override.sweep_iterator())
    if not values:
        raise ConfigError(f"{text} gives no value, so there is nothing to run.")
    return [item.strip("'\"") if isinstance(item, str) else item for item in values]


def _check_choice(group: str, value: Any, choices: Sequence[str]) -> None:
    if value in choices or (group == EXPERIMENT and value is None):
        return
    if isinstance(value, dict | list):
        raise ConfigError(f"{group}={_short(str(value))}: {group} takes the name of one choice: {', '.join(choices)}.")
    if isinstance(value, str) and "${" in value:
        # Hydra finds out what it comes to.
        return
    raise ConfigError(no_such_choice(group, "null" if value is None else str(value), choices))


# While it is composed -------------------------------------------------------------------------------------------------


def _of_omegaconf(error: OmegaConfBaseException, chain: Sequence[BaseException], overrides: Sequence[str]) -> str:
    key = str(error.full_key or "")
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        return _unknown_key(key, key, error.object_type)
    said = _first_line(error)
    if isinstance(error, _INTERPOLATION):
        typed = _typed(key, overrides) or _typed_interpolation(overrides)
        return f"{typed} cannot be resolved: {said}.{_way_out_of_interpolation(said)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{key} must be given."
    merged = next((found[1] for link in chain if (found := re.match("Error merging override (.*)", str(link)))), "")
    key = key.partition("[")[0] or merged.partition("=")[0].lstrip("+")
    return f"{_typed(key, overrides) or key}: {_of_type(key, said)}"


def _unknown_key(shown: str, key: str, holder: Any = None) -> str:
    section, _, name = key.partition(".")
    having = all_keys().get(key)
    if having:
        here = _choice_typed_by(section, holder)
        return f"{shown} is no key of {here}; it is one of {', '.join(having)}."
    sections = list(dict.fromkeys(other.partition(".")[0] for other in all_keys()))
    # A key without its section is meant more surely than a section that looks alike.
    is_bare = not name and any(known.rpartition(".")[2] == key for known in all_keys())
    near = "" if is_bare else did_you_mean(key, all_keys() if name else [*sections, EXPERIMENT])
    near = near or did_you_mean(key, all_keys())
    if near:
        return f"{shown}: there is no such key; {near}"
    below = [other for other in all_keys() if other.startswith(f"{section}.")] if name else []
    if below:
        return f"{shown}: there is no such key. Keys of {section}: {', '.join(k.partition('.')[2] for k in below)}."
    return f"{shown}: there is no such key; keys begin with {', '.join(sections)}."


def _choice_typed_by(group: str, holder: Any) -> str:
    for name, schema in SCHEMAS.get(group, {}).items():
        if schema is holder and name in choices_of(group)[group]:
            return f"{group}={name}"
    return f"the {group} that was chosen"


def _of_type(key: str, said: str) -> str:
    """What a key must be, in words for people: OmegaConf speaks of types of Python."""
    if key in plain_sections() or key in SCHEMAS:
        return f"this is a section; give its keys one by one, {key}.KEY=VALUE."
    wanted = type_of(key)
    wrong = re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", said)
    if wrong:
        near = did_you_mean(wrong[1], wrong[2].split(", "))
        return f"must be one of {wrong[2]}{'; ' + near if near else '.'}"
    return f"must be {wanted}." if wanted else f"{said}."


def _way_out_of_interpolation(said: str) -> str:
    variable = re.search(r"Environment variable '(\w+)' not found", said)
    if variable:
        return f" Set {variable[1]}, or give a default: ${{oc.env:{variable[1]},DEFAULT}}."
    key = re.match(r"Interpolation key '([\w.]+)' not found", said)
    near = did_you_mean(key[1], all_keys()) if key else ""
    return f" {near[0].upper()}{near[1:]}" if near else ""


def _of_hydra(error: BaseException) -> str:
    said = _first_line(error)
    ambiguous = re.match(r"Ambiguous value for argument '(.*)'", said) or re.match(
        r"Sweep parameters '(.*)' requires", said
    )
    if ambiguous:
        return f"{ambiguous[1]} has several values: begin the command with -m for a sweep, or write a list as [a,b]."
    missing = re.match(r"(In '[^']*': )?Could not find '([\w./-]+)/([^/']*)'", said)
    if missing and missing[2] in choices_of():
        return (missing[1] or "") + no_such_choice(missing[2], missing[3], choices_of(missing[2])[missing[2]])
    unmatched = re.match(r"Could not override '([\w./@-]+)'", said)
    if unmatched:
        return _unknown_key(unmatched[1], unmatched[1].replace("/", "."))
    return f"{said}."


def _in_file(chain: Sequence[BaseException]) -> str:
    """Which file of choices the mistake is in; none when it was typed."""
    for link in chain:
        place = re.match(r"In '([^']+)': ", str(link))
        if place:
            return f"In {place[1]}.yaml: "
    return ""


def _bad_yaml(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or _first_line(error)
    where = f"{Path(mark.name)}, line {mark.line + 1}" if mark is not None else "A file of choices"
    return f"{where}: this is no YAML: {what}."


# Text -----------------------------------------------------------------------------------------------------------------


def _typed(key: str, overrides: Sequence[str]) -> str:
    """The override that sets ``key``, as it was typed."""
    typed = [text.lstrip("+") for text in overrides if text.lstrip("+").partition("=")[0] == key]
    return _short(typed[-1]) if typed else ""


def _typed_interpolation(overrides: Sequence[str]) -> str:
    typed = [text.lstrip("+") for text in overrides if "${" in text]
    return _short(typed[0]) if typed else "A value in a file of choices"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0].rstrip(".") if lines else type(error).__name__
    return re.sub(r"^\w+ raised while resolving interpolation: \"?(.*?)\"?$", r"\1", said)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _MOST_VALUES_SHOWN else f"{text[: _MOST_VALUES_SHOWN - 3]}..."
