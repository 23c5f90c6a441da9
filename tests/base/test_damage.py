"""Files that were cut short are recognised wherever they were cut."""

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from moat.base.damage import is_damaged


def _parquet(path):
    pd.DataFrame({"a": range(100)}).to_parquet(path)


def _safetensors(path):
    save_file({"a": torch.arange(100.0), "b": torch.zeros(3)}, path, metadata={"k": "v"})


def _json(path):
    path.write_text('{\n  "a": 1\n}\n')


@pytest.mark.parametrize(
    ("name", "make"), [("r.parquet", _parquet), ("m.safetensors", _safetensors), ("r.json", _json)]
)
def test_a_file_cut_short_anywhere_is_damaged(tmp_path, name, make):
    path = tmp_path / name
    assert not is_damaged(path)
    make(path)
    assert not is_damaged(path)
    whole = path.read_bytes()
    for size in {*range(0, len(whole), max(1, len(whole) // 50)), len(whole) - 1}:
        path.write_bytes(whole[:size])
        assert is_damaged(path), size


@pytest.mark.parametrize(
    "header",
    ["[]", '{"x":3}', '{"x":{}}', '{"x":{"data_offsets":[0]}}', '{"x":{"data_offsets":[0,"8"]}}', "3", "[" * 9999],
)
def test_a_header_of_another_shape_is_damage(tmp_path, header):
    path = tmp_path / "m.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    assert is_damaged(path)


def test_a_header_longer_than_the_file_is_damage(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes((2**64 - 1).to_bytes(8, "little") + b"{}")
    assert is_damaged(path)
