"""Numbers with uncertainty: what a value is, how sure we are of it, and how many of its digits to print.

The unit that carries uncertainty is never the token or the checkpoint but what was drawn independently: the document
for a measured mean, the run for a fitted law. Everything here is clustered by that unit.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt
from scipy.special import chdtri, fdtrc, stdtr, stdtrit

FloatArray = npt.NDArray[np.float64]

SINGULAR = 1e-12
"""Smallest eigenvalue, of parameters scaled to a curvature of 1, that is more than rounding."""

HALVINGS = 50
"""Of an interval of probabilities, in search of one."""

POWERS = np.arange(41) / 20
"""Of a law's value, that its scatter may grow with."""

READABLE_PLACES = 6
"""Decimal places up to which a number prints in full; beyond, powers of ten read better."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value, its standard error, and the number n of independent units both come from.

    With fewer than two units the standard error is nan: one document says nothing of how documents differ.
    """

    value: float
    stderr: float
    n: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The central interval of this level, by Student's t with n − 1 degrees of freedom; nan where n < 2."""
        margin = t_quantile((1 + level) / 2, self.n - 1) * self.stderr
        return self.value - margin, self.value + margin

    def __str__(self) -> str:
        if math.isnan(self.stderr):
            return f"{rounded(self.value, self.stderr)} (n = {self.n})"
        return f"{rounded(self.value, self.stderr)} ± {rounded(self.stderr, self.stderr)}"

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None."""
        return as_dict(self)

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(value=number(held["value"]), stderr=number(held["stderr"]), n=held["n"])


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a law expects, in the unit of its quantity; numbers, or arrays when the inputs were."""

    mean: float | FloatArray
    stderr: float | FloatArray
    """Uncertainty of the law itself, by the delta method."""
    scatter: float | FloatArray
    """Standard deviation of single measurements about the law, which no number of runs removes."""
    dof: float | FloatArray
    """Of Student's t: fewer than runs − 1 where the prediction rests on some runs more than on others."""
    scatter_dof: float
    """The same of the scatter, which more runs tell than carry the law."""
    extrapolates: bool | npt.NDArray[np.bool_]
    """Some input lies outside what was fitted: the interval then rests on the formula being right."""

    def interval(self, level: float = 0.9) -> tuple[float | FloatArray, float | FloatArray]:
        """Where the law lies: the average over many runs made like this, by Student's t."""
        margin = t_quantile((1 + level) / 2, self.dof) * self.stderr
        return self.mean - margin, self.mean + margin

    def run_quantile(self, probability: float) -> float | FloatArray:
        """What one new run stays below with this probability: the law's uncertainty and a run's own scatter.

        The margins of the two, each by its own degrees of freedom, are added in squares.

        Source: Zou, Donner 2008, "Construction of confidence limits about effect measures: a general approach".
        """
        quantile: float | FloatArray = unwrapped(np.asarray(self.mean + self._margin(probability)))
        return quantile

    def probability_above(self, limit: float) -> float | FloatArray:
        """The probability that one new run measures more than `limit`; the inverse of `run_quantile`."""
        away = np.asarray(limit - self.mean)
        low, high = np.full(away.shape, 0.5), np.ones(away.shape)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            beyond = self._margin(middle) < np.abs(away)
            low, high = np.where(beyond, middle, low), np.where(beyond, high, middle)
        chance: float | FloatArray = unwrapped(
            np.where(np.isnan(self._margin(0.75)), np.nan, np.where(away > 0, 1 - low, low))
        )
        return chance

    def _margin(self, probability: npt.ArrayLike) -> FloatArray:
        """How far from the mean the quantile is, below it for less than a half."""
        parts = (
            t_quantile(probability, self.dof) * self.stderr,
            t_quantile(probability, self.scatter_dof) * self.scatter,
        )
        return np.sign(np.asarray(probability) - 0.5) * np.hypot(*parts)

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; nan becomes None."""
        return as_dict(self)


def ratio_of_sums(numerators: npt.ArrayLike, counts: npt.ArrayLike) -> Estimate:
    """Mean per token over G documents, each given as its sum and its count of scored tokens.

        value   = Σ numerator / Σ count
        stderr² = (G−1)/G · Σ_i ( (numerator_i − value · count_i) / (Σ count − count_i) )²

    Long documents weigh more, as their tokens do. Clustered by document: the tokens of one document are alike, so G
    documents are G samples however long they are. Each term is how far the value moves when document i is left out
    (the jackknife). Among equal documents this is the textbook linearised
    √(G/(G−1) Σ (numerator − value · count)²) / Σ count; among unequal ones that form is too small, because a long
    document drags the value towards itself.

    A document without scored tokens is not a unit. Without any document the value is nan, with one its error is.

    Raises:
        ValueError: not one sum and one count, at least 0, for each document.
    """
    sums, tokens = np.asarray(numerators, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if sums.ndim != 1 or sums.shape != tokens.shape or (tokens < 0).any():
        raise ValueError(f"got {sums.shape} sums and {tokens.shape} counts, expected one of each >= 0 per document")
    sums, tokens = sums[tokens > 0], tokens[tokens > 0]
    documents, total = len(tokens), float(tokens.sum())
    value = float(sums.sum()) / total if documents else math.nan
    if documents < 2:
        return Estimate(value=value, stderr=math.nan, n=documents)
    moves = (sums - value * tokens) / (total - tokens)
    return Estimate(value=value, stderr=math.sqrt((documents - 1) / documents * float(moves @ moves)), n=documents)


def paired_difference(
    numerators: npt.ArrayLike, others: npt.ArrayLike, counts: npt.ArrayLike
) -> tuple[Estimate, float]:
    """Difference of two means over the same tokens, and the two-sided p-value of there being none.

    Both as sums per document, as in `ratio_of_sums`: the estimate is that of the differences, clustered by document,
    so what makes a document hard for both cancels. The p-value is Student's t's with documents − 1 degrees of freedom;
    1 where nothing differs, nan for one document.
    """
    difference = ratio_of_sums(np.asarray(numerators, dtype=np.float64) - np.asarray(others, dtype=np.float64), counts)
    if difference.stderr == 0:
        return difference, 1.0 if difference.value == 0 else 0.0
    return difference, 2 * float(stdtr(difference.n - 1, -abs(difference.value) / difference.stderr))


def clustered_covariance(*, scores: FloatArray, curvatures: FloatArray, clusters: npt.ArrayLike) -> FloatArray:
    """Covariance (k, k) of k parameters fitted to n points that come in G clusters, such as the checkpoints of a run.

    The fit makes `scores` (n, k), each point's pull on the parameters, sum to zero; `curvatures` (n, k, k) is how each
    pull weakens as the parameters follow it (for least squares: scores J·residual, curvatures J Jᵀ). With s_g the sums
    of scores over clusters and R_g as in `bias_reduced`, covariance = Σ_g (R_g s_g)(R_g s_g)ᵀ. All nan where that is.

    Where points scatter independently its expectation is exact (the bias-reduced linearisation, CR2), however much
    single clusters decide; read it with Student's t and degrees of freedom as by Satterthwaite. The plain sandwich
    (CR1) is too small with few clusters, the jackknife (CR3) too large where clusters differ in weight.

    Source: Bell, McCaffrey 2002, "Bias reduction in standard errors for linear regression with multi-stage samples".
    """
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    groups, k = len(names), scores.shape[1]
    curvature = np.einsum("nii->i", curvatures)
    if groups < 2 or not (curvature > 0).all():
        return np.full((k, k), np.nan)
    scale = np.sqrt(curvature)
    pulls, weakenings = np.zeros((groups, k)), np.zeros((groups, k, k))
    np.add.at(pulls, member, scores / scale)
    np.add.at(weakenings, member, curvatures / np.outer(scale, scale))
    moves = np.einsum("gij,gj->gi", bias_reduced(weakenings), pulls) / scale
    covariance: FloatArray = moves.T @ moves
    return covariance


def bias_reduced(curvatures: FloatArray) -> FloatArray:
    """(G, k, k) R_g = B^-½ (I − B^-½ A_g B^-½)^-½ B^-½ of clusters with curvatures A_g, B their sum.

    How parameters follow a cluster's pull, once what the fit has taken up of it is given back. All nan where leaving a
    cluster out leaves the parameters undetermined; they are to be scaled so that B has a diagonal of about 1.
    """
    total = curvatures.sum(axis=0)
    if np.linalg.eigvalsh(total - curvatures).min() < SINGULAR:
        return np.full_like(curvatures, np.nan)
    sizes, axes = np.linalg.eigh(total)
    root = axes / np.sqrt(sizes) @ axes.T
    shares, axes = np.linalg.eigh(root @ curvatures @ root)
    across = root @ axes
    left = np.maximum(1 - shares, SINGULAR)  # above 0 but for rounding
    reduced: FloatArray = across / np.sqrt(left)[:, None, :] @ across.swapaxes(1, 2)
    return reduced


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """How one point of a new cluster, such as a checkpoint of a new run, lies about a law; see `scatter_about`."""

    sd: float
    """Standard deviation where the law is at `reference`."""
    reference: float
    power: float
    """Of the law's value, that the standard deviation grows with; 0 where it is the same everywhere."""
    least: float
    """Value of the law below which it shrinks no further: the smallest that was fitted, or 0."""
    dof: float

    def at(self, mean: npt.ArrayLike) -> FloatArray:
        """Standard deviation where the law has these values."""
        return self.sd * self.relative(mean)

    def relative(self, mean: npt.ArrayLike) -> FloatArray:
        """The same over that at `reference`."""
        return np.asarray((np.maximum(mean, self.least) / self.reference) ** self.power)

    def surely(self, chance: float) -> float:
        """Share of the standard deviation that the true one is above, but for this chance; 0 where nothing tells it."""
        return math.sqrt(self.dof / float(chdtri(self.dof, chance))) if self.dof > 0 else 0.0

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> Self:
        """The inverse of `as_dict`."""
        return cls(**{name: number(value) for name, value in held.items()})


