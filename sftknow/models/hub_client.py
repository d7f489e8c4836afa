"""The Hub's client as the other modules here use it: patient, quiet, and with one clear line on failure."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

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
RepoType = Literal["model", "dataset", "space"]
PAGES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
"""Where the pages of repositories lie on the Hub, by their kind."""

_log = logging.getLogger(__name__)

TRANSIENT = (408, 409, 412, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed: overload, and somebody else's work at the same time."""

_TOKEN = re.compile(r"\b(?:hf|api_org)_\w{20,}|(?<=Bearer )[^\s\'\"]+")

_QUERY = re.compile(r"(https?://[^\s?\'\"]+)\?[^\s\'\"]+")
"""Addresses with a query: storage addresses carry signatures there."""

_HOPELESS = ("LocalProtocolError", "UnsupportedProtocol")
"""Errors of the HTTP library about what was asked (an address, a token with odd characters), not about the wire."""

_XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
"""The Xet client hands a status over in its message and nowhere else."""

_ENDLESS = 10**6
"""Tries, where the time decides."""

_AT_WORK = 30.0
"""Seconds after which a try was no silence of the Hub but work, such as an upload, that broke; the client's own tries
take less."""

_AGAIN = "start the same command again to finish"
_LIMITED = "the Hub is limiting requests ({it}); wait a few minutes and start the same command again"

_BY_TYPE: tuple[tuple[type[BaseException], str, str], ...] = (
    (OfflineModeIsEnabled, "offline", "cannot reach the Hub for {it}: HF_HUB_OFFLINE is set; unset it and try again"),
    (LocalTokenNotFoundError, "token", "no Hub token for {it}: run `hf auth login` or set HF_TOKEN"),
    (HFValidationError, "name", "{repo} is not an allowed repository name: {error}"),
    (GatedRepoError, "gated", "{it} is gated: ask for access on its page at {page}, then try again"),
    (LocalEntryNotFoundError, "broken", "a file of {it} cannot be fetched; " + _AGAIN),
    (RevisionNotFoundError, "revision", "{it} has no {revision}"),
    (
        RepositoryNotFoundError,
        "missing",
        "{repo} is not on the Hub, or this token may not see it: check the name, or run `hf auth login`",
    ),
    (RemoteEntryNotFoundError, "entry", "a file of {it} is gone from the Hub: {said}; try again"),
)
"""What the client's own errors mean: type, `HubError.reason`, message. The first that fits counts."""

_BY_STATUS: dict[str, str] = {
    "400 create": "{repo} is not an allowed repository name: {said}",
    "401": "the Hub wants to know who you are for {it}: run `hf auth login` or set HF_TOKEN",
    "401 token": "the Hub token is not valid or has expired: make a new one in the Hub's settings, then "
    "`hf auth login`",
    "403 read": "this token may not read {it} ({said}): use a token that has read access to it, or ask its owner",
    "403 write": "this token may not write to {it} ({said}): use a token with write access, or another repository",
    "412": "{it} is being changed by somebody else at the same time; start the same command again",
    "429": _LIMITED,
    "5xx": "the Hub answers {status} for {it}; start the same command again later to finish",
    "other": "the Hub answers {status} for {it}: {said}",
}
"""What the Hub's answers mean."""

_BY_XET_STATUS: dict[int, str] = {
    403: "the Hub's Xet storage refuses this token for {it}: use a token with {access} access to it",
    404: "the Hub gives no Xet storage for {it}: set HF_HUB_DISABLE_XET=1 and start the same command again",
    429: _LIMITED,
    0: f"the transfer of {{it}} over Xet storage broke ({{error}}); {_AGAIN}, or with HF_HUB_DISABLE_XET=1 to go "
    "without Xet",
}
"""What the errors of Xet storage mean; 0 is every other."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a request is about, as far as its messages can say it."""

    repo_id: str
    repo_type: str | None = None
    """``model``, ``dataset`` or ``space``; None where that is not known."""
    revision: str | None = None
    reading: bool = False
    """True where nothing is to be changed on the Hub."""

    def __str__(self) -> str:
        kind = {"model": "the model ", "dataset": "the data set ", "space": "the Space "}.get(self.repo_type or "", "")
        return f"{kind}{self.repo_id}"


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to go on when the Hub stumbles: the same for everything that is read and written."""

    tries: int = 6
    wait: float = 60.0
    """Seconds after which a Hub that only ever fails is given up; a Retry-After that it names is waited for."""
    first_wait: float = 1.0
    """Seconds before the second try; doubled from try to try."""
    longest_wait: float = 300.0
    """Seconds; a Retry-After beyond it ends the attempt."""

    @classmethod
    def of(cls, wait: float | None) -> Patience:
        """As a person asked for it: as many tries as fit into so many seconds; None for the default."""
        return cls() if wait is None else cls(tries=_ENDLESS, wait=wait, longest_wait=max(wait, 300.0))


BRIEF = Patience(tries=3)
"""For a look, which is not worth minutes."""


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

    def call(self, about: str | Subject, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Call a method of the client until it succeeds or there is no hope.

        Args:
            about: the repository, for messages.
            function: is given the rest.

        Raises:
            HubError: with one line that says what to do.
        """
        for wait in self.waits(about):
            try:
                with quiet():
                    return function(*args, **kwargs)
            except Exception as error:
                wait(error)
        raise AssertionError("unreachable: the last wait raises")

    def waits(self, about: str | Subject) -> Iterator[Callable[[Exception], None]]:
        """One function a try: given the try's error, it sleeps where another may help and raises HubError where not."""
        delay, down_since = self.patience.first_wait, 0.0
        for left in reversed(range(self.patience.tries)):
            began = time.monotonic()

            def wait(error: Exception, left: int = left, delay: float = delay, began: float = began) -> None:
                nonlocal down_since
                now, asked = time.monotonic(), _retry_after(error)
                lasted = now - began
                if lasted > _AT_WORK:
                    down_since = now  # it went well for a while
                elif not down_since:
                    down_since = began
                pause = delay if asked is None else asked
                late = asked is None and now + pause + min(lasted, _AT_WORK) - down_since > self.patience.wait
                if not is_transient(error) or left == 0 or late or pause > self.patience.longest_wait:
                    raise explain(error, about) from None
                _log.warning("the Hub does not answer as it should (%s); trying again in %g s", _cause(error), pause)
                time.sleep(pause)

            yield wait
            delay = min(2 * delay, 30.0)


