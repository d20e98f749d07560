"""A policy behind a websocket is evaluated as openpi's LIBERO script would: what is sent, executed, and refused."""

from __future__ import annotations

import json
import math
import socket
import threading
import unittest.mock
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from libero_gym.stock import import_stock
from libero_gym.tasks import get_tasks, initial_states
from vla_agent import EvaluationReport, Evaluator, compare_reports, evaluate_policy
from vla_agent.actors import PolicyError, RemotePolicy, remote
from vla_agent.actors.messages import packed, unpacked
from vla_agent.actors.remote import resized
from vla_agent.commands import cli

pytest.importorskip("websockets", reason="needs websockets (the extra [remote])")
pytest.importorskip("msgpack", reason="needs msgpack (the extra [remote])")
from policy_servers import PolicyServer, still

TURN = np.array([0.3, -0.2, -0.4, 0.5, -0.6, 0.4, -1.0])
QUICK: dict[str, Any] = {"renderer": "fast", "max_episode_steps": 7, "progress_bar": False, "n_envs": 1}
OBSERVED = {
    "image": np.zeros((1, 256, 256, 3), np.uint8),
    "wrist_image": np.zeros((1, 256, 256, 3), np.uint8),
    "state": np.zeros((1, 8), np.float32),
    "instruction": ["close it"],
}


def turning(observation: dict[str, Any]) -> dict[str, Any]:
    return {"actions": np.tile(TURN, (10, 1)), "server_timing": {"infer_ms": 1.0}}


@pytest.fixture
def server() -> Iterator[PolicyServer]:
    with PolicyServer(metadata={"policy": "pi0", "reset_pose": np.zeros(3, np.float32)}) as running:
        yield running


def _stock_elements(n_steps: int) -> Iterator[dict[str, Any]]:
    """What openpi's script sends in task 0's first trial, by stock LIBERO, one element per control step."""
    import_stock()
    from libero.libero.envs import OffScreenRenderEnv
    from robosuite.utils.transform_utils import quat2axisangle

    task = get_tasks("libero_goal")[0]
    env = OffScreenRenderEnv(bddl_file_name=str(task.bddl_file), camera_heights=256, camera_widths=256)
    env.seed(7)
    try:
        env.reset()
        obs = env.set_init_state(initial_states(task)[0])
        for step in range(10 + n_steps):
            if step >= 10:
                frames = [obs[f"{name}_image"][::-1, ::-1] for name in ("agentview", "robot0_eye_in_hand")]
                state = [
                    obs["robot0_eef_pos"],
                    quat2axisangle(obs["robot0_eef_quat"].copy()),
                    obs["robot0_gripper_qpos"],
                ]
                yield {"frames": frames, "state": np.concatenate(state), "quat": obs["robot0_eef_quat"].copy()}
            obs, *_ = env.step([0.0] * 6 + [-1.0] if step < 10 else TURN.tolist())
    finally:
        env.close()


@pytest.mark.opengl
def test_the_server_gets_what_openpis_own_script_sends_of_stock_libero() -> None:
    steps = 21
    with PolicyServer(turning) as server:
        options: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0], "n_envs": 1, "max_episode_steps": steps}
        report = evaluate_policy(server.address, "LIBERO-Goal-v0", protocol="openpi", progress_bar=False, **options)
    elements = list(_stock_elements(steps))
    asked = elements[::5]  # the script asks again when five actions are executed
    assert len(server.seen) == len(asked) == 5
    for sent, stock in zip(server.seen, asked, strict=True):
        assert sent.keys() == {"observation/image", "observation/wrist_image", "observation/state", "prompt"}
        assert sent["prompt"] == get_tasks("libero_goal")[0].instruction
        for key, frame in zip(("observation/image", "observation/wrist_image"), stock["frames"], strict=True):
            expected = Image.fromarray(np.ascontiguousarray(frame)).resize((224, 224), Image.Resampling.BILINEAR)
            np.testing.assert_array_equal(sent[key], np.asarray(expected))
        assert sent["observation/state"].dtype == np.float64
        np.testing.assert_array_equal(sent["observation/state"], stock["state"].astype(np.float32))
    # The trap: this turn takes w through zero, and only stock's sign of the quaternion gives stock's axis-angle.
    signs = {math.copysign(1.0, element["quat"][3]) for element in elements}
    assert signs == {-1.0, 1.0}
    assert any(np.linalg.norm(element["state"][3:6]) > math.pi for element in elements)
    assert report.episodes[0].steps == steps


