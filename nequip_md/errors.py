"""The one exception that this package raises on bad input, and the warning of extrapolation."""


class NequIPMDError(RuntimeError):
    """Bad input or a failed check; the message names the input, the reason and the remedy.

    Command-line programs print the message alone and end with status 1.
    """


class ExtrapolationWarning(UserWarning):
    """A structure is far from anything in a model's training data: atoms closer together, or forces much larger."""
