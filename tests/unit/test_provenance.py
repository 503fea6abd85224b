import hashlib

import pytest

from simplevla.evaluation.provenance import policy_fingerprint


def test_a_policys_fingerprint_covers_its_weights_and_each_adapters(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"base")
    assert policy_fingerprint(tmp_path) == hashlib.sha256(b"base").hexdigest()
    for name, content in (("second", b"two"), ("first", b"one")):
        (tmp_path / "adapters" / name).mkdir(parents=True)
        (tmp_path / "adapters" / name / "adapter_model.safetensors").write_bytes(content)
    assert policy_fingerprint(tmp_path) == hashlib.sha256(b"baseonetwo").hexdigest()


def test_a_folder_without_policy_has_no_fingerprint(tmp_path):
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        policy_fingerprint(tmp_path)