def test_resizing_and_messages_are_those_of_openpis_client(server: PolicyServer) -> None:
    tools = pytest.importorskip("openpi_client.image_tools", reason="needs openpi-client")
    from openpi_client import msgpack_numpy
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    generator = np.random.default_rng(0)
    frame = generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    np.testing.assert_array_equal(resized(frame, 224), tools.resize_with_pad(frame, 224, 224))
    message = {"a": frame, "b": np.float32(0.5), "c": {"d": ["text", 3, None, generator.random((2, 7))]}}
    for theirs in (msgpack_numpy.unpackb(packed(message)), unpacked(msgpack_numpy.packb(message))):
        np.testing.assert_array_equal(theirs["a"], frame)
        np.testing.assert_array_equal(theirs["c"]["d"][3], message["c"]["d"][3])
        assert theirs["b"] == np.float32(0.5)
    assert type(theirs["b"]) is np.float32
    client = WebsocketClientPolicy("localhost", server.port)  # the test's server is one that their client understands
    assert client.get_server_metadata()["policy"] == "pi0"
    np.testing.assert_array_equal(client.infer({"prompt": "x"})["actions"], still({})["actions"])


def test_a_served_policy_has_a_report_and_is_compared(tmp_path: Path, server: PolicyServer) -> None:
    options: dict[str, Any] = {"task_ids": [0, 1], "init_state_ids": [0, 1], "protocol": "openpi", **QUICK}
    first = evaluate_policy(server.address, out=tmp_path / "a", **options | {"n_envs": 2})
    assert [episode.steps for episode in first.episodes] == [7] * 4
    assert first.settings["replan_steps"] == first.settings["chunk_size"] == 5
    assert first.settings["sent_image_size"] == 224
    model = first.manifest["model"]
    assert (model["class"], model["name"]) == ("RemotePolicy", server.address)
    assert model["server"] == {"policy": "pi0", "reset_pose": [0.0, 0.0, 0.0]}
    assert "taken in the policy's own way" in (tmp_path / "a/report.md").read_text()
    assert len(server.seen) == 4 * 2  # two decisions of five for seven steps
    assert {sent["prompt"] for sent in server.seen} == {task.instruction for task in get_tasks("libero_spatial")[:2]}
    with PolicyServer(turning) as other:
        cli.main(
            f"evaluate --policy {other.address} --replan-steps 3 --task-ids 0-1 --init-states 0-1 --protocol openpi "
            f"--renderer fast --max-episode-steps 7 --n-envs 1 --out {tmp_path / 'b'}".split()
        )
        assert len(other.seen) == 4 * 3
    second = EvaluationReport.load(tmp_path / "b")
    compared = compare_reports(first, second)
    assert compared.paired
    assert compared.choices == ["chunk_size: 5 against 3.", "replan_steps: 5 against 3."]
    cli.main(f"evaluate --compare {tmp_path / 'a'} {tmp_path / 'b'} --out {tmp_path / 'c'}".split())
    assert (tmp_path / "c/comparison.html").is_file()


def test_each_environment_has_a_connection_of_its_own_and_only_those_that_play_ask(server: PolicyServer) -> None:
    options: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0, 1, 2], "protocol": "openpi", **QUICK}
    evaluate_policy(server.address, **options | {"n_envs": 2, "max_episode_steps": 5})
    assert server.connections == 2
    assert len(server.seen) == 3  # the second environment rests while the first plays the third episode


def test_a_connection_that_breaks_is_opened_again_and_no_episode_changes() -> None:
    options: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0, 1], "protocol": "openpi", **QUICK}
    with PolicyServer(turning) as server:
        whole = evaluate_policy(server.address, **options)
        requests = len(server.seen)
    with PolicyServer(turning, hang_up_after=(1, 3)) as server:
        broken = evaluate_policy(server.address, **options)
        assert server.connections == 3
        assert len(server.seen) == requests + 2
    assert broken.episodes == whole.episodes


def test_a_server_that_stays_away_stops_the_evaluation_which_goes_on_later(tmp_path: Path) -> None:
    options: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0, 1, 2], "protocol": "openpi", **QUICK}
    with PolicyServer(hang_up_after=(2,)) as server:
        port = server.port
        policy = RemotePolicy(server.address, patience_s=0.0)
        with (
            Evaluator(policy, **_of_evaluator(options)) as evaluator,
            pytest.raises(PolicyError, match=f"at ws://localhost:{port} went away and did not come back within 0 s"),
        ):
            evaluator.run(out=tmp_path, progress_bar=False)
        policy.close()
    report = EvaluationReport.load(tmp_path)
    assert (len(report.episodes), report.complete) == (1, False)
    with PolicyServer(port=port) as server:
        policy = RemotePolicy(server.address)
        with Evaluator(policy, **_of_evaluator(options)) as evaluator:
            report = evaluator.run(out=tmp_path, progress_bar=False)
        policy.close()
        assert len(server.seen) == 2 * 2  # the first episode is not played again
    assert (len(report.episodes), report.complete) == (3, True)


