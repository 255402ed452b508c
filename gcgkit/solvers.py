"""Denoising with another solver than the pipeline's own: the same noise schedule, walked in other steps.

A solver is a diffusers scheduler made from the configuration of the pipeline's own one, so that the noise schedule,
what the UNet predicts and where the timesteps lie stay as they were trained.
"""

from __future__ import annotations

# "ddim" is the paper's (§4.1). "dpm++" is DPM-Solver++ (Lu et al. 2022) and "unipc" UniPC (Zhao et al. 2023), both
# multistep and of second order: they use the step before as well, and so get by with fewer.
SOLVERS = ("ddim", "dpm++", "unipc")


def scheduler_for(scheduler, solver: str | None):
    """The scheduler that denoises by a solver: a new one with ``scheduler``'s configuration; itself for None.

    ``solver`` is one of ``SOLVERS``, as ``settings.Settings`` checks.
    """
    if solver is None:
        return scheduler
    # loaded here, so that a command can name the solvers in its help without diffusers
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

    kinds = dict(zip(SOLVERS, (DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler), strict=True))
    return kinds[solver].from_config(scheduler.config)


def timesteps(scheduler, count: int, skipped: int = 0):
    """Set a scheduler to ``count`` steps of which it leaves out the first: its timesteps from there on, on the CPU.

    Raises ValueError for more steps than it was trained with.
    """
    # The scheduler counts on the CPU: asking a GPU for the timestep would wait until it has caught up.
    scheduler.set_timesteps(count, device="cpu")
    trained = scheduler.config.num_train_timesteps
    if float(scheduler.timesteps.max()) >= trained:  # as diffusers' steps_offset makes of the last few
        raise ValueError(f"num_inference_steps must be below the scheduler's {trained} training steps, not {count}.")
    if hasattr(scheduler, "set_begin_index"):  # a multistep solver would look it up by a timestep that may come twice
        scheduler.set_begin_index(skipped)
    return scheduler.timesteps[skipped:]
