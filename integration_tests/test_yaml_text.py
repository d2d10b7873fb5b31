"""YAML with numbers as people write them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fair_prune_plugins import yaml_text
from fair_prune_plugins.workflow import config

TEXTS = st.text(st.sampled_from("0123456789eE.+-x _'\":#"), max_size=8)


@pytest.mark.parametrize(
    ("text", "number"), [("1e-3", 0.001), ("3E4", 3e4), ("-2e+1", -20.0), (".5e2", 50.0), ("1.5e3", 1500.0)]
)
def test_powers_of_ten_are_numbers(text: str, number: float) -> None:
    assert yaml_text.load(f"a: [{text}]") == {"a": [number]}


@given(st.one_of(TEXTS, st.floats(allow_nan=False), st.integers(), st.booleans(), st.none()))
def test_what_is_dumped_is_what_is_loaded(value: Any) -> None:
    loaded = yaml_text.load(yaml_text.dump({"key": [value]}))["key"][0]
    assert loaded == value
    assert type(loaded) is type(value)


@given(st.text(st.sampled_from("0123456789eE.+-x_"), max_size=8))
def test_nothing_else_is_read_otherwise_than_by_the_library(text: str) -> None:
    try:
        plain = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return
    read = yaml_text.load(text)
    if isinstance(plain, str) and isinstance(read, float):
        assert "e" in text.lower()
        assert read == float(plain)
    else:
        assert read == plain


def test_a_methods_own_options_are_numbers_too() -> None:
    text = """
      data: {kind: function, function: "fair_prune_plugins.workflow.digits:load", target: digit}
      model: {factory: digits_resnet}
      prune: {methods: [{name: bip, options: {mask_lr: 3e-3}}], macs: [0.5]}
      finetune: {losses: [{name: group_dro, options: {step_size: 1e-2}}]}
    """
    settings = config.parse(text, origin="test")
    assert settings.prune.methods[0].options == {"mask_lr": 0.003}
    assert settings.finetune.losses[0].options == {"step_size": 0.01}
