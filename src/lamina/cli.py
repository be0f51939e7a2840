"""The command line. Options come from the config dataclasses. A user error prints one line and exits with status 2."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

from lamina.device import DeviceName, Precision
from lamina.errors import LaminaError, LaminaWarning
from lamina.options import check_options

# OpenMP's threads spin while they wait for each other. Beside one busy process of another session, GNU's default of 300,000 spins makes a
# training step on two cores a hundred times slower; 3,000 spins 4 times, and as fast as before alone (bench/threads.py). Torch reads this.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# Each command imports the modules that need torch, so that --help is fast.

USAGE = """\
lamina: latent actions from video without action labels

  lamina collect WORLD --out DATASET           record a scripted expert
  lamina train METHOD --data PATH --out RUN    train a latent action model
  lamina align RUN --data DATASET --labels 5%  map latents to real actions
  lamina label RUN DATA --out DATASET          write latents as dataset columns
  lamina adaptive-k RUN --data PATH            a length for each latent
  lamina evaluate RUN --data DATASET           probes, verdict, RUN/report.html
  lamina doctor RUN --data PATH                what is wrong with a model
  lamina play RUN --data DATASET               a local page to try latents on
  lamina compare --data DATASET --out DIR      all methods in one table
  lamina transfer RUN --source CLIP --target CLIP
                                               latents of a clip on another
  lamina policy RUN --data PATH                train a policy on latent actions
  lamina rollout RUN --world WORLD             run a policy, report returns
  lamina reproduce CLAIM --scale cpu           test a claim (--list shows all)
  lamina exogenous --p-switch 0.2 --alpha 1    leakage in a linear LAM

