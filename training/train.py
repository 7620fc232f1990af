"""Trains a CaiT: `python -m training.train quickstart --output runs/digits`.

Run the same command again to resume an interrupted run; it ends with the same
weights, bit for bit. A finished run is never overwritten. A recipe can also be
a file, such as the recipe.json of a run.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, Group, Parameter
from cyclopts.validators import Number

from training.loop.interruption import StopSignal, lost_workers
from training.options import (
    DataDir,
    StrategyName,
    first_and_last,
    given,
    options_of,
    whole_number,
)
from training.recipe import Recipe, override, read_recipe
from training.recipes import GROUPS, summary


@lost_workers()
def train(
    recipe: Recipe,
    output: Path,
    data_dir: DataDir = None,
    strategy: StrategyName = "auto",
    checkpoint_steps: int = 1000,
    profile: tuple[int, int] | None = None,
) -> None:
    """Trains a recipe to its end and leaves the run in a folder.

    Args:
        recipe: what is computed.
        output: folder of the run. It is created; or the interrupted run of the
            same recipe in it is resumed, also on another number of devices.
            It ends up with `model.keras` (the better of EMA and raw weights,
            with softmax), `labels.txt`, `history.csv`, `summary.json`,
            `recipe.json`, `data.json`, `validation/` (images), `checkpoints/`
            (the last three and the best), `tensorboard/` and `report.html`.
        data_dir: folder in which TensorFlow Datasets keeps its files.
        strategy: devices, as for `make_strategy`.
        checkpoint_steps: steps between checkpoints. There is also one at the
            end of every epoch, and one when SIGTERM or Ctrl-C stops the run.
        profile: first and last step to record for the profiler, from 1.

    Raises:
        ValueError: the folder holds a finished run, or one of another recipe
            or other data; its disk is too small; the devices do not divide
            the recipe's batch; it has fewer steps than `profile` needs; or as
            of `check_alike`.
        OSError: the folder cannot be written.
        FloatingPointError: a loss or gradient is not finite.
        ConnectionError: another worker died or hangs.
    """
    # Here, not at the top: `--help` does not wait for TensorFlow.
    import keras

    from keras_cait.command_line import require_tensorflow

    require_tensorflow()

    from training.data.datasets import (
        check_training,
        class_counts,
        content,
        load,
        notes_on_split,
        with_labels,
    )
    from training.data.pipeline import (
        evaluation_transform,
        naming_unreadable,
        prepared,
        steps_per_epoch,
        training_data,
        validation_data,
    )
    from training.loop.checkpoints import Checkpoints
    from training.loop.distillation import check_teacher, make_loss
    from training.loop.losses import balanced
    from training.loop.model import build, check_weights, start_from
    from training.loop.monitor import Monitor
    from training.loop.optimizers import make_optimizer
    from training.loop.overview import print_overview
    from training.loop.progress import ProgressLine
    from training.loop.run_folder import (
        check_data,
        check_folder,
        check_space,
        claimed,
        finish,
        is_started,
        settled,
    )
    from training.loop.strategies import (
        any_worker,
        check_alike,
        is_chief,
        make_strategy,
        worker_count,
    )
    from training.loop.trainer import Trainer
    from training.report import write_report

    # 1. Check what can be checked. Nothing is created before it is needed.
    devices = make_strategy(strategy)
    chief = is_chief(devices)
    recipe = settled(recipe.resolved(), output, devices)
    recipe.check_devices(devices.num_replicas_in_sync, worker_count(devices))
    check_folder(output, recipe)
    check_weights(recipe.weights)
    check_teacher(recipe)

    # 2. Data: examples by number. A batch is a function of seed and step.
    examples = load(recipe.data, "train", data_dir, **recipe.split())
    if recipe.balance_classes:
        examples = with_labels(examples)
    validation = load(recipe.data, "validation", data_dir, **recipe.split())
    check_training(examples, validation, recipe.data)
    data = {"train": content(examples), "validation": content(validation)}
    check_data(output, data)
    for note in notes_on_split(examples, validation) if chief else ():
        print(note)
    classes = len(examples.class_names)
    steps = steps_per_epoch(examples, recipe)
    if profile and profile[0] > recipe.epochs * steps:
        raise ValueError(
            f"--profile begins at step {profile[0]}, but the run has "
            f"{recipe.epochs * steps}. Choose earlier steps."
        )

    # 3. Model, its EMA, loss and optimizer. The trainer's step sums gradients
    # over micro-batches (accumulation) and devices, and updates model and EMA.
    keras.utils.set_random_seed(recipe.seed)
    keras.config.set_dtype_policy(recipe.precision)
    with devices.scope():
        model, ema_model = build(recipe, classes), build(recipe, classes)
        loss = make_loss(recipe, classes)
        if recipe.balance_classes:
            loss = balanced(loss, [*class_counts(examples).values()])
        optimizer = make_optimizer(recipe, model, steps)
    trainer = Trainer(recipe, devices, model, ema_model, optimizer, loss)
    if chief:
        check_space(output, trainer)

    # 4. Start from a file, published or random weights.
    if recipe.weights and not is_started(output):
        with devices.scope():
            start_from(model, recipe.weights, examples.class_names)
        trainer.reset_ema()

    # 5. Claim the folder. Of many workers, only the chief writes to it.
    with (
        claimed(output, recipe, data, chief),
        Checkpoints(
            trainer.state, output / "checkpoints", chief
        ) as checkpoints,
        ProgressLine() as line,
        StopSignal() as stop,
    ):
        # 6. Resume from the newest intact checkpoint of this run, if any.
        restored = checkpoints.restore()
        first_step = trainer.step
        check_alike(
            devices,
            {"recipe": asdict(recipe), "data": data, "step": first_step},
        )
        if chief:
            print_overview(recipe, trainer, examples, steps)
            if restored:
                print(f"Resuming at step {first_step} from {restored}")

        # 7. The loop: steps, an evaluation after each epoch, checkpoints.
        batches = training_data(recipe, devices, examples, first_step, output)
        validation_batches = validation_data(recipe, devices, validation)
        monitor = Monitor(
            recipe,
            trainer,
            prepared(validation, recipe),
            output,
            steps,
            line,
            chief,
            profile,
        )
        for epoch in range(first_step // steps, recipe.epochs):
            if trainer.is_out_of_patience:
                break
            for i in range(trainer.step % steps, steps):
                with monitor.waiting():
                    images, targets = next(batches)
                trainer.train_step(images, targets)
                step = epoch * steps + i + 1
                monitor.after_step(step)
                ends_epoch = i + 1 == steps
                is_best, found = False, {}
                if ends_epoch:
                    if is_evaluated(recipe, epoch):
                        transform = evaluation_transform(recipe)
                        with (
                            monitor.evaluating(step),
                            naming_unreadable(validation, transform),
                        ):
                            found = trainer.evaluate(validation_batches)
                        is_best = trainer.note_accuracy(
                            max(
                                found["val_accuracy"],
                                found["val_raw_accuracy"],
                            )
                        )
                    monitor.after_epoch(step, found, images, targets)
                    trainer.reset_means()
                asked = any_worker(devices, stop.received, step)
                if asked or ends_epoch or step % checkpoint_steps == 0:
                    checkpoints.wait()  # for the one before
                    trainer.check_finite(steps, checkpoints.newest, found)
                    checkpoints.save(step, is_best)
                if asked:
                    checkpoints.wait()
                    raise KeyboardInterrupt(
                        f"Stopped and saved at step {step}. Run the same "
                        "command again to resume."
                    )
        checkpoints.wait()

        # 8. Finish: the model, its accuracy, labels and images; a report.
        # The other workers need no weights any more.
        if chief:
            epoch = trained = trainer.step // steps
            if recipe.patience:
                epoch = checkpoints.restore_best(trainer.weights) // steps
            if trained < recipe.epochs:
                print(
                    f"Stopped after epoch {trained}: no better accuracy in "
                    f"{recipe.patience} evaluations. The best was epoch "
                    f"{epoch}'s."
                )
            validation = prepared(validation, recipe)
            finish(trainer, examples, validation, output, epoch)
            print(f"The report is {write_report(output)}")


def is_evaluated(recipe: Recipe, epoch: int) -> bool:
    """Whether an epoch ends with an evaluation."""
    done = epoch + 1
    return done == recipe.epochs or done % recipe.evaluation_epochs == 0


def make_app() -> App:
    """The command line: one command per recipe, one option per field."""
    app = App(
        name="python -m training.train",
        help=f"{__doc__}\nHours are computed for eight A100 "
        "(docs/training.md). A recipe's own --help lists its options.",
        version_flags=[],
    )
    for title, recipes in GROUPS.items():
        group = Group.create_ordered(title)
        for order, (name, recipe) in enumerate(recipes.items()):
            app.command(
                make_command(recipe),
                name=name,
                group=group,
                help=summary(name),
                sort_key=order,
            )
    return app


def make_command(recipe: Recipe) -> Callable[..., None]:
    """The command that trains a recipe."""
    options = options_of(recipe)
    none_given = options()

    def command(
        *,
        output: Annotated[Path, Parameter(help="Folder of the run.")],
        changes: Any = none_given,
        folds: Annotated[
            int | None,
            Parameter(
                validator=Number(gte=2),
                converter=whole_number,
                help="Cross-validate: train once per fold of a folder:PATH. "
                "For datasets under 500 images.",
            ),
        ] = None,
        data_dir: DataDir = None,
        strategy: StrategyName = "auto",
        checkpoint_steps: Annotated[
            int,
            Parameter(
                validator=Number(gte=1),
                converter=whole_number,
                help="Steps between checkpoints.",
            ),
        ] = 1000,
        profile: Annotated[
            tuple[int, int] | None,
            Parameter(
                converter=first_and_last,
                n_tokens=1,
                negative=(),
                help="First and last step to record for TensorBoard's "
                "profiler, such as 100,110.",
            ),
        ] = None,
    ) -> None:
        changed = override(recipe, **given(changes))
        if folds is None:
            train(
                changed, output, data_dir, strategy, checkpoint_steps, profile
            )
            return
        if {"validation_fraction", "fold"} & {*given(changes)}:
            raise ValueError(
                "--folds sets --validation-fraction and --fold. Omit them."
            )
        from keras_cait.command_line import require_tensorflow

        require_tensorflow()
        from training.folds import train_folds
        from training.loop.strategies import make_strategy

        train_folds(
            changed,
            folds,
            output,
            lambda fold, folder: train(
                fold, folder, data_dir, strategy, checkpoint_steps, profile
            ),
            make_strategy(strategy),
        )

    # One option per field, instead of `--changes`.
    command.__annotations__["changes"] = Annotated[options, Parameter(name="*")]
    return command


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line: `argv`, or that of the process."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0].endswith(".json"):
        train_file(*arguments)
    app = make_app()
    if not arguments or {"-h", "--help"} & {*arguments}:
        app(arguments)  # exits
    # Imports Keras, and with it TensorFlow.
    from keras_cait.command_line import run

    run(app, arguments)


def train_file(path: str, *arguments: str) -> NoReturn:
    """The command line of a recipe in a file."""
    from keras_cait.command_line import fail, run

    try:
        recipe = read_recipe(path)
    except (ValueError, OSError) as error:
        fail(error)
    app = App(
        name=f"python -m training.train {path}",
        help=f"Trains the recipe in {path}.",
        version_flags=[],
    )
    app.default(make_command(recipe))
    run(app, arguments)


if __name__ == "__main__":
    main()
