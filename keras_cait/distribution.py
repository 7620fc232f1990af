"""How the devices of `keras.distribution` share a model."""

import keras


def layout_map(
    device_mesh: keras.distribution.DeviceMesh, model_axis: str = "model"
) -> keras.distribution.LayoutMap:
    """Shards the large kernels of `CaiT` across devices: model parallelism.

    For models that are too large for one device, such as M48. Optimizer moments
    are sharded as their kernels are; every device has all other weights. Keras
    has model parallelism on JAX. Set the distribution first, then build the
    model.

    Args:
        device_mesh: mesh of the devices.
        model_axis: its axis along which kernels are sharded. Its size divides
            `embed_dim`.

    Returns:
        The argument `layout_map` of `keras.distribution.ModelParallel`.

    Raises:
        ValueError: the mesh has no such axis.

    Example:
    >>> mesh = keras.distribution.DeviceMesh((1, 1), ["batch", "model"], ["0"])
    >>> layout_map(mesh)["self_attention_block_0/mlp/fc1/kernel"].axes
    (None, 'model')
    """
    if model_axis not in device_mesh.axis_names:
        raise ValueError(
            "device_mesh needs an axis along which kernels are sharded. "
            f"Received: model_axis={model_axis!r} for a mesh with the axes "
            f"{device_mesh.axis_names}."
        )
    layouts = keras.distribution.LayoutMap(device_mesh)
    # By columns, then by rows: between the two, each device has some of the
    # heads or hidden features of all tokens.
    columns = r".*/(qkv|query|key|value|fc1)"
    layouts[f"{columns}/kernel"] = (None, model_axis)
    layouts[f"{columns}/bias"] = (model_axis,)
    layouts[r".*/(attention/proj|fc2)/kernel"] = (model_axis, None)
    return layouts
