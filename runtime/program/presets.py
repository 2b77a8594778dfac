"""How published distilled models ask to be sampled, by a name that a stage may have: ``S20:lightning4``.

All of them take Euler's steps without guidance, from one of a few noise levels to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flowblending import UsageError
from flowblending.contracts.model_sampling import ModelSampling


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Timesteps and guidance of published weights.

    Attributes:
        name: as schedules write it.
        families: the model families that there are such weights of.
        weights: which they are.
        source: the file that the timesteps are from.
        sampling: the timesteps, of which a stage takes those that lie in it, and the guidance.
    """

    name: str
    families: tuple[str, ...]
    weights: str
    source: str
    sampling: ModelSampling


PRESETS = {
    each.name: each
    for each in (
        Preset(
            name="lightning4",
            families=("wan",),
            weights="lightx2v's 4-step models and LoRAs of Wan 2.1 T2V 14B and Wan 2.2 T2V A14B",
            # denoising_step_list 1000, 750, 500, 250 at sample_shift 5: t -> 5 t / (1 + 4 t / 1000).
            source="ModelTC/LightX2V, configs/distill/wan21/wan_t2v_distill_model_4step_cfg.json and "
            "configs/distill/wan22/wan_moe_t2v_distill_lora.json",
            sampling=ModelSampling(timesteps=(1000.0, 937.5, 2500 / 3, 625.0), guidance=1.0),
        ),
        Preset(
            name="ltxv7",
            families=("ltx",),
            weights="LTX-Video 0.9.7 and 0.9.8 distilled, at one size",
            source="Lightricks/LTX-Video, configs/ltxv-13b-0.9.7-distilled.yaml, first_pass",
            sampling=ModelSampling(timesteps=(1000.0, 993.7, 987.5, 981.2, 975.0, 909.4, 725.0), guidance=1.0),
        ),
        Preset(
            name="ltxv8",
            families=("ltx",),
            weights="the same, and LTX-Video 0.9.6 distilled, with the last level of the second pass",
            source="Lightricks/LTX-Video, configs/ltxv-13b-0.9.7-distilled.yaml, first_pass and second_pass",
            sampling=ModelSampling(timesteps=(1000.0, 993.7, 987.5, 981.2, 975.0, 909.4, 725.0, 421.9), guidance=1.0),
        ),
    )
}
"""By name."""


def check_presets(names: Iterable[str | None], family: str) -> None:
    """See that presets are for models of a family; None is no preset.

    Raises:
        UsageError: one is not.
    """
    fitting = [name for name, preset in PRESETS.items() if family in preset.families]
    for name in names:
        if name is not None and name not in fitting:
            preset = PRESETS[name]
            instead = f"take {' or '.join(fitting)}, or give" if fitting else "give"
            raise UsageError(
                f"The preset {name} is for {preset.weights} (family {', '.join(preset.families)}), but the bundle's "
                f"models are of the family {family}; {instead} the stage timesteps of its own, such as S20:g1:t909,725."
            )
