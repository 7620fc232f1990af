"""`python -m export verify`"""

from pathlib import Path

from keras_cait.command_line import (
    BatchSize,
    Data,
    DataDir,
    ImageSize,
    Labels,
    MaxUnreadable,
    TrainedModel,
    Variant,
)


def verify(
    exported: list[Path],
    /,
    *,
    model: TrainedModel,
    data: Data,
    data_dir: DataDir = None,
    variant: Variant = None,
    image_size: ImageSize = None,
    labels: Labels = None,
    batch_size: BatchSize = 64,
    max_unreadable: MaxUnreadable = 0,
    output: Path | None = None,
) -> None:
    """Compare exported files with the Keras model they were made from.

    Prints accuracy on the validation images, agreement with the Keras model,
    latency and size.

    Args:
        exported: .tflite files, SavedModels, or folders of served models.
        output: JSON file for the results. It must not exist.
    """
    import json
    from dataclasses import asdict

    from export.check_saved_model import check_saved_model, checks_table
    from export.exportable import load_exportable
    from export.verify import (
        compare,
        encoded_sample,
        exported_path,
        results_table,
    )
    from keras_cait.command_line import require_tensorflow
    from keras_cait.datasets import open_dataset, split_of
    from keras_cait.decoding.readable import readable
    from keras_cait.files import new_output, new_path

    require_tensorflow()
    if output:
        new_path(output)
    paths = [exported_path(path) for path in exported]
    dataset = open_dataset(
        data, "validation", data_dir, **split_of(model, data)
    )
    dataset = readable(dataset, max_unreadable)
    trained, names = load_exportable(model, variant, image_size, labels)
    rows = compare(trained, names, paths, dataset, batch_size)
    print(results_table(rows))
    if dataset.unreadable:
        print(f"{len(dataset.unreadable)} unreadable images are left out.")
    for path in paths:
        if path.is_dir():
            images = encoded_sample(dataset, 8)
            checks = check_saved_model(path, trained, images)
            print(f"\n{path}\n{checks_table(checks)}")
    if output:
        with new_output(output) as unfinished:
            records = [asdict(row) for row in rows]
            unfinished.write_text(json.dumps(records, indent=2) + "\n")
        print(f"Wrote {output}")
