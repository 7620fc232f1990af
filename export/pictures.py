"""Which files are pictures."""

# What the served models decode.
ENDINGS = {".jpg", ".jpeg", ".png", ".gif", ".bmp"}


def picture_files(paths):
    """Files, and all picture files in folders, in order.

    Args:
        paths: list of paths of files and folders.

    Returns:
        list of paths.

    Raises:
        ValueError: there are none.
    """
    files = []
    for path in paths:
        if path.is_dir():
            files += sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in ENDINGS
            )
        else:
            files.append(path)
    if not files:
        raise ValueError(
            f"There are no pictures in {', '.join(map(str, paths))}. Expected "
            f"files that end with {', '.join(sorted(ENDINGS))}."
        )
    return files
