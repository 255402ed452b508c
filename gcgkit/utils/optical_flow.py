"""Dense optical flow between two frames, and warping along it, by OpenCV."""

import cv2
import numpy as np

_SMALLEST_SIDE = 32  # DIS builds a pyramid of 8-pixel patches and reads outside of very small images


def optical_flow(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Dense DIS optical flow ``(H, W, 2)``, x and y in pixels, from gray `source` to `target`, uint8 ``(H, W)``.

    Pixel p of `source` is seen at p + flow(p) in `target`. Raises ValueError if the sizes differ.
    """
    if source.shape != target.shape:
        raise ValueError(f"source and target differ in size: {source.shape} and {target.shape}.")
    height, width = source.shape
    extra = (0, max(0, _SMALLEST_SIDE - height), 0, max(0, _SMALLEST_SIDE - width))  # top, bottom, left, right
    if any(extra):
        source = cv2.copyMakeBorder(source, *extra, cv2.BORDER_REPLICATE)
        target = cv2.copyMakeBorder(target, *extra, cv2.BORDER_REPLICATE)
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = dis.calc(np.ascontiguousarray(source), np.ascontiguousarray(target), None)
    return flow[:height, :width]


def warp(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Sample ``image(p + flow(p))`` for each pixel p, linearly, edges repeated; image ``(H, W)`` or ``(H, W, C)``."""
    height, width = flow.shape[:2]
    x = np.arange(width, dtype=np.float32)[None, :] + flow[..., 0]
    y = np.arange(height, dtype=np.float32)[:, None] + flow[..., 1]
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
