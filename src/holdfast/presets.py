"""Laws that others published, as `Laws` values: to plan by before anything of one's own was run."""

import math
from dataclasses import dataclass

from holdfast.errors import ConfigError
from holdfast.formulas import LINE, PAPER, Law
from holdfast.laws import SKIP_FRACTION, Fit, Laws
from holdfast.stats import Estimate, Scatter

PARAMS_PER_RANK = 2_498_560
"""Of LoRA on all seven linear maps of each of Llama-2-7B's 32 layers: 4 of 4096 by 4096, 3 between 4096 and 11008."""

BASE_PARAMS = 6_607_343_616
"""Of Llama-2-7B that multiply: all 6,738,415,616 but the input embedding, 32000 by 4096. What `costs` asks for."""

RANKS = (8, 16, 32, 64, 128, 256)
STEPS = (50, 260)
"""Fitted; the paper leaves out what came before."""

TOKENS_PER_STEP = 32 * 512

REFERENCE = {"trainable_params": 1.13e8, "steps": 114.0}
"""P0 and N0: the geometric means of the paper's grid."""

CORPUS = "WikiText-103"


@dataclass(frozen=True, kw_only=True)
class Constants:
    """c · [(a / P)^alpha + (b / N)^beta]^rho + s, the paper's form of a law in parameters P and steps N.

    Source: Kalajdzievski 2024, arXiv 2401.05605, equation 5.
    """

    a: float
    alpha: float
    b: float
    beta: float
    c: float
    rho: float
    s: float


@dataclass(frozen=True, kw_only=True)
class _Published:
    """What the paper says of one data set. Table 1, with equation 4's R² and that of L_f(P, N)."""

    target: str
    data: str
    target_nll: Constants
    a: float
    """Of forgetting, and so on; it shares c, rho and s with the target loss."""
    alpha: float
    b: float
    beta: float
    slope: float
    intercept: float
    line_r2: float
    joint_r2: float


_LAWS = {
    "kalajdzievski2024-openorca": _Published(
        target="OpenOrca",
        data="OpenOrca (instructions)",
        target_nll=Constants(
            a=0.0007e7, alpha=0.0424, b=72.9186, beta=0.1219, c=0.0020, rho=7.6885, s=0.6126
        ),
        a=0.0388e7, alpha=0.0351, b=23.6418, beta=0.1468,
        slope=1.7334, intercept=2.0481, line_r2=0.9450, joint_r2=0.9598,
    ),
    "kalajdzievski2024-news": _Published(
        target="News",
        data="News (100 web articles of September 2023)",
        target_nll=Constants(
            a=0.0022e7, alpha=0.0383, b=54.8678, beta=0.1161, c=0.0028, rho=7.5996, s=1.9253
        ),
        a=0.0011e7, alpha=0.0458, b=97.8466, beta=0.1044,
        slope=1.0615, intercept=3.1285, line_r2=0.9736, joint_r2=0.9769,
    ),
}  # fmt: skip

PUBLISHED = tuple(_LAWS)
"""Names that `published` knows."""


def published(name: str) -> Laws:
    """The laws of one of `PUBLISHED`, in nats per scored token, with what they were fitted on among their warnings.

    Forgetting is `hard_cross_entropy`, which holds the untuned base's own and is never 0. No errors were published:
    standard errors and covariances are nan, predictions have no interval, and a plan holds its budget by the mean.
    How many measurements there were is not known either: `n_points` is 0, `rmse` nan. Runs are counted one for each
    rank.

    Source: Kalajdzievski 2024, arXiv 2401.05605, equations 4 to 6 and table 1.

    Raises:
        ConfigError: another name.
    """
    if name not in _LAWS:
        raise ConfigError(f"got law {name!r}, expected one of {', '.join(PUBLISHED)}, at the published laws")
    law = _LAWS[name]
    forgetting = forgetting_constants(
        law.target_nll,
        a=law.a, alpha=law.alpha, b=law.b, beta=law.beta, slope=law.slope, intercept=law.intercept,
    )  # fmt: skip
    ends = [
        _value(law.target_nll, trainable_params=r * PARAMS_PER_RANK, steps=steps)
        for r, steps in ((RANKS[0], STEPS[0]), (RANKS[-1], STEPS[1]))
    ]
    grid = {"trainable_params": (float(RANKS[0] * PARAMS_PER_RANK), float(RANKS[-1] * PARAMS_PER_RANK))}
    grid["steps"] = (float(STEPS[0]), float(STEPS[1]))
    line = {"slope": law.slope, "intercept": law.intercept}
    return Laws(
        model="Llama-2-7B-chat",
        target=law.target,
        corpus=CORPUS,
        method="lora",
        lines={
            "hard_cross_entropy": _fit(
                LINE, line, "hard_cross_entropy", r2=law.line_r2, reference={"target_nll": 1.0},
                domain={"target_nll": (min(ends), max(ends))},
            )
        },
        orthogonal={},
        joint={
            "target_nll": _fit(
                PAPER, in_paper_form(law.target_nll), "target_nll", r2=math.nan, reference=REFERENCE, domain=grid
            ),
            "hard_cross_entropy": _fit(
                PAPER, in_paper_form(forgetting), "hard_cross_entropy", r2=law.joint_r2, reference=REFERENCE,
                domain=grid,
            ),
        },
        params_per_rank=float(PARAMS_PER_RANK),
        ranks=RANKS,
        tokens_per_step=float(TOKENS_PER_STEP),
        base_params=float(BASE_PARAMS),
        skip_fraction=SKIP_FRACTION,
        n_runs=len(RANKS),
        runs=(),
        warnings=_warnings(law),
    )  # fmt: skip


