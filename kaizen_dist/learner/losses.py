"""The formulas of the self-supervised losses and of the classifier, as pure functions.

Every function takes this rank's rows and keeps THE RULE of `gather`. Tensors are floating
point of one dtype, which is also that of the result; half precision is cast to float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kaizen_dist.learner.gather import Gather, gather_together, own_rows
from kaizen_dist.learner.precision import full_precision

_HIDDEN = -1e9


@full_precision
def regression_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos, mean over the rows of [n, d]; the target is a constant (BYOL, eq. 2)."""
    return 2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=-1).mean()


@full_precision
def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """-cos, mean over the rows of [n, d]; the target is a constant (SimSiam, eq. 1)."""
    return -F.cosine_similarity(prediction, target.detach(), dim=-1).mean()


@full_precision
def nt_xent(z1: Tensor, z2: Tensor, temperature: float, gather: Gather) -> Tensor:
    """SimCLR's NT-Xent (arXiv 2002.05709, eq. 1) of two views [n, d], mean over 2n rows.

    Each row's positive is the other view of its image; the denominator has all 2N columns of
    the global batch but the row itself.
    """
    rows = F.normalize(torch.cat([z1, z2]), dim=-1)
    itself = own_rows(gather, rows)
    logits = rows @ gather.all_gather(rows).T / temperature
    logits = logits.scatter(1, itself[:, None], -torch.inf)
    return F.cross_entropy(logits, itself.roll(len(z1)))


@full_precision
def supervised_contrastive(
    z1: Tensor, z2: Tensor, labels: Tensor, temperature: float, gather: Gather
) -> Tensor:
    """SupCon (arXiv 2004.11362, eq. 2) of two views [n, d], mean over the labelled rows.

    A row's positives are all rows of its class in the global batch but itself. Unlabelled images
    (`labels` int64 [n], -1) are neither rows nor columns; where there is no other the loss is 0.
    """
    rows, own = F.normalize(torch.cat([z1, z2]), dim=-1), labels.repeat(2)
    theirs = gather.all_gather(own)
    itself = own_rows(gather, rows)[:, None]
    hidden = (theirs == -1).expand(len(rows), -1).scatter(1, itself, True)
    logits = rows @ gather.all_gather(rows).T / temperature
    shares = logits.masked_fill(hidden, _HIDDEN).log_softmax(dim=1)
    positive = ((own[:, None] == theirs) & ~hidden & (own != -1)[:, None]).to(shares.dtype)
    of_row = -(positive * shares).sum(1) / positive.sum(1).clamp(min=1)
    return gather.world_size * of_row.sum() / (theirs != -1).sum().clamp(min=1)


@full_precision
def contrastive_distillation(
    p1: Tensor, p2: Tensor, old1: Tensor, old2: Tensor, temperature: float, gather: Gather
) -> Tensor:
    """CaSSLe's contrastive distillation of both views, [n, d] each, symmetrised.

    A row's positive is the teacher's projection of the same view; the denominator has all 2N
    projections of the global batch (arXiv 2112.04215, sec. 4).
    """
    new = F.normalize(torch.cat([p1, p2]), dim=-1)
    old = F.normalize(torch.cat([old1, old2]), dim=-1)
    itself = own_rows(gather, new)
    forth = F.cross_entropy(new @ gather.all_gather(old).T / temperature, itself)
    back = F.cross_entropy(old @ gather.all_gather(new).T / temperature, itself)
    return (forth + back) / 2


