"""The one exception that this package raises on bad input."""


class NequIPMDError(RuntimeError):
    """Bad input or a failed check; the message names the input, the reason and the remedy.

    Command-line programs print the message alone and end with status 1.
    """
