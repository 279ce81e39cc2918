"""Downloads from the model hub, with errors that name the way out.

The caller chooses the files to download and checks their contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ExportError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_WAY_OUT = (
    "Check the connection, its proxy and HF_HUB_OFFLINE, or give a local folder. An interrupted "
    "download resumes."
)


def is_hub_id(source: str | Path) -> bool:
    """Whether ``source`` has the form of a hub id: ``owner/name``.

    Example:
        >>> is_hub_id("microsoft/Phi-3-mini-4k-instruct"), is_hub_id("models/a/b")
        (True, False)
    """
    if not isinstance(source, str):
        return False
    owner, slash, name = source.partition("/")
    plain = not any(
        part in ("", ".", "..") or "\\" in part or ":" in part for part in (owner, name)
    )
    return bool(slash) and plain and "/" not in name


def download(repo_id: str, *, revision: str | None, files: Sequence[str]) -> Path:
    """Download ``files`` of a hub repository; return the local folder, named for the commit.

    Files in the local cache are not fetched again, and an interrupted download resumes.

    Args:
        repo_id: Such as ``microsoft/Phi-3-mini-4k-instruct``.
        revision: Branch, tag or commit; None for the default branch.
        files: Names or patterns of files at the top of the repository. Files in sub-folders are
            never downloaded.

    Raises:
        ExportError: The repository does not exist, is gated, or cannot be reached; or the user has
            no home folder and HF_HOME is not set.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    if Path(constants.HF_HUB_CACHE).parts[0] == "~":  # would be created in the current folder
        raise ExportError(
            f"{repo_id} cannot be downloaded: this user has no home folder for the download cache. "
            "Set HF_HOME to a writable folder, or give a local folder."
        )
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=list(files),
                ignore_patterns=["*/*"],  # in the hub's patterns, * also matches a slash
            )
        )
    except errors.GatedRepoError as error:
        raise ExportError(
            f"{repo_id} is gated: accept its terms on its hub page, then log in with "
            "`hf auth login` or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ExportError(f"{repo_id} has no revision={revision!r}.") from error
    except errors.RepositoryNotFoundError as error:
        _refuse_token(repo_id, error)
        raise ExportError(
            f"source={repo_id!r}: no such local folder, and no such model on the hub. If the model "
            "is private, log in with `hf auth login`."
        ) from error
    except errors.HFValidationError as error:
        raise ExportError(
            f"source={repo_id!r} is neither a folder nor a hub id: {error}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise ExportError(
            f"{repo_id} could not be downloaded ({type(error).__name__}), and it is not in the "
            f"local cache. {_WAY_OUT}"
        ) from error
    except errors.HfHubHTTPError as error:
        _refuse_token(repo_id, error)
        raise ExportError(
            f"{repo_id} could not be downloaded ({type(error).__name__}: {error}). {_WAY_OUT}"
        ) from error
    except Exception as error:  # the hub's client lets errors of httpx, xet and the disk through
        raise ExportError(
            f"{repo_id} could not be downloaded ({type(error).__name__}: {error}). {_WAY_OUT}"
        ) from error


def _refuse_token(repo_id: str, error: HfHubHTTPError) -> None:
    """Raise `ExportError` if the hub rejected the access token, even for a public model.

    The hub then answers 401, which its client reports as a repository that does not exist.
    """
    import huggingface_hub

    if getattr(error.response, "status_code", None) == 401 and huggingface_hub.get_token():
        said = (error.server_message or str(error)).strip().rstrip(".")
        raise ExportError(
            f"{repo_id}: the hub refuses your token: {said}. Renew or remove HF_TOKEN (or the "
            "token that `hf auth login` saved); a public model needs none."
        ) from error