@full_precision
def info_nce(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """MoCo's InfoNCE (arXiv 1911.05722, eq. 1), mean over the rows of query and key [n, d].

    The negatives are the queue [K, d]. All rows are normalised already; the queue is a constant
    and the same on all ranks, so that the own rows suffice.
    """
    positive = (query * key).sum(1, keepdim=True)
    logits = torch.cat([positive, query @ queue.detach().T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))


@full_precision
def in_batch_info_nce(
    q1: Tensor, q2: Tensor, key1: Tensor, key2: Tensor, temperature: float, gather: Gather
) -> Tensor:
    """MoCo v3's loss (arXiv 2104.02057, alg. 1) of both views' queries and keys, [n, d] each.

    ctr(q1, key2) + ctr(q2, key1), where ctr is InfoNCE times 2 temperature: a query's positive is
    the other view's key of its image, its negatives are that view's keys of all other images of
    the global batch. There is no queue. The keys are constants.
    """
    constants = (F.normalize(key.detach(), dim=-1) for key in (key1, key2))
    columns1, columns2 = gather_together(gather, *constants)
    itself = own_rows(gather, q1)
    forth = F.cross_entropy(F.normalize(q1, dim=-1) @ columns2.T / temperature, itself)
    back = F.cross_entropy(F.normalize(q2, dim=-1) @ columns1.T / temperature, itself)
    return 2 * temperature * (forth + back)


@full_precision
def variance(z: Tensor) -> Tensor:
    """VICReg's hinge on the standard deviation of every dimension of [N, d] (2105.04906, eq. 1)."""
    return F.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()


@full_precision
def covariance(z: Tensor) -> Tensor:
    """VICReg's squared covariances off the diagonal of [N, d], summed, over d (eq. 4)."""
    centred = z - z.mean(dim=0)
    cov = centred.T @ centred / (len(z) - 1)
    return _off_diagonal(cov).square().sum() / z.shape[1]


@full_precision
def cross_correlation_loss(
    z1: Tensor, z2: Tensor, off_diagonal: float, scale: float, gather: Gather
) -> Tensor:
    """Barlow Twins (arXiv 2103.03230, eq. 1) of [n, d] and [n, d], times `scale`.

    The correlation is over the global batch, and should be the identity.
    """
    whole = gather_together(gather, z1, z2)
    a, b = (F.batch_norm(z, None, None, training=True) for z in whole)
    correlation = a.T @ b / len(a)
    invariance = (correlation.diagonal() - 1).square().sum()
    redundancy = _off_diagonal(correlation).square().sum()
    return scale * (invariance + off_diagonal * redundancy)


def _off_diagonal(square: Tensor) -> Tensor:
    """The d (d - 1) entries of [d, d] off its diagonal."""
    d = len(square)
    return square.flatten()[1:].view(d - 1, d + 1)[:, :-1].flatten()


@full_precision
def adjusted_logits(logits: Tensor, seen: Tensor, tau: float) -> Tensor:
    """Logits [..., C] + tau log(share of each class), for a loss that is to be balanced.

    `seen` int64 [C] counts the labels met; one not met yet counts as met once
    (arXiv 2007.07314, eq. 10).
    """
    counts = seen.clamp(min=1).to(logits.dtype)
    return logits + tau * (counts / counts.sum()).log()


@full_precision
def without_classes(logits: Tensor, hidden: Tensor | None) -> Tensor:
    """Logits [..., C] in which the classes of the mask `hidden` [C] have no probability.

    The number in their place is finite: a probability of 0 times its logarithm is 0.
    """
    return logits if hidden is None else logits.masked_fill(hidden, _HIDDEN)


@full_precision
def with_new_classes(logits: Tensor, classes: int, hidden: Tensor | None) -> Tensor:
    """A teacher's logits [..., K] as [..., C] of the `classes` that are known now.

    The classes that it does not know, and those of the mask `hidden` [C], have no probability: it
    holds the student's new classes down on images of old ones, as the paper's softmax over all
    classes does.
    """
    grown = F.pad(logits, (0, classes - logits.shape[-1]), value=_HIDDEN)
    return without_classes(grown, hidden)


@full_precision
def classification_loss(logits: Tensor, labels: Tensor, gather: Gather) -> Tensor:
    """Cross-entropy of the labelled images, summed over the views (L_C^CT).

    `logits` is [views, n, C], `labels` int64 [n] with -1 = unlabelled. The mean is over the
    labelled images of the global batch; where there is none the loss is 0, with a gradient of 0.
    """
    labelled = gather.all_gather((labels != -1).sum().reshape(1)).sum().clamp(min=1)
    local = F.cross_entropy(
        logits.flatten(0, 1), labels.repeat(len(logits)), ignore_index=-1, reduction="sum"
    )
    return gather.world_size * local / labelled