class _Retold(logging.Handler):
    """The client tries again for up to half a minute by itself: this says so once, without its addresses."""

    said = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.said and record.getMessage().startswith("Retrying in"):
            self.said = True
            _log.warning("the Hub does not answer as it should; trying again")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the client's own bars and warnings off the terminal: URLs in them may carry signatures."""
    logger = logging.getLogger("huggingface_hub")
    level, hidden = logger.level, are_progress_bars_disabled()
    handlers, propagate = logger.handlers, logger.propagate
    if not any(isinstance(handler, _Retold) for handler in handlers):
        logger.handlers, logger.propagate = [_Retold()], False
    logger.setLevel(logging.WARNING)
    if not hidden:
        disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.handlers, logger.propagate = handlers, propagate
        if not hidden:
            enable_progress_bars()


def check_repo_id(repo_id: str) -> None:
    """Raise HubError where the Hub would not take the name."""
    if repo_id.count("/") != 1:
        raise HubError(f"{repo_id!r} is no repository name: give it as org/name", repo_id=repo_id, reason="name")
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


def explain(error: BaseException, about: str | Subject) -> HubError:
    """The error as one line with the repository and the way out. An error that is no Hub matter is raised again."""
    error = _root(error)
    if isinstance(error, HubError):
        return error
    subject = about if isinstance(about, Subject) else Subject(repo_id=about)
    reason, text = _explanation(error, subject)
    if text is None:
        raise error
    named = f"revision {subject.revision} on the Hub"
    page = f"{constants.ENDPOINT}/{PAGES.get(subject.repo_type or '', '')}{subject.repo_id}"
    message = text.format(
        it=subject,
        repo=subject.repo_id,
        page=page,
        revision=named if subject.revision else "such revision: give a branch, tag or commit that exists",
        access="read" if subject.reading else "write",
        error=error,
        said=getattr(error, "server_message", None) or "no reason given",
        status=error.response.status_code if isinstance(error, HfHubHTTPError) else "",
    )
    return HubError(one_line(message), repo_id=subject.repo_id, reason=reason)


def _explanation(error: BaseException, subject: Subject) -> tuple[str | None, str | None]:
    """`HubError.reason` and the message with its places open; no message for what is no Hub matter."""
    for kind, reason, text in _BY_TYPE:
        if isinstance(error, kind):
            return reason, text
    if isinstance(error, HfHubHTTPError):
        return None, _BY_STATUS[_status(error, subject)]
    if _is_xet(error):
        found = _XET_STATUS.search(str(error))
        status = 403 if isinstance(error, PermissionError) else int(found[1]) if found else 0
        return None, _BY_XET_STATUS.get(403 if status == 401 else status, _BY_XET_STATUS[0])
    if isinstance(error, (HTTPError, ConnectionError, TimeoutError)):
        return None, "the connection to the Hub for {it} broke ({error}); " + _AGAIN
    if isinstance(error, json.JSONDecodeError):
        return None, "the Hub's answer for {it} cannot be read; start the same command again later to finish"
    return None, None


def _status(error: Any, subject: Subject) -> str:
    """The key of `_BY_STATUS`: by the status, and where one has several meanings by what was asked and how."""
    status, request = error.response.status_code, error.response.request
    if status == 400 and request.url.path == "/api/repos/create":
        return "400 create"
    if status == 401 and "Authorization" in request.headers:
        return "401 token"
    if status == 403:
        return "403 read" if subject.reading or request.method in ("GET", "HEAD") else "403 write"
    if str(status) in _BY_STATUS:
        return str(status)
    return "5xx" if status >= 500 else "other"


def _root(error: BaseException) -> BaseException:
    """What went wrong beneath the client's own ``Error while uploading …`` and ``cannot find it in the cache``."""
    if isinstance(error, (RuntimeError, LocalEntryNotFoundError)) and error.__cause__ is not None:
        return _root(error.__cause__)
    return error


def _cause(error: BaseException) -> str:
    error = _root(error)
    return f"status {error.response.status_code}" if isinstance(error, HfHubHTTPError) else type(error).__name__


def _retry_after(error: BaseException) -> float | None:
    error = _root(error)
    if not isinstance(error, HfHubHTTPError):
        return None
    named = error.response.headers.get("Retry-After", "")
    return float(named) if named.isdigit() else None


def one_line(text: str) -> str:
    """A message on one line, without tokens and without the signatures of storage addresses."""
    return _QUERY.sub(r"\1?…", _TOKEN.sub("<token>", " ".join(text.split())))
