"""The vendored robot: small, complete, licensed, and free of pickles."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from hwm.sim import ACTION_NAMES
from hwm.sim.make_assets import decimate, read_stl
from hwm.sim.robot import ASSETS, HOME_POSE, JOINT_NAMES, PREFIX


def test_assets_are_small_and_licensed() -> None:
    sizes = {path.name: path.stat().st_size for path in ASSETS.iterdir() if path.is_file()}
    assert set(sizes) == {"g1_upper_body.npz", "g1_upper_body.xml", "LICENSE-unitree-g1"}
    assert sizes["g1_upper_body.npz"] < 250_000
    assert sizes["g1_upper_body.xml"] < 40_000
    licence = (ASSETS / "LICENSE-unitree-g1").read_text(encoding="utf-8")
    assert "Unitree" in licence
    assert "Redistribution and use in source and binary forms" in licence


def test_every_mesh_of_the_model_is_stored() -> None:
    tree = ElementTree.parse(ASSETS / "g1_upper_body.xml")
    meshes = [mesh.get("name") for mesh in tree.iter("mesh")]
    assert len(meshes) > 30
    with np.load(ASSETS / "g1_upper_body.npz", allow_pickle=False) as stored:
        for name in meshes:
            vertices, faces = stored[f"{name}/vertices"], stored[f"{name}/faces"]
            assert vertices.shape[1] == faces.shape[1] == 3
            assert faces.max() < len(vertices)
            assert np.isfinite(stored[f"{name}/bounds"]).all()


def test_action_layout() -> None:
    assert len(ACTION_NAMES) == len(set(ACTION_NAMES)) == 25
    assert ACTION_NAMES[0] == "HIP_YAW"
    assert ACTION_NAMES[20] == "NECK_PITCH"
    assert ACTION_NAMES[21:] == ("LEFT_HAND_CLOSURE", "RIGHT_HAND_CLOSURE", "LINEAR_VELOCITY", "ANGULAR_VELOCITY")
    assert len(JOINT_NAMES) == 21
    assert set(HOME_POSE) <= set(ACTION_NAMES)
    tree = ElementTree.parse(ASSETS / "g1_upper_body.xml")
    vendored = {PREFIX + str(joint.get("name")) for joint in tree.iter("joint") if joint.get("name")}
    assert {name for name in JOINT_NAMES if name.startswith(PREFIX)} <= vendored


def test_decimation_keeps_a_cube_a_cube() -> None:
    """A finely tessellated cube comes back with far fewer faces, the same corners and no hole."""
    n = 12
    ticks = np.linspace(0.0, 1.0, n + 1)
    triangles = []
    for axis in range(3):
        for side in (0.0, 1.0):
            for i in range(n):
                for j in range(n):
                    square = np.full((4, 3), side)
                    others = [k for k in range(3) if k != axis]
                    square[:, others[0]] = ticks[[i, i + 1, i + 1, i]]
                    square[:, others[1]] = ticks[[j, j, j + 1, j + 1]]
                    triangles += [square[[0, 1, 2]], square[[0, 2, 3]]]
    vertices = np.concatenate(triangles)
    small, faces = decimate(vertices, np.arange(len(vertices)).reshape(-1, 3), 0.3)
    assert len(faces) < len(triangles) / 3
    assert np.abs(np.ptp(small, axis=0) - 1.0).max() < 0.06
    edges: dict[tuple[int, ...], int] = {}
    for face in faces:
        for a, b in ((0, 1), (1, 2), (2, 0)):
            key = tuple(sorted((int(face[a]), int(face[b]))))
            edges[key] = edges.get(key, 0) + 1
    assert set(edges.values()) == {2}


def test_read_stl(tmp_path) -> None:
    record = np.zeros(1, np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]))
    record["corners"] = np.arange(9).reshape(3, 3)
    path = tmp_path / "one.stl"
    path.write_bytes(bytes(80) + np.array([1], "<u4").tobytes() + record.tobytes())
    vertices, faces = read_stl(path)
    assert vertices == pytest.approx(np.arange(9.0).reshape(3, 3))
    assert faces.tolist() == [[0, 1, 2]]
