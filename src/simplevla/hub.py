"""Policies and datasets on the Hugging Face hub: `hf://OWNER/NAME[@REVISION][/FOLDER]` in the place of a folder."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from simplevla.errors import UserError, one_line

Kind = Literal["model", "dataset"]
CURVES = "metrics.jsonl"
"""Rows of the run that a policy is the result of: beside the policy's folder in a run, among its files on the hub."""
FILES: dict[Kind, tuple[str, ...]] = {
    "model": (
        *("config.json", "statistics.json", "tokenizer.json", "trained_on.json", "model.safetensors", CURVES),
        *(
            "adapters/bank.json",
            "adapters/*/adapter.json",
            "adapters/*/adapter_config.json",
            "adapters/*/*.safetensors",
        ),
    ),
    "dataset": ("meta/*.json", "meta/*.jsonl", "meta/*.parquet", "data/*.parquet", "videos/*.mp4"),
}
"""Patterns of the files that are read, and so the only ones that are downloaded: no pickles, no code."""
FORM = "hf://OWNER/NAME[@REVISION][/FOLDER]"


def is_reference(source: Path | str) -> bool:
    """True if `source` is on the hub, and no folder of this machine."""
    return str(source).startswith("hf:/")


def local_folder(source: Path | str, kind: Kind) -> Path:
    """The folder `source`, downloaded into the hub's cache if it is a reference.

    Raises:
        UserError: as `pinned`.
    """
    return _downloaded(str(source), kind)[1] if is_reference(source) else Path(source)


def pinned(source: str, kind: Kind) -> str:
    """The reference `source` with its present commit for a revision, downloaded; a folder is left as it is.

    Raises:
        UserError: the reference isn't one, there is no such thing on the hub, or it can't be reached and the cache
            lacks it.
    """
    return _downloaded(source, kind)[0] if is_reference(source) else source


def _downloaded(reference: str, kind: Kind) -> tuple[str, Path]:
    from huggingface_hub import parse_hf_uri, snapshot_download

    with _explained(reference, kind):
        uri = parse_hf_uri(reference)
        if uri.type not in ("model", kind):
            raise UserError(f"{reference} is a {uri.type}; expected a {kind}, {FORM}")
        inside = f"{uri.path_in_repo}/" if uri.path_in_repo else ""
        snapshot = Path(
            snapshot_download(
                uri.id,
                repo_type=kind,
                revision=uri.revision,
                allow_patterns=[inside + pattern for pattern in FILES[kind]],
            )
        )
    # The cache names each snapshot by its commit.
    at_commit = dataclasses.replace(uri, type=kind, revision=snapshot.name).to_uri()
    return at_commit, snapshot / uri.path_in_repo


def upload(folder: Path, name: str, card: str, private: bool) -> str:
    """Uploads the policy in `folder` with its model `card` to the repository `name`, made if need be, in one commit.

    The curves of its run go along, for the report of a run that starts from it.

    Files of a policy that was there before are removed.

    Returns:
        The reference of the new commit.

    Raises:
        UserError: no such name, no right to write, the hub can't be reached, or `private` for a public repository.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, parse_hf_uri
    from huggingface_hub.utils import filter_repo_objects

    def of_policy(paths: list[str]) -> set[str]:
        return set(filter_repo_objects(paths, allow_patterns=list(FILES["model"])))

    with _explained(f"hf://{name}", "model"):
        if parse_hf_uri(f"hf://{name}").id != name:
            raise UserError(f"the repository is {name!r}; expected OWNER/NAME")
        api = HfApi()
        api.create_repo(name, private=private or None, exist_ok=True)
        there = api.model_info(name)
        if private and not there.private:
            raise UserError(f"{name} is on the hub already and public; choose another name, or leave --private out")
        inside = of_policy([path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()])
        files = {file: folder / file for file in sorted(inside)}
        if (curves := folder.parent / CURVES).is_file():
            files[CURVES] = curves
        stale = of_policy([file.rfilename for file in there.siblings or []]) - files.keys()
        operations: list[Any] = [CommitOperationAdd(file, path) for file, path in files.items()]
        operations += [CommitOperationAdd("README.md", card.encode())]
        operations += [CommitOperationDelete(file) for file in sorted(stale)]
        commit = api.create_commit(name, operations, commit_message="Upload a policy of simplevla")
    return f"hf://{name}@{commit.oid}"


@contextlib.contextmanager
def _explained(reference: str, kind: Kind) -> Iterator[None]:
    """Rewords the hub's errors: one line says what is wrong, and what to do.

    Raises:
        UserError: in the place of each of them.
    """
    from huggingface_hub import constants, errors, utils

    log_in = "log in (`hf auth login`, or HF_TOKEN)"
    if not sys.stderr.isatty():
        # Its bars would fill a log.
        utils.disable_progress_bars()
    try:
        yield
    except (errors.HfUriError, errors.HFValidationError) as error:
        raise UserError(f"{reference} isn't on a hub ({one_line(str(error))}); expected {FORM}") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{reference}: the hub has no such revision of this {kind}; check what follows the @") from None
    except errors.GatedRepoError:
        raise UserError(f"{reference} is gated: ask for access on its page, then {log_in}") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{reference}: the hub shows no such {kind}. Check the name; if it is private, {log_in}"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        advice = f"{log_in} with an account that may do this" if status in (401, 403) else "try again later"
        said = one_line(error.server_message or str(error))
        raise UserError(f"{reference}: the hub answers {status} ({said}); {advice}") from None
    except RuntimeError as error:
        raise UserError(
            f"{reference}: the transfer broke off ({one_line(str(error))}); run the command again"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HTTPError) as error:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else one_line(str(error.__cause__ or error))
        raise UserError(
            f"{reference}: the hub can't be reached ({why}), and the cache {constants.HF_HUB_CACHE} lacks it. Go online "
            "once, or name another cache by HF_HOME"
        ) from None
