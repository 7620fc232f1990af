"""Training state, and the compiled train and evaluation steps."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from training.loop.distillation import Loss
from training.loop.stack_traces import one_stack_trace
from training.recipe import Recipe

SUM = tf.distribute.ReduceOp.SUM
MOST_CLASSES = 100  # whose confusion is counted while training


class Trainer:
    """Training state, and the compiled train and evaluation steps.

    The gradient of a step is summed over micro-batches and replicas and divided
    by the global batch; only then is it clipped and applied. The same recipe
    therefore gives the same numbers on any number of devices, except for
    stochastic depth, which each device draws for its own images.

    Args:
        recipe: the resolved recipe, whose batch the devices divide.
        strategy: strategy in whose scope the following were made.
        model: model that is trained; it returns logits.
        ema_model: another model like it.
        optimizer: optimizer that is built for the model.
        loss: function of `(images, targets, logits)` to losses `(batch,)`.

    Attributes:
        model, ema_model: the model that is trained, and that of its EMA
            weights.
        step: optimizer steps done.
        nonfinite: step of the first loss or gradient that was not finite; -1 if
            there was none.
        state: everything that a run needs to resume exactly.
        weights: the part of it that a trained model is made of.
    """

    def __init__(
        self,
        recipe: Recipe,
        strategy: tf.distribute.Strategy,
        model: keras.Model,
        ema_model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        loss: Loss,
    ):
        self.recipe = recipe
        self.strategy = strategy
        self.model, self.ema_model = model, ema_model
        self.optimizer, self.loss = optimizer, loss
        self.reset_ema()
        self.ema_model.trainable = False
        with strategy.scope():
            self._step, self._nonfinite = counter(), counter(-1)
            self._best = counter(-1.0, tf.float32)
            self._since_best = counter()  # evaluations
            # Loss, accuracy, gradient norm and their number. Not Keras'
            # metrics, which all workers would have to read together.
            self._sums = counter([0.0] * 4, tf.float32)
            self.evaluation = [
                keras.metrics.Mean(f"val_{name}")
                for name in (
                    *("accuracy", "top5", "loss"),
                    *("raw_accuracy", "raw_loss"),
                )
            ]
            # Labels in rows, predictions in columns.
            classes = model.output.shape[-1]
            self._confusion = (
                counter(np.zeros((classes, classes)), tf.float32)
                if classes <= MOST_CLASSES
                else None
            )
        self.is_scaled = isinstance(
            optimizer, keras.optimizers.LossScaleOptimizer
        )
        self.variables = model.trainable_variables
        self.generators = [
            v
            for v in model.non_trainable_variables
            if v.path.endswith("seed_generator_state")
        ]
        self.state = tf.train.Checkpoint(
            model=model,
            average=ema_model,  # the name in checkpoints
            optimizer=optimizer,
            step=self._step,
            nonfinite=self._nonfinite,
            best=self._best,
            sums=self._sums,
        )
        if recipe.patience:  # checkpoints of earlier versions lack it
            self.state.since_best = self._since_best
        self.weights = tf.train.Checkpoint(model=model, average=ema_model)
        # Without AutoGraph, which nothing here needs: it slows the tracing.
        # Under a strategy, XLA cannot see more than a micro-batch.
        is_alone = strategy is tf.distribute.get_strategy()
        self.gradient = tf.function(
            self._gradient, autograph=False, jit_compile=recipe.xla
        )
        self.predict = tf.function(
            lambda images: (
                self.ema_model(images, training=False),
                self.model(images, training=False),
            ),
            autograph=False,
            jit_compile=recipe.xla,
        )
        self.train_step = tf.function(
            self._train_step,
            autograph=False,
            jit_compile=recipe.xla and is_alone,
        )
        self.evaluation_step = tf.function(
            self._evaluation_step, autograph=False
        )

    @property
    def step(self) -> int:
        return int(self._step.numpy())

    @property
    def nonfinite(self) -> int:
        return int(self._nonfinite.numpy())

    def reset_ema(self) -> None:
        """Starts the EMA at the model's present weights."""
        with self.strategy.scope():
            self.ema_model.set_weights(self.model.get_weights())

    @one_stack_trace()
    def _train_step(self, images: tf.Tensor, targets: tf.Tensor) -> None:
        self.strategy.run(self._replica_step, args=(images, targets))

    def _replica_step(self, images: tf.Tensor, targets: tf.Tensor) -> None:
        replica = tf.distribute.get_replica_context()
        self._seed(replica.replica_id_in_sync_group)
        count = self.recipe.accumulation_steps
        size = self.recipe.global_batch_size // (
            count * self.strategy.num_replicas_in_sync
        )
        images = tf.reshape(images, (count, size, *images.shape[1:]))
        targets = tf.reshape(targets, (count, size, *targets.shape[1:]))
        zeros = Sums(
            tf.zeros(()),
            tf.zeros(()),
            [tf.zeros(v.shape) for v in self.variables],
        )

        def add(index: tf.Tensor, sums: Sums) -> tuple[tf.Tensor, Sums]:
            more = self.gradient(images[index], targets[index])
            return index + 1, tf.nest.map_structure(tf.add, sums, more)

        if count == 1:
            sums = self.gradient(images[0], targets[0])
        else:  # a loop in the graph, which holds one micro-batch at a time
            _, sums = tf.while_loop(
                lambda index, _: index < count,
                add,
                (0, zeros),
                parallel_iterations=1,
            )
        loss, hits, gradients = replica.all_reduce(SUM, sums)
        # Under loss scaling the gradients include the scale.
        scale = self.optimizer.scale_loss(tf.ones(()))
        norm = tf.linalg.global_norm(gradients) / scale
        self.optimizer.apply(gradients, self.variables)
        if self.is_scaled and self.recipe.precision != "mixed_float16":
            # It only skips: the scale, which a skip has halved, stays 1.
            self.optimizer.dynamic_scale.assign(1.0)
        self._update_ema()
        self._count(loss, hits, norm)

    def _gradient(self, images: tf.Tensor, targets: tf.Tensor) -> "Sums":
        """Sums over one micro-batch, as shares of the global batch."""
        with tf.GradientTape() as tape:
            logits = tf.cast(self.model(images, training=True), tf.float32)
            losses = self.loss(images, targets, logits)
            loss = tf.reduce_sum(losses) / self.recipe.global_batch_size
            scaled = self.optimizer.scale_loss(loss)
        hits = tf.argmax(logits, -1) == tf.argmax(targets, -1)
        hits = tf.reduce_sum(tf.cast(hits, tf.float32))
        return Sums(
            loss,
            hits / self.recipe.global_batch_size,
            tape.gradient(scaled, self.variables),
        )

    def _seed(self, replica: tf.Tensor) -> None:
        """Makes stochastic depth depend on seed, layer, replica and step.

        A resumed run drops the same branches; no two layers, replicas or seeds
        do.
        """
        draws = 2 * self.recipe.accumulation_steps  # per block and step
        layers = len(self.generators)
        replicas = self.strategy.num_replicas_in_sync
        for layer, generator in enumerate(self.generators):
            key = (self.recipe.seed * layers + layer) * replicas
            key += tf.cast(replica, tf.int64)
            state = tf.stack([key, self._step * draws])
            generator.assign(tf.cast(state, generator.dtype))

    def _update_ema(self) -> None:
        share = 1 - self.recipe.ema_momentum
        if self.recipe.ema_warmup:
            share = tf.maximum(
                share, 9 / (10 + tf.cast(self._step, tf.float32))
            )
        for ours, theirs in zip(
            self.ema_model.variables, self.model.variables, strict=True
        ):
            if theirs.trainable:
                ours.assign_add(share * (theirs - ours))

    def _count(self, loss: tf.Tensor, hits: tf.Tensor, norm: tf.Tensor) -> None:
        is_finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
        sums = tf.stack([loss, hits, norm, 1.0])
        self._sums.assign_add(tf.where(is_finite, sums, tf.zeros(4)))
        # Loss scaling finds its scale by gradients that are not finite.
        is_good = tf.math.is_finite(loss) if self.is_scaled else is_finite
        if_first = (self._nonfinite < 0) & ~is_good
        self._nonfinite.assign(tf.where(if_first, self._step, self._nonfinite))
        self._step.assign_add(1)

    def totals(self) -> np.ndarray:
        """Sums over the epoch's finite steps, of which `means_of` are made.

        Waits for the device.
        """
        return self._sums.numpy().astype("float64")

    def means(self) -> dict[str, float]:
        """Mean loss, accuracy and gradient norm over the finite steps."""
        return means_of(self.totals())

    def reset_means(self) -> None:
        self._sums.assign(tf.zeros(4))

    def note_accuracy(self, accuracy: float) -> bool:
        """Whether an accuracy is higher than all before."""
        is_best = accuracy > float(self._best.numpy())
        if is_best:
            self._best.assign(accuracy)
        before = int(self._since_best.numpy())
        self._since_best.assign(0 if is_best else before + 1)
        return is_best

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the recipe stops a run whose accuracy no longer grows."""
        patience = self.recipe.patience
        return 0 < patience <= int(self._since_best.numpy())

    def check_finite(
        self,
        steps_per_epoch: int,
        newest: Path | None,
        evaluated: Mapping[str, float],
    ) -> None:
        """Stops a run with a non-finite loss, before it is saved.

        Args:
            steps_per_epoch: optimizer steps per epoch.
            newest: the last checkpoint.
            evaluated: as in `evaluate`, or nothing.

        Raises:
            FloatingPointError: a loss or gradient was not finite, and the
                recipe does not skip such steps; or the validation loss is not
                finite, which no skipped step repairs.
        """
        step = self.nonfinite
        if step >= 0 and self.recipe.on_nonfinite == "stop":
            raise FloatingPointError(
                f"Loss or gradient is not finite at step {step}, in epoch "
                f"{step // steps_per_epoch + 1}. The last good checkpoint is "
                f"{newest}. Lower learning_rate or clip_norm, or use "
                "on_nonfinite=skip."
            )
        if not math.isfinite(evaluated.get("val_raw_loss", 0.0)):
            raise FloatingPointError(
                f"The validation loss is not finite after step {self.step}: "
                f"training has diverged. The last checkpoint is {newest}. "
                "Lower learning_rate or clip_norm."
            )

    @one_stack_trace()
    def _evaluation_step(
        self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
    ) -> None:
        self.strategy.run(
            self._replica_evaluation, args=(images, labels, weights)
        )

    def _replica_evaluation(
        self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
    ) -> None:
        logits, raw = (
            tf.cast(outputs, tf.float32) for outputs in self.predict(images)
        )
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits
        # Not in_top_k, for which every class is the best where all are equal.
        best = tf.math.top_k(logits, min(5, logits.shape[-1])).indices
        hits = best == tf.cast(labels, best.dtype)[:, None]
        for metric, values in zip(
            self.evaluation,
            (
                hits[:, 0],
                tf.reduce_any(hits, axis=1),
                losses(labels, logits),
                tf.argmax(raw, -1, labels.dtype) == labels,
                losses(labels, raw),
            ),
            strict=True,
        ):
            metric.update_state(tf.cast(values, tf.float32), weights)
        if self._confusion is not None:
            counts = tf.math.confusion_matrix(
                labels,
                tf.argmax(logits, -1),
                logits.shape[-1],
                weights,
                tf.float32,
            )
            replica = tf.distribute.get_replica_context()
            self._confusion.assign_add(replica.all_reduce(SUM, counts))

    def evaluate(
        self, batches: Iterable[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]
    ) -> dict[str, float]:
        """Accuracies, in 0...1, and losses of the EMA and of the raw weights.

        The loss is the cross entropy, without smoothing and distillation.

        Args:
            batches: distributed `(images, labels, weights)`.

        Returns:
            `val_accuracy`, `val_top5` and `val_loss` of the EMA weights, and
            `val_raw_accuracy` and `val_raw_loss` of those of the last step.
        """
        for metric in self.evaluation:
            metric.reset_state()
        if self._confusion is not None:
            self._confusion.assign(tf.zeros(self._confusion.shape))
        for batch in batches:
            self.evaluation_step(*batch)
        return {
            m.name: float(keras.ops.convert_to_numpy(m.result()))
            for m in self.evaluation
        }

    @property
    def confusion(self) -> np.ndarray | None:
        """Counts of the last evaluation of the EMA weights, if classes are few.

        Labels in rows, predictions in columns.
        """
        if self._confusion is None:
            return None
        return self._confusion.numpy().astype(int)


def means_of(totals: np.ndarray) -> dict[str, float]:
    """Mean loss, accuracy and gradient norm, of `Trainer.totals`.

    Example:
    >>> means_of(np.array([4.0, 1.0, 8.0, 2.0]))
    {'loss': 2.0, 'accuracy': 0.5, 'gradient_norm': 4.0}
    """
    *sums, count = totals.tolist()
    names = ("loss", "accuracy", "gradient_norm")
    return {
        name: value / count if count else math.nan
        for name, value in zip(names, sums, strict=True)
    }


class Sums(NamedTuple):
    """Sums over a micro-batch, as shares of the global batch."""

    loss: tf.Tensor
    hits: tf.Tensor
    gradients: list[tf.Tensor]


def counter(
    value: float | list[float] | np.ndarray = 0, dtype: tf.DType = tf.int64
) -> tf.Variable:
    """A variable that all replicas change alike."""
    return tf.Variable(
        value,
        dtype=dtype,
        trainable=False,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
