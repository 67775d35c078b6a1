"""What a run ends with when it does not end well; said here without torch, for the commands."""

from __future__ import annotations

# EX_TEMPFAIL: the run stopped after a checkpoint, as it was asked to; the same command goes on
EXIT_STOPPED = 75


class ConfigError(ValueError):
    """Settings that cannot be meant: names the key, the value and what is allowed."""


class LostProcessError(RuntimeError):
    """One of several processes has ended, so that the others cannot go on."""


class UnknownKeyError(ConfigError):
    """A setting that there is not.

    Attributes:
        key: its name.
    """

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


class NonFiniteLossError(RuntimeError):
    """Training diverged; says when, and what to go back to."""


class StopRequestedError(RuntimeError):
    """The run was asked to stop (SIGTERM, SIGUSR1), finished its step and saved a checkpoint."""
