"""Presets for graphics cards, and steps for too little memory: a smaller batch, attention slices, offloading.

When work runs out of memory, the next step is taken and reported, and the work is repeated.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, attach_align_device_hook


@dataclass(frozen=True)
class Card:
    """Starting point on a card: dtype of the weights, largest joint group of keyframes, attention slices, offloading.

    offload: "none"; "encoders" keeps the text and image encoders in the computer's memory and moves each layer to the
    card when it is used; "all" does so with every network.
    """

    dtype: str = "float32"
    group: int | None = None
    slicing: bool = False
    offload: str = "none"


# For the paper profile: UNet 866 M parameters, its copy about 370 M, CLIP ViT-H 632 M, text encoder 340 M and
# autoencoder 84 M make 2.3 G: 4.6 GB in float16 and 9.2 GB in float32. CUDA's context adds 0.5 GB. Activations at
# 448x256 add 1 to 2 GB for m = 4 keyframes, and twice that in float32: most come from the autoencoder's decoder (256
# channels at full size, 0.06 GB a map in float16, about eight alive) and from m keyframes in two halves through the
# UNet (about 0.1 GB each). Without a fused attention kernel, joint attention also stores (4 * 1792)^2 logits for 5
# heads and 2 halves: 1 GB in float16, 2 GB in float32; slices help only the frames between keyframes. Each keyframe and
# each of 32 earlier frames stores the keys and values of its image tokens, 6 MB.
CARDS = {
    "8gb": Card("float16", group=2, slicing=True, offload="encoders"),  # 4.6 - 1.9 + 0.5 + 1 = 4.2 GB
    "12gb": Card("float16", group=4),  # 4.6 + 0.5 + 3 = 8.1 GB
    "16gb": Card("float16"),  # as for 12 GB, with room for 8 keyframes and more at a time
    "24gb": Card("float32"),  # 9.2 + 0.5 + 6 = 15.7 GB: too near to 16 for a card that also draws a screen
}
OFFLOADS = ("none", "encoders", "all")
ENCODERS = ("text_encoder", "image_encoder")
NETWORKS = ("unet", "control", "vae")


class MemoryLadder:
    """Runs work on a pipeline, and takes a step down whenever the device has too little memory for it.

    ``say`` gets one sentence for each step. A first failure only frees cached memory. The steps after it are: half as
    many keyframes at a time (for work that colours several), attention in slices, encoders in the computer's memory,
    all networks there. Steps stay in force for later frames: a film takes each step once.
    """

    def __init__(self, pipe, device: torch.device | str = "cpu", card: Card | None = None, say: Callable = print):
        self.pipe, self.device, self.say = pipe, torch.device(device), say
        card = card or Card()
        self.group = card.group
        self.sliced, self.offload = False, "none"
        self._freed = False
        if card.offload != "none":
            self._move(card.offload)
        self._move_to_device()
        if card.slicing:
            self._slice()

    def run(self, work: Callable[[int | None], object], count: int = 1):
        """Return ``work(group)``, repeated after each step down; its batch has ``count`` frames, at most ``group``.

        Raises ValueError when no step is left.
        """
        while True:
            try:
                result = work(self.group)
            except torch.OutOfMemoryError:
                pass  # leave the handler first: the traceback keeps the tensors alive
            else:
                self._freed = False
                return result
            self._free()
            self._step_down(count)

    def _move_to_device(self) -> None:
        """Move the networks that are not offloaded to the device; offload more if they do not fit."""
        while True:
            kept = {"none": (*NETWORKS, *ENCODERS), "encoders": NETWORKS, "all": ()}[self.offload]
            try:
                for name in kept:
                    getattr(self.pipe, name).to(self.device)
                return
            except torch.OutOfMemoryError:
                pass
            for name in kept:
                getattr(self.pipe, name).to("cpu")
            self._free()
            if not self._offload_more():
                raise _memory_error(self.device)

    def _step_down(self, count: int) -> None:
        batch = min(count, self.group or count)
        if not self._freed:
            self._freed = True  # freed memory, ours or another program's, may be enough
        elif batch > 1:
            self.group = batch // 2
            self.say(f"Too little memory on {self.device}: keyframes are coloured {self.group} at a time.")
        elif not self.sliced:
            self._slice()
            self.say(f"Too little memory on {self.device}: attention is computed in slices, which is slower.")
        elif not self._offload_more():
            raise _memory_error(self.device)

    def _slice(self) -> None:
        self.sliced = True
        for network in (self.pipe.unet, self.pipe.control.unet_copy):
            network.set_attention_slice("max")

    def _offload_more(self) -> bool:
        if self.offload == "all":
            return False
        self._move(OFFLOADS[OFFLOADS.index(self.offload) + 1])
        what = "encoders stay" if self.offload == "encoders" else "all weights stay"
        self.say(f"Too little memory on {self.device}: {what} in the computer's memory, which is slower.")
        return True

    def _move(self, offload: str) -> None:
        """Move networks to the computer's memory; accelerate moves each layer's weights back when it is used."""
        before, self.offload = self.offload, offload
        names = {"none": (), "encoders": ENCODERS, "all": (*ENCODERS, *NETWORKS)}
        for name in names[offload]:
            if name not in names[before]:
                _keep_on_cpu(getattr(self.pipe, name).to("cpu"), self.device)

    def _free(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class _ComputeDevice(ModelHook):
    """Tells diffusers the device of an offloaded network; accelerate's own hook would take its output apart."""

    def __init__(self, device: torch.device):
        self.execution_device = device


def _keep_on_cpu(network: torch.nn.Module, device: torch.device) -> None:
    weights = {name: value.detach() for name, value in network.state_dict().items()}
    add_hook_to_module(network, _ComputeDevice(device), append=True)
    attach_align_device_hook(
        network, execution_device=device, offload=True, offload_buffers=True, weights_map=weights
    )


def _memory_error(device: torch.device) -> ValueError:
    return ValueError(
        f"{device} has too little memory even with all weights in the computer's memory: free some, or give "
        "--device cpu; finished frames are kept."
    )
