"""Moments of a film side by side, as the README's picture: python results/filmstrip.py runs/starter/videos/final.mp4"""

import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np

MOMENTS = (0, 20, 40, 60, 99)  # agent steps; Meta-World episodes have 100

frames = imageio.mimread(sys.argv[1], memtest=False)
gap = np.full((frames[0].shape[0], 8, 3), 255, np.uint8)
strip = [part for t in MOMENTS for part in (frames[min(t, len(frames) - 1)], gap)][:-1]
imageio.imwrite(Path(__file__).with_name("starter.png"), np.concatenate(strip, 1))
