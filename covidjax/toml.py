"""TOML files to typed dataclasses: every key and the type of every value is checked."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from covidjax.errors import UsageError, UserError

_LONGEST_TOML = 2**14
"""Most bytes of a file of settings: of a key with 50,000 dots tomllib makes a minute and a half."""


def parse_value(text: str) -> Any:
    """A value as TOML has it, or, where it is none, the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises UsageError where it cannot be read or is no TOML."""
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST_TOML + 1)
        if len(data) > _LONGEST_TOML:
            raise UsageError(f"{path} is longer than any settings are; check its name.")
        return tomllib.loads(data.decode())
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); check its name.") from error
    except RecursionError:
        raise UsageError(f"{path} is not valid TOML: it is nested too deeply; mend or remove that line.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}; mend or remove that line.") from error


def from_table(kind: type, table: Mapping[str, Any], *, where: str, prefix: str = "") -> Any:
    """Make a dataclass from a TOML table, section by section, checking every key and every value's type.

    Args:
      kind: the dataclass; its fields are dataclasses, texts, numbers, literals, ``tuple[T, ...]`` or ``dict[str, T]``.
      table: as ``read_toml`` gives it.
      where: the file, for messages.
      prefix: of the keys, for messages.

    Raises:
      UsageError: an unknown key, or a value of the wrong kind.
    """
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in table.items():
        name = prefix + key
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            known = f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(prefix + h for h in hints)}."
            raise UsageError(f"{where}: unknown key {name}; {known}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise UsageError(f"{where}: {name} is a section, not a value; set a key below it, such as {name}.…")
            values[key] = from_table(typing.cast(type, hint), value, where=where, prefix=f"{name}.")
        else:
            values[key] = _typed(hint, value, f"{where}: {name}")
    required = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    for name in required:
        if name not in values:
            raise UserError(f"{where} is damaged: it has no [{prefix}{name}]; put back the file as it was written.")
    return kind(**values)


def _typed(hint: Any, value: Any, name: str) -> Any:
    if isinstance(hint, types.UnionType):
        hint = next(arm for arm in hint.__args__ if arm is not type(None))
        if value in (None, "none"):
            return None
    if typing.get_origin(hint) is Literal:
        if value not in hint.__args__ or type(value) not in {type(arm) for arm in hint.__args__}:
            raise UsageError(f"{name} must be one of {', '.join(map(str, hint.__args__))}, not {value!r}.")
        return value
    if typing.get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} must be a table, not {value!r}.")
        return {key: _typed(hint.__args__[1], item, f"{name}.{key}") for key, item in value.items()}
    if typing.get_origin(hint) is tuple:
        item_hint = hint.__args__[0]
        if not isinstance(value, list | tuple) or (item_hint is str and not all(isinstance(item, str) for item in value)):
            raise UsageError(f"{name} must be a list of {'names' if item_hint is str else 'numbers'}, not {value!r}.")
        return tuple(_typed(item_hint, item, f"each of {name}") for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UsageError(f"{name} must be of type {hint.__name__}, not {value!r}.")
    return value
