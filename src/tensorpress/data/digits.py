"""The handwritten digits that come with scikit-learn: real data without a download."""

import numpy as np
import torch

from tensorpress.data.images import ImageSet


def read_digits() -> tuple[ImageSet, ImageSet]:
    """Return 1,797 digits of 8x8 pixels, every third one of each class as the test part.

    Grey values 0 to 16 are scaled to 0 to 255. The split depends on nothing but the data.

    Returns
    -------
    train, test : ImageSet
        1,201 and 596 images of shape ``(N, 1, 8, 8)``, in the order of scikit-learn.

    References
    ----------
    E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning
    Repository, 1998.

    Examples
    --------
    >>> train, test = read_digits()
    >>> len(train), len(test), int(train.images.max())
    (1201, 596, 255)
    """
    from sklearn.datasets import load_digits  # seconds that only who reads the digits waits

    pixels, classes = load_digits(return_X_y=True)
    grey = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    digits = ImageSet(torch.from_numpy(grey), torch.from_numpy(classes.astype(np.int64)))
    seen_of_class = np.zeros(len(digits), np.int64)
    for label in range(10):
        members = np.flatnonzero(classes == label)
        seen_of_class[members] = np.arange(len(members))
    held_out = seen_of_class % 3 == 2
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return digits.subset(torch.from_numpy(train)), digits.subset(torch.from_numpy(test))
