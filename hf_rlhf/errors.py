"""The error types that users meet."""


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where and how to mend it.

    The command line prints the message alone and exits with status 2. It is a `ValueError`, so library users can
    catch it as one.
    """


class PushError(RuntimeError):
    """A trained and saved model could not be pushed to the Hub; the message says why and how to push it again.

    The command line prints the message alone and exits with status 3.
    """
