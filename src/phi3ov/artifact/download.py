"""Downloads from the model hub, with errors that name the way out.

Which files to download is the caller's to say; what they must hold is checked there as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ExportError

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_WAY_OUT = (
    "Check the connection, its proxy and HF_HUB_OFFLINE, or give a local folder; a download that "
    "was cut off goes on where it stopped."
)


def is_hub_id(source: str | Path) -> bool:
    """Whether ``source`` reads like a hub id: ``owner/name``.

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
    """Return a local folder with those ``files`` of a hub repository; its name is the commit.

    Files that are in the local cache already are not fetched again, and a download that was
    cut off goes on where it stopped.

    Args:
        repo_id: Such as ``microsoft/Phi-3-mini-4k-instruct``.
        revision: Branch, tag or commit; None for the default branch.
        files: Names or patterns of the files that are needed. Files in sub-folders are not, by
            whatever name.

    Raises:
        ExportError: The repository is not there, gated, or cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=list(files),
                ignore_patterns=["*/*"],  # to the hub's patterns a slash is a letter
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
            f"source={repo_id!r}: there is no such folder here and no such model on the hub (or it "
            "is private: log in with `hf auth login`)."
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
    except Exception as error:  # httpx's, xet's, the disk's: the hub's client has many underneath
        raise ExportError(
            f"{repo_id} could not be downloaded ({type(error).__name__}: {error}). {_WAY_OUT}"
        ) from error


def _refuse_token(repo_id: str, error: HfHubHTTPError) -> None:
    """Raise where the hub refuses the token that was sent, also to read a public model.

    The hub then answers 401, which its client takes for a repository that is not there.
    """
    import huggingface_hub

    if getattr(error.response, "status_code", None) == 401 and huggingface_hub.get_token():
        said = (error.server_message or str(error)).strip().rstrip(".")
        raise ExportError(
            f"{repo_id}: the hub refuses your token: {said}. Renew or remove HF_TOKEN (or the "
            "token that `hf auth login` saved); a public model needs none."
        ) from error
