"""The client's manners: what is tried again, what is said, what is never said."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from sftknow.errors import HubError
from sftknow.models.hub_client import Connection, Patience, explain, is_transient

SECRET = "hf_" + "a1B2" * 9


def answer(status: int, message: str = "", headers: dict[str, str] | None = None) -> HfHubHTTPError:
    request = httpx2.Request("POST", "https://hub.example/api/models/org/name/commit/main")
    response = httpx2.Response(status, request=request, headers=headers)
    return HfHubHTTPError(f"{status} {message}", response=response, server_message=message or None)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 416, 429, 500, 503])
def test_every_status_becomes_one_line_with_the_repository(status: int) -> None:
    error = explain(answer(status, "line one\nline two"), "org/name")
    assert "\n" not in str(error)
    assert error.repo_id == "org/name"
    assert "org/name" in str(error)


def test_tokens_never_show() -> None:
    for text in (f"illegal header value b'Bearer {SECRET}\\n'", f"token {SECRET} is odd", "Bearer short"):
        said = str(explain(httpx2.ConnectError(text), "org/name"))
        assert SECRET not in said
        assert "short" not in said
    assert SECRET not in repr(Connection.open(endpoint="http://127.0.0.1:9", token=SECRET))


def test_signatures_of_storage_addresses_never_show() -> None:
    said = str(explain(httpx2.ConnectError("https://store.example/a/b?X-Amz-Signature=0123abc broke"), "org/name"))
    assert "0123abc" not in said
    assert "store.example" in said


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionError("Server error: Request error: HTTP status server error (500 Internal Server Error)"), "again"),
        (ConnectionError("Rate limited: Request error: HTTP status client error (429 Too Many Requests)"), "minutes"),
        (ConnectionError("Network error: HTTP status client error (403 Forbidden), domain: http://x/"), "write access"),
        (RuntimeError("Data sender was dropped"), "start the same command again"),
        (type("XetAuthenticationError", (PermissionError,), {})("no"), "write access"),
    ],
)
def test_errors_of_xet_storage_become_one_line_and_are_not_tried_again(error: Exception, says: str) -> None:
    """Their texts are those of hf_xet 1.8, which tries again for minutes before it raises."""
    assert not is_transient(error)
    assert says in str(explain(error, "org/name"))


def test_bugs_keep_their_own_error() -> None:
    with pytest.raises(KeyError):
        explain(KeyError("a bug"), "org/name")


def test_what_is_tried_again() -> None:
    assert is_transient(answer(503))
    assert is_transient(httpx2.RemoteProtocolError("server disconnected"))
    assert not is_transient(answer(403))
    assert not is_transient(OfflineModeIsEnabled("offline"))
    assert not is_transient(httpx2.LocalProtocolError("illegal header value"))
    wrapped = RuntimeError("Error while uploading 'model.safetensors' to the Hub.")
    wrapped.__cause__ = answer(500)
    assert is_transient(wrapped)


def test_waits_grow_and_follow_retry_after(naps: list[float]) -> None:
    link = Connection(api=None, patience=Patience(tries=5, first_wait=1.0))
    errors = iter([answer(500), answer(500), answer(429, headers={"Retry-After": "9"}), answer(500)])

    def once() -> str:
        for error in errors:
            raise error
        return "done"

    assert link.call("org/name", once) == "done"
    assert naps == [1.0, 2.0, 9.0, 8.0]


def test_patience_ends(naps: list[float]) -> None:
    def never() -> None:
        raise answer(500)

    with pytest.raises(HubError, match="answers 500"):
        Connection(api=None, patience=Patience(tries=3)).call("org/name", never)
    assert len(naps) == 2


def test_a_retry_after_beyond_patience_ends_it_at_once(naps: list[float]) -> None:
    def limited() -> None:
        raise answer(429, headers={"Retry-After": "3600"})

    with pytest.raises(HubError, match="limiting requests"):
        Connection(api=None).call("org/name", limited)
    assert naps == []
