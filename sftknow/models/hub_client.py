"""The Hub's client as the other modules here use it: patient, quiet, and with one clear line on failure."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    validate_repo_id,
)

from sftknow.errors import HubError

Result = TypeVar("Result")

TRANSIENT = (408, 409, 412, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed: overload, and somebody else's work at the same time."""

_TOKEN = re.compile(r"\b(?:hf|api_org)_\w{20,}|(?<=Bearer )[^\s\'\"]+")

_QUERY = re.compile(r"(https?://[^\s?\'\"]+)\?[^\s\'\"]+")
"""Addresses with a query: storage addresses carry signatures there."""

_HOPELESS = ("LocalProtocolError", "UnsupportedProtocol")
"""Errors of the HTTP library about what was asked (an address, a token with odd characters), not about the wire."""

_XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to go on when the Hub stumbles."""

    tries: int = 6
    first_wait: float = 1.0
    """Seconds before the second try; doubled from try to try."""
    longest_wait: float = 300.0
    """Seconds; a Retry-After beyond it ends the attempt."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Where the Hub is and who asks. The token never shows in its ``repr``, in a message or in a file."""

    api: Any
    """A `huggingface_hub.HfApi`."""
    patience: Patience = Patience()

    @classmethod
    def open(
        cls, *, endpoint: str | None = None, token: str | None = None, patience: Patience | None = None
    ) -> Connection:
        """Connect with what is given, else with ``HF_ENDPOINT``, ``HF_TOKEN`` and the token of ``hf auth login``."""
        api = HfApi(endpoint=endpoint, token=token, library_name="sftknow")
        return cls(api=api, patience=patience or Patience())

    def __repr__(self) -> str:
        return f"Connection({self.api.endpoint})"

    def call(self, repo_id: str, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a method of the client until it succeeds or there is no hope.

        Raises:
            HubError: with one line that says what to do.
        """
        for wait in self.waits(repo_id):
            try:
                with quiet():
                    return function(*args, **kwargs)
            except Exception as error:
                wait(error)
        raise AssertionError("unreachable: the last wait raises")

    def waits(self, repo_id: str) -> Iterator[Callable[[Exception], None]]:
        """One function a try: given the try's error, it sleeps where another may help and raises HubError where not."""
        delay = self.patience.first_wait
        for left in reversed(range(self.patience.tries)):

            def wait(error: Exception, left: int = left, delay: float = delay) -> None:
                if not is_transient(error):
                    raise explain(error, repo_id) from None
                pause = delay if (asked := _retry_after(error)) is None else asked
                if left == 0 or pause > self.patience.longest_wait:
                    raise explain(error, repo_id) from None
                time.sleep(pause)

            yield wait
            delay = min(2 * delay, 30.0)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the client's own bars and warnings off the terminal: URLs in them may carry signatures."""
    logger = logging.getLogger("huggingface_hub")
    level, hidden = logger.level, are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    if not hidden:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if not hidden:
            enable_progress_bars()


def check_repo_id(repo_id: str) -> None:
    """Raise HubError where the Hub would not take the name."""
    if repo_id.count("/") != 1:
        raise HubError(f"{repo_id!r} is no repository name: give it as org/name", repo_id=repo_id)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise explain(error, repo_id) from None


def is_transient(error: BaseException) -> bool:
    """True where the same request may succeed in a moment."""
    error = _root(error)
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in TRANSIENT
    if isinstance(error, OfflineModeIsEnabled) or type(error).__name__ in _HOPELESS or _is_xet(error):
        return False
    # JSONDecodeError: an overloaded server answered with a page for people.
    return isinstance(error, (HTTPError, ConnectionError, TimeoutError, json.JSONDecodeError))


def _is_xet(error: BaseException) -> bool:
    """True for errors of the Xet storage client, which has tried again for minutes itself before it raises one.

    It raises Python's own ConnectionError (the Hub's client raises its HTTP library's), errors named after itself, and
    RuntimeError for the rest.
    """
    return type(error) in (ConnectionError, RuntimeError) or type(error).__name__.startswith("Xet")


def explain(error: BaseException, repo_id: str) -> HubError:
    """The error as one line with the repository and the way out. An error that is no Hub matter is raised again."""
    error = _root(error)
    if isinstance(error, HubError):
        return error
    text = _explanation(error, repo_id)
    if text is None:
        raise error
    return HubError(_one_line(text), repo_id=repo_id)


def _explanation(error: BaseException, repo_id: str) -> str | None:
    if isinstance(error, OfflineModeIsEnabled):
        return f"cannot reach the Hub for {repo_id}: HF_HUB_OFFLINE is set; unset it and try again"
    if isinstance(error, LocalTokenNotFoundError):
        return f"no Hub token for {repo_id}: run `hf auth login` or set HF_TOKEN"
    if isinstance(error, HFValidationError):
        return f"{repo_id} is not an allowed repository name: {error}"
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated: ask for access on its page at {constants.ENDPOINT}/{repo_id}, then try again"
    if isinstance(error, LocalEntryNotFoundError):
        return f"a file of {repo_id} cannot be fetched; start the same command again to finish"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such revision: give a branch, tag or commit that exists"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"a file of {repo_id} is gone from the Hub: {error.server_message}; try again"
    if isinstance(error, HfHubHTTPError):
        return _status(error, repo_id)
    if _is_xet(error):
        return _xet(error, repo_id)
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError)):
        return f"the connection to the Hub for {repo_id} broke ({error}); start the same command again to finish"
    if isinstance(error, json.JSONDecodeError):
        return f"the Hub's answer for {repo_id} cannot be read; start the same command again later to finish"
    if isinstance(error, ValueError) and "LFS batch" in str(error):
        return f"the Hub refused files of {repo_id}: {error}"
    if isinstance(error, ValueError) and "README.md" in str(error):
        return f"the Hub refused the card of {repo_id}: {error}"
    return None


