"""Models split over several GGUF files."""

import os

import gguf
import numpy as np
import pytest

from zweave.checkpoint import Checkpoint, resolve_model
from zweave.checkpoint.gguf.convert import convert
from zweave.errors import ZweaveError


def _split(path, count, **fields):
    """The file's tensors in `count` files beside it, as llama.cpp's gguf-split writes them."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    names = list(tensors)
    parts = []
    for number in range(count):
        part = path.with_name(f"{path.stem}-{number + 1:05}-of-{count:05}.gguf")
        writer = gguf.GGUFWriter(part, "llama")
        parts.append(part)
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                writer.add_key_value(
                    field.name,
                    field.contents(),
                    field.types[0],
                    field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None,
                )
        values = {"split.no": number, "split.count": count, "split.tensors.count": len(names)} | fields
        for key, value in values.items():
            writer.add_uint16(key, value)
        for name in names[number::count]:
            writer.add_tensor(name, tensors[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts


def test_a_split_model_loads_from_any_part(gguf_model, write_gguf, converted, tmp_path, monkeypatch):
    monkeypatch.setenv("ZWEAVE_CACHE", str(tmp_path / "cache"))
    parts = _split(write_gguf(tmp_path / "a.gguf", gguf_model()), 3)
    directories = {resolve_model(part).directory for part in parts}
    assert len(directories) == 1
    whole = converted(tmp_path / "a.gguf", tmp_path / "whole")
    for name in os.listdir(whole):
        if name != "model.safetensors":
            assert (whole / name).read_bytes() == (directories.copy().pop() / name).read_bytes(), name
    assert resolve_model(parts[1]).digest() == Checkpoint(gguf_model()).digest()
    parts[1].unlink()
    with pytest.raises(ZweaveError, match=r"a-00002-of-00003\.gguf is missing: .* split into 3 files"):
        resolve_model(parts[2])


def test_parts_that_are_not_of_one_model(gguf_model, write_gguf, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", gguf_model())
    parts = _split(path, 2)
    first, second = (part.read_bytes() for part in parts)
    parts[0].write_bytes(second)
    with pytest.raises(ZweaveError, match="name says part 1 of 2, its content does not"):
        convert(parts[1], tmp_path)
    parts[0].write_bytes(path.read_bytes())
    with pytest.raises(ZweaveError, match="name says part 1 of 2, its content does not"):
        convert(parts[0], tmp_path)
    parts[0].write_bytes(first)
    _split(path, 2, **{"split.tensors.count": 4})
    with pytest.raises(ZweaveError, match="the parts hold 21 tensors, the first says 4"):
        convert(parts[0], tmp_path)
    _split(path, 2, **{"split.no": 0})
    with pytest.raises(ZweaveError, match="name says part 2 of 2"):
        convert(parts[0], tmp_path)
    outside = parts[1].with_name("a-00003-of-00002.gguf")
    parts[1].rename(outside)
    with pytest.raises(ZweaveError, match="a model of 2 parts has no such one"):
        convert(outside, tmp_path)
