"""Several processes that train one network: on the devices of one machine, or on several nodes.

They compute what one process would with batches as many times as large: the global batches are the same
(:class:`~radgaze.training.data.Batches`), a loss is the mean over the studies of all processes, and batch statistics
are taken over all of them. So a training on four devices equals one with four times the batch size, but for rounding
and for dropout, which each process draws for itself.
"""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn

from radgaze.errors import InputError
from radgaze.training.config import RunConfig

__all__ = ["is_first_process", "make_fabric", "process_count", "synchronise_norms"]


def is_first_process() -> bool:
    """Whether this is the only process or rank 0 of several (torchrun, SLURM, or Lightning's own launcher)."""
    for variable in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if variable in os.environ:
            return os.environ[variable] == "0"
    return True


def process_count() -> int:
    """How many processes train together; 1 before :func:`make_fabric` has started them."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def make_fabric(config: RunConfig) -> Fabric:
    """Start the other processes, or join them where torchrun or SLURM has started them already.

    Raises:
        InputError: The launcher has started another number of processes than the settings say, or there is no such
            accelerator.
    """
    check_launcher(config)
    gpus = torch.cuda.device_count() if config.accelerator != "cpu" else 0
    devices = max(1, gpus) if config.devices == "auto" else config.devices
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's tips are not the user's problem
        logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
        try:
            fabric = Fabric(
                accelerator=config.accelerator,
                devices=config.devices,
                num_nodes=config.nodes,
                # single-task schemes leave a head unused
                strategy=DDPStrategy(find_unused_parameters=True) if config.nodes * devices > 1 else "auto",
            )
        except (ValueError, RuntimeError) as error:  # Lightning's own checks of devices and of SLURM's variables
            first = str(error).split("\n")[0]
            raise InputError(
                f"accelerator={config.accelerator}, devices={config.devices}, nodes={config.nodes} cannot be had here: "
                f"{first}"
            ) from None
        fabric.launch()
    return fabric


def check_launcher(config: RunConfig) -> None:
    """torchrun says how many processes it has started; each of them would otherwise train a run of its own."""
    started = os.environ.get("WORLD_SIZE")
    if started is None or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    each = os.environ.get("LOCAL_WORLD_SIZE", "1")
    nodes = int(started) // int(each)
    devices = int(each) if config.devices == "auto" else config.devices
    if (devices, config.nodes) != (int(each), nodes):
        raise InputError(
            f"torchrun has started {each} processes on each of {nodes} nodes, but devices is {config.devices} and "
            f"nodes is {config.nodes}; give --devices {each} --nodes {nodes}."
        )


class Summed(torch.autograd.Function):
    """The sum of a tensor over all processes; each one's loss depends on it, so their gradients add up too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, on a processor: PyTorch's own is for GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        return synced_norm(self, x) if self.training else super().forward(x)


class SyncedBatchNormAct2d(BatchNormAct2d):
    """The same with timm's activation behind it."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.drop(synced_norm(self, x))) if self.training else super().forward(x)
        return out


SYNCED: dict[type[nn.Module], type[nn.BatchNorm2d]] = {
    nn.BatchNorm2d: SyncedBatchNorm2d,
    BatchNormAct2d: SyncedBatchNormAct2d,
}


def synchronise_norms(module: nn.Module, device: torch.device) -> None:
    """Let the batch normalisations of ``module`` see the batches of all processes, in place.

    Raises:
        InputError: On a processor, a kind of batch normalisation that is not known here.
    """
    if device.type != "cpu":
        convert_sync_batchnorm(module)
        return
    for name, norm in module.named_modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            if type(norm) not in SYNCED:
                raise InputError(
                    f"The network's {name} is a {type(norm).__name__}, whose statistics cannot be taken over several "
                    "processes on a CPU; train with one device and one node."
                )
            norm.__class__ = SYNCED[type(norm)]  # the same module, with its weights, hooks and place


def synced_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Normalise ``(B, C, h, w)`` by mean and variance over the batches of all processes, and keep them as usual."""
    values = x.float()
    count = Summed.apply(values.new_tensor(float(values.numel() // values.shape[1])))
    mean = Summed.apply(values.sum((0, 2, 3))) / count
    centred = values - mean.view(1, -1, 1, 1)
    variance = Summed.apply(centred.square().sum((0, 2, 3))) / count
    if norm.track_running_stats:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        with torch.no_grad():
            norm.running_mean.lerp_(mean, share)
            norm.running_var.lerp_(variance * count / (count - 1).clamp(min=1), share)
    scale = (variance + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight
    out = centred * scale.view(1, -1, 1, 1)
    if norm.affine:
        out = out + norm.bias.view(1, -1, 1, 1)
    return out.to(x.dtype)
