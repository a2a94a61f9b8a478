"""Choosing an OpenGL backend, and what is said where there is none."""

from __future__ import annotations

import builtins
import sys

import pytest

from hwm.sim import graphics


@pytest.fixture
def on_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    return monkeypatch


def test_no_opengl_names_the_packages(on_linux) -> None:
    on_linux.setattr(graphics, "egl_works", lambda: False)
    on_linux.setattr(graphics, "osmesa_works", lambda: False)
    with pytest.raises(RuntimeError, match="apt-get install libegl1 libgl1-mesa-dri") as raised:
        graphics.choose_backend()
    assert "libosmesa6" in str(raised.value)
    with pytest.raises(RuntimeError, match="libosmesa6"):
        graphics.import_mujoco(rendering=True)


@pytest.mark.parametrize(("egl", "osmesa", "chosen"), [(True, True, "egl"), (False, True, "osmesa")])
def test_egl_comes_first(on_linux, egl: bool, osmesa: bool, chosen: str) -> None:
    on_linux.setattr(graphics, "egl_works", lambda: egl)
    on_linux.setattr(graphics, "osmesa_works", lambda: osmesa)
    assert graphics.choose_backend() == chosen


def test_the_users_choice_is_kept(on_linux) -> None:
    on_linux.setenv("MUJOCO_GL", "glfw")
    assert graphics.choose_backend() == "glfw"


def test_probes_survive_a_missing_library(monkeypatch) -> None:
    monkeypatch.setattr(graphics.ctypes.util, "find_library", lambda _: None)
    assert not graphics.egl_works()
    assert not graphics.osmesa_works()
    monkeypatch.setattr(graphics.ctypes.util, "find_library", lambda _: "libdoes-not-exist.so")
    assert not graphics.egl_works()
    assert not graphics.osmesa_works()


def test_no_mujoco_names_the_extra(monkeypatch) -> None:
    real_import = builtins.__import__

    def without_mujoco(name, *args, **kwargs):
        if name == "mujoco":
            raise ImportError("No module named 'mujoco'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_mujoco)
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(ImportError, match=r"humanoid-world-models\[sim\]"):
        graphics.import_mujoco()
