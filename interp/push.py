"""The SAEs of a finished study as a repository of the Hugging Face hub, in the layout of sae-lens.

`SAE.from_pretrained(REPO, "<model>/<stream>/<size>")` loads each. SAEs of a contextual stream are
of no use without the means that were taken off, so these lie beside them. The card is made of
`summary.json` alone.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interp import durable, hub
from interp.config import StudyConfig
from interp.errors import UserError
from interp.run import CONTEXTUAL, CONTROLS, TRAINED, Run, advice_without_saes, folder_name
from interp.sae_means import BESIDE

CARD = "README.md"
_CFG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_FRONT = "---\nlibrary_name: saelens\ntags:\n- sparse-autoencoder\n- superscope\n"
_LOGIN = "log in with `hf auth login` or set HF_TOKEN (a token that may write)"


@dataclass(frozen=True)
class Kept:
    """One SAE of a run, and what it is called in the repository."""

    model: str
    control: str
    stream: str
    folder: Path

    @property
    def name(self) -> str:
        """Its `sae_id`."""
        return f"{folder_name(self.model, self.control)}/{self.stream}/{self.folder.name}"


def kept_saes(run: Run, models: Sequence[str] | None = None) -> list[Kept]:
    """All SAEs that the run's folder keeps, of some models or of all, with their controls.

    Raises UserError for a model that is not in the run, and where there are no SAEs.
    """
    config = run.config
    names = list(models or config.models)
    if strangers := sorted(set(names) - set(config.models)):
        raise UserError(
            f"{run.path} has no SAEs of {', '.join(strangers)}; it has {', '.join(config.models)}"
        )
    found = [
        Kept(name, control, cfg.parent.parent.name, cfg.parent)
        for name in names
        for control in (TRAINED, *CONTROLS)
        for cfg in sorted((run.path / "saes" / folder_name(name, control)).glob(f"*/*/{_CFG}"))
        if not cfg.parent.name.startswith(".")
    ]
    if not found:
        raise UserError(
            f"{run.path} keeps no SAEs of {', '.join(names)}; {advice_without_saes(run.path)}"
        )
    return found


def write_tree(run: Run, repo: str, out: Path, models: Sequence[str] | None = None) -> list[str]:
    """Write exactly what would be pushed to the folder `out`, and return the names of the SAEs.

    `out` is whole or not there; one that an earlier call wrote is replaced. Raises UserError where
    it holds anything else, and for a file that is missing.
    """
    check_name(repo)
    if out.exists() and not _is_ours(out):
        raise UserError(f"{out} exists and was not written by interp push; move it away")
    kept = kept_saes(run, models)
    with durable.whole_folder(out) as fresh:
        try:
            for sae in kept:
                folder = fresh / sae.name
                folder.mkdir(parents=True)
                shutil.copyfile(sae.folder / _WEIGHTS, folder / _WEIGHTS)
                cfg = _for_sae_lens(json.loads((sae.folder / _CFG).read_text()), sae, run.config)
                (folder / _CFG).write_text(json.dumps(cfg, indent=2) + "\n")
                if sae.stream.endswith(CONTEXTUAL) and not (folder.parent / BESIDE).exists():
                    shutil.copyfile(_means(run, sae), folder.parent / BESIDE)
            (fresh / CARD).write_text(card(run, repo, kept), "utf-8")
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename} is missing; run the study again into a new folder"
            ) from error
    return [sae.name for sae in kept]


def _is_ours(out: Path) -> bool:
    card = out / CARD
    return card.is_file() and card.read_text("utf-8", "replace").startswith(_FRONT)


def push(run: Run, repo: str, models: Sequence[str] | None = None, *, private: bool = False) -> str:
    """Make the repository if need be and commit the tree to it at once; returns its address.

    After a kill the same call goes on: the hub asks only for weights that it does not have.

    Raises UserError, in one line, for a name of another form, without a token, where the hub cannot
    be reached, and where it refuses.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    check_name(repo)
    kept_saes(run, models)
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "ON", "YES", "TRUE"}:
        raise UserError("HF_HUB_OFFLINE forbids asking the hub; unset it, or use --dry-run")
    if get_token() is None:
        raise UserError(f"no token for the hub; {_LOGIN}, or use --dry-run")
    with tempfile.TemporaryDirectory(prefix="superscope-push-") as folder:
        tree = Path(folder) / "tree"
        names = write_tree(run, repo, tree, models)
        api = HfApi()
        try:
            # Asked first: what follows retries for minutes where there is no network.
            api.whoami()
            api.create_repo(repo, private=private or None, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=tree,
                commit_message=f"Add {len(names)} sparse autoencoders",
            )
        except HfHubHTTPError as error:
            raise UserError(
                f"the hub refused {repo} ({_first_line(error)}); {_LOGIN}, name a repository "
                "of yours, or use --dry-run"
            ) from error
        except Exception as error:  # the transport's own exceptions, whichever client is installed
            raise UserError(
                f"the hub cannot be reached ({type(error).__name__}: {_first_line(error)}); "
                "try again, or use --dry-run"
            ) from error
    return str(commit.repo_url)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no detail"])[0][:160]


def check_name(repo: str) -> None:
    """Raise UserError unless `repo` has the form owner/name."""
    if not hub.is_name(repo) or repo.count("/") != 1:
        raise UserError(f"{repo!r} is no repository of the hub; write OWNER/NAME")


