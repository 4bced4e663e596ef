"""Tidy rows -> summary.json: what a study says, machine-readable. Records in, records out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch

from interp import families
from interp.config import MIN_SEEDS, StudyConfig
from interp.constant_width import ARM, Arm
from interp.correlate import partial_spearman, spearman_exact
from interp.counts import LEVELS, packing_records, sensitivity_records
from interp.estimate import ATOMS
from interp.exponent import ExponentFit, difference, fit_exponent
from interp.mixed_model import mixed_model
from interp.packing import COUNT_SLACK_PER_DIM
from interp.run import TWIN, with_architectures
from interp.scaling import Parameter, fit_power_law
from interp.unconverged import unconverged

COLUMNS = (
    "model", "family", "arm", "control", "d_model", "layer", "hook_point", "about", "d_sae",
    "architecture", "k_rule", "k", "seed", "role", "quantity", "value", "ci_low", "ci_high", "note",
)  # fmt: skip
Z_95 = 1.959964
MORE_THAN_ONE_PASS = 1.05
FVU_WORSE = 0.002
"""What seeds and rounding do not explain, of a mean over seeds on the same held-out rows."""


def tidy(rows: pd.DataFrame, facts: list[dict[str, Any]]) -> pd.DataFrame:
    """All rows with the same columns, types and order whatever order they were measured in."""
    frame = with_architectures(rows.reindex(columns=list(COLUMNS)))
    by_name = {f["name"]: f for f in facts}
    for column in ("family", "arm", "d_model"):
        frame[column] = frame["model"].map(lambda name, c=column: by_name[name][c])
    for column in ("d_model", "layer", "d_sae", "k", "seed"):
        frame[column] = frame[column].astype("Int64")
    for column in ("value", "ci_low", "ci_high"):
        frame[column] = frame[column].astype("float64")
    # Two rules that agree on k share SAEs, trained for as long as the longer of the two asks.
    told = frame["quantity"] == "tokens_per_latent"
    shared = ["model", "control", "hook_point", "about", "d_sae", "architecture", "k"]
    longest = frame[told].groupby(shared, dropna=False)["value"].transform("max")
    frame.loc[told, "value"] = longest
    keys = ["d_model", "model", "control", "layer", "about", "d_sae", "architecture", "k_rule",
            "role", "k", "seed"]  # fmt: skip
    return frame.sort_values([*keys, "quantity"], na_position="first", kind="stable").reset_index(
        drop=True
    )


def summarise(
    results: pd.DataFrame,
    facts: list[dict[str, Any]],
    config: StudyConfig,
    text_warnings: Iterable[str] = (),
) -> dict[str, Any]:
    """The contract's `summary.json`, less what only the run knows (command, time, headline)."""
    facts = sorted(facts, key=lambda f: (f["d_model"], f["name"]))
    results = with_architectures(results)
    packing = packing_records(
        results[(results["k_rule"] == "fvu") & (results["architecture"] == config.architecture)],
        facts,
        config,
    )
    primary = {
        "estimator": "saturation" if config.by_saturation else "reproducible",
        "about": config.primary_stream,
        "layer_fraction": config.primary_layer_fraction,
        "d_sae_per_d_model": config.d_sae_per_d_model[0],
        # A summary without the word is of topk, as all were before there was a choice.
        **({} if config.architecture == "topk" else {"architecture": config.architecture}),
        **({} if config.min_seeds == MIN_SEEDS else {"found_by": _found_by(config)}),
        "k_rule": f"k <= d_model/4 whose FVU in pilots is nearest to {config.target_fvu}",
    }
    chosen = [r for r in packing if _is_primary(r, primary, facts)]
    exponent = _exponent(chosen, facts, primary)
    scaling = _scaling(facts)
    arm = None
    if any(f["arm"] == ARM for f in facts):
        # Without composites most are the same count, and would be tested twice.
        counts = [
            r
            for r in packing
            if r["usable"] and not r["censored"] and r["estimator"] != LEVELS[ATOMS]
        ]
        arm = Arm(counts, chosen, facts, primary, _loss_key(facts), config.seed)
    return {
        "preset": config.preset,
        "preview": config.preview,
        "primary": primary,
        "models": [_model(f) for f in facts],
        "packing": packing,
        "sensitivity": sensitivity_records(results, facts, config),
        "exponent": exponent,
        "correlation": [
            _correlation(chosen, facts, config, primary) if arm is None else arm.correlation()
        ],
        **({} if arm is None else {"arm": arm.record() | {"unconverged": unconverged(arm)}}),
        "mixed_model": _mixed_model(chosen, facts),
        "scaling": scaling,
        "warnings": _warnings(packing, chosen, exponent, scaling, config, facts, text_warnings),
    }


