"""Importing MuJoCo with a headless OpenGL backend that exists on this machine."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from types import ModuleType

NO_MUJOCO = "the simulated humanoid needs MuJoCo: pip install humanoid-world-models[sim]"
NO_OPENGL = (
    "no headless OpenGL was found, which the simulated humanoid needs to draw its frames. On Debian or "
    "Ubuntu install one of: `apt-get install libegl1 libgl1-mesa-dri` (EGL) or "
    "`apt-get install libosmesa6` (software rendering)."
)

_EGL_PLATFORM_DEVICE = 0x313F


def egl_works() -> bool:
    """Whether an EGL device can be initialised."""
    name = ctypes.util.find_library("EGL")
    if name is None:
        return False
    try:
        egl = ctypes.CDLL(name)
        lookup = egl.eglGetProcAddress
    except (OSError, AttributeError):
        return False
    lookup.restype, lookup.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    query = lookup(b"eglQueryDevicesEXT")
    get_display = lookup(b"eglGetPlatformDisplayEXT")
    if not query or not get_display:
        return False
    query_devices = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int)
    )(query)
    platform_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(get_display)
    egl.eglInitialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    egl.eglInitialize.restype = ctypes.c_uint
    devices = (ctypes.c_void_p * 16)()
    count = ctypes.c_int(0)
    if not query_devices(16, devices, ctypes.byref(count)):
        return False
    for device in devices[: count.value]:
        display = platform_display(_EGL_PLATFORM_DEVICE, device, None)
        if display and egl.eglInitialize(display, None, None):
            return True
    return False


def osmesa_works() -> bool:
    """Whether the OSMesa library can be loaded."""
    name = ctypes.util.find_library("OSMesa")
    if name is None:
        return False
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def choose_backend() -> str:
    """``MUJOCO_GL`` if it is set, else EGL, else OSMesa; raises a RuntimeError where there is none.

    The empty string leaves the choice to MuJoCo.
    """
    requested = os.environ.get("MUJOCO_GL", "").strip().lower()
    if requested:
        return requested
    if not sys.platform.startswith("linux"):
        return ""  # MuJoCo's own default is right on macOS and Windows
    if egl_works():
        return "egl"
    if osmesa_works():
        return "osmesa"
    raise RuntimeError(NO_OPENGL)


def import_mujoco(rendering: bool = True) -> ModuleType:
    """The ``mujoco`` module, with an OpenGL backend chosen before its first import.

    MuJoCo reads ``MUJOCO_GL`` when it is imported and never again. Without ``rendering``, a machine
    that has no OpenGL is fine.
    """
    if rendering or "mujoco" not in sys.modules:
        try:
            backend = choose_backend()
        except RuntimeError:
            if rendering:
                raise
            backend = ""
        if backend and "mujoco" not in sys.modules:
            os.environ["MUJOCO_GL"] = backend
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(NO_MUJOCO) from error
    return mujoco