def in_paper_form(constants: Constants) -> dict[str, float]:
    """The constants of `formulas.PAPER` that are the same law of P and N, exactly.

        u = (a / P0)^alpha, v = (b / N0)^beta       K = c · (u + v)^rho         asymptote = s
        w = u / (u + v)                             x = rho · w · alpha         curvature = 1 / rho
                                                    y = rho · (1 − w) · beta

    since (a / P)^alpha = u · (P / P0)^−alpha. x and y are the effective exponents at P0, N0. a, b and c have one
    degree of freedom too many (scaling (a^alpha, b^beta) by k and c by k^−rho changes nothing), which is gone here.
    """
    u = (constants.a / REFERENCE["trainable_params"]) ** constants.alpha
    v = (constants.b / REFERENCE["steps"]) ** constants.beta
    w = u / (u + v)
    return {
        "asymptote": constants.s,
        "K": constants.c * (u + v) ** constants.rho,
        "x": constants.rho * w * constants.alpha,
        "y": constants.rho * (1 - w) * constants.beta,
        "w": w,
        "curvature": 1 / constants.rho,
    }


def forgetting_constants(
    learned: Constants, *, a: float, alpha: float, b: float, beta: float, slope: float, intercept: float
) -> Constants:
    """Equation 6 in the form of equation 5: forgetting is the line through a loss with exponents of its own.

    L_f(P, N) = intercept − slope · (c · [(a / P)^alpha + (b / N)^beta]^rho + s), with c, rho and s of what is learned.
    """
    return Constants(
        a=a, alpha=alpha, b=b, beta=beta, c=-slope * learned.c, rho=learned.rho, s=intercept - slope * learned.s
    )


def _value(constants: Constants, *, trainable_params: float, steps: float) -> float:
    inner = (constants.a / trainable_params) ** constants.alpha + (constants.b / steps) ** constants.beta
    return float(constants.c * inner**constants.rho + constants.s)


def _fit(
    law: Law,
    parameters: dict[str, float],
    quantity: str,
    *,
    r2: float,
    reference: dict[str, float],
    domain: dict[str, tuple[float, float]],
) -> Fit:
    """A law whose constants are all that is known of its fit."""
    unknown = (math.nan,) * len(parameters)
    return Fit(
        law=law.name,
        estimator="as published: Kalajdzievski 2024, table 1",
        quantity=quantity,
        corpus=CORPUS,
        parameters={name: Estimate(value=parameters[name], stderr=math.nan, n=len(RANKS)) for name in law.parameters},
        covariance=(unknown,) * len(parameters),
        influence=(),
        dof=len(RANKS) - 1,
        condition=math.nan,
        starts_agreeing=math.nan,
        r2=r2,
        rmse=math.nan,
        scatter=Scatter(sd=math.nan, reference=1.0, power=0.0, least=0.0, dof=0.0),
        n_points=0,
        n_runs=len(RANKS),
        reference=reference,
        domain=domain,
        warnings=(),
    )


def _warnings(law: _Published) -> tuple[str, ...]:
    (few, many), (first, last) = (RANKS[0], RANKS[-1]), STEPS
    return (
        f"a published law, not of your model: Llama-2-7B-chat learning {law.data} with rank-stabilised LoRA (alpha 1, "
        f"all linear maps, ranks {few} to {many}) by Adafactor, {TOKENS_PER_STEP:,} tokens a step, {first} to {last} "
        "steps; its learning rate and schedule were not published. Another model, text or recipe will differ "
        "(Kalajdzievski 2024, arXiv 2401.05605)",
        "forgetting is the hard cross-entropy on the WikiText-103 test split, which is never 0: the untuned base's, "
        "which was not published, is in it, so half of it is not half as much forgotten",
        "the paper gives no standard errors, seeds or number of measurements: nothing here has an interval",
    )
