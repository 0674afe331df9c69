"""The texts of ``ckptrun help`` and of ``docs/config.md``, made from the config's dataclasses and choices."""

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ckptrun.config.choices import CONF_DIR, EXPERIMENT, choices_of, default_choices, given_by, schema_of
from ckptrun.config.keys import (
    Key,
    all_keys,
    keys_of_choice,
    keys_of_section,
    plain_sections,
    sentence,
)
from ckptrun.config.nearest import no_such_choice
from ckptrun.config.run import RunConfig
from ckptrun.config.schemas import SCHEMAS
from ckptrun.errors import ConfigError

__all__ = ["choice_text", "group_text", "key_text", "overview", "page", "section_text"]

_HEAD = """\
ckptrun proves that a training job survives being killed.

Usage: ckptrun KEY=VALUE ...             a run, or with fault=... a proof; ckptrun starts the ranks
       ckptrun prove KEY=VALUE ... -- COMMAND                    a proof of a command that trains
       ckptrun -m KEY=A,B KEY=C,D ...    a sweep: every combination, one table
       torchrun --nproc-per-node 4 -m ckptrun KEY=VALUE ...      the same under torchrun
       ckptrun inspect|verify|diff|convert ...                   on checkpoints; ckptrun verify --help
       ckptrun help GROUP | KEY | COMMAND                        more on one of them
       ckptrun --version"""
_CODES = """\
Exit codes: 0 done and equal, 1 failed or interrupted, 2 wrong config or command line, 3 different, 4 not verified.
--cfg job prints the config of a command line and runs nothing; --config-dir DIR adds choices of your own."""
_WIDTH = 30


def overview(chosen: Mapping[str, str]) -> str:
    """Everything in one page: the keys are those of the default choices, but for ``chosen``."""
    for group, choice in chosen.items():
        _check(group, choice)
    choices = {**default_choices(), **chosen}
    parts = [_HEAD, "", "Choices (GROUP=CHOICE):", *_choice_lines(), "", "Keys (KEY=VALUE), their values and meaning:"]
    parts += _lines(keys_of_section(""))
    for section in (*plain_sections(), *SCHEMAS):
        is_group = section in SCHEMAS
        parts += ["", f"{section}={choices[section]}" if is_group else section]
        parts += _lines(keys_of_choice(section, choices[section]) if is_group else keys_of_section(section))
    return "\n".join([*parts, "", _CODES])


def group_text(group: str) -> str:
    """A group: its choices, what each is, and its keys."""
    if group == EXPERIMENT:
        return "\n".join([f"{EXPERIMENT}=NAME: a named set of choices and values.", "", *_experiment_lines()])
    parts = [_about(inspect.getmodule(next(iter(SCHEMAS[group].values())))), "", "Choices:"]
    default = default_choices().get(group)
    for choice in choices_of(group)[group]:
        mark = " (the default)" if choice == default else ""
        parts.append(f"  {f'{group}={choice}':{_WIDTH}}{_what_it_is(group, choice)}{mark}")
    parts += ["", "Keys:"]
    return "\n".join([*parts, *_lines(_keys_of_group(group).values(), owners=all_keys())])


def choice_text(group: str, choice: str) -> str:
    """One choice and its keys."""
    _check(group, choice)
    return "\n".join([f"{group}={choice}: {_what_it_is(group, choice)}", "", *_lines(keys_of_choice(group, choice))])


def section_text(section: str) -> str:
    """A section that is no group, and its keys."""
    return "\n".join([_about(plain_sections()[section]), "", *_lines(keys_of_section(section))])


def key_text(name: str) -> str:
    """One key: type, default and all that stands under it."""
    key = _find(name)
    lines = [name, "", _plain(key.text), "", f"Type:    {key.type}", f"Default: {_value(key.default)}"]
    having = all_keys()[name]
    if having:
        lines.append(f"In:      {', '.join(having)}")
    if any(key.members.values()):
        lines += ["", *(f"  {member:{_WIDTH - 10}}{_plain(text)}" for member, text in key.members.items())]
    return "\n".join(line.rstrip() for line in lines)


