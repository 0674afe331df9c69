"""Every key of the config with its type, its default and what it means, read from the dataclasses and their sources.

The sentences stand under the fields in ``ckptrun/config/``; they are read from the source text, since Python keeps
none of them at run time. Without Hydra: ``ckptrun --help`` must be quick.
"""

import ast
import enum
import re
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from ckptrun.config.choices import choices_of, given_by, schema_of
from ckptrun.config.run import RunConfig
from ckptrun.config.schemas import SCHEMAS

__all__ = ["Key", "all_keys", "keys_of_choice", "keys_of_section", "plain_sections", "sentence", "type_of"]

_WORDS = {int: "whole number", float: "number", bool: "true or false", str: "text", NoneType: "null"}
# A sentence ends where the next word begins with a capital, not after "e.g.".
_SENTENCE_END = re.compile(r"(?<=[.?!])\s+(?=[A-Z])|\n\s*\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key, as a user types it."""

    name: str
    """In full: ``train.steps``."""
    type: str
    """In words: ``whole number or null``."""
    default: Any
    """What it is where nothing is said."""
    text: str
    """What stands under its field."""
    members: Mapping[str, str]
    """The values of a key that takes names, with what each means."""


def sentence(text: str) -> str:
    """The first sentence of ``text``, on one line."""
    first = _SENTENCE_END.split(text.strip(), maxsplit=1)[0]
    return " ".join(first.split())


def plain_sections() -> dict[str, type]:
    """The sections of the config that are no group of choices: name -> dataclass."""
    hints = typing.get_type_hints(RunConfig)
    return {
        item.name: hints[item.name]
        for item in fields(RunConfig)
        if is_dataclass(hints[item.name]) and item.name not in SCHEMAS
    }


def keys_of_section(section: str) -> list[Key]:
    """The keys of a plain section, or of the top of the config for ``""``."""
    if section:
        return _keys(plain_sections()[section], f"{section}.", {})
    sections = {*plain_sections(), *SCHEMAS}
    return [key for key in _keys(RunConfig, "", {}) if key.name not in sections]


def keys_of_choice(group: str, choice: str) -> list[Key]:
    """The keys of a group where ``group=choice``, with the values that the choice gives them."""
    return _keys(schema_of(group, choice), f"{group}.", given_by(group, choice))


@cache
def all_keys() -> dict[str, list[str]]:
    """Each key that there is -> the choices (``model=gpt``) that have it; none for a key that is always there."""
    found: dict[str, list[str]] = {
        key.name: [] for section in ("", *plain_sections()) for key in keys_of_section(section)
    }
    for group in SCHEMAS:
        choices = choices_of(group)[group]
        for choice in choices:
            for key in keys_of_choice(group, choice):
                found.setdefault(key.name, []).append(f"{group}={choice}")
        for name, having in found.items():
            if len(having) == len(choices) and name.startswith(f"{group}."):
                having.clear()
    return found


def type_of(name: str) -> str:
    """What the values of a key are, in words; empty for what is no key."""
    section = name.partition(".")[0] if "." in name else ""
    if section in SCHEMAS:
        owners = [(group, choice) for group, choices in choices_of(section).items() for choice in choices]
        keys = [key for owner in owners for key in keys_of_choice(*owner)]
    else:
        keys = keys_of_section(section) if section in ("", *plain_sections()) else []
    kinds = [(key.type, bool(key.members)) for key in keys if key.name == name]
    if not kinds:
        return ""
    words, is_name = kinds[0]
    return f"one of {words}" if is_name else words if words.startswith(("any", "true")) else f"a {words}"


def _keys(cls: type, prefix: str, given: Mapping[str, Any]) -> list[Key]:
    hints, defaults = typing.get_type_hints(cls), cls()
    return [
        Key(
            name=f"{prefix}{item.name}",
            type=_in_words(hints[item.name]),
            default=given.get(item.name, getattr(defaults, item.name)),
            text=_text_under(cls, item.name),
            members=_members(hints[item.name]),
        )
        for item in fields(cls)
    ]


def _in_words(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (UnionType, typing.Union):
        return " or ".join(_in_words(part) for part in inner)
    if origin is list:
        return "list" if inner[0] is Any or typing.get_origin(inner[0]) else f"list of {_plural(_in_words(inner[0]))}"
    if origin is dict:
        return "mapping"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return ", ".join(member.name for member in hint)
    return _WORDS.get(hint, "any value")


def _plural(words: str) -> str:
    return "texts" if words == "text" else f"{words}s"


def _members(hint: Any) -> dict[str, str]:
    kinds = [part for part in (hint, *typing.get_args(hint)) if isinstance(part, type) and issubclass(part, enum.Enum)]
    return {member.name: _text_under(kind, member.name) for kind in kinds for member in kind}


def _text_under(cls: type, name: str) -> str:
    """What stands under a field or a member, in the class or in the nearest of its bases that says something."""
    for base in cls.__mro__:
        if base.__module__.startswith("ckptrun."):
            text = _texts(base.__module__).get((base.__name__, name))
            if text:
                return text
    return ""


@cache
def _texts(module: str) -> dict[tuple[str, str], str]:
    tree = ast.parse(Path(str(sys.modules[module].__file__)).read_text())
    found = {}
    for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        for field, after in zip(cls.body, cls.body[1:], strict=False):
            if (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                target = field.targets[0] if isinstance(field, ast.Assign) else getattr(field, "target", None)
                if isinstance(target, ast.Name):
                    found[cls.name, target.id] = _dedent(after.value.value)
    return found


def _dedent(text: str) -> str:
    return "\n".join(line.strip() for line in text.strip().splitlines())