def _status(error: Any, repo_id: str) -> str:
    status, said = error.response.status_code, error.server_message or "no reason given"
    if status == 401 and ("Invalid user token" in str(error) or "Invalid credentials" in said):
        return "the Hub token is not valid or has expired: make a new one in the Hub's settings, then `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"{repo_id} is not on the Hub, or this token may not see it: check the name, or run `hf auth login`"
    if status == 401:
        return f"the Hub wants to know who you are for {repo_id}: run `hf auth login` or set HF_TOKEN"
    if status == 403:
        return f"this token may not write to {repo_id} ({said}): use a token with write access, or another repository"
    if status == 400 and "name" in said.lower():
        return f"{repo_id} is not an allowed repository name: {said}"
    if status == 429:
        return f"the Hub is limiting requests ({repo_id}); wait a few minutes and start the same command again"
    if status == 412:
        return f"{repo_id} is being changed by somebody else at the same time; start the same command again"
    if status >= 500:
        return f"the Hub answers {status} for {repo_id}; start the same command again later to finish"
    return f"the Hub answers {status} for {repo_id}: {said}"


def _xet(error: BaseException, repo_id: str) -> str:
    found = _XET_STATUS.search(str(error))
    status = int(found[1]) if found else 0
    if status in (401, 403) or type(error).__name__ == "XetAuthenticationError":
        return f"the Hub's Xet storage refuses this token for {repo_id}: use a token with write access to it"
    if status == 404:
        return f"the Hub gives no Xet storage for {repo_id}: set HF_HUB_DISABLE_XET=1 and start the same command again"
    if status == 429:
        return f"the Hub is limiting requests ({repo_id}); wait a few minutes and start the same command again"
    return (
        f"the transfer of {repo_id} over Xet storage broke ({error}); start the same command again to finish, "
        "or with HF_HUB_DISABLE_XET=1 to go without Xet"
    )


def _root(error: BaseException) -> BaseException:
    """What went wrong beneath the client's own ``Error while uploading …`` and ``cannot find it in the cache``."""
    if isinstance(error, (RuntimeError, LocalEntryNotFoundError)) and error.__cause__ is not None:
        return _root(error.__cause__)
    return error


def _retry_after(error: BaseException) -> float | None:
    error = _root(error)
    if not isinstance(error, HfHubHTTPError):
        return None
    named = error.response.headers.get("Retry-After", "")
    return float(named) if named.isdigit() else None


def _one_line(text: str) -> str:
    return _QUERY.sub(r"\1?…", _TOKEN.sub("<token>", " ".join(text.split())))
