"""The configuration of a model, as checkpoints and fingerprints have it."""

from __future__ import annotations

import json

import pytest

import fractal_model
from fractal_model.common.fingerprint import fingerprint
from fractal_model.config.model import ModelConfig
from fractal_model.config.params import load_params
from tests.support import tiny_config
from tests.support.params import SHIPPED

OLD_FINGERPRINTS = {
    "ar-64": "3d60575cc6617217ccdddc8b252c0e4eceb9b42c0fa1c8b169bf7ade46a23378",
    "mar-b": "21720685d8c5452c3df1f313d1580f43291258a7b1e7ffe51fc06994088f6a79",
}
"""Fingerprints of published architectures, computed before `qk_norm` was possible."""


@pytest.mark.parametrize("size", OLD_FINGERPRINTS)
def test_published_architectures_keep_their_fingerprints(monkeypatch, size):
    monkeypatch.setattr(fractal_model, "__version__", "0.1.0")
    assert fingerprint(load_params(SHIPPED).size(size).model) == OLD_FINGERPRINTS[size]


def test_the_norm_of_queries_and_keys_is_written_only_if_there_is_one(kind):
    plain, normed = tiny_config(kind), tiny_config(kind, qk_norm=True)
    assert "qk_norm" not in plain.model_dump_json()
    assert ModelConfig.model_validate_json(plain.model_dump_json()) == plain
    written = json.loads(normed.model_dump_json())
    assert all(part["qk_norm"] for part in (*written["levels"], written["pixel"]))
    assert ModelConfig.model_validate(written) == normed