def scatter_about(
    residuals: FloatArray, *, fitted: FloatArray, jacobian: FloatArray, clusters: npt.ArrayLike
) -> Scatter:
    """How points scatter about a law that was fitted to n of them in G clusters; `jacobian` is (n, p).

    Forgetting of 0.1 nats may scatter more than forgetting of 0.01. The power of the law's value is the likeliest, each
    cluster counting as one point, under a normal prior about 0 of standard deviation 1; and 0 unless that is likelier
    by Schwarz's criterion, or where a value is not positive. Few clusters, or values much alike, say nothing of it.

    Clusters differ as a whole and points within them; a fit takes up more of the former, as few clusters carry it. So
    the sums of squares of the clusters' means and of the points about them are each scaled by what the fit has left of
    them in expectation. The degrees of freedom are Satterthwaite's of both, points counting for fewer the longer their
    noise lasts; none where the fit has as many constants as there are clusters or points.

    Source: Henderson's method 3, in Searle, Casella, McCulloch 1992, "Variance components", section 5.5.
    """
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    positive, moving = bool((fitted > 0).all()), bool((residuals != 0).any())
    reference, power = (float(np.exp(np.log(fitted).mean())), 0.0) if positive else (1.0, 0.0)
    if positive and moving:
        sizes = np.log(fitted / reference)
        squares = np.mean((residuals * np.exp(-np.outer(POWERS, sizes))) ** 2, axis=1)
        likelihood = -0.5 * len(names) * np.log(squares)
        likeliest = int(np.argmax(likelihood - 0.5 * POWERS**2))
        if likelihood[likeliest] > likelihood[0] + 0.5 * math.log(len(names)):
            power = float(POWERS[likeliest])
    scatter = Scatter(
        sd=math.nan, reference=reference, power=power, least=float(fitted.min()) if positive else 0.0, dof=0.0
    )
    scale = scatter.relative(fitted)
    sd, dof = _one_new_point(residuals / scale, jacobian / scale[:, None], member)
    return dataclasses.replace(scatter, sd=sd, dof=dof)


