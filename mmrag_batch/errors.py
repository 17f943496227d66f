"""What can go wrong, and the exit code that each failure ends with.

    MmragError                  1   anything that is our job to explain
    ├── RowError                -   one row (or one document) cannot be used; never ends a run
    ├── InputError             65   the structure of the input file is broken
    ├── MissingError           66   an input, a bundle or a model is not there
    ├── UnavailableError       69   an extra, a device or an engine is not available here
    ├── InternalError          70   an invariant of ours is broken
    ├── OutputError            73   the output cannot be created
    ├── DeniedError            77   a file that must not be opened or trusted
    └── ConfigError            78   a setting is invalid

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
    DATAERR = 65
    NOINPUT = 66
    UNAVAILABLE = 69
    SOFTWARE = 70
    CANTCREAT = 73
    IOERR = 74
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


class DeniedError(MmragError):
    """A file that must not be opened or trusted."""

    exit_code = ExitCode.NOPERM


class ConfigError(MmragError):
    """One or more settings are invalid; the message lists every one."""

    exit_code = ExitCode.CONFIG