def _of_evaluator(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "progress_bar"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"actions": np.zeros((10, 32))}, r"actions of shape \(10, 32\); expected \(H, 7\), H at least 5"),
        ({"actions": np.zeros(7)}, r"actions of shape \(7,\); expected \(H, 7\)"),
        ({"actions": np.zeros((2, 7))}, r"answered 2 actions, and 5 are to be .* replan_steps=2 \(--replan-steps 2\)"),
        ({"actions": "left"}, "actions that are no array of numbers"),
        ({"actions": np.full((10, 7), np.nan)}, "answered nan in dimension 0 of action 0 of its chunk"),
        (
            {"actions": np.array([[0.0] * 7] * 4 + [[0, 0, 0, 0, 0, 0, np.inf]])},
            "answered inf in dimension 6 of action 4",
        ),
        ({"action": np.zeros((10, 7))}, r"answered without 'actions' \(it gave action\)"),
        ([1, 2], r"answered without 'actions' \(it gave a list\)"),
        (b"\xc1", "sent something else than openpi's messages"),
        (
            "Traceback (most recent call last):\n  File\nKeyError: 'observation/image'\n",
            "failed: KeyError: 'observation/im",
        ),
    ],
)
def test_answers_that_are_no_actions(answer: Any, message: str) -> None:
    options: dict[str, Any] = {"task_ids": [0], "init_state_ids": [0], "protocol": "openpi", **QUICK}
    with PolicyServer(lambda observation: answer) as server, pytest.raises(PolicyError, match=message):
        evaluate_policy(server.address, **options)


@pytest.mark.parametrize(
    ("greeting", "message"),
    [
        ("hello", r"answers, but not as a policy server \(it began with 'hello'\)"),
        (packed([1]), r"answers, but not as a policy server \(it began with \[1\]\)"),
        (packed({b"policy": "pi0"}), "what it says of itself is no map by names"),
        (b"\xc1", "sent something else than openpi's messages"),
    ],
)
def test_a_websocket_that_serves_something_else(greeting: Any, message: str) -> None:
    with PolicyServer(metadata=greeting) as server, pytest.raises(PolicyError, match=message):
        RemotePolicy(server.address)


def test_a_server_that_says_much_of_itself_is_told_short() -> None:
    """An array of many numbers would be far more as a report's text."""
    with PolicyServer(metadata={"weights": np.zeros(50_000)}) as server:
        policy = RemotePolicy(server.address)
        (said,) = policy.description.values()
        policy.close()
    assert list(said) == ["left out"]
    assert said["left out"].endswith(" bytes")


def test_what_json_does_not_have_is_told_as_text() -> None:
    said = {"scale": math.nan, "range": np.array([-math.inf, 1.0]), "deep": [{"rate": np.float32(math.inf)}]}
    with PolicyServer(metadata=said) as server:
        policy = RemotePolicy(server.address)
        policy.close()
    told = {"scale": "nan", "range": ["-inf", 1.0], "deep": [{"rate": "inf"}]}
    assert policy.description == {"server": told}


def test_an_answer_above_the_limit_is_told_at_once_and_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    large = still({}) | {"debug": np.zeros(2**20)}
    with PolicyServer(lambda observation: large) as server:
        policy = RemotePolicy(server.address, patience_s=30.0)
        assert policy.act(OBSERVED, [0]).shape == (1, 5, 7)
        policy.close()
        monkeypatch.setattr(remote, "MAX_MESSAGE", 2 * 2**20)
        with pytest.raises(
            PolicyError, match=r"answers with more than 2 MiB; leave out of its answer what is no action"
        ):
            policy.act(OBSERVED, [0])
        assert len(server.seen) == 2
    with (
        PolicyServer(metadata={"weights": np.zeros(2**20)}) as server,
        pytest.raises(PolicyError, match=r"answers with more than 2 MiB"),
    ):
        RemotePolicy(server.address)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (1009, "takes no request as large as an observation; raise its limit"),
        (1002, r"and this client do not agree on the websocket's protocol \(received 1002"),
        (1007, r"and this client do not agree on the websocket's protocol \(received 1007"),
    ],
)
def test_what_no_new_connection_cures_is_told_at_once(code: int, message: str) -> None:
    class Refusing(PolicyServer):
        def _serve(self, connection: Any) -> None:
            connection.send(self.greeting)
            self.seen.append(unpacked(connection.recv()))
            connection.close(code)

    with Refusing() as server:
        policy = RemotePolicy(server.address, patience_s=30.0)
        with pytest.raises(PolicyError, match=message):
            policy.act(OBSERVED, [0])
        assert len(server.seen) == 1


