"""Optimizers, the learning-rate schedule, and which weights learn and decay."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import keras
from keras import ops

from keras_cait.conversion import layer_of
from keras_cait.layers import is_number

Trainable = Literal["all", "attention", "head"]


@keras.saving.register_keras_serializable(package="keras_cait")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a cosine over all steps.

    As in timm, the cosine starts at step 0, where the warm-up hides it; Keras'
    `CosineDecay` starts it after the warm-up. The reference updates the rate
    after each epoch, so its first two epochs share one rate. Here the rate
    changes at every step and equals the reference's at the end of each epoch.

    Args:
        peak: rate of the cosine at step 0.
        steps: length of the cosine: epochs times batches per epoch.
        warmup_steps: length of the warm-up.
        start: rate at the first step of the warm-up.
        floor: rate at the end, and after it. The defaults are DeiT's. Neither
            `start` nor `floor` is above `peak`: the rate never rises after
            the warm-up.

    Raises:
        ValueError: `steps` is not positive, or `warmup_steps` negative.

    Example:
    >>> rate = WarmupCosine(1e-3, steps=4000, warmup_steps=50)
    >>> [round(float(rate(step)), 6) for step in (0, 50, 4000)]
    [1e-06, 0.001, 1e-05]

    Reference: timm's cosine schedule with `t_in_epochs`, which DeiT uses.
    """

    def __init__(
        self,
        peak: float,
        steps: int,
        warmup_steps: float = 0,
        start: float = 1e-6,
        floor: float = 1e-5,
    ):
        if not (steps > 0 and warmup_steps >= 0):
            raise ValueError(
                "steps must be greater than 0, and warmup_steps 0 or more. "
                f"Received: steps={steps}, warmup_steps={warmup_steps}. Count "
                "batches: epochs * len(dataset)."
            )
        self.peak = peak
        self.steps = steps
        self.warmup_steps = warmup_steps
        self.start = min(start, peak)
        self.floor = min(floor, peak)

    def __call__(self, step: Any) -> Any:
        step = ops.cast(step, "float32")
        share = ops.minimum(step / self.steps, 1.0)
        cosine = 0.5 * (1.0 + ops.cos(math.pi * share))
        rate = self.floor + (self.peak - self.floor) * cosine
        if self.warmup_steps == 0:
            return rate
        slope = (self.peak - self.start) / self.warmup_steps
        return ops.where(
            step < self.warmup_steps, self.start + slope * step, rate
        )

    def get_config(self) -> dict[str, Any]:
        return dict(vars(self))


class Optimizer(keras.optimizers.Optimizer):
    """What `AdamW` and `SGD` share: a rate and a weight decay per variable.

    Args:
        layer_decay: rate of a layer over that of the next one, in (0, 1].
        arguments: those of the Keras optimizer.

    Raises:
        ValueError: `layer_decay` or the weight decay is out of range.
    """

    def __init__(self, *, layer_decay: float, **arguments: Any):
        super().__init__(**arguments)
        decay = self.weight_decay or 0.0
        if not (is_number(decay) and decay >= 0):
            raise ValueError(
                "weight_decay must be at least 0. Received: "
                f"weight_decay={decay!r}."
            )
        if not (is_number(layer_decay) and 0 < layer_decay <= 1):
            raise ValueError(
                "layer_decay must be greater than 0 and at most 1. Received: "
                f"layer_decay={layer_decay!r}. Use 1 for equal learning rates, "
                "or for example 0.75."
            )
        self.layer_decay = layer_decay

    def build(self, variables: Sequence[keras.Variable]) -> None:
        if self.built:
            return
        super().build(variables)
        decay = self.weight_decay or 0.0
        self.decays = [
            decay if decays(v) and self._use_weight_decay(v) else 0.0
            for v in variables
        ]
        self.rate_factors = rate_factors(variables, self.layer_decay)

    def _apply_weight_decay(self, variables):
        """Nothing here: `update_step` knows the rate of each variable."""

    def _clip_gradients(self, grads):
        return super()._clip_gradients(self._summed(grads))

    def _summed(self, gradients: list[Any]) -> list[Any]:
        """The gradients of the whole batch, of which each replica has a part.

        Keras clips the parts and sums them afterwards, which is another
        gradient.
        """
        if keras.backend.backend() != "tensorflow":
            return gradients
        pairs = [(gradient, None) for gradient in gradients]
        return [g for g, _ in super()._all_reduce_sum_gradients(pairs)]

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return list(grads_and_vars)

    def finalize_variable_values(self, var_list):
        super().finalize_variable_values(var_list)
        if self.use_ema:
            # Weights and their averages share memory on JAX, whose next step
            # would destroy both.
            for variable in var_list:
                variable.assign(ops.copy(variable))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "layer_decay": self.layer_decay}


