"""SAEs that others published, by the names under which sae-lens knows them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from saes.errors import SAEError
from saes.format import load
from saes.sae import SAE


def load_pretrained(release: str, sae_id: str) -> SAE:
    """Download through sae-lens and return an SAE that every later stage accepts.

    The hook point is in its metadata as sae-lens gives it. Raises SAEError for an unknown release
    or id, a hub that cannot be reached, and for architectures that `saes.format.load` refuses.
    """
    import sae_lens

    try:
        theirs = sae_lens.SAE.from_pretrained(release, sae_id)
    except Exception as error:
        # sae-lens and the hub's client raise a dozen kinds, from ValueError to network errors.
        reason = " ".join(str(error).split())[:200]
        raise SAEError(
            f"{release}/{sae_id}: sae-lens could not load it ({type(error).__name__}: {reason}); "
            "check both names and that the hub can be reached"
        ) from error
    return from_sae_lens(theirs)


def from_sae_lens(theirs: Any) -> SAE:
    """An sae-lens SAE as ours, by way of its own folder format."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_model(Path(folder))
        return load(folder)
