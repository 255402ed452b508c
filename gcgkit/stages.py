"""The two stages of colouring, on latents: keyframes jointly (§3.3), then every other frame with references (§3.4).

The stages come first, then ``Run`` with the steps that both take, in their order: encode, gather references, guide,
put the colours on. Between the last two the frames are denoised (``denoising``). Frames go through one at a time, or a
few, so that memory does not grow with the clip.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import torch

from . import attention, encoders, keyframes, srg
from .color import merge_luminance, to_gray
from .denoising import DenoisingLoop
from .guidance import GuidanceOutput
from .references import (
    OUTSIDE,
    Guides,
    Reference,
    ReferencePool,
    ReferenceRun,
    choose_keyframes,
    frames_in_a_row,
    join_references,
    on_luminance,
    run_lengths,
)  # fmt: skip
from .settings import Settings
from .utils import compilation

TOGETHER = 8  # frames that go through the autoencoder at once on a GPU
PICTURES = 32  # through the image encoder, whose pictures are small: launching its kernels takes longer than they do


def color_keyframes(
    run: Run, gray: np.ndarray, exemplars: dict, others: list[Reference], offset: int = 0, show: bool = False
) -> tuple[dict[int, np.ndarray], dict[int, list[ReferenceRun]]]:
    """Stage 1 (§3.3) of a clip ``(T, H, W)``: choose its keyframes and colour them jointly.

    exemplars: as ``check_exemplars`` gives them. others: references from outside the clip. offset: number of the clip's
    first frame. Returns the keyframes, exemplars included, in order of time, and the record of their references.
    """
    given = {i: on_luminance(gray[i], e) for i, e in exemplars.items() if i != OUTSIDE}
    exemplified = bool(given) or any(reference.frame == OUTSIDE for reference in others)
    literal = run.settings.exemplar_mode == "literal" and exemplified
    if literal:
        chosen = frames_in_a_row(given, run.settings.num_keyframes, len(gray))
    else:
        chosen = choose_keyframes(given, gray, run.settings, run.encode, run.seed)
    colored = {i + offset: frame for i, frame in given.items()}
    todo = [i for i in chosen if i not in given]
    if not todo:
        return colored, {}
    references = [] if literal else [*others, *run.clip_references(gray, colored, offset)]
    numbers = tuple(i + offset for i in todo)
    with run.bar(run.settings.num_inference_steps, "Keyframes") if show else nullcontext() as bar:
        result, record = color_jointly(run, gray[todo], numbers, references, bar)
    colored.update(zip(numbers, result, strict=True))
    return dict(sorted(colored.items())), record


def color_jointly(
    run: Run, gray: np.ndarray, frames: tuple[int, ...], exemplars: list[Reference], bar=None
) -> tuple[list[np.ndarray], dict[int, list[ReferenceRun]]]:
    """Colour m keyframes ``(m, H, W)`` as one batch with joint self-attention (Eq. 8).

    Without exemplars the references are masked; with some, each frame has its nearest as reference grid. Returns the
    coloured frames and, with exemplars, the record of which guided which.
    """
    settings = run.settings
    latents, semantics = run.encode(*gray), run.recognise(*gray)  # (m, C, h, w), (m, S, h, w)
    guided = bool(exemplars) and not settings.reference_mask
    nearest: list[Guides] = [([], []) for _ in frames]
    if guided:
        pool = ReferencePool(settings.dissimilarity, None, settings.network)
        for (references, _), image, latent in zip(nearest, gray, latents, strict=True):
            order = np.argsort(pool.distance(run.describe(image, latent[None]), exemplars), kind="stable")
            references += [exemplars[i] for i in order[: settings.grid_size if settings.use_srg else 1]]
    timesteps = run.denoiser.timesteps(guided)
    guidance = run.guidance(latents, semantics, [nearest] * len(timesteps))
    with attention.joint_self_attention(run.pipe.unet, len(frames)) if len(frames) > 1 else nullcontext():
        clean = run.denoiser(latents, frames, "keyframes", timesteps, guidance, guided, bar)
    used = [tuple(reference.frame for reference in references) for references, _ in nearest]
    record = {frame: [ReferenceRun(len(timesteps), u, ())] for frame, u in zip(frames, used, strict=True) if guided}
    return run.finish(clean, gray), record


def color_in_order(
    run: Run, frames: Iterable[tuple[int, np.ndarray]], colored_keys: dict[int, np.ndarray], pool: ReferencePool
) -> Iterator[tuple[int, np.ndarray, list[ReferenceRun]]]:
    """Stage 2 (§3.4) for frames ``(number, gray (H, W))``: yield (number, coloured frame, record) as they are done.

    That is in time order, unless ``side_by_side`` stretches are coloured at once. Keyframes come out as they are in
    ``colored_keys``, with no record; the others join the pool once a later frame needs it.
    """
    ahead = None  # gray latents of the batch that comes next
    for batch, following in _batches(frames, colored_keys, run.settings.side_by_side):
        if batch[0][0] in colored_keys:
            yield from ((number, colored_keys[number], []) for number, _ in batch)
            continue
        numbers, gray = zip(*batch, strict=True)
        if pool.latest is not None:
            pool.past.extend(run.references(*pool.latest))
            pool.latest = None
        latents = run.encode(*gray) if ahead is None else ahead
        clean, descriptors, records = denoise_with_references(run, gray, latents, numbers, pool)
        merging = run.start_to_finish(clean, gray)
        # A GPU encodes the next frames while the colours of these are put on.
        ahead = run.encode(*(image for _, image in following)) if following else None
        colored = [frame.result() for frame in merging]
        if run.keeps_past:
            copies = [frame.copy() for frame in colored]  # the caller may draw on a frame
            pool.latest = numbers, gray, copies, latents, descriptors
        yield from zip(numbers, colored, records, strict=True)


def color_frame(
    run: Run, gray: np.ndarray, frame: int, pool: ReferencePool
) -> tuple[np.ndarray, Reference | None, list[ReferenceRun]]:
    """Stage 2 for one frame ``(H, W)``.

    Returns the coloured frame, the same as a reference for later frames (None where they need none), and the record of
    the references that guided it.
    """
    latents = run.encode(gray)
    clean, descriptors, (record,) = denoise_with_references(run, [gray], latents, (frame,), pool)
    (colored,) = run.finish(clean, [gray])
    if not run.keeps_past:
        return colored, None, record
    return colored, run.references([frame], [gray], [colored.copy()], latents, descriptors)[0], record


def denoise_with_references(
    run: Run, gray: Sequence[np.ndarray], latents: torch.Tensor, frames: tuple[int, ...], pool: ReferencePool
) -> tuple[torch.Tensor, list[np.ndarray], list[list[ReferenceRun]]]:
    """Denoise m frames ``(H, W)`` as one batch: the references slide from keyframes to earlier frames as t falls.

    latents: of the gray frames, ``(m, C, h, w)``. Returns clean latents, the descriptors that D compares, and for each
    frame the record of the references that guided it.
    """
    descriptors = [run.describe(image, latent[None]) for image, latent in zip(gray, latents, strict=True)]
    distances = [pool.distances(descriptor) for descriptor in descriptors]
    guided = not run.settings.reference_mask and bool(pool.keys or pool.past)
    timesteps, steps = run.denoiser.timesteps(guided), []
    for timestep in timesteps:
        t = srg.rescale_timestep(float(timestep), run.denoiser.scheduler.config.num_train_timesteps, run.settings.tau)
        steps.append([pool.choose(distance, t, run.settings) if guided else ([], []) for distance in distances])
    guidance = run.guidance(latents, run.recognise(*gray), steps)
    clean = run.denoiser(latents, frames, "remaining", timesteps, guidance, guided)
    numbers = [[tuple(tuple(r.frame for r in part) for part in of_frame) for of_frame in chosen] for chosen in steps]
    return clean, descriptors, [run_lengths(of_frame) for of_frame in zip(*numbers, strict=True)]


def _batches(frames: Iterable, keys: dict[int, np.ndarray], stretches: int) -> Iterator[tuple[list, list]]:
    """Yield each batch with the one that follows it, where that is known.

    Frames one by one; or first the keyframes, then the first of each stretch of the others, the second of each...
    """
    if stretches == 1:
        yield from (([item], []) for item in frames)
        return
    frames = list(frames)
    yield from (([item], []) for item in frames if item[0] in keys)
    others = [item for item in frames if item[0] not in keys]
    length = math.ceil(len(others) / stretches)
    for first in range(length):
        yield others[first::length], others[first + 1 :: length] if first + 1 < length else []


class Run:
    """One call's settings, canvas and denoiser, and the steps that both stages share."""

    def __init__(self, pipe, frame_size: tuple[int, int], settings: Settings, generator: torch.Generator | None):
        self.pipe, self.settings = pipe, settings.completed(pipe)
        self.device, self.dtype = pipe._execution_device, pipe.unet.dtype
        size = settings.working_size
        if size is None:
            size = (pipe.config.height, pipe.config.width)
            upright = (frame_size[0] - frame_size[1]) * (size[0] - size[1]) < 0
            size = size[::-1] if upright else size
        self.canvas = encoders.fit_canvas(frame_size, tuple(size), encoders.canvas_multiple(pipe.vae, pipe.unet))
        self.latent_size = encoders.latent_size(pipe.vae, self.canvas.outer)
        self.denoiser = DenoisingLoop(pipe, self.settings, self.latent_size, generator)
        self.seed = self.denoiser.seed
        # g_ref = z_ref under the reference mask (§3.2), (1, C, h, w), where they are not zeros.
        self.black = self.encode(np.zeros(frame_size, np.uint8)) if self.settings.mask_latents == "black" else None
        for layer in filter(None, (pipe.control.guidance.cga, pipe.control.guidance.cdga)):
            layer.padded_values = settings.shortcuts.values

    @property
    def keeps_past(self) -> bool:
        """True where coloured frames guide later ones."""
        return self.settings.use_srg and not self.settings.reference_mask

    def bar(self, total: int, title: str):
        """Return a progress bar as ``set_progress_bar_config`` wants it."""
        bar = self.pipe.progress_bar(total=total)
        if "desc" not in getattr(self.pipe, "_progress_bar_config", {}):
            bar.set_description(title)
        return bar

    # --- encode ------------------------------------------------------------------------------------------------------

    def encode(self, *frames: np.ndarray) -> torch.Tensor:
        """Encode n frames at the clip's size, gray or RGB, as latents ``(n, C, h, w)``."""
        parts = []
        for some in self._in_parts(frames):
            compilation.begin_step(self.pipe)
            canvases = [self.canvas.place(frame) for frame in some]
            parts.append(encoders.encode(self.pipe.vae, canvases, self.device).to(self.dtype))
        return torch.cat(parts)

    def recognise(self, *gray: np.ndarray) -> torch.Tensor | None:
        """Semantic features of n gray frames ``(H, W)``: ``(n, S, h, w)``; None for a copy that reads none."""
        parts = []
        for some in self._in_parts(gray):
            canvases = [self.canvas.place(frame) for frame in some]
            parts.append(encoders.semantics(self.pipe, canvases, self.device))
        return None if parts[0] is None else torch.cat(parts)

    def tokens(self, *colored: np.ndarray) -> torch.Tensor:
        """Image tokens ``(n, N, D)`` of n coloured frames; of none under the reference mask: ``(1, N, D)``."""
        pipe, condition, parts = self.pipe, self.settings.image_condition, []
        for some in self._in_parts(colored, PICTURES) or [None]:
            images = some and [self.canvas.place(frame, padded=False) for frame in some]
            tokens = encoders.image_tokens(pipe.image_encoder, pipe.feature_extractor, images, condition, self.device)
            parts.append(tokens.to(self.dtype))
        return torch.cat(parts)

    def describe(self, gray: np.ndarray, latents: torch.Tensor) -> np.ndarray:
        """Descriptor that D compares, of a gray frame ``(H, W)`` with these latents."""
        measure, network = self.settings.dissimilarity, self.settings.network
        return keyframes.describe(gray[None], measure, encoder=lambda _: latents.float(), network=network)[0]

    def _in_parts(self, items: Sequence, most: int = TOGETHER) -> list[Sequence]:
        """Cut a network's input into parts: one by one on a CPU, where more are no faster but round otherwise."""
        count = most if self.device.type == "cuda" else 1
        return [items[i : i + count] for i in range(0, len(items), count)]

    # --- references --------------------------------------------------------------------------------------------------

    def references(
        self,
        frames: Sequence[int],
        gray: Sequence[np.ndarray],
        colored: Sequence[np.ndarray],
        latents: torch.Tensor | None = None,
        descriptors: Sequence[np.ndarray] | None = None,
    ) -> list[Reference]:
        """Encode n coloured frames ``(H, W, 3)``, once, as references.

        latents, descriptors: of the gray frames, ``(n, C, h, w)`` and as ``describe`` gives them, if at hand.
        """
        if not frames:
            return []
        if latents is None:
            latents = self.encode(*gray)
        if descriptors is None:
            descriptors = list(map(self.describe, gray, latents.split(1)))
        nothing = itertools.repeat(None)
        kept = nothing if self.settings.shortcuts.references else zip(gray, colored, strict=True)
        tokens, semantics = map(self._read, self.tokens(*colored).split(1)), self.recognise(*gray)
        semantics = nothing if semantics is None else semantics.split(1)
        encoded = latents.split(1), self.encode(*colored).split(1), tokens
        return list(map(Reference, frames, *encoded, descriptors, kept, semantics))

    def reference(self, frame: int, gray: np.ndarray, colored: np.ndarray) -> Reference:
        """Encode one coloured frame as a reference: gray ``(H, W)``, coloured ``(H, W, 3)``."""
        return self.references([frame], [gray], [colored])[0]

    def clip_references(self, gray: np.ndarray, colored: dict[int, np.ndarray], offset: int = 0) -> list[Reference]:
        """Encode coloured frames of a clip as references, in order of time; its first frame has the number offset."""
        numbers = [] if self.settings.reference_mask else sorted(colored)
        return self.references(numbers, [gray[i - offset] for i in numbers], [colored[i] for i in numbers])

    def outside_references(self, exemplars: dict[int, np.ndarray]) -> list[Reference]:
        """Encode the exemplar that is no frame of the clip: a list of one reference, or of none."""
        if OUTSIDE not in exemplars or self.settings.reference_mask:
            return []
        return [self.reference(OUTSIDE, to_gray(exemplars[OUTSIDE]), exemplars[OUTSIDE])]

    def guidance(
        self, gray: torch.Tensor, semantics: torch.Tensor | None, steps: list[list[Guides]]
    ) -> Iterator[tuple[GuidanceOutput, torch.Tensor]]:
        """Yield for each denoising step the ColorHint of m frames and the image tokens, or their keys and values.

        semantics: as ``recognise`` gives them. steps: for each step the keyframes and earlier frames that guide each
        frame, equally many, none under the reference mask. The hint depends on the references and not on t, so it is
        made anew only when they change.
        """
        before = given = None
        for guides in steps:
            numbers = [[reference.frame for reference in keys + past] for keys, past in guides]
            if numbers != before or not self.settings.shortcuts.hints:
                before, given = numbers, self.guide(gray, guides, semantics)
            yield given

    def guide(
        self, gray: torch.Tensor, guides: list[Guides], semantics: torch.Tensor | None = None
    ) -> tuple[GuidanceOutput, torch.Tensor]:
        """ColorHint of m frames ``(m, C, h, w)``, each under its references, and the tokens that the copy reads.

        Without references they are under the reference mask (§3.2), as ``mask_latents`` says.
        """
        if not any(guides[0]):
            masked = torch.zeros_like(gray) if self.black is None else self.black.expand_as(gray)
            hint = self.pipe.control.hint(gray, masked, masked, semantics)
            return hint, self._read(self.tokens()).expand(len(gray), -1, -1)
        grids, weight, shrink = [], self.settings.keyframe_weight, self.settings.grid_tiles == "shrunk"
        mixed = weight != 1 and any(keys and past for keys, past in guides)  # equal weights change nothing
        for keys, past in guides:
            references = [*keys, *past]
            if not self.settings.shortcuts.references:
                references = [self.reference(r.frame, *r.pictures) for r in references]
            weights = [weight] * len(keys) + [1.0] * len(past)
            grids.append(join_references(references, self.settings.grid_size, weights if mixed else None, shrink))
        ref_gray, ref_color, tokens, ref_semantics, ref_weights = (
            None if parts[0] is None else torch.cat(parts) for parts in zip(*grids, strict=True)
        )
        return self.pipe.control.hint(gray, ref_gray, ref_color, semantics, ref_semantics, ref_weights), tokens

    def _read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image tokens ``(n, N, D)`` as the copy's cross-attention reads them: their keys and values, made once."""
        return self.pipe.control.keys_and_values(tokens) if self.denoiser.projected else tokens

    # --- colours -----------------------------------------------------------------------------------------------------

    def finish(self, latents: torch.Tensor, gray: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Decode, crop, and put the colours on each frame's own L* at full resolution (§3.4.2): ``(H, W, 3)`` each."""
        return [frame.result() for frame in self.start_to_finish(latents, gray)]

    def start_to_finish(self, latents: torch.Tensor, gray: Sequence[np.ndarray]) -> list[Future[np.ndarray]]:
        """Do as ``finish`` does, but return when all are decoded: the colours are put on in threads."""
        merging: list[Future] = []
        threads = ThreadPoolExecutor(len(gray))
        for some, images in zip(self._in_parts(latents), self._in_parts(gray), strict=True):
            compilation.begin_step(self.pipe)
            for image, decoded in zip(images, encoders.decode_all(self.pipe.vae, some), strict=True):
                merging.append(threads.submit(merge_luminance, image, self.canvas.crop(decoded)))
        threads.shutdown(wait=False)
        return merging
