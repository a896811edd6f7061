"""A weighted k-nearest-neighbour classifier on frozen features.

It is not trained, and so measures the backbone apart from the continual classifier. Definition: Wu
et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018),
section 3.4.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK_VALUES = 2**24
"""Similarities held at once (64 MiB in float32), whatever the sizes of bank and queries."""


def knn_predict(
    bank: Tensor,
    bank_labels: Tensor,
    queries: Tensor,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """The class of every query, by a vote of its k nearest neighbours.

    `bank` [M, d] and `queries` [Q, d] are features of any floating dtype on one device (half
    precision is raised to float32), `bank_labels` [M] integers in [0, num_classes). A
    neighbour votes for its class with exp(cosine similarity / temperature). A bank of fewer
    than k features votes as a whole. Returns int64 [Q]; a tie goes to the lower class.

    Raises ValueError for shapes that do not fit, an empty bank and labels out of range:
    an unlabelled feature (label -1) has no vote and does not belong in the bank.
    """
    _check(bank, bank_labels, queries, num_classes, k)
    dtype = torch.promote_types(bank.dtype, torch.float32)
    bank = F.normalize(bank.to(dtype), dim=1)
    votes = F.one_hot(bank_labels.long(), num_classes).to(dtype)
    predictions = torch.empty(len(queries), dtype=torch.int64, device=queries.device)
    k = min(k, len(bank))
    rows = max(1, _CHUNK_VALUES // max(len(bank), k * num_classes))
    for start in range(0, len(queries), rows):
        part = F.normalize(queries[start : start + rows].to(dtype), dim=1)
        similarity, neighbours = (part @ bank.T).topk(k, dim=1)
        # Relative to the nearest one: the vote is the same, and no temperature overflows it.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        # A product, not scatter_add, which is not deterministic on GPUs.
        scores = (weight.unsqueeze(1) @ votes[neighbours]).squeeze(1)
        predictions[start : start + rows] = scores.argmax(dim=1)
    return predictions


def _check(bank: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int) -> None:
    if bank.ndim != 2 or queries.ndim != 2 or bank.shape[1] != queries.shape[1]:
        raise ValueError(
            f"bank {tuple(bank.shape)} and queries {tuple(queries.shape)} must be [M, d], [Q, d]"
        )
    if labels.shape != (len(bank),):
        raise ValueError(f"{len(bank)} features in the bank, labels {tuple(labels.shape)}")
    if len(bank) == 0 or k < 1:
        raise ValueError("no neighbours: the bank is empty or k is below 1")
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(f"the labels of the bank do not all lie in [0, {num_classes})")
