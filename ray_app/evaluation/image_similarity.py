"""How similar two images are: PSNR and SSIM. Knows scikit-image and encoded bytes; nothing of steps or files."""

from typing import Any, NamedTuple

import numpy as np

from ray_app.image_files import decode as decode

SIGMA, WINDOW = 1.5, 11
"""The Gaussian window of SSIM's authors (Wang et al. 2004): standard deviation and width in pixels."""


class Similarity(NamedTuple):
    """Similarity of two images of the same size; equal ones have infinite PSNR and an SSIM of 1."""

    psnr: float
    """Peak signal-to-noise ratio in dB, over all channels."""
    ssim: float
    """Structural similarity, the mean over pixels and channels; at most 1."""


def compare(image: np.ndarray, reference: np.ndarray) -> Similarity:
    """PSNR and SSIM of two images, uint8 (height, width, 3).

    Raises:
        ValueError: they differ in size, or are smaller than SSIM's window.
    """
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    if image.shape != reference.shape:
        raise ValueError(f"{image.shape[1]}x{image.shape[0]} pixels, not {reference.shape[1]}x{reference.shape[0]}")
    if min(reference.shape[:2]) < WINDOW:
        raise ValueError(f"smaller than SSIM's window of {WINDOW} pixels")
    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(reference, image, data_range=255)
    ssim: Any = structural_similarity(
        reference, image, channel_axis=2, data_range=255, gaussian_weights=True, sigma=SIGMA,
        use_sample_covariance=False,
    )  # fmt: skip
    return Similarity(float(psnr), float(ssim))