def _found_by(config: StudyConfig) -> str:
    """Which seeds find a latent that counts."""
    n, least = config.n_seeds, config.min_seeds
    return f"all {n} seeds" if least == n else f"at least {least} of {n} seeds"


def _model(fact: dict[str, Any]) -> dict[str, Any]:
    keys = ("name", "family", "arm", "d_model", "n_layers", "n_params", "train_tokens",
            "loss_nats_per_token", "loss_nats_per_byte", "loss_ci_nats_per_token",
            "loss_ci_nats_per_byte")  # fmt: skip
    # Only in an arm was anything varied beside the width.
    varied = ("lever", "lever_base", "rows")
    return {key: fact[key] for key in (*keys, *(k for k in varied if k in fact))}


def _is_primary(
    record: dict[str, Any], primary: dict[str, Any], facts: list[dict[str, Any]]
) -> bool:
    """One row per model: its own primary layer, and the first size unless all are drawn on."""
    d_model = next(f["d_model"] for f in facts if f["name"] == record["model"])
    return (
        record["estimator"] == primary["estimator"]
        and record["about"] == primary["about"]
        and record["primary_layer"]
        and (
            primary["estimator"] == "saturation"
            or record["d_sae"] == primary["d_sae_per_d_model"] * d_model
        )
    )


def _exponent(
    chosen: list[dict[str, Any]], facts: list[dict[str, Any]], primary: dict[str, Any]
) -> dict[str, Any]:
    widths = {f["name"]: f["d_model"] for f in facts}
    own = _fit_beta([(widths[r["model"]], r) for r in chosen if r["usable"]])
    twin = _fit_beta(
        [
            (widths[r["model"]], c)
            for r in chosen
            for c in r["controls"]
            if c["name"] == TWIN and c["usable"]
        ]
    )
    apart = difference(own, twin)
    return {
        "beta": own.beta,
        "ci_low": own.ci_low,
        "ci_high": own.ci_high,
        "p_beta_0": own.p_against_0,
        "p_beta_1": own.p_against_1,
        "twin_beta": twin.beta,
        "twin_ci_low": twin.ci_low,
        "twin_ci_high": twin.ci_high,
        "minus_twin": apart.value,
        "minus_twin_ci_low": apart.ci_low,
        "minus_twin_ci_high": apart.ci_high,
        "p_minus_twin": apart.p,
        "n_models": own.n_models,
        "n_censored": own.n_censored,
        "layer_fraction": primary["layer_fraction"],
        "method": own.method,
        "reason": own.reason,
        "twin_reason": twin.reason,
    }


def _fit_beta(rows: list[tuple[int, dict[str, Any]]]) -> ExponentFit:
    """A count within the slack that convergence allows is known from above only.

    One that a larger dictionary outgrows is known from below only: as a count it would follow the
    size of the dictionary, which is the same multiple of every width, and give a beta of 1.
    """
    widths = np.array([d for d, _ in rows], dtype=float)
    counts, low, high = (
        np.array([np.nan if r[key] is None else r[key] for _, r in rows], dtype=float)
        for key in ("value", "ci_low", "ci_high")
    )
    slack = COUNT_SLACK_PER_DIM * widths
    small = counts <= slack
    bound = np.array([r["censored"] or bool(r.get("outgrown")) for _, r in rows], dtype=bool)
    return fit_exponent(
        widths,
        np.where(small, 0.0, counts),
        low,
        # A bound is as uncertain as its lower end says.
        np.where(small, np.fmax(high, slack), np.where(bound, 2 * counts - low, high)),
        bound & ~small,
    )