def _for_sae_lens(cfg: dict[str, Any], sae: Kept, config: StudyConfig) -> dict[str, Any]:
    """With what sae-lens and its users look for: the model's name and a real hook point.

    Rows of the decoder have length 1, and saying so changes nothing but that libraries may fold
    the lengths in, which sae-dashboard does before anything else.
    """
    metadata = cfg.get("metadata") or {}
    folds = {"rescale_acts_by_decoder_norm": True} if cfg["architecture"] == "topk" else {}
    return (
        cfg
        | folds
        | {
            "metadata": metadata
            | {
                "model_name": sae.model,
                "hook_name": sae.stream.removesuffix(CONTEXTUAL),
                "stream": "contextual" if sae.stream.endswith(CONTEXTUAL) else "all",
                "control": sae.control,
                "text": config.text,
                "prepend_bos": True,
            }
        }
    )


def _means(run: Run, sae: Kept) -> Path:
    layer = sae.stream.split(".")[1]
    folder = run.path / "work" / folder_name(sae.model, sae.control)
    return folder / f"means.{layer}.safetensors"


# The card


def card(run: Run, repo: str, kept: Sequence[Kept]) -> str:
    """README.md: what the study says, what is here, how to load it, and what it must not be."""
    summary = run.summary
    contextual = [sae for sae in kept if sae.stream.endswith(CONTEXTUAL)]
    parts = [
        _front_matter(kept),
        f"# Sparse autoencoders of the {_text(summary.get('preset') or 'superscope')} study",
        _text(summary["headline"]),
        f"{len(kept)} sparse autoencoders in the format of "
        "[sae-lens](https://github.com/decoderesearch/SAELens), made by superscope: "
        f"`{_code(summary.get('command') or '')}`.",
        "## Load",
        _block(
            "python",
            "from sae_lens import SAE",
            "",
            f"sae = SAE.from_pretrained({json.dumps(repo)}, {json.dumps(kept[0].name)})",
        ),
    ]
    if contextual:
        parts += ["## The contextual stream", *_contextual(repo, contextual[0])]
    parts += ["## What is here", _table(run, kept)]
    if warnings := summary.get("warnings"):
        parts += ["## Warnings of the study", "\n".join(f"- {_text(w)}" for w in warnings)]
    parts += [
        "## What determined it",
        _block("yaml", *(run.path / "config.resolved.yaml").read_text().rstrip().splitlines()),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(kept: Sequence[Kept]) -> str:
    on_hub = sorted({s.model for s in kept if hub.is_name(s.model) and not _is_local(s.model)})
    base = "".join(f"- {json.dumps(name)}\n" for name in on_hub)
    return _FRONT + (f"base_model:\n{base}" if base else "") + "---"


def _is_local(model: str) -> bool:
    from interp import ladder

    return model.startswith(ladder.PREFIX) or Path(model).expanduser().exists()


def _contextual(repo: str, sae: Kept) -> Iterator[str]:
    yield (
        "SAEs of a stream named `.contextual` were trained on its activations less what token "
        "and position alone explain. They need that taken off first, and never see the first "
        "position of a sequence:"
    )
    file = f"{sae.name.rpartition('/')[0]}/{BESIDE}"
    yield _block(
        "python",
        "from huggingface_hub import hf_hub_download",
        "from safetensors.torch import load_file",
        "",
        f"file = {json.dumps(file)}",
        f"means = load_file(hf_hub_download({json.dumps(repo)}, file))",
        "# stream [token, d_model], token_ids [token], positions [token]",
        'known = means["mean"] + means["token_mean"][token_ids] + means["pos_mean"][positions]',
        "latents = sae.encode(stream - known)",
    )


def _table(run: Run, kept: Sequence[Kept]) -> str:
    """One row for each group of seeds."""
    results = run.results
    fvu = results[(results.quantity == "fvu_mean") & (results.role == "main")]
    groups: dict[tuple[str, str, str, str], list[Kept]] = {}
    for sae in kept:
        size = sae.folder.name.rpartition("-")[0]
        groups.setdefault((sae.model, sae.control, sae.stream, size), []).append(sae)
    lines = [
        "| model | stream | latents | k | seeds | FVU | `sae_id` |",
        "|---|---|---|---|---|---|---|",
    ]
    for (model, control, stream, size), seeds in groups.items():
        d_sae, *kind, k = size.split("-")
        [architecture] = kind or ["topk"]
        mine = fvu[
            (fvu.model == model)
            & (fvu.control == control)
            & (fvu.hook_point + fvu.about.map({"contextual": CONTEXTUAL, "all": ""}) == stream)
            & (fvu.d_sae == int(d_sae))
            & (fvu.architecture == architecture)
            & (fvu.k == int(k))
        ]
        quality = f"{mine.value.iloc[0]:.3f}" if len(mine) else "-"
        title = model if control == TRAINED else f"{model}, {control.replace('_', ' ')}"
        name = f"{seeds[0].name.rpartition('-')[0]}-0"
        lines.append(
            f"| {_text(title)} | `{_code(stream)}` | {int(d_sae):,} | {', '.join([k, *kind])} | "
            f"{len(seeds)} | {quality} | `{_code(name)}` |"
        )
    return "\n".join(lines)


def _text(value: Any) -> str:
    """On one line, with nothing that Markdown or HTML would act on."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#!" else c for c in text)


def _code(value: str) -> str:
    """For between backticks in a table."""
    return " ".join(value.split()).replace("`", "'").replace("|", "\\|")


def _block(language: str, *lines: str) -> str:
    """A fenced block that its lines cannot end."""
    longest = max((len(line) - len(line.lstrip("`")) for line in lines), default=0)
    fence = "`" * max(3, longest + 1)
    return "\n".join([f"{fence}{language}", *lines, fence])