PATH is a folder of mp4/mkv/webm files or a LeRobot v3 dataset.
Every command has --help, with an example.
--debug shows the traceback of an error; --version prints the version.
"""


def with_options(base: type, **parts: Any) -> Any:
    """The command ``base`` with the fields of further config dataclasses as options without a prefix."""
    fields = [
        (name, Annotated[type(part), OmitArgPrefixes], dataclasses.field(default=part)) for name, part in parts.items()
    ]
    command = dataclasses.make_dataclass(base.__name__, fields, bases=(base,), frozen=True, kw_only=True)
    command.__doc__ = base.__doc__
    return command


@dataclass(frozen=True)
class Collect:
    """Record episodes of a scripted expert as a LeRobot v3 dataset with video.

    Example: lamina collect my_way_home --out data/doom --frames 3000
    """

    world: Positional[str]
    """my_way_home, ..., grid, metaworld/TASK, cheetah, gym/ID; or a suite of many tasks in one dataset: doom-suite, metaworld-mt15, ..."""
    out: Path
    """folder of the new dataset"""
    frames: int | None = None
    """number of frames, rounded up to whole episodes; default without --episodes: 3,000"""
    episodes: int | None = None
    """number of episodes, instead of --frames"""
    seed: int = 0
    """seed of the environment and of the random actions"""
    noise: float = 0.15
    """share of random actions"""
    hold: int = 1
    """steps for which a random action is held; use more for short time steps (metaworld: 10)"""
    size: tuple[int, int] = (64, 64)
    """height and width of the frames, pixels"""
    task: str | None = None
    """task description written to the dataset"""
    max_steps: int | None = None
    """steps of an episode at most; default: the limit of the suite or world"""
    successes: bool = False
    """leave out episodes in which the expert fails"""
    parallel: int = 1
    """processes that play episodes; the data does not depend on it"""

    def run(self) -> None:
        from lamina.envs.collect import collect

        print(collect(self.world, **{k: v for k, v in vars(self).items() if k != "world"}))


@dataclass(frozen=True, kw_only=True)
class Train:
    data: UseAppendAction[tuple[str, ...]]
    """video folder or LeRobot dataset; repeat for a mixture, PATH:weight sets the sampling weight"""
    out: Path
    """folder of the new run"""
    gap: tuple[float, float] = (0.1, 0.2)
    """shortest and longest time between the two frames of a pair, seconds"""
    camera: str | None = None
    """camera of a LeRobot dataset; default: the first; "all": every camera gives separate samples"""
    paired: str | None = None
    """camera with the paired view (same states, other exogenous state), for --cross-exogenous; default: a camera named "paired", if any"""
    tasks: tuple[str, ...] = ()
    """use only episodes of these tasks of a LeRobot dataset; default: all"""
    shots: Literal["auto", "classical", "transnetv2", "none"] = "auto"
    """how cuts are found, which no pair crosses; auto: classical in plain video, none in LeRobot datasets"""
    shuffle: int = 2048
    """size of the shuffle buffer, samples"""
    workers: int = 1
    """worker processes that decode video"""
    max_bad: int = 8
    """number of video segments that may fail to decode before training stops with an error"""
    init: Path | None = None
    """run to initialise the weights from; parameters of other names or shapes keep their random values"""
    plan: str | None = None
    """print parameters, FLOPs, memory and days of this training on GPUs such as 8xH100, and train nothing; needs no --data and --out"""


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    plan: str
    """number and kind of GPUs, such as 8xH100"""


def train(argv: Sequence[str], parse_only: bool = False) -> None:
    """``lamina train METHOD``: the options are those of the method, the training loop and the data."""
    from lamina import methods
    from lamina.training.settings import TrainConfig

    if not argv or argv[0] in ("-h", "--help"):
        print(
            "lamina train METHOD --data PATH --out RUN\n\nMethods (lamina train METHOD --help shows the options of one):"
        )
        for name, summary in methods.summaries().items():
            print(f"  {name:<10} {printable(summary)}")
        print("\nExample: lamina train flexlam --data videos/ --out runs/mine")
        return
    method = methods.load(argv[0])
    # Defaults for a first model on two cores, in less than twenty minutes. Larger sizes and more data need more steps.
    planned = option_value(argv, "--plan") is not None
    own = getattr(method, "TRAINING", {}) if planned else {}  # that of the paper
    training = TrainConfig(**{"steps": 3000, "lr": 1e-3, **own})
    command = with_options(TrainPlan if planned else Train, method=method.Config(), train=training)
    args = parse_options(command, argv[1:], prog=f"lamina train {argv[0]}", description=method.__doc__)
    if parse_only:
        return
    if planned:
        from lamina.methods.base import with_decoder
        from lamina.training.plan import told_plan

        print(told_plan(method.build(with_decoder(args.method, "cuda")), args.train, args.plan))
        return
    from lamina.api import data_config, prepared
    from lamina.training.distributed import Processes
    from lamina.training.pretraining import pretrain

    names = ("camera", "paired", "tasks", "shots", "shuffle", "workers", "max_bad")
    data = data_config(args.method, args.data, args.gap, **{name: getattr(args, name) for name in names})
    plan, data = prepared(argv[0], method, args.method, data, args.train)
    if Processes.here().rank == 0:
        for part, values in (plan.lam.to_dict() | {"augment": plan.options["augment"]}).items():
            text = " ".join(f"{k}={v}" for k, v in values.items()) if isinstance(values, dict) else values
            print(f"{part:>12}: {text}")
    folder = pretrain(args.out, plan, data, args.train, args.init)
    if Processes.here().rank == 0:
        print(folder)


@dataclass(frozen=True, kw_only=True)
class Align:
    """Align the latent actions of a trained model with real actions from a small labelled set.

    Example: lamina align runs/mine --data data/doom --labels 5%
    """

    run: Positional[Path]
    data: str
    """LeRobot dataset with actions"""
    method: str | None = None
    """with --joint, of a run that was trained from a file: the method's file"""


def align(argv: Sequence[str], parse_only: bool = False) -> None:
    """``lamina align RUN``: with a frozen LAM, or joint."""
    from lamina.training.alignment import AlignConfig
    from lamina.training.heads import head_training

    command = with_options(Align, align=AlignConfig(), train=head_training(600, 0, device="auto"))
    args = parse_options(command, argv, prog="lamina align")
    if parse_only:
        return
    from lamina.api import align_with

    print(align_with(args.run, args.data, args.align, args.train, args.method).path)


