"""What can go wrong beyond plain bad input, told apart by the command line's exit codes.

ValueError                  the user's input: rule, offending value, remedy
├── StorageError            a database that is foreign, newer, corrupt or out of reach
└── LimitError              limits that no sub-network can meet
RuntimeError
├── VerificationError       a checkpoint that, reloaded, does not compute what it should
└── ResourceError           memory or disk ran out
"""


class StorageError(ValueError):
    """The study database cannot be used as it is; says what it is and what to do."""


class LimitError(ValueError):
    """No sub-network meets the limits; names the nearest that was measured."""


class VerificationError(RuntimeError):
    """A reloaded checkpoint disagrees with the sub-network it was written from; nothing is left behind."""


class ResourceError(RuntimeError):
    """Memory or disk ran out; says what would fit."""