@keras.saving.register_keras_serializable(package="keras_cait")
class AdamW(Optimizer, keras.optimizers.Adam):
    """Adam with decoupled weight decay, as in its paper and in PyTorch.

    Only kernels decay, as in the official code: gammas, biases, norms, class
    token and position embeddings never do. With several replicas, the gradient
    of the whole batch is clipped.

    Keras adds epsilon before the bias correction, which makes it 30 times
    larger at first: too large for gammas, whose gradients are just as small.

    Args:
        learning_rate: float or schedule. The learning rate of the head.
        weight_decay: each step subtracts `learning_rate * weight_decay` of the
            kernels.
        beta_1: momentum of the gradient's mean.
        beta_2: momentum of the squared gradient's mean.
        epsilon: float added to the root of the squared gradient's mean.
        layer_decay: float in (0, 1]. Learning rate of a layer over that of the
            next one: the head, then class attention, then the self-attention
            blocks from last to first, then patches and positions.
        kwargs: other arguments of `keras.optimizers.Adam`, such as
            `global_clipnorm`, except `amsgrad`.

    Raises:
        ValueError: an argument is out of range.

    Example:
    >>> model = CaiT(48, 3, 1, input_shape=(32, 32, 3))
    >>> model.compile(AdamW(1e-4, layer_decay=0.75, global_clipnorm=1.0))

    Reference: [Loshchilov and Hutter, 2019](https://arxiv.org/abs/1711.05101);
    layer-wise rates: [Bao et al., 2022](https://arxiv.org/abs/2106.08254).
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        weight_decay: float = 0.05,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        layer_decay: float = 1.0,
        **kwargs: Any,
    ):
        for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not (is_number(beta) and 0 <= beta < 1):
                raise ValueError(
                    f"{name} must be at least 0 and less than 1. Received: "
                    f"{name}={beta!r}."
                )
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            layer_decay=layer_decay,
            amsgrad=False,
            **kwargs,
        )

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        """Computes what all variables share once, not once for each."""
        dtype = trainable_variables[0].dtype
        # bfloat16 would round beta_2 to 1.
        precise = keras.backend.result_type(dtype, "float32")
        step = ops.cast(self.iterations + 1, precise)
        corrections = [
            ops.cast(1 - beta**step, dtype)
            for beta in (self.beta_1, self.beta_2)
        ]
        super()._backend_update_step(
            grads, trainable_variables, (learning_rate, *corrections)
        )

    def update_step(self, gradient, variable, learning_rate):
        learning_rate, correction_1, correction_2 = learning_rate
        index = self._get_variable_index(variable)
        rate = learning_rate * self.rate_factors[index]
        if self.decays[index]:
            decay = ops.cast(rate * self.decays[index], variable.dtype)
            variable.assign_sub(decay * variable)
        first, second = self._momentums[index], self._velocities[index]
        rate = ops.cast(rate, variable.dtype)
        first.assign_add((1 - self.beta_1) * (gradient - first))
        second.assign_add((1 - self.beta_2) * (gradient * gradient - second))
        scale = ops.sqrt(second / correction_2) + self.epsilon
        variable.assign_sub(rate / correction_1 * first / scale)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["amsgrad"]
        return config


@keras.saving.register_keras_serializable(package="keras_cait")
class SGD(Optimizer, keras.optimizers.SGD):
    """SGD with Nesterov momentum and L2 decay, as in timm and PyTorch.

    The decay is part of the gradient, so momentum makes it `1 / (1 - momentum)`
    times stronger than a decoupled one. Momentum sums gradients, not steps: a
    new learning rate applies to all of it. Only kernels decay, and gradients
    are clipped, as by `AdamW`.

    Args:
        learning_rate: float or schedule. The learning rate of the head.
        momentum: float in [0, 1].
        nesterov: whether the step looks ahead by one momentum.
        weight_decay: share of the kernels that is added to their gradients.
        layer_decay: as in `AdamW`.
        kwargs: other arguments of `keras.optimizers.SGD`, such as
            `global_clipnorm`.

    Raises:
        ValueError: an argument is out of range.

    Example:
    >>> model = CaiT(48, 3, 1, input_shape=(32, 32, 3))
    >>> model.compile(SGD(0.01), "sparse_categorical_crossentropy")

    Reference: `torch.optim.SGD`; timm's `sgd` has `nesterov=True`.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 1e-4,
        layer_decay: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            **kwargs,
        )

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        rate = ops.cast(
            learning_rate * self.rate_factors[index], variable.dtype
        )
        step = gradient
        if self.decays[index]:
            step = gradient = gradient + self.decays[index] * variable
        if self.momentum:
            momentum = self.momentums[index]
            momentum.assign(self.momentum * momentum + gradient)
            step = ops.convert_to_tensor(momentum)
            if self.nesterov:
                step = gradient + self.momentum * step
        variable.assign_sub(rate * step)


