"""Predictions of a run, batch by batch; nothing of a whole cohort is held in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from radgaze.cohort import Cohort
from radgaze.models import Output
from radgaze.training.attention import AttentionTarget
from radgaze.training.data import Batch, Batches, CohortDataset, Loader

__all__ = ["predict_studies", "probabilities"]


@torch.no_grad()
def predict_studies(
    network: nn.Module,
    cohort: Cohort,
    studies: Sequence[int],
    *,
    attention: AttentionTarget | None = None,
    batch_size: int = 16,
    precision: str = "fp32",
) -> Iterator[tuple[Batch, Output]]:
    """Run ``network`` over some studies of ``cohort``, in their order.

    Args:
        network: In evaluation mode, on any device.
        cohort: Open cohort of the size the network was trained for.
        studies: Rows of ``cohort.studies``.
        attention: Also load the attention target of each study.
        batch_size: Studies per forward pass.
        precision: ``"fp32"`` or ``"bf16"``.

    Yields:
        The batch and the network's output, both on the network's device.
    """
    device = next(network.parameters()).device
    network = network.to(memory_format=torch.channels_last)
    dataset = CohortDataset(cohort, np.asarray(studies, dtype=np.int64), attention)
    batches = Batches(len(dataset), batch_size, shuffle=False)
    for batch in Loader(dataset, batches, workers=0, pin=device.type == "cuda"):
        batch = batch.to(device, channels_last=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = network(batch.images)
        yield batch, output


def probabilities(logits: Tensor, task: str) -> Tensor:
    """``(B, C)`` probabilities in float32: softmax over classes, or a sigmoid per label of a multi-label cohort."""
    return logits.float().sigmoid() if task == "multilabel" else logits.float().softmax(1)