def _loss_key(facts: list[dict[str, Any]]) -> str:
    """Nats per token compare models of one tokenizer only; per byte of text they always do."""
    one_tokenizer = len({f["tokens_sha256"] for f in facts}) == 1
    return "loss_nats_per_token" if one_tokenizer else "loss_nats_per_byte"


def _correlation(
    chosen: list[dict[str, Any]],
    facts: list[dict[str, Any]],
    config: StudyConfig,
    primary: dict[str, Any],
) -> dict[str, Any]:
    """Across widths everything moves together: descriptive, never evidence."""
    by_name, loss_key = {f["name"]: f for f in facts}, _loss_key(facts)
    rows = [r for r in chosen if r["usable"] and not r["censored"]]
    packing = np.array([r["per_dim"] for r in rows], dtype=float)
    losses = np.array([by_name[r["model"]][loss_key] for r in rows], dtype=float)
    widths = np.array([by_name[r["model"]]["d_model"] for r in rows], dtype=float)
    generator = torch.Generator().manual_seed(config.seed)
    rank = spearman_exact(packing, losses, generator=generator)
    partial = partial_spearman(packing, losses, widths, generator=generator)
    reasons = [f"{name}: {a.reason}" for name, a in
               (("spearman", rank), ("partial", partial)) if a.reason]  # fmt: skip
    return {
        "arm": config.arm,
        "estimator": primary["estimator"],
        "about": primary["about"],
        "layer_fraction": primary["layer_fraction"],
        "loss": loss_key,
        "n_models": len(rows),
        "spearman": rank.value,
        "p_exact": rank.p,
        "ci_low": rank.ci_low,
        "ci_high": rank.ci_high,
        "partial_spearman_given_d_model": partial.value,
        "caption": "descriptive: across widths packing and loss both follow width",
        "reason": "; ".join(reasons) or None,
    }


def _family(fact: dict[str, Any]) -> str:
    """The family that is known to have the model; else the study's own word for it."""
    return next(
        (f for f in families.names() if fact["name"] in families.members(f)), fact["family"]
    )


