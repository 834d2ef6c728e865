"""The 1,797 handwritten digits from UCI that scikit-learn made popular: data without a download.

They are next to this module in ``digits.npz``: ``pixels``, uint8 of shape (1797, 8, 8) with values
0 to 16, and ``classes``, uint8 of shape (1797,), in the order of ``sklearn.datasets.load_digits``.
The dataset is licensed under CC BY 4.0; `read_digits` and the file NOTICE name its authors and
source.
"""

from importlib import resources

import numpy as np
import torch

from tensorpress.data.images import ImageSet


def read_digits() -> tuple[ImageSet, ImageSet]:
    """Return 1,797 digits of 8x8 pixels; every third one of each class is a test image.

    Grey values 0 to 16 are scaled to 0 to 255. The split depends only on the data.

    Returns
    -------
    train, test : ImageSet
        1,201 and 596 images of shape ``(N, 1, 8, 8)``, in the order of scikit-learn.

    References
    ----------
    E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49 (the part ``optdigits.tes``), CC BY 4.0.

    Examples
    --------
    >>> train, test = read_digits()
    >>> len(train), len(test), int(train.images.max())
    (1201, 596, 255)
    """
    path = resources.files("tensorpress.data").joinpath("digits.npz")
    with path.open("rb") as file, np.load(file) as arrays:
        pixels, classes = arrays["pixels"], arrays["classes"].astype(np.int64)
    grey = np.rint(pixels * (255 / 16)).astype(np.uint8)[:, None]
    digits = ImageSet(torch.from_numpy(grey), torch.from_numpy(classes))
    # Number of earlier digits of the same class: every third is a test image.
    earlier = np.zeros(len(digits), np.int64)
    for label in range(10):
        members = np.flatnonzero(classes == label)
        earlier[members] = np.arange(len(members))
    in_test = earlier % 3 == 2
    train, test = np.flatnonzero(~in_test), np.flatnonzero(in_test)
    return digits.subset(torch.from_numpy(train)), digits.subset(torch.from_numpy(test))
