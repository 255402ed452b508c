"""Solvers by name: schedulers of diffusers with one noise schedule."""

KINDS = {"ddim": "DDIMScheduler", "dpm++": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}
SOLVERS = tuple(KINDS)  # the first is the paper's


def scheduler_for(scheduler, solver: str | None):
    """Return the scheduler of a solver, with the noise schedule and prediction type of this one; itself for None.

    solver: a name of ``KINDS``, which has diffusers' classes. "ddim" is the paper's (§4.1). "dpm++" is DPM-Solver++ (Lu
    et al. 2022) and "unipc" UniPC (Zhao et al. 2023), both multistep and of second order: they use the step before as
    well, and so get by with fewer.
    """
    import diffusers  # only to colour: the names alone are read without it

    return scheduler if solver is None else getattr(diffusers, KINDS[solver]).from_config(scheduler.config)
