"""What a measurement depends on beside its config: text, versions and the code that measures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from importlib.resources import files
from importlib.resources.abc import Traversable

LIBRARIES = (
    "torch",
    "numba",
    "numpy",
    "scipy",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "pandas",
)
AFTERWARDS = {
    "__init__.py",
    "analysis.py",
    "bootstrap.py",
    "bridge.py",
    "bridge_figures.py",
    "budgets.py",
    "calibration.py",
    "cell.py",
    "chao.py",
    "config.py",
    "constant_width.py",
    "correlate.py",
    "counts.py",
    "decoder_overlap.py",
    "divergence.py",
    "dose_response.py",
    "durable.py",
    "executor.py",
    "exponent.py",
    "families.py",
    "fit_comparison.py",
    "fits.py",
    "forecast.py",
    "frequency_bands.py",
    "geometry.py",
    "graph.py",
    "head_matrix.py",
    "holm.py",
    "jupyter.py",
    "kendall.py",
    "label_scores.py",
    "labelling.py",
    "laws.py",
    "leave_one_out.py",
    "levers.py",
    "loss_table.py",
    "machine.py",
    "mediation.py",
    "merge.py",
    "mixed_model.py",
    "one_alpha.py",
    "overlaps.py",
    "packing_gain.py",
    "permutation.py",
    "plan.py",
    "power.py",
    "progress.py",
    "provenance.py",
    "published.py",
    "push.py",
    "python_labels.py",
    "ray_executor.py",
    "recorded_lever.py",
    "recording.py",
    "resources.py",
    "results.py",
    "run.py",
    "sae_counts.py",
    "sae_evaluation.py",
    "sae_means.py",
    "sae_training.py",
    "saturation.py",
    "scaling.py",
    "scaling_end.py",
    "seed_richness.py",
    "separable.py",
    "sources.py",
    "stopwatch.py",
    "store.py",
    "status.py",
    "study.py",
    "summary.py",
    "token_frequencies.py",
    "units.py",
    "unconverged.py",
}
"""Modules of interp that make no rows: they may change under a half-done study."""

SAES_ASIDE = {"cli.py", "errors.py", "options.py", "peers.py", "pretrained.py", "progress.py",
              "runs.py", "synthetic.py", "trackers.py"}  # fmt: skip
"""The same of saes, which a study does not train or match with."""


COUNTING = {"documents.py", "estimate.py", "estimation.py", "packing.py", "reproducibility.py",
            "splice.py", "spot_counts.py", "spot_rows.py", "strictness.py", "token_identity.py",
            "assignment.py", "composites.py", "edges.py", "latent_set.py", "matching.py",
            "null_dictionaries.py"}  # fmt: skip
"""Modules that measure SAEs which are there: where they alone change, no SAE is trained again."""


def provenance(text_sha256: str, *, counting: bool = True) -> dict[str, str]:
    """One name, one value each; two measurements may stand side by side where all are equal.

    `counting` as in `code_sha256`.
    """
    return {"text_sha256": text_sha256, "code_sha256": code_sha256(counting=counting), **versions()}


@cache
def versions() -> dict[str, str]:
    """Of this package and those that it computes with."""
    return {name: metadata.version(name) for name in ("superscope", *LIBRARIES)}


@cache
def code_sha256(*, counting: bool = True) -> str:
    """Hash of the modules that make rows: saes, and interp without what reads rows.

    Without `counting`, of those that losses, streams and SAEs come from.
    """
    return sources_sha256(
        (package, file)
        for package, left_out in (("saes", SAES_ASIDE), ("interp", AFTERWARDS))
        for file in modules(files(package))
        if file.name not in left_out and (counting or file.name not in COUNTING)
    )


def sources_sha256(sources: Iterable[tuple[str, Traversable]]) -> str:
    """Hash of (package, module file), names and contents, in the order given."""
    digest = hashlib.sha256()
    for package, file in sources:
        digest.update(f"{package}/{file.name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def modules(folder: Traversable) -> list[Traversable]:
    return sorted((f for f in folder.iterdir() if f.name.endswith(".py")), key=lambda f: f.name)
