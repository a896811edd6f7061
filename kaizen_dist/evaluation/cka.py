"""How alike two representations of the same images are: linear centred kernel alignment.

In come the features of two networks, out goes a number in [0, 1]. Between a network after one
task and after another it says how far its features have drifted, whatever their rotation.
"""

import torch
from torch import Tensor


def linear_cka(first: Tensor, second: Tensor) -> float:
    """CKA with a linear kernel of features [n, d] and [n, e] of the same n images.

    1 for features that differ by a rotation, a scale and a shift only; about 0 for unrelated
    ones (Kornblith et al., arXiv 1905.00414, eq. 3). NaN where one of them does not vary.

    Raises ValueError for shapes that do not fit.
    """
    if first.ndim != 2 or second.ndim != 2 or len(first) != len(second):
        raise ValueError(
            f"features {tuple(first.shape)} and {tuple(second.shape)} are not of the same images"
        )
    x, y = (features.double() - features.double().mean(dim=0) for features in (first, second))
    # Over the features, not over the images: d and e are small, n need not be.
    cross = torch.linalg.matrix_norm(y.T @ x).square()
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(cross / own)
