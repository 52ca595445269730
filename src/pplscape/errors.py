"""Every error a user can meet.

PplscapeError
└── UserError        bad input or configuration: one clear sentence, exit code 2
    ├── StaleOutput  the output folder holds the result of another configuration
    └── TooFewValues a second axis has too few different values for the levels asked for
"""


class PplscapeError(Exception):
    """Root of all errors raised on purpose."""


class UserError(PplscapeError):
    """What is wrong, where, and how to fix it - in one sentence the user can act on."""


class StaleOutput(UserError):
    """An output folder exists, written from other inputs or another configuration."""


class TooFewValues(UserError):
    """A second axis cannot cut the bins into so many levels."""
