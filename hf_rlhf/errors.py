"""The one error type that users meet."""


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where and how to mend it.

    The command line prints the message alone and exits with status 2. It is a `ValueError`, so library users can
    catch it as one.
    """
