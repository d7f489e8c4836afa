"""Publishing: plan first, so that a person sees what would go where, then act.

A publication is one commit on top of the repository's head, and that head is named in the commit. So it happens once or
not at all: when an answer is lost, the next look at the repository shows whether the commit landed, and a second
identical publication finds nothing to do. ``sftknow.json`` is the last file of the commit and lists the hashes of the
others. With Xet storage it is the same: the contents go up first, file by file, and nothing shows until the one commit
that names them (the client's own `upload_folder` makes several, so it is not used here).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_session
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.lfs import UploadInfo
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from sftknow.artifacts.manifests import MANIFEST
from sftknow.checkpoints.stored_file import StoredFile
from sftknow.errors import HubError
from sftknow.models.hub_client import PAGES, Connection, Patience, one_line, quiet
from sftknow.models.hub_files import RemoteFile, Repo, list_files, open_repo, opened
from sftknow.progress import progress
from sftknow.publishing.merging import merge, split_card
from sftknow.publishing.plan import CARD, PlannedFile, PublicationPlan, made_file, plan_publication
from sftknow.publishing.receipts import PublishReceipt
from sftknow.untrusted import printable

__all__ = ["PlannedFile", "PublicationPlan", "plan_publication", "publish"]

_BATCH_BYTES = 256 * 2**20
_BATCH_FILES = 100
_FREE_TO_REPLACE = (MANIFEST, "README.md", ".gitattributes")
"""Files that a fresh repository may hold already."""


@dataclass(frozen=True)
class _Work:
    """What separates a repository from its plan."""

    add: tuple[PlannedFile, ...] = ()
    delete: tuple[str, ...] = ()
    foreign: tuple[str, ...] = field(default=())
    """Files that would be overwritten although sftknow did not put them there."""

    def __bool__(self) -> bool:
        return bool(self.add or self.delete)


def publish(
    plan: PublicationPlan,
    *,
    replace_card: bool = False,
    endpoint: str | None = None,
    token: str | None = None,
    patience: Patience | None = None,
) -> PublishReceipt:
    """Bring a repository to what the plan says. Doing it twice changes nothing the second time.

    Args:
        plan: from `plan_publication`.
        replace_card: give up what people changed on the Hub in the part of the card that sftknow writes.
        endpoint: of the Hub; None for ``HF_ENDPOINT`` or the public Hub.
        token: with write access; None for ``HF_TOKEN`` or that of ``hf auth login``.
        patience: how long to go on through errors that pass.

    Raises:
        HubError: one line with the reason and the way out. Nothing half-done looks finished then, and the same call
            again finishes the job.
    """
    link = Connection.open(endpoint=endpoint, token=token, patience=patience)
    with quiet():
        check_token(link, plan.repo_id)
        check_cards([plan], link, replace=replace_card)
        _ready_repository(link, plan)
        commit = _bring(link, plan, replace_card)
    page = f"{PAGES[plan.repo_type]}{plan.repo_id}"
    return PublishReceipt(
        repo_id=plan.repo_id,
        repo_type=plan.repo_type,
        revision=commit,
        files=tuple(file.path for file in plan.files),
        url=f"{link.api.endpoint}/{page}/tree/{plan.revision}",
    )


def check_token(link: Connection, repo_id: str) -> None:
    """Raise HubError where there is no token, it is not valid, or it may only read."""
    who: Mapping[str, Any] = link.call(repo_id, link.api.whoami)
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(
            f"this token may only read; publishing {repo_id} needs one with write access: "
            "make it in the Hub's settings, then `hf auth login`",
            repo_id=repo_id,
        )


def _check_visibility(found: Any, plan: PublicationPlan) -> None:
    if bool(found.private) != plan.private:
        is_now, way_out = ("private", "without --public") if found.private else ("public", "with --public")
        raise HubError(
            f"{plan.repo_id} is there already and is {is_now}: publish {way_out}, or change it in its settings",
            repo_id=plan.repo_id,
        )


def _ready_repository(link: Connection, plan: PublicationPlan) -> None:
    def look() -> Any:
        try:
            return link.api.repo_info(plan.repo_id, repo_type=plan.repo_type)
        except RepositoryNotFoundError:
            return None

    found = link.call(plan.repo_id, look)
    if found is None:
        named: dict[str, Any] = {"repo_type": plan.repo_type, "private": plan.private, "exist_ok": True}
        named |= {"space_sdk": "static"} if plan.repo_type == "space" else {}
        link.call(plan.repo_id, link.api.create_repo, plan.repo_id, **named)
        found = link.call(plan.repo_id, link.api.repo_info, plan.repo_id, repo_type=plan.repo_type)
    _check_visibility(found, plan)
    if plan.revision != "main":
        refs = link.call(plan.repo_id, link.api.list_repo_refs, plan.repo_id, repo_type=plan.repo_type)
        if plan.revision not in {branch.name for branch in refs.branches}:
            # From the first commit, which is empty: a copy of main would look finished before anything was sent.
            history = link.call(plan.repo_id, link.api.list_repo_commits, plan.repo_id, repo_type=plan.repo_type)
            named = {"repo_type": plan.repo_type, "branch": plan.revision, "exist_ok": True}
            link.call(plan.repo_id, link.api.create_branch, plan.repo_id, revision=history[-1].commit_id, **named)


def check_cards(plans: Iterable[PublicationPlan], link: Connection, *, replace: bool) -> None:
    """Let the Hub look at the cards, and compare them with those that are there, before anything is sent.

    Raises:
        HubError: the Hub would refuse one, such as for a licence that it does not know; a repository is there and
            private where it should be public, or the other way round; somebody changed what sftknow wrote in a card,
            and ``replace`` is False.
    """
    for plan in plans:
        link.call(plan.repo_id, _validate, link.api, plan)
        try:
            there = open_repo(plan.repo_id, plan.revision, plan.repo_type, link=link)
        except HubError as error:
            if error.reason not in ("missing", "revision"):
                raise
        else:
            _check_visibility(there.info, plan)
            with_their_card(plan, there, replace=replace)


def _validate(api: Any, plan: PublicationPlan) -> None:
    content = plan.file(CARD).content
    text = content.decode() if isinstance(content, bytes) else ""
    headers = build_hf_headers(token=api.token, library_name="sftknow")
    asked = {"content": text, "repoType": plan.repo_type}
    response = get_session().post(f"{api.endpoint}/api/validate-yaml", json=asked, headers=headers)
    if response.status_code != 400:
        hf_raise_for_status(response)
        return
    told = [str(error.get("message")) for error in response.json().get("errors") or ()]
    licence = split_card(text).metadata.get("license")
    if any(line.startswith('"license"') for line in told):
        raise HubError(
            f"the Hub knows no licence {licence!r} ({plan.repo_id}): give an identifier of its list "
            "(https://huggingface.co/docs/hub/repositories-licenses), or other:NAME",
            repo_id=plan.repo_id,
        )
    raise HubError(
        printable(f"the Hub refuses the card of {plan.repo_id}: {'; '.join(told)}", 500), repo_id=plan.repo_id
    )


def with_their_card(plan: PublicationPlan, there: Repo, *, replace: bool) -> PublicationPlan:
    """The plan with what people added to the card that is on the Hub.

    Raises:
        HubError: they changed what sftknow wrote, and ``replace`` is False.
    """
    ours = plan.file(CARD).content
    local = there.file(CARD)
    theirs = local.read_bytes() if local else None
    if theirs is None or theirs == ours or not isinstance(ours, bytes) or _fresh_space(there):
        return plan
    known = there.json(MANIFEST).get("card")
    card = merge(ours.decode(), theirs.decode(errors="replace"), known, plan.repo_id, replace=replace).encode()
    files = tuple(made_file(CARD, card) if file.path == CARD else file for file in plan.files)
    return dataclasses.replace(plan, files=files)


def _fresh_space(there: Repo) -> bool:
    """True for a Space that holds nothing but what the Hub puts into a new one."""
    if there.repo_type != "space" or MANIFEST in there.files:
        return False
    return len(there.ask(there.link.api.list_repo_commits, there.repo_id, repo_type=there.repo_type)) == 1


def _at(link: Connection, plan: PublicationPlan, commit: str) -> Repo:
    return Repo(repo_id=plan.repo_id, repo_type=plan.repo_type, commit=commit, revision=plan.revision, link=link)


def _bring(link: Connection, plan: PublicationPlan, replace_card: bool) -> str:
    for wait in link.waits(plan.repo_id):
        try:
            return _commit_once(link, plan, replace_card)
        except Exception as error:
            # Lost answers end here too: the next round looks at the repository first.
            wait(error)
    raise AssertionError("unreachable: the last wait raises")


def _commit_once(link: Connection, plan: PublicationPlan, replace_card: bool) -> str:
    api = link.api
    head: str = api.repo_info(plan.repo_id, repo_type=plan.repo_type, revision=plan.revision).sha
    plan = with_their_card(plan, _at(link, plan, head), replace=replace_card)
    work = _work(link, plan, head)
    if not work:
        return head
    if work.foreign:
        raise HubError(
            f"{plan.repo_id} holds files that sftknow did not put there and will not overwrite "
            f"({_some(work.foreign)}): choose another name, or remove them first",
            repo_id=plan.repo_id,
        )
    additions = [_addition(file) for file in work.add]
    _upload(api, plan, additions)
    deletions = [CommitOperationDelete(path_in_repo=path, is_folder=False) for path in work.delete]
    with _refusals(plan, "the card"):
        commit: str = api.create_commit(
            plan.repo_id,
            operations=[*deletions, *additions],
            commit_message=plan.message,
            repo_type=plan.repo_type,
            revision=plan.revision,
            parent_commit=head,
        ).oid
    left = _work(link, plan, commit)
    if left:
        paths = [*(file.path for file in left.add), *left.delete]
        raise HubError(
            f"{plan.repo_id} took the commit, but {_some(paths)} did not arrive as sent; "
            "look for a .gitignore there and publish again",
            repo_id=plan.repo_id,
        )
    return commit


@contextmanager
def _refusals(plan: PublicationPlan, what: str) -> Iterator[None]:
    """What the Hub answers with 200 and an error inside, the client raises as a bare ValueError.

    HTTP errors and answers that cannot be read are subclasses of it, and not meant.
    """
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        raise HubError(one_line(f"the Hub refused {what} of {plan.repo_id}: {error}"), repo_id=plan.repo_id) from None


def _work(link: Connection, plan: PublicationPlan, commit: str) -> _Work:
    there: Mapping[str, RemoteFile] = list_files(link.api, plan.repo_id, plan.repo_type, commit)
    add = tuple(
        file
        for file in plan.files
        if file.path not in there or not there[file.path].same_as(file.content, size=file.size, sha256=file.sha256)
    )
    planned = {file.path for file in plan.files}
    former: Mapping[str, Any] = {}
    if MANIFEST in there and (add or set(there) - planned - {*_FREE_TO_REPLACE}):
        former = _at(link, plan, commit).hashes
    ours = {*former, *_FREE_TO_REPLACE}
    if any(file.path in there and file.path not in ours for file in add) and _fresh_space(_at(link, plan, commit)):
        ours |= there.keys()
    return _Work(
        add=add,
        delete=tuple(sorted(path for path in former if path in there and path not in planned)),
        foreign=tuple(file.path for file in add if file.path in there and file.path not in ours),
    )


def _addition(file: PlannedFile) -> CommitOperationAdd:
    file.check_unchanged()
    with opened(file.content) as content:
        known = UploadInfo(sha256=bytes.fromhex(file.sha256), size=file.size, sample=content.read(512))
    made = isinstance(file.content, StoredFile)
    addition = CommitOperationAdd(path_in_repo=file.path, path_or_fileobj=b"" if made else file.content)
    if made:
        addition.path_or_fileobj = file.content  # which the client would read through first
    # Known from the plan: spares the client a second read of files that may have many gigabytes.
    addition.upload_info = known
    return addition


def _upload(api: Any, plan: PublicationPlan, additions: Sequence[CommitOperationAdd]) -> None:
    """Send the large files; those that the Hub has from an earlier attempt are skipped by it.

    Over LFS it skips whole files, over Xet storage the blocks that it has.
    """
    total = sum(addition.upload_info.size for addition in additions)
    with progress(total, f"Uploading to {plan.repo_id}", unit="B") as bar:
        bar.unit_scale = True
        for batch in _batches(additions):
            named = {"repo_type": plan.repo_type, "revision": plan.revision}
            with _refusals(plan, "files"):
                api.preupload_lfs_files(plan.repo_id, additions=batch, **named)
            bar.update(sum(addition.upload_info.size for addition in batch))


def _batches(additions: Sequence[CommitOperationAdd]) -> Iterator[list[CommitOperationAdd]]:
    batch: list[CommitOperationAdd] = []
    size = 0
    for addition in additions:
        if batch and (size + addition.upload_info.size > _BATCH_BYTES or len(batch) == _BATCH_FILES):
            yield batch
            batch, size = [], 0
        batch.append(addition)
        size += addition.upload_info.size
    if batch:
        yield batch


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(paths[:3])
    return f"{shown} and {len(paths) - 3} more" if len(paths) > 3 else shown
