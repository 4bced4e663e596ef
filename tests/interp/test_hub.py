"""An unreachable or refusing hub answers in one line and is asked once."""

from __future__ import annotations

from typing import Any

import pytest

from interp import hub
from interp.errors import UserError


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return []


def answer(
    monkeypatch: pytest.MonkeyPatch, asked: list[tuple[Any, ...]], error: Exception | None
) -> None:
    import huggingface_hub

    def repo_info(self: Any, name: str, **options: Any) -> None:
        asked.append((name, options))
        if error is not None:
            raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)


def test_a_known_name_returns(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    answer(monkeypatch, asked, None)
    hub.require("gpt2", "model", otherwise="do this")
    name, options = asked[0]
    assert name == "gpt2"
    assert 0 < options["timeout"] <= 10


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    answer(monkeypatch, asked, ConnectionError("Name or service not known\nsecond line"))
    with pytest.raises(UserError, match=r"cannot be reached .*not known.*do this") as error:
        hub.require("gpt5", "model", otherwise="do this")
    assert "\n" not in str(error.value)
    assert len(asked) == 1


def test_an_unknown_name_is_told_from_no_network(
    monkeypatch: pytest.MonkeyPatch, asked: list[Any]
) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)
    answer(monkeypatch, asked, error)
    with pytest.raises(UserError, match="the hub has no dataset named 'nope'"):
        hub.require("nope", "dataset", otherwise="do this")


def test_offline_mode_is_respected(monkeypatch: pytest.MonkeyPatch, asked: list[Any]) -> None:
    answer(monkeypatch, asked, None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        hub.require("gpt2", "model", otherwise="do this")
    assert asked == []


def test_what_a_hub_name_looks_like() -> None:
    assert all(map(hub.is_name, ["gpt2", "EleutherAI/pythia-70m", "a.b_c-d/e"]))
    assert not any(map(hub.is_name, ["./gpt2", "/tmp/x", "~/x", "a/b/c", "", "a b", "../x"]))
