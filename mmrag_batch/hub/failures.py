"""What can be wrong with a hub, a network and a cache, each with what to type next.

No message has a word of the library's own, which quotes addresses and may quote a token.
"""

import errno

from huggingface_hub import constants, errors

from mmrag_batch.bundle import PICKLES
from mmrag_batch.errors import ConfigError, DeniedError, MissingError, MmragError, StorageError
from mmrag_batch.hub.names import Name

FAILURES: tuple[type[Exception], ...] = (
    errors.HTTPError,  # type: ignore[attr-defined]  # that of its HTTP client
    errors.XetDownloadError,
    OSError,
    ValueError,  # an answer that is no hub's, a name that cannot be one
)
"""All that huggingface_hub raises where something is wrong."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
LOGIN = "`hf auth login`"


def explain(name: Name, error: Exception) -> MmragError:
    """The error of ours for one of FAILURES."""
    if isinstance(error, errors.HFValidationError):
        return ConfigError(f"{name} cannot be a name of the hub: {error}")
    if isinstance(error, errors.GatedRepoError):
        return DeniedError(
            f"{name} is gated: accept its terms at {page(name)}, wait until its owner lets you in "
            f"where that is asked, and {LOGIN} with that account."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return MissingError(
            f"{name}: the model has no revision {name.revision!r}; {page(name)}/tree/main lists "
            "its branches and tags."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return MissingError(
            f"{name}: the hub has no such model, or it is private. Correct the name, or {LOGIN} "
            "with an account that sees it."
        )
    if (status := _status(error)) in (401, 403):
        return DeniedError(
            f"{name}: the hub refuses the token of HF_TOKEN or {LOGIN} (status {status}). Make one "
            f"that may read the model, and {LOGIN} again."
        )
    if isinstance(error, OSError) and error.errno in FULL:
        return no_room(name, "is full")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"{name}: the cache {constants.HF_HUB_CACHE} cannot be written; set HF_HOME to a "
            "folder that can."
        )
    return MissingError(
        f"{name} is not whole in the cache {constants.HF_HUB_CACHE}, and {reason(error)}. With a "
        "network, the same command goes on with the files that are missing. Or type `hf download "
        f"{name.repo} --revision {name.revision}` on another machine, and set HF_HOME here to its "
        "cache or a copy of it."
    )


def reason(error: Exception) -> str:
    """Why the hub was of no use, as the end of a sentence."""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE forbids the network"
    if (status := _status(error)) is not None:
        return f"{constants.ENDPOINT} answers with status {status}"
    if isinstance(error, ValueError):
        return f"{constants.ENDPOINT} does not answer as a hub does; see HF_ENDPOINT"
    return f"{constants.ENDPOINT} cannot be reached or broke off ({type(error).__name__})"


def no_weights(name: Name, wanted: str, files: list[str]) -> MmragError:
    """For a model that has no file like `wanted` among its `files`."""
    pickles = [file for file in files if file.endswith(tuple(PICKLES))]
    if not pickles:
        return MissingError(f"{name} has no {wanted}; name another model. See {page(name)}")
    return DeniedError(
        f"{name} has no {wanted}, only pickles ({', '.join(pickles[:3])}), which may run code when "
        f"they are loaded. Name a revision with safetensors: a pull request at "
        f"{page(name)}/discussions may offer them (hf:{name.repo}@refs/pr/1)."
    )


def no_room(name: Name, what: str) -> StorageError:
    """For a disk that cannot take a model."""
    return StorageError(
        f"{name}: the disk of the cache {constants.HF_HUB_CACHE} {what}. Make room, or set HF_HOME "
        "to a folder on another disk; the same command goes on with the files that are missing."
    )


def page(name: Name) -> str:
    """Where people read about a model."""
    return f"{constants.ENDPOINT}/{name.repo}"


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
