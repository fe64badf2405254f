"""The error tree of the whole project; each package adds its leaves under these.

    AalnetError                    exit code 1: something failed
    ├── NonFiniteError             a loss, a gradient or a sample is NaN or infinite
    └── UserError (ValueError)     exit code 2: the user can mend it
        ├── ConfigError            a setting
        ├── DataError              a data set, an image, a label
        └── CheckpointError        a run or a checkpoint that is missing, damaged or of another make

A message names the rule, the value and the next move, and fits one line where it can.
"""


class AalnetError(Exception):
    """Root of every error this project raises on purpose."""

    exit_code = 1


class NonFiniteError(AalnetError):
    """A term, a gradient norm or a sample stopped being finite. Never replaced, never skipped."""


class UserError(AalnetError, ValueError):
    """A mistake that the user can mend."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, of a wrong type, out of range or in conflict with another."""


class DataError(UserError):
    """A data set, an image or a label cannot be used."""


class CheckpointError(UserError):
    """A run or a checkpoint is missing, damaged, or was made with other settings."""
