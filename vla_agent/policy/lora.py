"""Low-rank adapters on a backbone's linear layers, through peft; without them it is the frozen reference policy.

LoRA (Hu et al., 2021, arXiv 2106.09685, eq. 3) replaces h = W x by h = W x + (alpha / r) B A x: W stays frozen, A of
shape (r, C_in) and B of shape (C_out, r) are trained. B starts at zero, so that training starts from the model itself.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch as th
from torch import nn

from libero_gym.common.checks import choice, did_you_mean, flag, real_number, whole_number

Target = Literal["all-linear", "language"]


@dataclass(frozen=True)
class LoraSettings:
    """Settings that ``lora=dict(...)`` accepts. The defaults are those of VLA-RL (arXiv 2505.18719).

    Attributes:
        r: Rank of the adapters.
        alpha: The adapter's product B A x is multiplied by alpha / r.
        dropout: Dropout of the adapter's input in supervised fine-tuning; PPO scores and samples without.
        target: "all-linear" adapts language model, projector and vision towers, "language" the language model alone.
            Layers that no output depends on are never adapted.
        lm_head: Whether the head over the vocabulary is adapted, too.
    """

    r: int = 32
    alpha: int = 16
    dropout: float = 0.0
    target: Target = "all-linear"
    lm_head: bool = False

    def __post_init__(self) -> None:
        whole_number("lora r", self.r, 1)
        real_number("lora alpha", self.alpha, above=0)
        if real_number("lora dropout", self.dropout, 0, 1) == 1:
            raise ValueError("lora dropout=1 drops everything; expected a number from 0 to below 1.")
        choice("lora target", self.target, get_args(Target))
        flag("lora lm_head", self.lm_head)

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> "LoraSettings":
        """Settings of a dictionary.

        Raises:
            ValueError: If it has another key, or a value is out of range.
        """
        unknown = sorted(set(settings) - set(cls.__dataclass_fields__), key=str)
        if unknown:
            guess = did_you_mean(str(unknown[0]), cls.__dataclass_fields__)
            raise ValueError(
                f"Unknown lora settings {unknown}.{guess} Settings: {', '.join(cls.__dataclass_fields__)}."
            )
        return cls(**settings)


def target_modules(backbone: nn.Module, unused: list[str], settings: LoraSettings) -> list[str]:
    """Names of the linear layers to adapt.

    Args:
        backbone: The model.
        unused: Names of parameters that no output depends on.
        settings: Settings, of which ``target`` and ``lm_head`` decide.

    Raises:
        ValueError: If there is none, or if ``target`` is "language" and the backbone has no language model.
    """
    language = "" if settings.target == "all-linear" else _language_prefix(backbone)
    names = [
        name
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear)
        and (settings.lm_head or name.rsplit(".", 1)[-1] != "lm_head")
        and f"{name}.weight" not in unused
        and (name.startswith(language) or name == "lm_head")
    ]
    if not names:
        raise ValueError(f"The backbone has no linear layers for lora target={settings.target!r}.")
    return names


def _language_prefix(backbone: nn.Module) -> str:
    """How the names of the language model's layers begin.

    OpenVLA has it as a child; models of transformers 5 hold it deeper, under one of two names; others return it from
    ``get_decoder()``.
    """
    modules = dict(backbone.named_modules())
    for child in ("language_model", "text_model"):
        found = [name for name in modules if name.rsplit(".", 1)[-1] == child]
        if found:
            return f"{min(found, key=lambda name: name.count('.'))}."
    get_decoder: Any = getattr(backbone, "get_decoder", lambda: None)
    decoder = get_decoder()
    for name, module in modules.items():
        if module is decoder and name:
            return f"{name}."
    children = ", ".join(name for name, _ in backbone.named_children()) or "no parts"
    raise ValueError(
        f"lora target='language' finds no language model in a {type(backbone).__name__} (no language_model, text_model "
        f"or get_decoder()); it has {children}. Take target='all-linear'."
    )


def add_lora(backbone: nn.Module, settings: LoraSettings, unused: list[str]) -> None:
    """Freezes a backbone and puts trainable adapters beside its linear layers, in place.

    The adapters are float32 even where the backbone is not, since steps of 1e-5 are lost in bfloat16; they compute in
    the backbone's type all the same (`AdaptedLinear`). They start as zero, so that the policy is unchanged.

    Raises:
        ValueError: If the backbone has adapters already.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    from vla_agent.policy.adapted_linear import AdaptedLinear

    if any("lora_" in name for name, _ in backbone.named_parameters()):
        raise ValueError("The model has adapters already; give each policy a model of its own, or a checkpoint's name.")
    names = target_modules(backbone, unused, settings)
    config = LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=names, bias="none"
    )
    # The only way that peft offers to put a class of ours in the place of its layer, and the one that its guide to
    # custom models shows; its name is private and its docstring calls it experimental, so a new peft may break this.
    config._register_custom_module({nn.Linear: AdaptedLinear})
    inject_adapter_in_model(config, backbone)
    for name, parameter in backbone.named_parameters():
        is_adapter = "lora_" in name
        parameter.requires_grad_(is_adapter)
        if is_adapter:
            parameter.data = parameter.data.to(th.float32)
    backbone.train(backbone.training)  # peft makes layers in training mode: their dropout would act in evaluation


def merge_lora(backbone: nn.Module) -> None:
    """Adds the adapters' products to the weights and removes the adapters, in place: a plain model, to export.

    The policy that held them has nothing left to train. Merge in a loaded model, then call
    ``backbone.save_pretrained``.

    Raises:
        ValueError: If there are no adapters.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = {name: module for name, module in backbone.named_modules() if isinstance(module, BaseTunerLayer)}
    if not adapted:
        raise ValueError("The model has no adapters to merge.")
    for name, module in adapted.items():
        module.merge()
        backbone.set_submodule(name, module.get_base_layer())


@contextlib.contextmanager
def disable_adapter(backbone: nn.Module) -> Iterator[None]:
    """Inside, the backbone computes what it did before `add_lora`: the reference policy."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in backbone.modules() if isinstance(module, BaseTunerLayer)]
    # enable_adapters sets requires_grad too; whoever froze an adapter wants it frozen afterwards.
    trainable = {parameter: parameter.requires_grad for layer in layers for parameter in layer.parameters()}
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, requires_grad in trainable.items():
            parameter.requires_grad_(requires_grad)