def page() -> str:
    """``docs/config.md``."""
    parts = [
        "# Every key",
        "",
        "Made by `ckptrun help --markdown` from the dataclasses in `ckptrun/config/` and the choices in `conf/`; a",
        "test compares it with them. A key is given as `KEY=VALUE`, a choice as `GROUP=CHOICE`. Where choices differ,",
        "the default is that of the default choice.",
    ]
    for section, cls in {"": RunConfig, **plain_sections()}.items():
        parts += ["", f"## {section or 'Top of the config'}", "", _about(cls, marked=True), ""]
        parts += _table(keys_of_section(section))
    for group in SCHEMAS:
        parts += ["", f"## {group}", "", _about(inspect.getmodule(next(iter(SCHEMAS[group].values()))), marked=True)]
        parts += ["", "| choice | what it is |", "|---|---|"]
        default = default_choices()[group]
        for choice in choices_of(group)[group]:
            mark = " (default)" if choice == default else ""
            parts.append(f"| `{group}={choice}`{mark} | {_cell(_what_it_is(group, choice, marked=True))} |")
        parts += ["", *_table(_keys_of_group(group).values(), owners=all_keys())]
    parts += ["", f"## {EXPERIMENT}", "", "A named set of choices and values: `conf/experiment/<name>.yaml`.", ""]
    parts += ["| choice | what it is |", "|---|---|"]
    parts += [f"| `{EXPERIMENT}={name}` | {_cell(_first_comment(name))} |" for name in choices_of()[EXPERIMENT]]
    return "\n".join(parts)


def _check(group: str, choice: str) -> None:
    choices = choices_of(group)[group]
    if choice not in choices:
        raise ConfigError(no_such_choice(group, choice, choices))


def _keys_of_group(group: str) -> dict[str, Key]:
    """Every key of a group once, with the value of the default choice where it has one."""
    default = default_choices()[group]
    order = [*(choice for choice in choices_of(group)[group] if choice != default), default]
    found = {key.name: key for choice in order for key in keys_of_choice(group, choice)}
    return dict(sorted(found.items(), key=lambda item: len(all_keys()[item[0]]) > 0))


def _find(name: str) -> Key:
    section = name.partition(".")[0] if "." in name else ""
    keys = _keys_of_group(section).values() if section in SCHEMAS else keys_of_section(section)
    return next(key for key in keys if key.name == name)


def _choice_lines() -> list[str]:
    defaults = default_choices()
    return [
        f"  {group:13}" + " ".join(f"{choice}*" if defaults.get(group) == choice else choice for choice in choices)
        for group, choices in choices_of().items()
    ] + ["  (* what is chosen when nothing is said)"]


def _lines(keys: Iterable[Key], owners: Mapping[str, list[str]] | None = None) -> list[str]:
    lines = []
    for key in keys:
        having = (owners or {}).get(key.name)
        only = f" [{', '.join(name.partition('=')[2] for name in having)}]" if having else ""
        shown = f"{key.name}={_value(key.default)}"
        lines.append(f"  {shown:{_WIDTH}} {_plain(sentence(key.text))}{only}")
    return lines


def _table(keys: Iterable[Key], owners: Mapping[str, list[str]] | None = None) -> list[str]:
    lines = ["| key | default | type | meaning |", "|---|---|---|---|"]
    for key in keys:
        having = (owners or {}).get(key.name)
        only = f" Only {', '.join(f'`{name}`' for name in having)}." if having else ""
        meaning = _marked(key.text) + only
        lines.append(f"| `{key.name}` | `{_value(key.default)}` | {_cell(key.type)} | {_cell(meaning)} |")
        lines += [f"| | | `{member}` | {_cell(_marked(text))} |" for member, text in key.members.items() if text]
    return lines


def _experiment_lines() -> list[str]:
    return [f"  {f'{EXPERIMENT}={name}':{_WIDTH}}{_first_comment(name)}" for name in choices_of()[EXPERIMENT]]


def _first_comment(experiment: str) -> str:
    lines = (CONF_DIR / EXPERIMENT / f"{experiment}.yaml").read_text().splitlines()
    comment = " ".join(
        line.removeprefix("#").strip() for line in lines if line.startswith("# ") and "@package" not in line
    )
    return sentence(comment)


def _what_it_is(group: str, choice: str, *, marked: bool = False) -> str:
    """What a choice is: of the kinds that one dataclass types, what stands under the member of its name."""
    form = _marked if marked else _plain
    for key in keys_of_choice(group, choice):
        value = given_by(group, choice).get(key.name.partition(".")[2])
        if isinstance(value, str) and key.members.get(value):
            return form(key.members[value])
    if len(SCHEMAS[group]) == 1:
        values = ", ".join(f"{key}={value}" for key, value in given_by(group, choice).items())
        return values or "the defaults"
    return form(sentence(inspect.getdoc(schema_of(group, choice)) or ""))


def _about(thing: Any, *, marked: bool = False) -> str:
    return (_marked if marked else _plain)(sentence(inspect.getdoc(thing) or ""))


def _value(value: Any) -> str:
    """As a user would type it."""
    if isinstance(value, str):
        return str(value) or '""'
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_value(item)}' for key, item in value.items())}}}"
    return json.dumps(value)


def _plain(text: str) -> str:
    return text.replace("``", "")


def _marked(text: str) -> str:
    return text.replace("``", "`")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
