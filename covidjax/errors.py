"""The expected failures of the project, and text that every terminal takes."""

from __future__ import annotations


class UserError(Exception):
    """An expected failure. The message is one sentence that says what is wrong and what to do about it."""


class UsageError(UserError):
    """A request that cannot be met: a setting that does not exist, a value of the wrong kind, a missing path."""


class ImageError(UserError):
    """An image that cannot be read; the message is the reason, ready to be shown in a table row."""


def one_line(error: Exception) -> str:
    """An error's message in one line, or its type where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def printable(text: str) -> str:
    """Text that any terminal and any file takes: bytes of a file's name that are no UTF-8 stand as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
