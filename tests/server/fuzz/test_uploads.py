"""No bytes that are uploaded as an expert end in a fault, and none that are wrong are taken."""

import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from zweave import Expert

ADMIN = {"Authorization": "Bearer admin"}
JUNK = st.one_of(
    st.none(),
    st.integers(-2, 100),
    st.sampled_from([10**20, -(2**63), 2**64, 1e400, "F32", "I64", "", "a\nb", "{}", "null", "\ud800", "9" * 5000]),
    st.lists(st.sampled_from([0, 1, 4, -1, 2**40, 10**19, "x"]), max_size=3),
    st.dictionaries(st.sampled_from(["a", "dtype"]), st.integers(), max_size=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(
    attacked: Any, random_expert: Callable[..., Expert], tmp_path_factory: pytest.TempPathFactory
) -> bytes:
    """The file of an expert of the model."""
    file: Path = tmp_path_factory.mktemp("sound") / "sound.safetensors"
    random_expert(attacked.engine.model.config.adapted_shapes(), seed=9, description="sound").save(file)
    return file.read_bytes()


def parts(file: bytes) -> tuple[dict[str, Any], bytes]:
    (size,) = struct.unpack("<Q", file[:8])
    return json.loads(file[8 : 8 + size]), file[8 + size :]


def joined(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture(scope="module")
def upload(attacked: Any, check_answer: Callable[[int, str], None]) -> Callable[[bytes], int]:
    http = attacked.http(headers=ADMIN)

    def send(content: bytes) -> int:
        answer = http.post("/v1/experts?name=fuzzed", content=content)
        check_answer(answer.status_code, answer.text)
        assert "body.safetensors" not in answer.text and tempfile.gettempdir() not in answer.text
        if answer.status_code == 201:
            assert http.delete("/v1/experts/fuzzed").status_code == 200
        return answer.status_code

    return send


@pytest.mark.slow
def test_a_header_with_anything_in_it(sound: bytes, upload: Callable[[bytes], int]) -> None:
    header, data = parts(sound)
    tensors = sorted(name for name in header if name != "__metadata__")
    metadata = sorted(header["__metadata__"])

    @given(
        st.sampled_from(["metadata", "tensor", "name", "dtype", "shape", "data_offsets"]),
        st.sampled_from(metadata),
        st.sampled_from(tensors),
        JUNK,
    )
    def change(place: str, key: str, tensor: str, value: Any) -> None:
        changed = {name: dict(entry) for name, entry in header.items()}
        if place == "metadata":
            changed["__metadata__"][key] = value
        elif place == "tensor":
            changed[tensor] = value
        elif place == "name":
            changed[str(value)] = changed.pop(tensor)
        else:
            changed[tensor][place] = value
        status = upload(joined(changed, data))
        event(f"{place} {status}")
        assert status == 400 or place == "metadata" or changed == header

    change()


@pytest.mark.slow
def test_bytes_cut_off_and_changed(sound: bytes, upload: Callable[[bytes], int]) -> None:
    @given(st.integers(0, len(sound)), st.binary(max_size=9), st.booleans())
    def change(at: int, instead: bytes, ends: bool) -> None:
        upload(sound[:at] + instead + (b"" if ends else sound[at + len(instead) :]))

    change()


def test_numbers_that_are_no_expert(sound: bytes, upload: Callable[[bytes], int]) -> None:
    header, data = parts(sound)
    assert upload(sound) == 201
    for value in (np.nan, np.inf, -np.inf):
        values = np.frombuffer(data, dtype=np.float32).copy()
        values[7] = value
        assert upload(joined(header, values.tobytes())) == 400
    for size in (0, 1, 2**31, 2**63 - 1, 2**64 - 1):
        assert upload(struct.pack("<Q", size) + sound[8:]) == 400
    tensors = [name for name in header if name != "__metadata__"]
    overlapping = {name: dict(entry) for name, entry in header.items()}
    overlapping[tensors[0]]["data_offsets"] = overlapping[tensors[1]]["data_offsets"]
    assert upload(joined(overlapping, data)) == 400
