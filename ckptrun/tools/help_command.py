"""What ckptrun does, what can be chosen, and what each key means.

ckptrun help                 commands, choices, and every key for the default choices
ckptrun help model           one group: its choices, and the keys of each
ckptrun help model=cnn       one choice
ckptrun help train.steps     one key: type, default, all that it means
ckptrun help verify          one command

Exit codes: 0 said, 2 there is nothing of that name.
"""

import argparse
from collections.abc import Sequence

from ckptrun.config.choices import EXPERIMENT
from ckptrun.config.keys import all_keys, plain_sections
from ckptrun.config.nearest import did_you_mean
from ckptrun.config.schemas import SCHEMAS
from ckptrun.console import say
from ckptrun.errors import ConfigError
from ckptrun.exit_codes import ExitCode
from ckptrun.tools.help_text import choice_text, group_text, key_text, overview, page, section_text

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("topics", nargs="*", metavar="TOPIC", help="a group, a choice, a key or a command")
    parser.add_argument(
        "--overview", action="store_true", help="everything in one page, for the choices that are named"
    )
    parser.add_argument("--markdown", action="store_true", help="print docs/config.md, the reference of all keys")


def run(arguments: argparse.Namespace) -> int:
    """Print the answer; return the exit code."""
    if arguments.markdown:
        say(page())
        return ExitCode.done
    topics: list[str] = arguments.topics
    chosen = _chosen(topics)
    if arguments.overview or not topics:
        say(overview(chosen))
    else:
        say(
            "\n\n".join(
                choice_text(topic, chosen[topic]) if topic in chosen else _answer(topic) for topic in _names(topics)
            )
        )
    return ExitCode.done


def _answer(topic: str) -> str:
    if topic in SCHEMAS or topic == EXPERIMENT:
        return group_text(topic)
    if topic in plain_sections():
        return section_text(topic)
    # A key below one that is documented: checkpoint.load.only.
    for name in (topic, topic.rpartition(".")[0]):
        if name in all_keys():
            return key_text(name)
    topics = [*SCHEMAS, EXPERIMENT, *plain_sections(), *all_keys()]
    near = did_you_mean(topic, topics) or f"topics are {', '.join(topics[: len(SCHEMAS) + 1])}, ..., and every key."
    raise ConfigError(f"There is no help on {topic!r}; {near}")


def _names(topics: Sequence[str]) -> list[str]:
    return [topic.lstrip("+").partition("=")[0] for topic in topics]


def _chosen(overrides: Sequence[str]) -> dict[str, str]:
    """The choices among ``overrides``."""
    pairs = [text.lstrip("+").partition("=") for text in overrides]
    return {group: choice for group, _, choice in pairs if group in SCHEMAS and choice}
