"""What can go wrong, and the exit code that each failure ends with.

    MmragError                  1   anything that is our job to explain
    ├── RowError                -   one row (or one document) cannot be used; never ends a run
    ├── PartialError            3   all is done, but some rows have no answer
    ├── AbortedError            4   too many rows failed, or a run that does not get ahead
    ├── LockedError            11   another run writes the same output
    ├── InputError             65   the structure of the input file is broken
    ├── MissingError           66   an input, a bundle or a model is not there
    ├── UnavailableError       69   an extra, a device or an engine is not available here
    ├── InternalError          70   an invariant of ours is broken
    ├── OutputError            73   the output cannot be created
    ├── StorageError           74   the disk fails or is full; what is committed is safe
    ├── StoppedError       75/130   stopped by a signal or by --max-runtime; run again to go on
    ├── DeniedError            77   a file that must not be opened or trusted
    └── ConfigError            78   a setting is invalid, or not what the run began with

A message says what is wrong, where, and what to do next. Only `cli.py` catches `MmragError`.
"""

from enum import IntEnum

from mmrag_batch.masking import mask


class ExitCode(IntEnum):
    """Exit codes, after sysexits.h where it has one."""

    OK = 0
    ERROR = 1
    USAGE = 2
    PARTIAL = 3
    ABORTED = 4
    LOCKED = 11
    DATAERR = 65
    NOINPUT = 66
    UNAVAILABLE = 69
    SOFTWARE = 70
    CANTCREAT = 73
    IOERR = 74
    TEMPFAIL = 75
    NOPERM = 77
    CONFIG = 78
    INTERRUPTED = 130


class MmragError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code: ExitCode = ExitCode.ERROR


class RowError(MmragError):
    """One row, or one document of it, cannot be used.

    `code` is a stable word for machines (`bad_documents`, `image_missing`, ...), the message is
    for people, and is masked because it quotes cells.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(mask(message))
        self.code = code


class PartialError(MmragError):
    """The output is complete, and some of its rows have no answer."""

    exit_code = ExitCode.PARTIAL


class AbortedError(MmragError):
    """A run gave up early: too many rows failed, or it is stopped again and again too soon."""

    exit_code = ExitCode.ABORTED


class LockedError(MmragError):
    """Another run writes the same output."""

    exit_code = ExitCode.LOCKED


class InputError(MmragError):
    """The structure of the input file is broken: header, encoding, quoting."""

    exit_code = ExitCode.DATAERR


class MissingError(MmragError):
    """An input file, a bundle or a part of one is not there."""

    exit_code = ExitCode.NOINPUT


class UnavailableError(MmragError):
    """An extra, a device, a driver or an engine is not available on this machine."""

    exit_code = ExitCode.UNAVAILABLE


class InternalError(MmragError):
    """An invariant of this package is broken; please report it."""

    exit_code = ExitCode.SOFTWARE


class OutputError(MmragError):
    """The output cannot be created where it was asked for."""

    exit_code = ExitCode.CANTCREAT


class StorageError(MmragError):
    """A disk that is full, fails or has gone away under a run."""

    exit_code = ExitCode.IOERR


class StoppedError(MmragError):
    """A run was told to stop and did: what it finished is committed."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.TEMPFAIL) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DeniedError(MmragError):
    """A file that must not be opened or trusted."""

    exit_code = ExitCode.NOPERM


class ConfigError(MmragError):
    """Settings that are invalid, or not those a run began with; the message lists every one."""

    exit_code = ExitCode.CONFIG
