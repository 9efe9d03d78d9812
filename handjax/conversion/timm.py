"""Convert backbones of timm (PyTorch image models), with ImageNet weights.

    python -m handjax.convert model.safetensors --from timm --to fastvit_ma36
    python -m handjax.train ... --config.init_from=fastvit_ma36

Any file of one network: `model.safetensors` or `pytorch_model.bin` of a model card,
what `torch.save(model.state_dict())` writes, and Apple's own FastViT files.
"""

from collections.abc import Mapping

import numpy as np

from handjax.conversion import Converted, Options, _backbones

SOURCE = "https://huggingface.co/timm"
LICENCE = "timm's code is Apache-2.0; weights have licences of their own, by model"

_WEIGHTS = {
    "fastvit": "Apple's licence for ml-fastvit (read whether it covers your use)",
    "hiera": "CC-BY-NC-4.0 (non-commercial)",
    "hrnet": "MIT",
    "resnet": "BSD-3-Clause (torchvision's) or Apache-2.0 (timm's)",
    "convnext": "Apache-2.0 or MIT",
    "efficientnet": "Apache-2.0",
    "vit": "Apache-2.0 for most; MAE's are CC-BY-NC-4.0",
}


def convert(state_dict: Mapping[str, np.ndarray], options: Options) -> Converted:
    """Convert the weights of one backbone.

    Raises:
        ConversionError: An entry is missing, unknown or of another shape.
        ValueError: The network is not known, is not `options.name`, or is fused.
    """
    found = _backbones.import_backbone(state_dict, options.name)
    return Converted(
        variables=found.variables,
        backbone=found.name,
        licence=licence(found.name),
        skipped=_backbones.by_rule(found.skipped),
    )


def licence(name: str) -> str:
    """Return the licence of a backbone's published weights, as its name tells."""
    kind = next((kind for kind in _WEIGHTS if name.startswith(kind)), "")
    usual = f"usually {_WEIGHTS[kind]}; " if kind else ""
    return f"{LICENCE}: {usual}see the model card of the file"
