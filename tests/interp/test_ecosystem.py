"""What others read our SAEs with: SAEBench and sae-dashboard, where they are installed.

Neither installs beside this project by itself: docs/how-to/publish-saes.md says how.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import saes
from interp.models import load
from interp.push import kept_saes, write_tree
from interp.run import open_run

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
needs_saebench, needs_sae_dashboard = (
    pytest.mark.skipif(find_spec(name) is None, reason=f"needs {name}")
    for name in ("sae_bench", "sae_dashboard")
)


@pytest.fixture(scope="module")
def published(finished_study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(the folder of one SAE in the pushed tree, the SAE as it was trained)"""
    run, tree = open_run(finished_study), tmp_path_factory.mktemp("hub") / "tree"
    write_tree(run, "me/tiny-saes", tree)
    one = next(sae for sae in kept_saes(run) if sae.stream == "blocks.0.hook_resid_post")
    return tree / one.name, saes.load(one.folder)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


@needs_saebench
def test_saebench_takes_a_published_sae(published: tuple[Path, Any], x: torch.Tensor) -> None:
    """Its own way in, which every one of its evaluations begins with."""
    from sae_bench.sae_bench_utils.general_utils import load_and_format_sae
    from sae_lens import SAE

    folder, original = published
    _, found, _ = load_and_format_sae("ours", SAE.load_from_disk(folder), "cpu")
    assert (found.cfg.hook_name, found.cfg.hook_layer) == ("blocks.0.hook_resid_post", 0)
    assert found.cfg.model_name
    assert torch.allclose(found.decode(found.encode(x)), original(x), atol=1e-5)


@needs_sae_dashboard
def test_sae_dashboard_draws_a_published_sae(
    published: tuple[Path, Any], x: torch.Tensor, tmp_path: Path
) -> None:
    """A page of two latents. Any model of that width serves: what is read is the SAE."""
    from sae_dashboard.data_writing_fns import save_feature_centric_vis
    from sae_dashboard.sae_vis_data import SaeVisConfig
    from sae_dashboard.sae_vis_runner import SaeVisRunner
    from sae_lens import SAE, HookedSAETransformer
    from transformer_lens import HookedTransformerConfig

    folder, original = published
    tokenizer = load("ladder/d032").tokenizer
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.eos_token
    shape = {"n_layers": 2, "d_model": 16, "n_ctx": 32, "d_head": 8, "d_vocab": len(tokenizer)}
    model = HookedSAETransformer(HookedTransformerConfig(**shape, act_fn="gelu", seed=0))
    model.tokenizer = tokenizer
    tokens = torch.randint(len(tokenizer), (64, 32), generator=torch.Generator().manual_seed(0))
    sae = SAE.load_from_disk(folder)
    wanted = SaeVisConfig("blocks.0.hook_resid_post", features=[0, 1], minibatch_size_tokens=16)
    data = SaeVisRunner(wanted).run(encoder=sae, model=model, tokens=tokens)
    assert list(data.feature_data_dict) == [0, 1]
    save_feature_centric_vis(data, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 50_000
    assert torch.allclose(sae(x), original(x), atol=1e-5), "what it folds changes nothing"