@dataclass(frozen=True)
class Label:
    """Write the latent actions of a model as columns of a LeRobot dataset, one row per frame.

    Example: lamina label runs/mine videos/ --out data/labelled
    """

    model: Positional[Path]
    """folder of the run or model"""
    data: Positional[str]
    """video folder or LeRobot dataset"""
    out: Path
    """folder of the labelled dataset"""
    camera: str | None = None
    """camera of a LeRobot dataset; default: the first"""
    continuous: bool | None = None
    """also write the latent before quantisation, as latent_action.continuous; default: only if it is the model's latent action"""
    shots: Literal["auto", "classical", "transnetv2", "none"] = "auto"
    """how cuts are found, which no pair crosses; auto: classical in plain video, none in LeRobot datasets"""
    shard: str | None = None
    """I/N: label only the I-th of N shards, for a job of its own on any machine; leaves a part in OUT.shards"""
    merge: bool = False
    """make the dataset of the parts that N such jobs have left"""
    engine: Literal["local", "ray"] = "local"
    """ray: episodes are labelled by the workers of a Ray cluster; the dataset is the same"""
    address: str | None = None
    """with --engine ray, HOST:PORT of a running cluster; default: a local one is started"""
    workers: int = 2
    """with --engine ray, number of workers, each with one model"""
    gpus: float = 0.0
    """with --engine ray, share of a GPU for each worker"""
    k: int | Literal["auto"] | None = None
    """slots that are kept, the others hold the null latent; auto: as many as each code needs, by the rule of lamina adaptive-k; the column
    latent_action.k says how many; default: all, without that column"""
    device: DeviceName = "auto"
    precision: Precision = "fp32"

    def run(self) -> None:
        from lamina.api import label

        table = label(self.model, self.data, **{k: v for k, v in vars(self).items() if k not in ("model", "data")})
        if self.shard is None:
            print(f"the latent action is in the column {table.column}")
        print(table.path)


@dataclass(frozen=True, kw_only=True)
class AdaptiveK:
    """Fit the rule that chooses how many slots of each latent action are kept: RUN/adaptive_k, for --k auto.

    Example: lamina adaptive-k runs/mine --data videos/ --tokens 4
    """

    run: Positional[Path]
    """folder of the run"""
    data: str
    """video folder or LeRobot dataset that the run was trained on"""
    device: DeviceName = "auto"


def adaptive_k(argv: Sequence[str], parse_only: bool = False) -> None:
    """``lamina adaptive-k RUN``."""
    from lamina.training.adaptive import AdaptiveConfig

    args = parse_options(with_options(AdaptiveK, rule=AdaptiveConfig()), argv, prog="lamina adaptive-k")
    if parse_only:
        return
    from lamina.training.adaptive import adaptive_k as stage

    rule = stage(args.run, args.data, args.rule, args.device)
    print(f"{rule.tokens:.2f} of {rule.head.slots} slots on average")
    print(args.run / "adaptive_k")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Apply the latent actions of one clip to another, and take them back: OUT/transfer.mp4, transfer.png and transfer.json.

    Example: lamina transfer runs/mine --source videos/hand.mp4 --target videos/gripper.mp4
    """

    run: Positional[Path]
    """folder of the run or model"""
    source: str
    """clip whose latent actions are taken: a video file; of a folder or LeRobot dataset the first episode"""
    target: str
    """clip whose frames they are applied to"""
    out: Path | None = None
    """folder of the results; default: RUN/transfer"""
    k: int | None = None
    """prefix length; default: all slots"""
    gap: float | None = None
    """seconds between two frames; default: the model's own"""
    transitions: int = 16
    """transitions of the source at most"""
    device: DeviceName = "auto"
    precision: Precision = "fp32"