def decays(variable: keras.Variable) -> bool:
    """Whether weight decay applies to a variable: only to kernels."""
    return variable.path.split("/")[-1] == "kernel"


def rate_factors(
    variables: Sequence[keras.Variable], layer_decay: float
) -> list[float]:
    """The learning rate of each variable over that of the head.

    Args:
        variables: trainable variables of `CaiT` or `ViT`. Variables of layers
            that these do not have, such as those of another head, have the
            rate of the head. The last self-attention block among them counts
            as the model's last.
        layer_decay: rate of a layer over that of the next one, in (0, 1].

    Example:
    >>> model = CaiT(48, 3, 1, input_shape=(32, 32, 3))
    >>> factors = optimizers.rate_factors(model.trainable_variables, 0.5)
    >>> factors[0], factors[-1]
    (0.03125, 1.0)
    """
    layers = [layer_of(variable.path) or "head" for variable in variables]
    numbers = {
        layer: int(layer.removeprefix("self_attention_block_"))
        for layer in layers
        if layer.startswith("self_attention_block_")
    }
    depth = 1 + max(numbers.values(), default=-1)

    def layers_below_head(layer: str) -> int:
        if layer in numbers:
            return depth + 1 - numbers[layer]
        if layer in ("patch_embedding", "position_embedding"):
            return depth + 2
        return 0 if layer == "head" else 1

    return [layer_decay ** layers_below_head(layer) for layer in layers]


def freeze(model: keras.Model, trainable: Trainable) -> None:
    """Freezes all weights of a model except those that learn.

    Call `compile` afterwards: as always in Keras, a compiled model trains what
    was trainable when it was compiled. A `.keras` file of a CaiT keeps what is
    frozen. That of another model made of its layers keeps only which layers
    are frozen as a whole: after `"attention"`, call `freeze` again. Thaw a
    model around a CaiT with `"all"`: Keras on TensorFlow ignores its
    `trainable = True` if it is frozen only in part.

    Args:
        model: `CaiT`, or a model that contains its layers. It is changed in
            place.
        trainable: what learns: `"head"`, with any layer that CaiT itself does
            not have; `"attention"`, the attention layers and the head (Touvron
            et al., 2022, arXiv 2203.09795); or `"all"`, which freezes nothing.

    Raises:
        ValueError: `trainable` is unknown, or the model is not built, has no
            head or no layers of CaiT.

    Example:
    >>> model = CaiT(48, 3, 1, input_shape=(32, 32, 3))
    >>> freeze(model, trainable="head")
    >>> [variable.path for variable in model.trainable_variables]
    ['head/kernel', 'head/bias']
    """
    if trainable not in get_args(Trainable):
        raise ValueError(
            'trainable must be "all", "attention" or "head". Received: '
            f"trainable={trainable!r}."
        )
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} has no weights yet. Start it with "
            "keras.Input, or call it on images before you freeze it."
        )
    frozen = [
        weight
        for weight in model.weights
        if trainable != "all"
        and layer_of(weight.path) not in (None, "head")
        and not (trainable == "attention" and "/attention/" in weight.path)
    ]
    if len(frozen) == len(model.weights):
        raise ValueError(
            f"The model {model.name!r} has no layer named head, nor any other "
            f"with weights. Received: trainable={trainable!r}. Add a head, "
            "and call the model on images if it is a subclass of keras.Model; "
            "or set model.trainable = False to freeze all of it."
        )
    if trainable != "all" and not frozen:
        raise ValueError(
            f"The model {model.name!r} has no layers of CaiT, which are "
            "recognized by name. Set layer.trainable = False instead."
        )
    # What never learns, such as the means of a BatchNormalization, stays so.
    # To assign True where it is True already has no effect on the weights.
    for value in (False, True):
        for layer in (model, *model.layers):
            layer.trainable = value
    freeze_weights(model, frozen)


def freeze_weights(
    model: keras.Model, weights: Iterable[keras.Variable]
) -> None:
    """Freezes weights of a model, and all layers that have no other weights.

    If only the weights were frozen, TensorFlow would ignore
    `layer.trainable = True`, because it already is.

    Example:
    >>> model = CaiT(48, 3, 1, input_shape=(32, 32, 3))
    >>> optimizers.freeze_weights(model, model.get_layer("norm").weights)
    >>> model.get_layer("norm").trainable
    False
    """
    for weight in weights:
        weight.trainable = False
    for layer in model._flatten_layers():
        if layer.weights and not layer.trainable_weights:
            layer.trainable = False
