"""Hashes tell weights and files apart, and stay what saved runs and reports hold."""

import hashlib
import io
from pathlib import Path

import torch as th

from vla_agent.common.hashes import fingerprint, hash_files, hash_weights, sha256
from vla_agent.openvla.processor import load_processor
from vla_agent.process_reward import load_reward_model


def test_a_stream_is_hashed_from_where_it_stands_across_blocks() -> None:
    content = bytes(range(256)) * 5000  # more than one block
    stream = io.BytesIO(content)
    stream.seek(3)
    assert sha256(stream) == hashlib.sha256(content[3:]).hexdigest()


def test_only_visible_files_of_a_folder_itself_are_hashed(tmp_path: Path) -> None:
    for name in ("b.txt", "a.json", ".hidden"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "sub").mkdir()
    assert hash_files(tmp_path) == {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.json", "b.txt")}


def test_weights_hash_alike_in_any_order_and_differ_by_type_shape_and_value() -> None:
    weights = {"a": th.zeros(4, dtype=th.bfloat16), "b": th.ones(())}
    changes = [{"a": th.zeros(4)}, {"a": th.zeros(2, 2, dtype=th.bfloat16)}, {"b": th.zeros(())}]
    assert hash_weights(weights) == hash_weights(dict(reversed(weights.items())))
    assert len({hash_weights(weights | change) for change in ({}, *changes)}) == 4


def test_a_fingerprint_begins_the_sha256_of_its_parts() -> None:
    assert fingerprint([b"ab", b"c"]) == hashlib.sha256(b"abc").hexdigest()[:16]


def test_what_ships_has_the_fingerprints_that_saved_runs_hold() -> None:
    assert load_reward_model("tiny-scorer").fingerprint() == "1a383e626694386b"  # type: ignore[attr-defined]
    assert load_processor("tiny-libero").fingerprint() == "469777a0d0f647ca"