def transfer(argv: Sequence[str], parse_only: bool = False) -> None:
    """``lamina transfer RUN``."""
    args = parse_options(Transfer, argv, prog="lamina transfer")
    if parse_only:
        return
    from lamina.evaluation.transfer import told
    from lamina.evaluation.transfer import transfer as stage

    out = args.out or args.run / "transfer"
    options = {name: getattr(args, name) for name in ("k", "gap", "transitions", "device", "precision")}
    print(told(stage(args.run, args.source, args.target, out, **options)))
    print(out / "transfer.mp4")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Probe a model on held-out episodes, with controls, and write RUN/evaluation.json and RUN/report.html.

    Example: lamina evaluate runs/mine --data data/doom
    """

    run: Positional[Path | None] = None
    """folder of the run"""
    data: str
    """video folder or LeRobot dataset; probes of actions need an action feature"""
    subject: str | None = None
    """in the place of RUN, a model of another library: module:function that returns a Subject; needs --out"""
    out: Path | None = None
    """folder of evaluation.json, report.html and pictures; default: RUN"""


def evaluate(argv: Sequence[str], parse_only: bool = False) -> None:
    """``lamina evaluate RUN``."""
    from lamina.evaluation.settings import EvaluateConfig

    command = with_options(Evaluate, evaluate=EvaluateConfig())
    args = parse_options(command, argv, prog="lamina evaluate")
    if parse_only:
        return
    from lamina.evaluation import evaluate as stage
    from lamina.evaluation.report.page import write_report
    from lamina.inference.subject import load_subject

    out = args.out or args.run
    if out is None or (args.run is None) == (args.subject is None):
        raise LaminaError("give a run folder, or --subject module:function with --out")
    stage.evaluate(load_subject(args.subject) if args.subject else args.run, args.data, args.evaluate, out)
    print(write_report(out))


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Say what is wrong with a model, in under two minutes: findings with a number, its control, and the one thing to try.

    Example: lamina doctor runs/mine --data data/doom
    """

    run: Positional[Path | None] = None
    """folder of the run"""
    data: str
    """video folder or LeRobot dataset; no actions are needed"""
    subject: str | None = None
    """in the place of RUN, a model of another library: module:function that returns a Subject"""
    json: Path | None = None
    """file for the findings as JSON"""


def doctor(argv: Sequence[str], parse_only: bool = False) -> None:
    """``lamina doctor RUN``."""
    from lamina.evaluation.doctor import DoctorConfig

    args = parse_options(with_options(Doctor, doctor=DoctorConfig()), argv, prog="lamina doctor")
    if parse_only:
        return
    from lamina.evaluation.doctor import examine
    from lamina.files import write_text
    from lamina.inference.subject import load_subject

    if (args.run is None) == (args.subject is None):
        raise LaminaError("give a run folder, or --subject module:function")
    diagnosis = examine(load_subject(args.subject) if args.subject else args.run, args.data, args.doctor)
    if args.json:
        write_text(args.json, diagnosis.to_json() + "\n")
    print(diagnosis)


@dataclass(frozen=True, kw_only=True)
class Play:
    """Open a local page on which latent actions are driven, transferred, added up, mapped and checked; it needs lamina[play].

    Example: lamina play runs/mine --data data/doom
    """

    run: Positional[Path]
    """folder of the run"""
    data: str | None = None
    """video folder or LeRobot dataset; default: what the run was trained on"""
    camera: str | None = None
    """camera of a LeRobot dataset; default: that of the alignment, else the first; "all": every camera gives separate transitions"""
    port: int = 8484
    """port of 127.0.0.1; 0: any free one"""
    transitions: int = 384
    """held-out transitions to choose from"""
    seed: int = 0
    """seed of the clusters behind the keys and of a flow decoder's noise; a saved session needs the same one"""
    device: DeviceName = "auto"


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train every method on one backbone, dataset and budget, evaluate each, and write one table: DIR/comparison.html.

    Example: lamina compare --data data/doom --methods flexlam alam --budget 20m --out runs/compared
    """

    data: str
    """LeRobot dataset with actions"""
    out: Path
    """folder of the comparison; called again with the same settings, it goes on where it stopped"""
    subjects: Annotated[tuple[str, ...], arg(name="with")] = ()
    """further rows: run folders, or module:function that returns a Subject"""


def compare(argv: Sequence[str], parse_only: bool = False) -> None:
    """``lamina compare``."""
    from lamina.comparison.plan import CompareConfig
    from lamina.evaluation.settings import EvaluateConfig

    evaluate = dataclasses.replace(EvaluateConfig(), labels="5%")
    args = parse_options(with_options(Compare, compare=CompareConfig(), evaluate=evaluate), argv, prog="lamina compare")
    if parse_only:
        return
    from lamina.comparison.run import run_comparison

    result = run_comparison(args.data, args.out, args.compare, args.evaluate, args.subjects)
    for level, text in result.words:
        print(f"{level:>4}  {printable(text)}")
    print(args.out / "comparison.html")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Train a policy on the latent actions of a run -> RUN/policy.

    Example: lamina policy runs/mine --data data/doom --steps 2000
    """

    run: Positional[Path]
    """folder of the run"""
    data: UseAppendAction[tuple[str, ...]]
    """video folder or LeRobot dataset; repeat for more, where the kind takes several"""
    kind: str = "tokens"
    """kind of policy; `lamina policy --help` lists them, and `lamina policy --kind KIND --help` shows the options of one"""
    camera: UseAppendAction[tuple[str, ...]] = ()
    """camera of a LeRobot dataset; repeat for more, where the kind reads several; default: the kind's own choice"""
    plan: bool = False
    """print parameters, FLOPs, memory and days of this training, and train nothing (kind flow)"""


