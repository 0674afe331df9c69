"""Group ``crash``: what makes no sense is refused before anything is started."""

import pytest

from ckptrun.command_line import overrides_of_prove
from ckptrun.config.crash import CrashKind
from ckptrun.config.fault import FaultKind
from ckptrun.errors import ConfigError
from tests.support.configs import config_of

COMMAND = ("job=command", "job.command=train:{run}")


def test_a_command_whose_crash_states_are_judged_has_no_fault() -> None:
    config = config_of(*overrides_of_prove(["prove", "crash=save", "--", "python", "train.py", "{run}"]))
    assert (config.crash.kind, config.fault.kind) == (CrashKind.save, FaultKind.none)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("crash=save",), "crash=save judges the saves of a command: ckptrun prove crash=save -- COMMAND"),
        (("crash=save", "fault=sigkill", *COMMAND), "crash=save and fault=sigkill are two kinds of proof"),
        (("crash.step=3", "fault=sigkill", *COMMAND), "crash.step=3 has no effect. Choose crash=save."),
        (("crash=save", "crash.step=0", *COMMAND), "crash.step must be at least 1, got 0"),
        (("crash=save", "crash.resume_steps=0", *COMMAND), "crash.resume_steps must be at least 1, got 0"),
        (("crash=save", "crash.block_bytes=0", *COMMAND), "crash.block_bytes must be at least 1, got 0"),
        (("crash=save", "crash.max_states=0", *COMMAND), "crash.max_states must be at least 1, got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        config_of(*overrides)
    assert message in str(refused.value)