def _one_new_point(residuals: FloatArray, jacobian: FloatArray, member: npt.NDArray[np.intp]) -> tuple[float, float]:
    """Standard deviation of one point of a new cluster, and its degrees of freedom."""
    counts, n = np.bincount(member), len(residuals)
    lengths = np.linalg.norm(jacobian, axis=0)
    basis, sizes, _ = np.linalg.svd(jacobian / np.where(lengths > 0, lengths, 1), full_matrices=False)
    basis = basis[:, sizes > SINGULAR * sizes[0]]
    total, spare = float(residuals @ residuals), n - basis.shape[1]
    if spare < 1:
        return math.nan, 0.0
    sums = np.zeros((len(counts), basis.shape[1]))
    np.add.at(sums, member, basis)
    taken, both = float(np.sum(sums**2 / counts[:, None])), sums.T @ sums
    among, within = len(counts) - taken, spare - len(counts) + taken
    if min(among, within) < 0.5:  # hardly a cluster to spare; or hardly a second point in any, so each is a cluster
        return math.sqrt(total / spare), float(spare) if within < 0.5 else 0.0
    kept = float(np.trace(both)) - float(np.einsum("gi,ij,gj->", sums / counts[:, None], both, sums))
    means = np.bincount(member, weights=residuals) / counts
    about = residuals - means[member]
    weights = np.linalg.solve([[n - float(np.trace(both)) - kept, kept], [among, within]], np.ones(2))
    parts = weights * [float(counts @ means**2), float(about @ about)]
    variance, square = float(parts.sum()), float(about @ about)
    if variance <= 0:
        return 0.0, float(spare)
    follows = member[1:] == member[:-1]
    memory = max(float(about[1:][follows] @ about[:-1][follows]) / square, 0) if square > 0 else 0.0
    dofs = among, max(within * (1 - memory) / (1 + memory), 1.0)
    return math.sqrt(variance), float(satterthwaite_dof(*zip(parts.tolist(), dofs, strict=True)))