def policy(argv: Sequence[str], parse_only: bool = False) -> None:
    """``lamina policy RUN``: the options are those of the kind of policy and the training loop."""
    from lamina.policies.base import KINDS, policy_kind
    from lamina.training.settings import TrainConfig

    chosen = policy_kind(option_value(argv, "--kind") or "tokens")
    kinds = "".join(f"\n  {name:<8} {policy_kind(name).title}" for name in KINDS)
    command = with_options(Policy, policy=chosen.config(), train=TrainConfig(**chosen.training))
    args = parse_options(command, argv, prog="lamina policy", description=f"{Policy.__doc__}\n\nKinds:{kinds}")
    if parse_only:
        return
    act = chosen.plan if args.plan else chosen.train
    if act is None:
        raise LaminaError(f"--plan: there is none for policies of kind {args.kind}")
    print(act(args.run, args.data, args.policy, args.train, args.camera))


def play(argv: Sequence[str], parse_only: bool = False) -> None:
    """``lamina play RUN``."""
    args = parse_options(Play, argv, prog="lamina play")
    if parse_only:
        return
    from lamina.play.server import play as serve

    serve(args.run, args.data, **{name: value for name, value in vars(args).items() if name not in ("run", "data")})


def option_value(argv: Sequence[str], option: str) -> str | None:
    """The value of an option that decides which other options there are; None where ``argv`` doesn't have it."""
    for number, part in enumerate(argv):
        if part.startswith(f"{option}="):
            return part.partition("=")[2]
        if part == option and number + 1 < len(argv):
            return argv[number + 1]
    return None


@dataclass(frozen=True)
class Rollout:
    """Evaluate a policy in closed loop and report returns: the policy of RUN, the scripted `expert`, or `random`.

    Example: lamina rollout runs/mine --world doom-suite --k 4 --episodes 50 --out returns.json
    """

    agent: Positional[str]
    """run folder (with model, policy and translator), expert, or random"""
    world: UseAppendAction[tuple[str, ...]]
    """environment, or a suite of environments (doom-suite); repeat for more"""
    k: int | Literal["auto"] | None = None
    """prefix length: latent tokens generated per decision; auto: until the rule of lamina adaptive-k ends the code; default: all"""
    episodes: int = 50
    """episodes per environment"""
    parallel: int = 8
    """environments that run in parallel, each in its own process"""
    seed: int = 1000
    """seed of the environments and of sampling; by default other starts than those of demonstrations collected with the default seed"""
    temperature: float = 0.0
    """sampling temperature of the latent tokens; 0: the most likely token"""
    max_steps: int | None = None
    """maximum number of environment steps per episode; default: the limit of the environment"""
    out: Path | None = None
    """file for the JSON record"""
    videos: Path | None = None
    """new folder for films of some episodes of each world, successes and failures, and a page that shows them (index.html)"""
    device: DeviceName = "auto"
    precision: Precision = "fp32"

    def run(self) -> None:
        from lamina.policies.rollout import rollout, table

        options = {k: v for k, v in vars(self).items() if k not in ("agent", "world")}
        print(table(rollout(self.agent, self.world, **options)))
        for made in (self.out, self.videos and self.videos / "index.html"):
            if made:
                print(made)


