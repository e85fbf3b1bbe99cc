"""Tensors from safetensors files, and pretrained weights fitted to an encoder of one or three input channels."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from radgaze.errors import InputError

__all__ = ["load_encoder_weights", "read_tensors"]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        InputError: The file is damaged, or of another kind.
    """
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"The weights file {str(path)!r} is damaged ({error}); restore it or train again.") from error


def load_encoder_weights(encoder: nn.Module, path: Path) -> None:
    """Load a safetensors file of ImageNet weights; the classifier's own layers in it are ignored."""
    if path.suffix != ".safetensors":
        raise InputError(
            f"Weights {str(path)!r} are not a .safetensors file; convert them with safetensors.torch.save_file "
            "(pickled weights are never loaded)."
        )
    if not path.is_file():
        raise InputError(f"There is no weights file {str(path)!r}; give an existing .safetensors file.")
    state = read_tensors(path)
    wanted = encoder.state_dict()
    prefix = "model." if any(key.startswith("model.") for key in wanted) else ""  # timm networks sit under `model`
    found = {prefix + key: value for key, value in state.items() if prefix + key in wanted} or {
        key: value for key, value in state.items() if key in wanted
    }
    for key, value in found.items():
        if key.endswith("weight") and value.ndim == 4 and value.shape[1] == 3 and wanted[key].shape[1] == 1:
            found[key] = value.sum(1, keepdim=True)  # a grey image repeated thrice meets the sum of the colour taps
    missing = sorted(key for key in wanted if key not in found and not key.endswith("num_batches_tracked"))
    wrong = sorted(key for key, value in found.items() if value.shape != wanted[key].shape)
    if missing or wrong:
        problem = f"lack {missing[0]!r}" if missing else f"have another shape for {wrong[0]!r}"
        raise InputError(
            f"The weights in {str(path)!r} {problem} ({len(missing) + len(wrong)} tensors do not fit); "
            "give the weights of this very encoder."
        )
    encoder.load_state_dict(found, strict=False)
