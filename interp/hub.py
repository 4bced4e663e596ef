"""Is a name on the Hugging Face hub, and can the hub be reached: answered in seconds, in one line.

Loading an unknown name straight away would retry for minutes when the machine is offline.
"""

from __future__ import annotations

import re
from typing import Literal

from interp.errors import UserError

TIMEOUT_SECONDS = 8.0

_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")


def is_name(text: str) -> bool:
    """Whether the text has the form of a hub name: `name` or `owner/name`."""
    return _NAME.fullmatch(text) is not None and not text.endswith((".", "-"))


def cached_file(
    name: str, filename: str, kind: Literal["model", "dataset"], *, revision: str | None = None
) -> str | None:
    """The path of a file in the local hub cache, or None. Of the main branch, or of a revision."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, filename, repo_type=kind, revision=revision)
    return found if isinstance(found, str) else None


def require(
    name: str, kind: Literal["model", "dataset"], *, otherwise: str, revision: str | None = None
) -> None:
    """Return when the hub has `name` (at that revision); else raise UserError.

    `otherwise` ends the message: what can be loaded without the hub.
    """
    import os

    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        raise UserError(
            f"{kind} {name!r} is not here and HF_HUB_OFFLINE forbids asking the hub; {otherwise}"
        )
    try:
        HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT_SECONDS)
    except GatedRepoError as error:
        raise UserError(
            f"{kind} {name!r} is gated on the hub; accept its terms and log in, or {otherwise}"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"{kind} {name!r} has no revision {revision!r} on the hub; name a branch, tag or commit"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(f"the hub has no {kind} named {name!r}; {otherwise}") from error
    except HfHubHTTPError as error:
        raise UserError(
            f"the hub refused {kind} {name!r} ({_first_line(error)}); {otherwise}"
        ) from error
    except Exception as error:  # the transport's own exceptions, whichever client is installed
        raise UserError(
            f"{kind} {name!r} is not here and the hub cannot be reached "
            f"({type(error).__name__}: {_first_line(error)}); {otherwise}"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:120] if lines else "no detail"
