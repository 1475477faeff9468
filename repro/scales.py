"""Profiles: the scales at which the same studies run, from seconds on a laptop to the paper's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_type_hints

from repro.config import Code, Dataset, InputError, Model, Optimizer, Stage, Subset

MOST, MOST_SEEDS = 1_000_000_000, 1000  # highest settings; planning 1000 seeds takes a minute


@dataclass(frozen=True)
class Profile:
    """Data set, network, training budget and seeds of all studies; the defaults are the paper's."""

    name: str
    dataset: str = "cifar10"  # a name known to `repro.data.datasets`, or the path of an .npz file or a folder
    train: int | None = None  # number of images, None for all
    test: int | None = None
    noise: float = 0.0  # standard deviation of the pixel noise, digits only
    width: int = 64
    depth: int = 2
    batch_size: int = 128
    learning_rate: float = 0.001  # of Adam; those of other optimisers are multiples of it (`optimizers`)
    pretraining_epochs: int = 350
    tuning_epochs: int = 500
    window: int = 100  # test accuracy is averaged over this many last epochs of tuning
    seeds: int = 5  # number of seeds of the first study, `warm_start`
    study_seeds: int = 5  # number of seeds of each other study
    full_grids: bool = True  # grids of the paper, and all 64 subsets of modules; else smaller grids
    controls: bool = True  # also train the conditions that the protocol added to the paper's
    least: bool = False  # the smallest grids, so that a book takes minutes
    base: str = "Adam"  # the optimiser (a key of `optimizers`), unless a study compares them
    first_seed: int = 0
    arm_epochs: int | None = None  # tuning epochs of all but the first study, None for `tuning_epochs`
    until: float = 0.99  # train accuracy that ends stages on portions before the last (paper, appendix A.3)
    own_samples: bool = False  # each seed draws its own sample of `train` images
    sparse_tests: bool = False  # test after few of the early epochs (`config.Run.tested`)
    median: bool = False  # take the median test accuracy over the window, not the mean
    exploratory: bool = False  # records were seen before the present rules: no verdicts, older probes
    size: int = 32  # side in pixels to which images of a folder are scaled and cropped
    split: int = 0  # seed that splits off test images, if user-supplied data have none
    model: str = ""  # custom: ./file.py:function or package.module:function; if empty, the paper's ResNet
    model_settings: tuple[tuple[str, object], ...] = ()  # keyword arguments of that function

    images: Dataset | None = None  # what `dataset` names, if a path (set by `repro.profiles.resolved`)
    code: Code | None = None  # the function that `model` names (set likewise)

    def __post_init__(self) -> None:
        # Run the checks of these classes now, before anything is trained.
        Model(self.width, self.depth), Stage(1, until=self.until)
        Dataset(self.dataset, self.train, self.test, self.noise)
        if self.base not in self.optimizers:
            raise InputError(f"base takes one of {', '.join(self.optimizers)}, not {self.base!r}")
        for field in (name for name, kind in FIELDS.items() if kind in (int, int | None)):
            value, least = getattr(self, field), field not in ("first_seed", "split")
            most = MOST_SEEDS if field in ("seeds", "study_seeds") else MOST
            if value is not None and value < least:
                raise InputError(f"{field} must be at least {least:d}, not {value}")
            if value is not None and value > most:
                raise InputError(f"{field} must be at most {most}, not {value}")
        if self.window > self.arms_tuned:
            name = "tuning_epochs" if self.arms_tuned == self.tuning_epochs else "arm_epochs"
            raise InputError(f"window ({self.window}) is longer than {name} ({self.arms_tuned})")

    @property
    def arms_tuned(self) -> int:
        """Tuning epochs of all studies but the first."""
        return min(self.tuning_epochs, self.arm_epochs or self.tuning_epochs)

    @property
    def network(self) -> Model:
        """The network to train, unless a condition of a study names another one."""
        return Model(code=self.code) if self.code else Model(self.width, self.depth)

    def data(self, seed: int = 0) -> Dataset:
        """The data set of a run; it depends on the seed only with `own_samples`."""
        noise = self.noise if self.dataset == "digits" else 0.0
        found = self.images or Dataset(self.dataset, self.train, self.test, noise)
        return replace(found, sample=seed) if self.own_samples else found

    def stage(self, epochs: int, data: Subset, **settings: object) -> Stage:
        """A stage with this profile's base optimiser, unless `settings` name another one."""
        return Stage(epochs, data, **{"optimizer": self.optimizer, **settings})

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """Four optimisers; the paper gives Adam's rate, of which others are multiples."""
        rate = self.learning_rate
        return {
            "Adam": Optimizer("adam", rate),
            "RMSprop": Optimizer("rmsprop", rate),
            "SGD": Optimizer("sgd", 100 * rate),
            "SGD with momentum": Optimizer("sgd", 10 * rate, momentum=0.9),
        }

    @property
    def optimizer(self) -> Optimizer:
        """The base optimiser."""
        return self.optimizers[self.base]

    def at_rate(self, factor: float, **changes: object) -> Optimizer:
        """The base optimiser at `factor` times its learning rate, with other `changes`."""
        rate = factor * self.optimizer.learning_rate
        return replace(self.optimizer, learning_rate=rate, **changes)


FIELDS = {name: kind for name, kind in get_type_hints(Profile).items() if name not in ("images", "code")}
_DIGITS = Profile(
    name="quick",
    dataset="digits",
    train=1000,
    test=1000,
    noise=0.3,
    width=12,
    depth=1,
    batch_size=32,
    learning_rate=0.002,  # so SGD at 0.2; the protocol tells how it was chosen
    base="SGD",
    pretraining_epochs=20,
    tuning_epochs=20,
    window=5,
    seeds=8,
    study_seeds=3,
    full_grids=False,
    controls=False,
    least=True,
    first_seed=100,
)
_SMALL = Profile(
    name="cifar10-small",
    train=3000,
    width=16,
    depth=1,
    batch_size=64,
    pretraining_epochs=20,
    tuning_epochs=20,
    window=5,
    full_grids=False,
)
PROFILES = {
    profile.name: profile
    for profile in (
        replace(
            _DIGITS,
            name="smoke",
            noise=0.2,
            learning_rate=0.001,
            base="Adam",
            first_seed=0,
            until=1.0,
            train=160,
            test=128,
            width=4,
            batch_size=16,
            pretraining_epochs=2,
            tuning_epochs=3,
            window=2,
            seeds=3,
            controls=True,
            least=False,
        ),
        replace(_DIGITS, name="minutes", seeds=5),
        _DIGITS,
        replace(_DIGITS, name="digits", study_seeds=8, controls=True, least=False),
        replace(_SMALL, name="laptop", test=2000, controls=False, until=1.0, exploratory=True),
        replace(_SMALL, seeds=8, first_seed=100, own_samples=True, sparse_tests=True, median=True),
        Profile("cifar10", width=16, pretraining_epochs=50, tuning_epochs=75, arm_epochs=45, window=10),
        Profile("cifar10-wide", pretraining_epochs=25, tuning_epochs=35, window=5, full_grids=False),
        Profile("paper"),
    )
}
# The book gives the verdict of the first of these scales that decides a claim.
LARGEST_FIRST = ("paper", "cifar10-wide", "cifar10", "cifar10-small", "laptop", "digits", "quick")
PUBLISHED = "published"  # in place of a profile: the largest scale at which a study is recorded
