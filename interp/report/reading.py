"""The files of a run folder -> records; the arm's part of a summary is read beside this file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from interp.errors import UserError
from interp.report.arm_reading import read_arm
from interp.report.class_reading import (
    read_strictness,
    read_token_identity,
    read_without_composites,
)
from interp.report.interval import Interval
from interp.report.json_values import interval, number, whole_number
from interp.report.overlap_reading import read_overlaps
from interp.report.records import (
    Control,
    Correlation,
    Exponent,
    Lever,
    Mixed,
    ModelRecord,
    PackingRow,
    Removed,
    Scaling,
    Summary,
)

TWIN = "random_init"
PER_TOKEN = "loss_nats_per_token"


@dataclass(frozen=True)
class RunRecords:
    """A run folder, read: `results` is None and `config`/`manifest` are empty where missing."""

    summary: Summary
    results: pd.DataFrame | None
    manifest: Mapping[str, Any]
    config_text: str


def read_run(run_dir: Path) -> RunRecords:
    """Read a run folder; only `summary.json` is indispensable.

    Raises `UserError` if the summary is missing, and if any of the files is damaged.
    """
    run_dir = Path(run_dir)
    summary_path = run_dir / "summary.json"
    if not summary_path.is_file():
        raise UserError(
            f"no summary.json in {run_dir}; finish the run with "
            f"`interp study --out {run_dir}`, then report again"
        )
    manifest_path = run_dir / "manifest.json"
    config_path = run_dir / "config.resolved.yaml"
    return RunRecords(
        summary=read_summary(_read_json(summary_path)),
        results=_read_results(run_dir / "results.parquet"),
        manifest=_read_json(manifest_path) if manifest_path.is_file() else {},
        config_text=config_path.read_text("utf-8") if config_path.is_file() else "",
    )


def read_summary(data: Mapping[str, Any]) -> Summary:
    """`summary.json` as a dict -> `Summary`."""
    # Models of several tokenizers are compared per byte, in all that the study says of them.
    loss = str((data.get("scaling") or {}).get("loss") or PER_TOKEN)
    models = tuple(_model(record, loss) for record in data.get("models") or ())
    by_name = {model.name: model for model in models}
    return Summary(
        preset=str(data.get("preset") or ""),
        preview=bool(data.get("preview")),
        models=tuple(sorted(models, key=lambda model: model.d_model or 0)),
        packing=tuple(_packing(record, by_name) for record in data.get("packing") or ()),
        primary=data.get("primary") or {},
        exponent=_exponent(data.get("exponent") or {}),
        correlation=tuple(_correlation(record) for record in data.get("correlation") or ()),
        scaling=_scaling(data.get("scaling") or {}),
        warnings=tuple(str(text) for text in data.get("warnings") or ()),
        command=data.get("command"),
        wall_time_seconds=number(data.get("wall_time_seconds")),
        sensitivity=tuple(_packing(record, by_name) for record in data.get("sensitivity") or ()),
        mixed=_mixed(data.get("mixed_model") or {}),
        arm=read_arm(data["arm"], data.get("models") or ()) if data.get("arm") else None,
        overlaps=read_overlaps(data.get("overlap") or {}),
    )


def _model(record: Mapping[str, Any], loss: str = PER_TOKEN) -> ModelRecord:
    low, high = (*(record.get(loss.replace("loss_", "loss_ci_")) or ()), None, None)[:2]
    lever = record.get("lever")
    return ModelRecord(
        name=str(record.get("name")),
        family=str(record.get("family") or ""),
        arm=str(record.get("arm") or ""),
        d_model=whole_number(record.get("d_model")),
        n_layers=whole_number(record.get("n_layers")),
        n_params=whole_number(record.get("n_params")),
        train_tokens=whole_number(record.get("train_tokens")),
        loss=Interval(number(record.get(loss)), number(low), number(high)),
        loss_unit=loss.removeprefix("loss_").replace("_", " "),
        lever=Lever(str(lever.get("name")), number(lever.get("value"))) if lever else None,
        base="lever_base" in record,
        row_overlap=number((record.get("rows") or {}).get("mean_squared_overlap_centred")),
    )


def _packing(record: Mapping[str, Any], models: Mapping[str, ModelRecord]) -> PackingRow:
    name = str(record.get("model"))
    count, per_dim = interval(record), number(record.get("per_dim"))
    censored = record.get("censored")
    if censored is None:  # a run that says it in words only
        censored = "censored" in str(record.get("reason"))
    model = models.get(name)
    if model is None:
        # A row of a model that is not listed still shows; its width follows from its own numbers.
        d_model = round(count.value / per_dim) if count.value and per_dim else None
        model = _model({"name": name, "d_model": d_model})
    if censored:
        count = replace(count, high=None)  # a full dictionary bounds nothing from above
    scaled, half = count.over(model.d_model), number(record.get("value_half"))
    controls = [_control(one, model.d_model) for one in record.get("controls") or ()]
    return PackingRow(
        model=model,
        layer=whole_number(record.get("layer")),
        layer_fraction=number(record.get("layer_fraction")),
        hook_point=str(record.get("hook_point") or ""),
        estimator=str(record.get("estimator") or ""),
        about=str(record.get("about") or ""),
        count=count,
        per_dim=Interval(scaled.value if per_dim is None else per_dim, scaled.low, scaled.high),
        twin=next((one for one in controls if one.name == TWIN), None),
        other_controls=tuple(one for one in controls if one.name != TWIN),
        n_tokens=number(record.get("n_tokens")),
        n_seeds=whole_number(record.get("n_seeds")),
        d_sae=number(record.get("d_sae")),
        k=number(record.get("k")),
        fvu=number(record.get("fvu")),
        fvu_matched=record.get("fvu_matched"),
        tokens_per_latent=number(record.get("tokens_per_latent")),
        converged=record.get("converged"),
        identified=record.get("identified"),
        censored=bool(censored),
        reason=record.get("reason"),
        calibration=str(record.get("calibration") or "uncalibrated"),
        k_rule=str(record.get("k_rule") or "fvu"),
        architecture=str(record.get("architecture") or "topk"),
        outgrown=bool(record.get("outgrown")),
        half=half / model.d_model if half is not None and model.d_model else None,
        null=number(record.get("null")),
        primary_layer=record.get("primary_layer"),
        token_identity=read_token_identity(record),
        strictness=read_strictness(record, model.d_model),
        counts=_counts(record, bool(censored)),
        loss_recovered=number(record.get("ce_loss_recovered")),
        removed=_removed(record),
        without_composites=read_without_composites(record, model.d_model),
    )


def _counts(record: Mapping[str, Any], censored: bool) -> bool:
    """As the study decided; by its own rule where an older summary does not say."""
    if "usable" in record:
        return bool(record["usable"])
    return (
        number(record.get("value")) is not None
        and record.get("converged") is True
        and record.get("fvu_matched") is not False
        and (record.get("identified") is not False or censored)
    )


def _removed(record: Mapping[str, Any]) -> Removed | None:
    token, position = (number(record.get(f"variance_share_{of}")) for of in ("token", "position"))
    return None if token is None or position is None else Removed(token, position)


def _control(record: Mapping[str, Any], d_model: int | None) -> Control:
    scaled, per_dim = interval(record).over(d_model), number(record.get("per_dim"))
    censored, half = bool(record.get("censored")), number(record.get("value_half"))
    high = None if censored else scaled.high
    return Control(
        name=str(record.get("name")),
        per_dim=Interval(scaled.value if per_dim is None else per_dim, scaled.low, high),
        fvu=number(record.get("fvu")),
        fvu_matched=record.get("fvu_matched"),
        converged=record.get("converged"),
        reason=record.get("reason"),
        censored=censored,
        half=half / d_model if half is not None and d_model else None,
        k=number(record.get("k")),
        token_identity=read_token_identity(record),
        strictness=read_strictness(record, d_model),
        removed=_removed(record),
        without_composites=read_without_composites(record, d_model),
    )


def _exponent(record: Mapping[str, Any]) -> Exponent:
    flat = Interval(*(number(record.get(key)) for key in ("beta", "ci_low", "ci_high")))
    twin = Interval(
        *(number(record.get(key)) for key in ("twin_beta", "twin_ci_low", "twin_ci_high"))
    )
    return Exponent(
        beta=flat,
        twin=twin,
        n_models=whole_number(record.get("n_models")),
        reason=record.get("reason"),
        twin_reason=record.get("twin_reason"),
    )


def _scaling(record: Mapping[str, Any]) -> Scaling:
    return Scaling(
        A=interval(record, "A"),
        alpha=interval(record, "alpha"),
        B=interval(record, "B"),
        n_models=whole_number(record.get("n_models")),
        identified=record.get("identified"),
        caption=str(record.get("caption") or ""),
        reason=record.get("reason"),
    )


def _mixed(record: Mapping[str, Any]) -> Mixed | None:
    slope = interval(record)
    if slope.value is None:
        return None
    counts = (whole_number(record.get(key)) for key in ("n_models", "n_families"))
    return Mixed(slope, number(record.get("p")), *counts)


def _correlation(record: Mapping[str, Any]) -> Correlation:
    return Correlation(
        arm=str(record.get("arm") or ""),
        estimator=str(record.get("estimator") or ""),
        about=str(record.get("about") or ""),
        layer_fraction=number(record.get("layer_fraction")),
        n_models=whole_number(record.get("n_models")),
        spearman=Interval(*(number(record.get(key)) for key in ("spearman", "ci_low", "ci_high"))),
        p_exact=number(record.get("p_exact")),
        partial_spearman_given_d_model=number(record.get("partial_spearman_given_d_model")),
        reason=record.get("reason"),
        kendall=interval(record, "kendall"),
        kendall_p=number(record.get("kendall_p")),
        within_levers=number(record.get("within_levers")),
        p_within_levers=number(record.get("p_within_levers")),
        slope=interval(record, "slope"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}); run the study again to rewrite it") from None
    if not isinstance(data, dict):
        raise UserError(f"{path} holds no JSON object; run the study again to rewrite it")
    return data


def _read_results(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow raises several unrelated classes for damaged files
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} is damaged ({reason}); run the study again to rewrite it"
        ) from None
