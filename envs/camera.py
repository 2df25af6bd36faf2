"""Frames of a MuJoCo model, drawn off-screen: OpenGL is loaded with the first frame and not before.

MuJoCo and dm_control choose OpenGL, and dm_control opens it, while they are *imported*. A process that only reads
states would pay 55 MB and a quarter second for a display nobody looks at, and would fail where no library is installed.
So simulators are imported here with OpenGL off, and the choice is made when a frame is asked for:
    MUJOCO_GL = egl, osmesa, glfw or cgl   that one
    Linux                                  egl (GPU, or Mesa on the CPU) if the library is there, else osmesa (CPU);
                                           neither needs a display
    macOS, Windows                         cgl, glfw: MuJoCo's choice there
Own tasks (custom.py) draw by themselves; their packages get the same choice when frames are asked for.
NOTE: the price is that the packages' own renderers (dm_control's physics.render, mujoco.Renderer) are off in a process
that imports them through envs.make first. Import the package yourself before that if you want both.
Test: pytest tests/test_envs.py -k "frame or gl"
"""

import atexit
import importlib
import os
import sys
import weakref
from contextlib import contextmanager, nullcontext
from ctypes.util import find_library

import numpy as np

SIZE = 224  # pixels, both sides
OFF = ("disable", "disabled", "off", "false", "0")  # MuJoCo's words for: no OpenGL at all


@contextmanager
def use_gl(backend: str):
    """MUJOCO_GL is this inside the block, and as before afterwards."""
    before = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = backend
    try:
        yield
    finally:
        del os.environ["MUJOCO_GL"]
        if before is not None:
            os.environ["MUJOCO_GL"] = before


def import_without_gl():
    """Simulators that are imported inside this block leave OpenGL alone."""
    return use_gl("disabled")


@contextmanager
def packages_draw():
    """Inside, packages that draw by themselves use the OpenGL chosen below, even if they were imported without it.

    Raises RuntimeError, one line that names the Debian packages, if it can't be used on this machine, or is turned off.
    """
    loaded = [name for name in ("mujoco.gl_context", "dm_control._render") if name in sys.modules]
    if not loaded:
        yield
        return
    with use_gl(choose_backend()):
        try:
            for name in loaded:  # they look at MUJOCO_GL when they are executed
                importlib.reload(sys.modules[name])
        except Exception as error:
            raise RuntimeError(_no_frames(error)) from error
        yield


def _no_frames(error: Exception) -> str:
    return (
        f"no frames: OpenGL ({os.environ.get('MUJOCO_GL') or choose_backend()}) doesn't start: {error}. On Debian or "
        "Ubuntu: `apt-get install libegl1 libgl1-mesa-dri` with MUJOCO_GL unset, or `apt-get install libosmesa6` with "
        "MUJOCO_GL=osmesa"
    )


def choose_backend() -> str:
    """egl, osmesa, glfw or cgl: the module of `mujoco` that opens OpenGL (header). RuntimeError if it's turned off."""
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    if wanted in OFF:
        raise RuntimeError(f"no frames: MUJOCO_GL={wanted} turns OpenGL off; unset it")
    if wanted in ("egl", "osmesa", "glfw", "cgl"):
        return wanted
    if sys.platform != "linux":
        return "cgl" if sys.platform == "darwin" else "glfw"
    return "egl" if find_library("EGL") else "osmesa"


@contextmanager
def _plain(model):
    """Inside, what OpenGL makes for this model has no shadow map and one sample per pixel: a third of the memory."""
    quality, size = model.vis.quality, model.vis.global_
    before = quality.shadowsize, quality.offsamples, size.offwidth, size.offheight
    quality.shadowsize, quality.offsamples, size.offwidth, size.offheight = 0, 0, SIZE, SIZE
    try:
        yield
    finally:
        quality.shadowsize, quality.offsamples, size.offwidth, size.offheight = before


class Camera:
    """Draws one model, from one of its cameras or a free one. Reads the simulation, never changes it."""

    def __init__(self, model, camera, frames: str = "full"):
        """Open OpenGL.

        model   mujoco.MjModel
        camera  index of one of the model's cameras, or a mujoco.MjvCamera of one's own
        frames  full, as the packages draw; or fast, without shadows, reflections and multisampling: on a CPU these are
                nine tenths of the time, and 100 of the 160 MB that a camera of Meta-World takes
        Raises RuntimeError, one line that names the Debian packages, if OpenGL can't be used on this machine.
        """
        import mujoco

        self.context = None
        backend = choose_backend()
        try:
            self.context = importlib.import_module(f"mujoco.{backend}").GLContext(SIZE, SIZE)
            self.context.make_current()
            with _plain(model) if frames == "fast" else nullcontext():
                self.target = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # no library, no driver, no display: each backend has its own error for each
            raise RuntimeError(_no_frames(error)) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.target)
        self.mujoco, self.model, self.option = mujoco, model, mujoco.MjvOption()
        self.view, self.rect = camera, mujoco.MjrRect(0, 0, SIZE, SIZE)
        if not isinstance(camera, mujoco.MjvCamera):
            self.view = mujoco.MjvCamera()
            self.view.type, self.view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        self.scene = mujoco.MjvScene(model, maxgeom=2000)
        if frames == "fast":
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self.scene.flags[flag] = False
        # At exit, close before the backend closes its display (registered earlier, so it runs later): the other order
        # prints errors. Weak, so that a camera that nobody holds can go.
        camera_or_none = weakref.ref(self)
        atexit.register(lambda: camera_or_none() and camera_or_none().close())

    def frame(self, data) -> np.ndarray:
        """data: mujoco.MjData of that model  ->  (224, 224, 3) uint8, first row on top."""
        mujoco, rgb = self.mujoco, np.empty((SIZE, SIZE, 3), np.uint8)
        self.context.make_current()
        mujoco.mjv_updateScene(self.model, data, self.option, None, self.view, mujoco.mjtCatBit.mjCAT_ALL, self.scene)
        mujoco.mjr_render(self.rect, self.scene, self.target)
        mujoco.mjr_readPixels(rgb, None, self.rect, self.target)
        return rgb[::-1].copy()  # OpenGL counts rows from the bottom

    def close(self):
        """Give OpenGL's memory back. A second call does nothing."""
        if self.context:
            self.context.make_current()
            self.target.free()
            self.context.free()
            self.context = None

    __del__ = close  # MuJoCo's own order of freeing is not safe
