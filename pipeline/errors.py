"""The one kind of error that is the user's to mend, and how it reaches the screen.

A mistake in an option, a file or the data raises `UserError`. The entry points run under
`pipeline.distributed.guarded`, which prints it as one line on one rank and exits with code 2.
Anything else is a defect of this program and keeps its traceback.
"""

USER_ERROR_EXIT_CODE = 2
LOST_EXIT_CODE = 3  # another rank died or did not come
STOPPED_EXIT_CODE = 75  # after a signal, with everything saved: start again to go on


class UserError(Exception):
    """Something that the user can mend; the message names the option or file and the remedy."""


class Stopped(Exception):
    """A run was asked to stop, and has saved where it is."""


def brief(error: BaseException) -> str:
    """The first line of another library's error, or its type's name if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]
