"""The secret key that hospitals' numbers of patients are hashed with, by HMAC-SHA256.

It lies in a file of its own and in no dataset, run or export, and no number is ever written. With the same key a patient is
known again in another dataset; without it nobody can try which number gives a hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from functools import cached_property
from pathlib import Path

from covidjax.data.readers.names import hashed_patient
from covidjax.errors import UsageError, UserError
from covidjax.files import explaining

KEY_BYTES = 32

LEAST_BYTES = 16
"""Of a key that the user gives: as many as nobody can guess."""


class PatientKey:
    """The secret key, read or made when the first number is hashed.

    Args:
      file: holds the key; None for the user's own, which is made where there is none yet.
      keep: False to write nothing: where the user has no key, one is made up for this process.
    """

    def __init__(self, file: Path | None = None, *, keep: bool = True):
        self._file, self._keep = file, keep

    def hash(self, issuer: str, number: str, *, study: bool = False) -> str:
        """What stands for a patient in a dataset, or for a study.

        Args:
          issuer: whose number it is; two hospitals give one number to two people.
          number: the patient's, or the study's.
          study: which of the two.

        Raises:
          UsageError: there is no such file.
          UserError: the secret key cannot be read or made.
        """
        digest = self._digest(f"{issuer}\0{number}".encode("utf-8", "surrogateescape"))
        return hashed_patient(self._name, digest, study=study)

    @cached_property
    def _name(self) -> str:
        """Tells keys apart, and nothing else about them: hashes by two keys cannot be compared."""
        return self._digest(b"name of this key")[:8]

    def _digest(self, message: bytes) -> str:
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()

    @cached_property
    def _secret(self) -> bytes:
        if self._file:
            return _read(self._file, "name a file that holds a key with --patient-key")
        file = user_key_file()
        if not file.exists():
            if not self._keep:
                return secrets.token_bytes(KEY_BYTES)
            _make(file)
        return _read(file, "mend it, or name another file with --patient-key")


def user_key_file() -> Path:
    """Where the user's own key lies."""
    import platformdirs  # here: most commands want no key

    return platformdirs.user_data_path("covidjax") / "patient.key"


def _read(file: Path, remedy: str) -> bytes:
    if not file.exists():
        raise UsageError(f"{file} does not exist; {remedy}.")
    with explaining(file, remedy, "read"):
        if not file.is_file():  # a pipe would be waited for
            raise OSError("not a regular file")
        secret = file.read_bytes()
    if len(secret.strip()) < LEAST_BYTES:
        raise UserError(
            f"{file} has {len(secret.strip())} bytes, too few for a key that nobody can guess; make one with "
            f"`head -c {KEY_BYTES} /dev/urandom > FILE`."
        )
    return secret


def _make(file: Path) -> None:
    """A new key, whole and for this user alone from its first moment on, or another process's, if that was first."""
    with explaining(file, "name a file that holds a key with --patient-key"):
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.write(descriptor, secrets.token_bytes(KEY_BYTES))
            os.fsync(descriptor)
            with contextlib.suppress(FileExistsError):
                os.link(partial, file)
        finally:
            os.close(descriptor)
            partial.unlink()
