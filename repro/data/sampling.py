"""Which training images a stage sees, and in which order."""

from __future__ import annotations

from repro.config import InputError, Run, Subset
from repro.data.datasets import generator, steps_per_epoch
from repro.lazy import Lazy

np = Lazy("numpy")  # imported late: a plan counts steps without it

# Streams of random numbers, independent of each other for one and the same split seed.
CLASSES, DEAL = range(2)
MOVES = 1  # marks the stream of an epoch's moves; that of its examples has no mark


def portions(y: np.ndarray, subset: Subset, seed: int) -> np.ndarray:
    """Sorted indices, int64, of the images in a subset (paper, appendix A.3).

    The images, with labels `y`, are dealt into `parts` portions; the subset holds the
    first `part`: D_i = D_(i-1) + D_(u,i) + {(x, c) in D_c : c in C_i}. D_u, a fraction
    `ratio` of the images, is dealt at random; all others, D_c, are dealt by class, and
    portion i gets the classes C_i. If only `part` differs, the larger subset contains
    the smaller. Raises `InputError` if there are more parts than classes (or images).
    """
    classes = np.unique(y)
    kind, most = ("classes", len(classes)) if subset.ratio < 1 else ("images", len(y))
    if subset.parts > most:
        allowed = f"{most} {kind} make at most {most} parts"
        raise InputError(f"{allowed}, not {subset.parts}")
    order = generator(seed, CLASSES).permutation(classes)
    groups = np.array_split(order, subset.parts)
    deal = generator(seed, DEAL).permutation(len(y))
    uniform, by_class = np.split(deal, [round(subset.ratio * len(y))])
    first = np.concatenate(np.array_split(uniform, subset.parts)[: subset.part])
    seen = np.concatenate(groups[: subset.part])
    return np.sort(np.concatenate([first, by_class[np.isin(y[by_class], seen)]]))


def p_full(n: float, total: float, gamma: float) -> float:
    """Probability to draw from all images at step n of `total` (paper, Figure 3)."""
    return 1 - gamma ** (50 * n / total)


def examples(run: Run, labels: np.ndarray, epoch: int, subset: np.ndarray | None = None) -> np.ndarray:
    """Indices of training images, in order, for one epoch of the run's last stage.

    They are int64 [steps, batch]. Without `gamma`, they are a new permutation of the
    stage's subset, without its last incomplete batch; a subset smaller than its
    expected size is repeated from its start. With `gamma`, each example is drawn
    independently, from the whole training set with probability `p_full`, else from
    the subset (paper, Figure 3). `subset` is the result of `portions`, if known.
    """
    stage, number = run.stages[-1], len(run.stages)
    random = generator(run.order_seed, number, epoch)
    if subset is None:
        subset = portions(labels, stage.data, run.split_seed)
    steps = steps_per_epoch(run)
    shape = (steps, run.batch_size)
    if stage.data.gamma is None:
        return np.resize(random.permutation(subset), shape)
    step = epoch * steps + np.arange(steps)[:, None]
    full = random.random(shape) < p_full(step, stage.epochs * steps, stage.data.gamma)
    return np.where(full, random.integers(len(labels), size=shape), random.choice(subset, size=shape))


def moves(run: Run, epoch: int, shift: int, flip: bool) -> np.ndarray:
    """Random shifts and mirrorings of the images of an epoch, int64 [steps, batch, 3].

    For each image: row and column, from 0 to twice `shift`, of the corner at which it
    is cut out of its padded version, and 1 if it is mirrored, else 0.
    """
    random = generator(run.order_seed, len(run.stages), epoch, MOVES)
    shape = (steps_per_epoch(run), run.batch_size)
    corners = random.integers(0, 2 * shift, size=(*shape, 2), endpoint=True)
    return np.concatenate([corners, random.integers(0, 2, size=(*shape, 1)) * flip], axis=2)