def parse_options(command: Any, argv: Sequence[str], **more: Any) -> Any:
    """The options of a command, parsed from ``argv``.

    Raises LaminaError for a value that a config rejects, and SystemExit for what the parser rejects.
    """
    output = io.StringIO()
    try:
        with contextlib.redirect_stderr(output):
            options = tyro.cli(command, args=list(argv), **more)
    except SystemExit as ended:
        error: BaseException | None = ended
        while error is not None:
            if isinstance(error, LaminaError):
                raise error from None
            error = error.__cause__ or error.__context__
        sys.stderr.write(output.getvalue())
        raise
    check_options(options)
    return options


def plain_command(command: type, name: str) -> Callable[[Sequence[str], bool], None]:
    def call(argv: Sequence[str], parse_only: bool = False) -> None:
        args = parse_options(command, argv, prog=f"lamina {name}")
        if not parse_only:
            args.run()

    return call


COMMANDS: dict[str, Callable[..., None]] = {
    "collect": plain_command(Collect, "collect"),
    "train": train,
    "align": align,
    "label": plain_command(Label, "label"),
    "adaptive-k": adaptive_k,
    "evaluate": evaluate,
    "doctor": doctor,
    "play": play,
    "compare": compare,
    "transfer": transfer,
    "policy": policy,
    "rollout": plain_command(Rollout, "rollout"),
}
#: Commands of the research package, a separate distribution: it reproduces the papers' claims and needs a checkout.
RESEARCH = ("reproduce", "exogenous")


def find_command(name: str) -> Callable[..., None]:
    """The function of a command, from this package or from a package that registers an entry point in ``lamina.commands``.

    Raises LaminaError for an unknown name, and for a command of the research package if that is not installed.
    """
    if name in COMMANDS:
        return COMMANDS[name]
    for entry in entry_points(group="lamina.commands", name=name):
        return entry.load()  # type: ignore[no-any-return]
    if name in RESEARCH:
        raise LaminaError(
            f"{name} belongs to the research package: in a checkout of lamina, run pip install -e research"
        )
    near = difflib.get_close_matches(name, [*COMMANDS, *RESEARCH], n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose {', '.join([*COMMANDS, *RESEARCH])}"
    raise LaminaError(f"unknown command '{name}': {hint}")


def parse(argv: Sequence[str]) -> None:
    """Check that ``argv`` (without the program's name) is a valid call, without running it.

    Raises LaminaError for an unknown command or method, SystemExit for wrong options.
    """
    dispatch(argv, parse_only=True)


def dispatch(argv: Sequence[str], parse_only: bool = False) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if argv[0] == "--version":
        from lamina.version import __version__

        print(__version__)
        return
    find_command(argv[0])(argv[1:], parse_only)


def printable(text: str) -> str:
    """``text`` as one line without control characters: names of files and tasks are untrusted and could contain terminal escape codes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a memory allocation failed: MemoryError, torch's RuntimeError on a CPU, or its OutOfMemoryError on a GPU."""
    text = str(error)
    return (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``lamina``; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    plain = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
        if issubclass(category, LaminaWarning):
            print(f"warning: {printable(str(message))}", file=sys.stderr)
        else:
            plain(message, category, *rest, **more)

    warnings.showwarning = show
    try:
        dispatch(argv)
    except BrokenPipeError:
        return 0  # the reader of the output has closed the pipe, as `| head` does
    except (LaminaError, OSError) as error:
        if debug:
            raise
        text = (
            str(error) if isinstance(error, LaminaError) else f"{error.filename or 'system'}: {error.strerror or error}"
        )
        print(f"lamina: {printable(text)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "lamina: interrupted; training and labelling go on where they stopped (train: add --resume)",
            file=sys.stderr,
        )
        return 130
    except Exception as error:
        if debug:
            raise
        if is_out_of_memory(error):
            print("lamina: not enough memory; choose a lower --batch, --size or --image", file=sys.stderr)
        else:
            text = printable(f"{type(error).__name__}: {error}")
            print(f"lamina: internal error: {text}; please report it (--debug shows the traceback)", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
