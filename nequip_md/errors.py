"""The exception that this package raises on bad input, the warning of extrapolation, and a common remedy."""


class NequIPMDError(RuntimeError):
    """Bad input or a failed check; the message names the input, the reason and the remedy.

    Command-line programs print the message alone and end with status 1.
    """


class ExtrapolationWarning(UserWarning):
    """A structure is far from anything in a model's training data: atoms closer together, or forces much larger."""


def install_command(extra: str) -> str:
    """The command to type where an optional dependency is missing: nequip-md is installed from its sources, not by name."""
    return f"pip install '.[{extra}]' in the source folder of nequip-md"