def test_a_port_where_nobody_is_or_no_websocket(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("localhost", 0)) as listener:
        port = listener.getsockname()[1]

        def speak_http() -> None:
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK")
            connection.close()

        threading.Thread(target=speak_http, daemon=True).start()
        with pytest.raises(PolicyError, match=f"ws://localhost:{port} answers, but not as a policy server"):
            RemotePolicy(f"ws://localhost:{port}")
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--policy", f"ws://localhost:{port}"])
    assert f"Error: No policy server answers at ws://localhost:{port}" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["ws://", "http://localhost:8000", "ws://host:port", "localhost:8000", "ws://h:0"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match=r"is no address of a policy server; expected ws://host:port"):
        RemotePolicy(address)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"dtype": "O", b"shape": [1], b"data": b"12345678"}, "an array of dtype object"),
        ({b"dtype": "<f4", b"shape": [3], b"data": b"1234"}, r"an array of shape \[3\] and dtype float32 in 4 bytes"),
        ({b"dtype": "<f4", b"shape": [-1], b"data": b"1234"}, r"an array of shape \[-1\]"),
        ({b"dtype": "<f4", b"shape": [1]}, "data"),
        ({b"dtype": "nonsense", b"shape": [1], b"data": b"1"}, "nonsense"),
        ({b"dtype": ",", b"shape": [1], b"data": b"1"}, "not MessagePack with arrays"),
        ({b"dtype": "f8,(", b"shape": [1], b"data": b"1"}, "not MessagePack with arrays"),
    ],
)
def test_arrays_that_are_none(content: dict[bytes, Any], message: str) -> None:
    import msgpack

    with pytest.raises(ValueError, match=message):
        unpacked(msgpack.packb({b"__ndarray__": True} | content))


def test_a_number_that_its_type_cannot_hold_is_no_message() -> None:
    import msgpack

    with pytest.raises(ValueError, match="not MessagePack with arrays"):
        unpacked(msgpack.packb({b"__npgeneric__": True, b"dtype": "|i1", b"data": 300}))


def test_an_object_cannot_be_sent() -> None:
    with pytest.raises(TypeError, match="a ndarray cannot be sent"):
        packed(np.array([object()]))


def test_a_server_that_is_slow_is_told_from_one_that_is_gone() -> None:
    waiting = threading.Event()
    with PolicyServer(lambda observation: waiting.wait(5) and still(observation)) as server:
        policy = RemotePolicy(server.address, answer_s=0.2)
        with pytest.raises(PolicyError, match=r"did not answer within 0\.2 s"):
            policy.act(OBSERVED, [0])
        waiting.set()


def test_an_answer_is_never_taken_for_another_requests() -> None:
    """A call may be cut off between its requests and their answers."""

    def echo(observation: dict[str, Any]) -> dict[str, Any]:
        state = observation["observation/state"]
        return {"actions": np.full((1 if state[0] == 1 else 5, 7), state[0])}

    def observed(*numbers: int) -> dict[str, Any]:
        rows = {key: np.repeat(value, 2, axis=0) for key, value in OBSERVED.items() if key != "instruction"}
        return rows | {"state": np.array([[number] * 8 for number in numbers]), "instruction": ["close it"] * 2}

    with PolicyServer(echo) as server:
        policy = RemotePolicy(server.address)
        with pytest.raises(PolicyError, match="answered 1 actions"):
            policy.act(observed(1, 2), [0, 1])
        assert policy.act(observed(4, 5), [0, 1])[:, 0, 0].tolist() == [4, 5]
        cut_off = unittest.mock.patch.object(remote._Line, "receive", side_effect=KeyboardInterrupt)
        with cut_off, pytest.raises(KeyboardInterrupt):
            policy.act(observed(6, 7), [0, 1])
        assert policy.act(observed(8, 9), [0, 1])[:, 0, 0].tolist() == [8, 9]
        assert policy.act(observed(3, 2), [0, 1])[:, 0, 0].tolist() == [3, 2]
        policy.close()


def test_a_password_in_an_address_would_be_in_reports() -> None:
    with pytest.raises(ValueError, match="LIBERO_VLA_API_KEY") as told:
        RemotePolicy("ws://user:secret@host:8000")
    assert "secret" not in str(told.value)


def test_a_key_goes_with_the_handshake_and_not_into_the_report() -> None:
    with PolicyServer() as server:
        policy = RemotePolicy(server.address, api_key="secret")
        policy.close()
        assert server.authorizations == ["Api-Key secret"]
        assert "secret" not in json.dumps([policy.settings, policy.description])
