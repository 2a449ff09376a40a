"""The errors that users meet."""


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where and how to mend it.

    The command line prints the message alone and exits with status 2. It is a `ValueError`, so library users can
    catch it as one.
    """


class PushError(RuntimeError):
    """A trained and saved model could not be pushed to the Hub; the message says why and how to push it again.

    The command line prints the message alone and exits with status 3.
    """


class RunFailed(RuntimeError):
    """A run cannot go on for a reason outside of what the user gave: a full disk, say, or another rank's failure.

    The command line prints the message alone and exits with status 1.
    """


class RunStopped(SystemExit):
    """A signal ended the run after a checkpoint was saved. As a `SystemExit` it ends any script with its status.

    Args:
        signal_number: of the signal; the exit status is 128 more, as in a shell.
        message: what was saved, and how to go on.
    """

    def __init__(self, signal_number: int, message: str):
        super().__init__(128 + signal_number)
        self.message = message

    def __str__(self) -> str:
        return self.message
