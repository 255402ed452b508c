"""The bundled profile without its semantic encoder, for tests of what reads no semantic features."""

from gcgkit import GCGPipeline
from gcgkit.control import GuidedControlNet


def blind_pipeline() -> GCGPipeline:
    """``mini`` with a copy of the same options and weights that leaves the semantic features out."""
    pipe = GCGPipeline.from_pretrained("mini")
    options = {name: value for name, value in pipe.control.config.guidance_config.items() if name != "semantic_width"}
    control = GuidedControlNet.from_unet(pipe.unet, **options).eval()
    own = control.state_dict()
    given = {name: weights for name, weights in pipe.control.state_dict().items() if name in own}
    first = "unet_copy.controlnet_cond_embedding.conv_in.weight"
    given[first] = given[first][:, : own[first].shape[1]]  # the semantic features come last
    control.load_state_dict(given)
    names = ("guidance_scale", "height", "width", "tau", "strength", "hint_weight")
    blind = GCGPipeline(
        **{**pipe.components, "control": control, "semantic_encoder": None},
        **{name: pipe.config[name] for name in names},
    )
    blind.set_progress_bar_config(disable=True)
    return blind