def _mixed_model(chosen: list[dict[str, Any]], facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Across families, loss per byte: their tokenizers differ."""
    by_name = {f["name"]: f for f in facts}
    rows = [r for r in chosen if r["usable"] and not r["censored"]]
    models = [by_name[r["model"]] for r in rows]
    columns = [
        [float(m[key]) for m in models] for key in ("loss_nats_per_byte", "d_model", "n_layers")
    ]
    packing = np.array([r["per_dim"] for r in rows], dtype=float)
    loss, width, depth = (np.array(column) for column in columns)
    return mixed_model(packing, loss, width, depth, [_family(m) for m in models]).to_json()


def _scaling(facts: list[dict[str, Any]]) -> dict[str, Any]:
    widths = np.array([f["d_model"] for f in facts], dtype=float)
    loss_key = _loss_key(facts)
    losses = np.array([f[loss_key] for f in facts], dtype=float)
    intervals = [f[loss_key.replace("loss_", "loss_ci_")] for f in facts]
    se = None
    if all(i is not None for i in intervals):
        se = np.array([(high - low) / (2 * Z_95) for low, high in intervals])
    fit = fit_power_law(widths, losses, se)

    def parameter(p: Parameter) -> dict[str, float | None]:
        return {"value": p.value, "ci_low": p.ci_low, "ci_high": p.ci_high, "se": p.se}

    amplitude = parameter(fit.A)
    if fit.alpha.ci_high is None:
        # A grows with alpha without end: what the search reached is no limit.
        amplitude["ci_high"] = None
    return {
        "A": amplitude,
        "alpha": parameter(fit.alpha),
        "B": parameter(fit.B),
        "loss": loss_key,
        "identified": fit.identified,
        "n_models": fit.n_models,
        "residual_sd": fit.residual_sd,
        "caption": fit.caption,
        "reason": fit.reason,
    }


def _read_again(packing: list[dict[str, Any]], chosen: list[dict[str, Any]]) -> list[str]:
    """SAEs that saw their text more than once know it better than text that they did not see."""
    places = {(r["model"], r["layer"], r["about"]) for r in chosen}
    passes = {
        r["model"]: r["passes_over_text"]
        for r in packing
        if (r["model"], r["layer"], r["about"]) in places
        and (r.get("passes_over_text") or 0.0) > MORE_THAN_ONE_PASS
    }
    if not passes:
        return []
    return [
        f"a short text: SAEs passed over their training text up to {max(passes.values()):.1f} "
        f"times; give more text, or fewer tokens: {', '.join(passes)}"
    ]


def _worse_with_training(chosen: Iterable[dict[str, Any]]) -> list[str]:
    """SAEs that the second half of their training made worse.

    By more than convergence lets pass, and the count enters no fit; by less it may, and this is all
    that tells of it.
    """
    worse = []
    for record in chosen:
        for one in (record, *record["controls"]):
            before, after = one.get("fvu_half"), one["fvu"]
            if before is not None and after is not None and after - before > FVU_WORSE:
                control = f" {one['name']}" if one is not record else ""
                worse.append(f"{record['model']}{control} (FVU {before:.3f} to {after:.3f})")
    if not worse:
        return []
    return [
        f"the second half of the training made the SAEs worse: {', '.join(worse)}; do not read "
        f"these counts as numbers of features, and train with a smaller learning rate"
    ]


def _warnings(
    packing: list[dict[str, Any]],
    chosen: list[dict[str, Any]],
    exponent: dict[str, Any],
    scaling: dict[str, Any],
    config: StudyConfig,
    facts: list[dict[str, Any]],
    text_warnings: Iterable[str],
) -> list[str]:
    """Everything a reader must know before quoting a number, most important first."""
    out = []
    if config.preview:
        out.append(
            "preview: few tokens, few seeds, one dictionary size; no number here is a result"
        )

    def say(records: list[dict[str, Any]], text: str) -> None:
        names = [r["model"] for r in records]
        if names:
            out.append(f"{text}: {', '.join(names)}")

    say([r for r in chosen if r["converged"] is False],
        "undertrained (doubling the tokens still changed the count or FVU)")  # fmt: skip
    say([r for r in chosen if r["censored"]], "censored at the dictionary size; a lower bound")
    say([r for r in chosen if r["fvu_matched"] is False], "FVU not at the target")
    # At constant width one twin stands for all: the models have one architecture.
    across_widths = all(f["arm"] != ARM for f in facts)
    if across_widths or not any(r["controls"] for r in chosen):
        say([r for r in chosen if not r["controls"]], "no random-init twin was run")
    out += _read_again(packing, chosen)
    unmatched = [r for r in chosen for c in r["controls"] if c["fvu_matched"] is False]
    say(unmatched, "the twin's SAEs do not reach the target FVU")
    out += _worse_with_training(chosen)
    if any(r["calibration"] == "uncalibrated" for r in chosen):
        out.append("uncalibrated: the estimators were not checked against known feature counts")
    n_fitted = sum(r["usable"] for r in chosen)
    n_ranked = sum(r["usable"] and not r["censored"] for r in chosen)
    if n_ranked < 6:
        entering = (
            f"{n_fitted} enter the exponent, {n_ranked} the correlation, which takes no bounds"
            if across_widths
            else f"{n_ranked} enter the correlation"
        )
        out.append(f"too few models: {entering}; exact tests of fewer than 6 can show little")
    for name, part in (("exponent", exponent), ("loss fit", scaling)):
        if part["reason"] and across_widths:
            out.append(f"{name}: {part['reason']}")
    out += sorted({w for f in facts for w in f["warnings"]} | set(text_warnings))
    return out
