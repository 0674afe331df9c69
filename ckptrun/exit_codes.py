"""What the exit code of a command means. Torch-free."""

from enum import IntEnum

from ckptrun.errors import CheckpointExistsError, CheckpointNotFoundError, ConfigError, StateMismatchError

__all__ = ["ExitCode", "exit_code_of"]

# A config or a checkpoint that does not fit is the user's to change.
_USER_ERRORS = (ConfigError, CheckpointNotFoundError, CheckpointExistsError, StateMismatchError)


class ExitCode(IntEnum):
    """The exit codes that scripts rely on."""

    done = 0
    """Done, and everything that was asked to be proved is equal."""
    failed = 1
    """The run failed or was interrupted."""
    config = 2
    """The config or the command line is wrong."""
    different = 3
    """A verdict is ``different``, or a tool found a difference or damage."""
    not_verified = 4
    """A verdict is ``not_verified``, or a tool could not compare everything."""


def exit_code_of(error: BaseException) -> ExitCode:
    """The exit code of a command that ends with ``error``."""
    return ExitCode.config if isinstance(error, _USER_ERRORS) else ExitCode.failed