def satterthwaite_dof(*parts: tuple[FloatArray | float, FloatArray | float]) -> FloatArray:
    """Degrees of freedom of a sum of variances, each with its own: (Σ v)² / Σ (v² / dof); 0 where one has none.

    Source: Satterthwaite 1946, "An approximate distribution of estimates of variance components".
    """
    variances, dofs = (np.stack(np.broadcast_arrays(*each)).astype(np.float64) for each in zip(*parts, strict=True))
    none, total = (dofs <= 0).any(axis=0), variances.sum(axis=0)
    shares = np.divide(variances, total, out=np.full_like(variances, 1 / len(parts)), where=total > 0)
    return np.where(none, 0.0, 1 / np.sum(shares**2 / np.where(dofs > 0, dofs, 1), axis=0))


def between_share(values: FloatArray, *, clusters: npt.ArrayLike) -> float:
    """Share of Σ value² that the clusters' own means account for: 1 when all of a cluster is alike, nan without any."""
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    sums, counts, total = np.bincount(member, weights=values), np.bincount(member), float(values @ values)
    return float(np.sum(sums**2 / counts)) / total if total > 0 else math.nan


def common_share(values: FloatArray, *, groups: npt.ArrayLike, constants: int) -> tuple[float, float]:
    """Share of the variance of values that members of a group have in common, and the p-value of there being none.

    The one-way analysis of variance, of residuals of a law that took `constants` to follow the groups' means. Both are
    nan where no group has two members, or the groups are no more than the constants.
    """
    names, member = np.unique(np.asarray(groups), return_inverse=True)
    repeats, spare = len(values) - len(names), len(names) - constants
    if repeats < 1 or spare < 1:
        return math.nan, math.nan
    means = (np.bincount(member, weights=values) / np.bincount(member))[member]
    within, among = float(np.sum((values - means) ** 2)) / repeats, float(means @ means) / spare
    if within == 0:
        return (1.0, 0.0) if among > 0 else (0.0, 1.0)
    common = max(among - within, 0) * len(names) / len(values)
    return common / (common + within), float(fdtrc(spare, repeats, among / within))


@overload
def t_quantile(probability: float, dof: float) -> float: ...
@overload
def t_quantile(probability: npt.ArrayLike, dof: npt.ArrayLike) -> float | FloatArray: ...
def t_quantile(probability: npt.ArrayLike, dof: npt.ArrayLike) -> float | FloatArray:
    """Student's t quantile; nan without a degree of freedom."""
    some, below = (np.asarray(each, dtype=np.float64) for each in (dof, probability))
    quantile: float | FloatArray = unwrapped(np.where(some > 0, stdtrit(np.where(some > 0, some, 1), below), np.nan))
    return quantile


def rounded(value: float, error: float) -> str:
    """A value with the digits its error deserves: down to the error's first digit, or its second if the first is 1."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.3g}"
    leading = f"{error:.1e}"
    digits = 2 if leading.startswith("1") else 1
    places = digits - 1 - int(f"{error:.{digits - 1}e}".split("e")[1])
    text = f"{round(value, places) + 0.0:.{max(places, 0)}f}"
    return text if places <= READABLE_PLACES else str(float(text))


def unwrapped(values: npt.NDArray[Any]) -> Any:
    """A number where the array has no axes, the array otherwise."""
    return values.item() if values.ndim == 0 else values


def as_dict(noun: Any) -> dict[str, Any]:
    """A frozen dataclass as what JSON can hold: arrays and tuples become lists, a number that is not finite None."""
    return {field.name: _plain(getattr(noun, field.name)) for field in dataclasses.fields(noun)}


def number(value: float | None) -> float:
    """The inverse of `as_dict` for one number: None becomes nan."""
    return math.nan if value is None else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return as_dict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
