"""One optimizer step over all replicas, and evaluation, under any strategy."""

import math
from typing import NamedTuple

import keras
import tensorflow as tf

SUM = tf.distribute.ReduceOp.SUM


class Trainer:
    """What a run changes, and the functions that change it.

    The gradient of a step is the sum over micro-batches and replicas, divided
    by the global batch; it is clipped and applied after that sum. So the same
    recipe gives the same numbers on any number of devices.

    Args:
        recipe: `Recipe`.
        strategy: `tf.distribute.Strategy`.
        make_model: function that builds the model, with logits.
        make_optimizer: function of the model to its built optimizer.
        make_loss: function that makes the loss, a function of `(images,
            targets, logits)` to losses `(batch,)`.

    Attributes:
        model, average: the model that learns, and the one of its averaged
            weights (EMA).
        step: int. Optimizer steps done.
        nonfinite: int. Step of the first loss or gradient that was not finite;
            -1 as long as there is none.
        state: `tf.train.Checkpoint` of all that makes a run go on exactly.
    """

    def __init__(self, recipe, strategy, make_model, make_optimizer, make_loss):
        self.recipe = recipe
        self.strategy = strategy
        devices = strategy.num_replicas_in_sync
        batch, count = recipe.global_batch_size, recipe.accumulation_steps
        if batch % (devices * count):
            raise ValueError(
                "global_batch_size must divide into the devices and their "
                f"accumulation_steps. Received: global_batch_size={batch} for "
                f"{devices} devices and accumulation_steps={count}."
            )
        with strategy.scope():
            self.model, self.average = make_model(), make_model()
            self.average.set_weights(self.model.get_weights())
            self.average.trainable = False
            self.loss = make_loss()
            self.optimizer = make_optimizer(self.model)
            self._step, self._nonfinite = counter(), counter(-1)
            self._best = counter(-1.0, tf.float32)
            # Loss, accuracy, gradient norm, their number. Not Keras' metrics:
            # to read those is a step that all workers must take together.
            self._sums = counter([0.0] * 4, tf.float32)
            self.evaluation = [
                keras.metrics.Mean(f"val_{name}")
                for name in ("accuracy", "top5", "raw_accuracy")
            ]
        self.is_scaled = isinstance(
            self.optimizer, keras.optimizers.LossScaleOptimizer
        )
        self.variables = self.model.trainable_variables
        self.generators = [
            v
            for v in self.model.non_trainable_variables
            if v.path.endswith("seed_generator_state")
        ]
        self.state = tf.train.Checkpoint(
            model=self.model,
            average=self.average,
            optimizer=self.optimizer,
            step=self._step,
            nonfinite=self._nonfinite,
            best=self._best,
            sums=self._sums,
        )
        # Under a strategy XLA can not see more than a micro-batch.
        is_alone = strategy is tf.distribute.get_strategy()
        self.gradient = tf.function(self._gradient, jit_compile=recipe.xla)
        self.predict = tf.function(
            lambda images: (
                self.average(images, training=False),
                self.model(images, training=False),
            ),
            jit_compile=recipe.xla,
        )
        self.train_step = tf.function(
            self._train_step, jit_compile=recipe.xla and is_alone
        )
        self.evaluation_step = tf.function(self._evaluation_step)

    @property
    def step(self):
        return int(self._step.numpy())

    @property
    def nonfinite(self):
        return int(self._nonfinite.numpy())

    def _train_step(self, images, targets):
        self.strategy.run(self._replica_step, args=(images, targets))

    def _replica_step(self, images, targets):
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

        def add(index, sums):
            more = self.gradient(images[index], targets[index])
            return index + 1, tf.nest.map_structure(tf.add, sums, more)

        if count == 1:
            sums = self.gradient(images[0], targets[0])
        else:  # a loop of the graph, which holds one micro-batch at a time
            _, sums = tf.while_loop(
                lambda index, _: index < count,
                add,
                (0, zeros),
                parallel_iterations=1,
            )
        loss, hits, gradients = replica.all_reduce(SUM, sums)
        # Under loss scaling the gradients carry the scale.
        scale = self.optimizer.scale_loss(tf.ones(()))
        norm = tf.linalg.global_norm(gradients) / scale
        self.optimizer.apply(gradients, self.variables)
        if self.is_scaled and self.recipe.precision != "mixed_float16":
            # It only skips: the scale, which a skip has halved, stays 1.
            self.optimizer.dynamic_scale.assign(1.0)
        self._average()
        self._count(loss, hits, norm)

    def _gradient(self, images, targets):
        """Sums of one micro-batch, as shares of the global batch."""
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

    def _seed(self, replica):
        """Makes dropped branches a function of seed, layer, replica, step.

        A run that was interrupted drops the same ones, and no two replicas do.
        """
        draws = 2 * self.recipe.accumulation_steps  # of a block in a step
        replicas = self.strategy.num_replicas_in_sync
        for layer, generator in enumerate(self.generators):
            key = self.recipe.seed + layer * replicas + replica
            state = tf.stack([tf.cast(key, tf.int64), self._step * draws])
            generator.assign(tf.cast(state, generator.dtype))

    def _count(self, loss, hits, norm):
        is_finite = tf.math.is_finite(loss) & tf.math.is_finite(norm)
        sums = tf.stack([loss, hits, norm, 1.0])
        self._sums.assign_add(tf.where(is_finite, sums, tf.zeros(4)))
        # Loss scaling finds its scale by gradients that are not finite.
        is_good = tf.math.is_finite(loss) if self.is_scaled else is_finite
        if_first = (self._nonfinite < 0) & ~is_good
        self._nonfinite.assign(tf.where(if_first, self._step, self._nonfinite))
        self._step.assign_add(1)

    def means(self):
        """Loss, accuracy and gradient norm over the finite steps counted."""
        *sums, count = self._sums.numpy().tolist()
        names = ("loss", "accuracy", "gradient_norm")
        return {
            name: value / count if count else math.nan
            for name, value in zip(names, sums, strict=True)
        }

    def reset_means(self):
        """Starts to count anew."""
        self._sums.assign(tf.zeros(4))

    def note_accuracy(self, accuracy):
        """Whether an accuracy is higher than all before."""
        is_best = accuracy > float(self._best.numpy())
        if is_best:
            self._best.assign(accuracy)
        return is_best

    def _average(self):
        share = 1 - self.recipe.ema_momentum
        for ours, theirs in zip(
            self.average.variables, self.model.variables, strict=True
        ):
            if theirs.trainable:
                ours.assign_add(share * (theirs - ours))

    def _evaluation_step(self, images, labels, weights):
        self.strategy.run(
            self._replica_evaluation, args=(images, labels, weights)
        )

    def _replica_evaluation(self, images, labels, weights):
        logits, raw = self.predict(images)
        for metric, hits in zip(
            self.evaluation,
            (
                tf.math.in_top_k(labels, logits, 1),
                tf.math.in_top_k(labels, logits, min(5, logits.shape[-1])),
                tf.math.in_top_k(labels, raw, 1),
            ),
            strict=True,
        ):
            metric.update_state(tf.cast(hits, tf.float32), weights)

    def evaluate(self, batches):
        """Accuracies of averaged and raw weights, as a dict of floats."""
        for metric in self.evaluation:
            metric.reset_state()
        for batch in batches:
            self.evaluation_step(*batch)
        return {
            m.name: float(keras.ops.convert_to_numpy(m.result()))
            for m in self.evaluation
        }


class Sums(NamedTuple):
    """Sums over a micro-batch, as shares of the global batch."""

    loss: tf.Tensor
    hits: tf.Tensor
    gradients: list


def counter(value=0, dtype=tf.int64):
    """A variable that all replicas change alike."""
    return tf.Variable(
        value,
        dtype=dtype,
        trainable=False,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
